#!/usr/bin/env bash
# CNCF distribution 2.8.2 (docker-registry of Debian 12; 3.1.2 does the same) and curl. The upload of a blob
# by `curl -X PUT --data-binary @FILE URL` fails with "provided digest did not match uploaded content",
# whatever the digest: curl says application/x-www-form-urlencoded where no type is given, and the registry
# reads such a body as a form to look for its parameters before it takes the rest, which is nothing. The
# message leads astray; a Content-Type helps. Needs apt with Debian 12's packages.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download docker-registry=2.8.2+ds1-1 >log 2>&1 || { echo "no docker-registry 2.8.2+ds1-1 here" >&2; exit 2; }
dpkg-deb -x docker-registry_*.deb .
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: $dir/data}}" "http: {addr: 127.0.0.1:$port}" >config.yml
usr/bin/docker-registry serve config.yml >>log 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/v2/" >/dev/null && break; sleep 0.1; done
usr/bin/docker-registry --version
echo hello >blob
upload() { # more arguments of curl
    local place
    place=$(curl -sf -D - -X POST "http://127.0.0.1:$port/v2/app/blobs/uploads/" | tr -d '\r' | sed -n 's/^Location: //p')
    curl -s -w '%{http_code}' -X PUT --data-binary @blob "$@" "$place&digest=sha256:$(sha256sum blob | cut -d' ' -f1)"
}
plain=$(upload) typed=$(upload -H 'Content-Type: application/octet-stream')
echo "without a type: $plain"
echo "with one: $typed"
[[ "$plain" = *DIGEST_INVALID*400 && "$typed" = 201 ]] || { echo "this has changed" >&2; exit 1; }
