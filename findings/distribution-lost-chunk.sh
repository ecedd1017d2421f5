#!/usr/bin/env bash
# CNCF distribution 2.8.2 (docker-registry of Debian 12). Whoever uploads a blob in chunks and gets no
# answer to one of them asks the registry with a GET how far it came, says the distribution specification,
# and goes on from there. Here the URL of an upload carries the offset (in _state), and a request with
# another offset than the blob's is told that the upload is invalid (404), the GET as well. Only the answer
# that got lost had the URL with the right offset. The upload is there, and nobody can go on with it or ask
# for it: the blob has to be sent again from its start. (3.1.2 answers the GET.) Needs apt with Debian 12's
# packages.
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

ask() { # METHOD URL and more arguments of curl; prints status, Range and body
    curl -s -o body -D headers -X "$@" -w '%{http_code}'
    echo " $(tr -d '\r' <headers | sed -n 's/^Range: /Range: /p') $(cat body)"
}
location() { tr -d '\r' <headers | sed -n 's/^Location: //p'; }
chunk=(-H 'Content-Type: application/octet-stream' -H 'Content-Range: 0-2' --data-binary abc)
usr/bin/docker-registry --version
echo "POST: $(ask POST "http://127.0.0.1:$port/v2/app/blobs/uploads/")"
known=$(location)
echo "PATCH of bytes 0-2, whose answer gets lost: $(ask PATCH "$known" "${chunk[@]}")"
lost=$(location)
where=$(ask GET "$known")
again=$(ask PATCH "$known" "${chunk[@]}")
only=$(ask GET "$lost")
echo "GET of the URL that is known: $where"
echo "PATCH of the same bytes again: $again"
echo "GET of the URL in the lost answer: $only"
[[ "$where$again" = 404*BLOB_UPLOAD_INVALID*404*BLOB_UPLOAD_INVALID* && "$only" = "204 Range: 0-2 " ]] || {
    echo "this has changed" >&2
    exit 1
}
