#!/usr/bin/env bash
# CNCF distribution 3.1.2 as a pull-through cache (2.8.2 does the same). The first request for a part of a
# blob is answered with 200 and the whole blob, whatever its Range header says; only from then on there are
# parts (206). The registry behind the cache gives parts at once. So whoever reads an image lazily through
# such a mirror downloads each layer whole at the first byte, and a client that insists on 206 fails once
# and works when somebody looks at it. Needs Go 1.25 or newer.
set -euo pipefail
dir=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null; wait || true; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
GOBIN=$dir go install github.com/distribution/distribution/v3/cmd/registry@v3.1.2 2>/dev/null
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
serve() { # NAME PORT and more lines of configuration
    printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: $dir/$1}}" "http: {addr: 127.0.0.1:$2}" \
        "${@:3}" >"$dir/$1.yml"
    "$dir/registry" serve "$dir/$1.yml" >"$dir/$1.log" 2>&1 &
    pids="$pids $!"
    for _ in $(seq 100); do curl -sf "http://127.0.0.1:$2/v2/" >/dev/null && return; sleep 0.1; done
    cat "$dir/$1.log" >&2
    return 1
}
origin=$(free)
serve origin "$origin"
cache=$(free)
serve cache "$cache" "proxy: {remoteurl: 'http://127.0.0.1:$origin'}"

head -c 5000000 /dev/urandom >"$dir/blob"
blob=sha256:$(sha256sum "$dir/blob" | cut -d' ' -f1)
place=$(curl -sf -D - -X POST "http://127.0.0.1:$origin/v2/app/blobs/uploads/" | tr -d '\r' | sed -n 's/^Location: //p')
curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$dir/blob" "$place&digest=$blob"

part() { curl -s -o /dev/null -w '%{http_code} %{size_download}' -r 1000-1009 "http://127.0.0.1:$1/v2/app/blobs/$blob"; }
"$dir/registry" --version
direct=$(part "$origin") first=$(part "$cache")
for _ in $(seq 50); do second=$(part "$cache"); [ "${second%% *}" = 206 ] && break; sleep 0.1; done
echo "ten bytes of 5000000, from the registry: $direct"
echo "through the cache, first request:        $first"
echo "through the cache, later:                $second"
[ "$direct, $first, $second" = "206 10, 200 5000000, 206 10" ] || { echo "this has changed" >&2; exit 1; }
