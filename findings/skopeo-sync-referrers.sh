#!/usr/bin/env bash
# skopeo 1.9.3 (Debian 12; its library at 5.42.1, which newer ones have, does the same) and oras 1.3.6.
# Where a registry has no Referrers API, what refers to an image (signatures, SBOMs, SOCI indexes v1) is
# listed in an OCI index under the tag sha256-DIGEST. `skopeo sync` takes that tag for an image of several
# platforms and copies one of them: the first referrer, since none names a platform. In the mirror the tag
# is that referrer and no list: the others are missing, and clients find nothing, not even the first.
# `--all` copies the list; skopeo 1.9.3 drops the artifact types from it, and who asks for one type finds
# nothing. Exit status 0 each time. Needs skopeo, Go 1.25 or newer, and apt with Debian 12's packages.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
skopeo --version
[ "$(skopeo --version)" = "skopeo version 1.9.3" ] || { echo "this is for skopeo 1.9.3" >&2; exit 2; }
export GOBIN=$dir/bin
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install oras.land/oras/cmd/oras@v1.3.6 2>/dev/null
apt-get download docker-registry=2.8.2+ds1-1 >log 2>&1 || { echo "no docker-registry 2.8.2+ds1-1 here" >&2; exit 2; }
dpkg-deb -x docker-registry_*.deb .
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=127.0.0.1:$port
printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: $dir/data}}" "http: {addr: '$at'}" >config.yml
usr/bin/docker-registry serve config.yml >>log 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done

echo hello >hello
tar -cf layer.tar hello
bin/crane append --oci-empty-base -f layer.tar -t "$at/app:1" >>log 2>&1
for kind in signature sbom; do
    bin/oras attach --plain-http --artifact-type "application/vnd.example.$kind" "$at/app:1" hello >>log
done
sync() { skopeo --insecure-policy sync --src-tls-verify=false --dest-tls-verify=false --src docker --dest docker "$@" >>log 2>&1; }
sync "$at/app" "$at/mirror"
sync --all "$at/app" "$at/mirror-all"
found() { # REPOSITORY and arguments of oras; prints how many referrers it finds
    bin/oras discover --plain-http --format json "${@:2}" "$at/$1:1" | python3 -c 'import json, sys; print(len(json.load(sys.stdin).get("referrers") or []))'
}
media() { bin/crane manifest "$at/$1:$tag" | python3 -c 'import json, sys; print(json.load(sys.stdin)["mediaType"])'; }
tag=$(bin/crane digest "$at/app:1" | tr : -)
seen=
for where in app mirror/app mirror-all/app; do
    any=$(found $where) sboms=$(found $where --artifact-type application/vnd.example.sbom)
    echo "$where: $any referrers, $sboms of them SBOMs; the tag is $(media $where)"
    seen+="$any $sboms "
done
[ "$seen" = "2 1 0 0 2 0 " ] || { echo "this has changed" >&2; exit 1; }
