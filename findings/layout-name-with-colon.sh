#!/usr/bin/env bash
# skopeo 1.9.3 (Debian 12), oras 1.3.6 and regctl 0.11.7. The name of an image in an OCI layout may be a
# whole reference, such as example.com/app:1 (image specification, "Pre-Defined Annotation Keys"); skopeo
# takes what is behind the first colon of oci:DIR:example.com/app:1. oras looks for the last colon and takes
# DIR:example.com/app for the folder, regctl refuses the name: neither can reach the image by it. The digest
# helps, DIR@sha256:.... Needs skopeo and Go 1.25 or newer.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
[ "$(skopeo --version)" = "skopeo version 1.9.3" ] || { echo "this is for skopeo 1.9.3" >&2; exit 2; }
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
crane append --oci-empty-base -f layer.tar -t "$at/app:1" >>log
digest=$(crane digest "$at/app:1")
skopeo --insecure-policy copy -q --src-tls-verify=false "docker://$at/app:1" oci:layout:example.com/app:1 >>log 2>&1
grep -o '"org.opencontainers.image.ref.name":"[^"]*"' layout/index.json
status() { "$@" >out 2>>log && echo "exit 0" || echo "exit $?"; }
skopeo=$(status skopeo inspect --raw oci:layout:example.com/app:1)
oras=$(status bin/oras resolve --oci-layout layout:example.com/app:1)
regctl=$(status bin/regctl image digest ocidir://layout:example.com/app:1)
by_digest="$(status bin/oras resolve --oci-layout "layout@$digest"), $(status bin/regctl image digest "ocidir://layout@$digest")"
echo "skopeo oci:layout:example.com/app:1: $skopeo"
echo "oras layout:example.com/app:1: $oras; regctl ocidir://layout:example.com/app:1: $regctl"
tail -2 log
echo "oras and regctl by digest: $by_digest"
[ "$skopeo, $oras, $regctl, $by_digest" = "exit 0, exit 1, exit 1, exit 0, exit 0" ] || { echo "this has changed" >&2; exit 1; }
