#!/usr/bin/env bash
# oras 1.3.6 and crane 0.20.6. `oras copy --to-oci-layout` of one image of two platforms writes three
# entries into the layout's index.json: the image's index, under its tag, and both platforms' manifests,
# without a name. So `crane push` refuses the layout ("layout contains 3 entries"), and `crane push
# --index`, which it advises, pushes index.json as the image: it has another digest, and each platform
# twice. `regctl image copy` writes one entry for the same image, and crane pushes that as it was. Needs Go
# 1.25 or newer.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
export GOBIN=$dir/bin REGCTL_CONFIG=$dir/regctl.json
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install oras.land/oras/cmd/oras@v1.3.6 2>/dev/null
go install github.com/regclient/regclient/cmd/regctl@v0.11.7 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=127.0.0.1:$port
bin/crane registry serve --address "$at" >>log 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done
bin/regctl registry set --tls disabled "$at" 2>>log
crane() { "$dir/bin/crane" "$@" 2>>"$dir/log"; }
echo hello >hello
tar -cf layer.tar hello
for architecture in amd64 arm64; do
    crane append --oci-empty-base -f layer.tar -t "$at/app:$architecture" >>log
    crane mutate --set-platform "linux/$architecture" -t "$at/app:$architecture" "$at/app:$architecture" >>log
done
crane index append -m "$at/app:amd64" -m "$at/app:arm64" -t "$at/app:1" >>log
image=$(crane digest "$at/app:1")
bin/oras copy --from-plain-http --to-oci-layout "$at/app:1" by-oras:1 >>log 2>&1
bin/regctl image copy "$at/app:1" ocidir://by-regctl:1 >>log 2>&1
entries() { python3 -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["manifests"]))' "$1/index.json"; }
status=0
bin/crane push by-oras "$at/to/oras:1" >out 2>&1 || status=$?
echo "layout by oras: $(entries by-oras) entries; crane push exits with $status, $(grep -o 'layout contains.*' out)"
crane push --index by-oras "$at/to/index:1" >>log
crane push by-regctl "$at/to/regctl:1" >>log
pushed=$(crane digest "$at/to/index:1") plain=$(crane digest "$at/to/regctl:1")
echo "the image: ${image:7:12}, pushed with --index: ${pushed:7:12}"
echo "layout by regctl: $(entries by-regctl) entry; pushed: ${plain:7:12}"
[ "$(entries by-oras) $status $(entries by-regctl)" = "3 1 1" ] && [ "$pushed" != "$image" ] && [ "$plain" = "$image" ] || {
    echo "this has changed" >&2
    exit 1
}
