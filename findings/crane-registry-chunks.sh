#!/usr/bin/env bash
# crane 0.20.6 as a registry (`crane registry serve`, which many tests use), oras-py 0.2.43 and regctl
# 0.11.7. To a chunk of an upload (PATCH) it answers 204 No Content, where the distribution specification
# has 202 Accepted. crane itself takes both. oras-py and regctl do not, and fail: uploads in chunks can not
# be tried out there, and a test that never sends chunks does not notice. Needs Go 1.25 or newer.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
export GOBIN=$dir/bin REGCTL_CONFIG=$dir/regctl.json
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install github.com/regclient/regclient/cmd/regctl@v0.11.7 2>/dev/null
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check oras==0.2.43
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=127.0.0.1:$port
bin/crane registry serve --address "$at" >log 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done
bin/regctl registry set --tls disabled "$at" 2>>log
head -c 3000000 /dev/urandom >data
place=$(curl -sf -D - -X POST "http://$at/v2/app/blobs/uploads/" | tr -d '\r' | sed -n 's/^Location: //p')
chunk=$(curl -s -o /dev/null -w '%{http_code}' -X PATCH --data-binary abc "http://$at$place")
python=$(venv/bin/python - "$at" 2>&1 <<'PYTHON'
import sys

import oras.client

client = oras.client.OrasClient(hostname=sys.argv[1], insecure=True)
try:
    client.push(target=f"{sys.argv[1]}/app:1", files=["data"], do_chunked=True, chunk_size=1_000_000)
    print("pushed")
except ValueError as error:
    print(str(error).rpartition(": ")[2])
PYTHON
)
bin/regctl blob put "$at/app" <data >out 2>&1 || true
regctl=$(sed -n 's/.*\(unexpected http status code\)/\1/p' out)
echo "PATCH: $chunk"
echo "oras-py: $python"
echo "regctl: $regctl"
[ "$chunk, $python, $regctl" = "204, No Content, unexpected http status code: No Content [http 204]" ] || { echo "this has changed" >&2; exit 1; }
