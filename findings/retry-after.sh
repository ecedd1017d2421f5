#!/usr/bin/env bash
# crane 0.20.6, oras 1.3.6, regctl 0.11.7. A registry that is asked too often answers 429 and says in
# Retry-After when to come again. crane does not try again at all. oras comes again after 3 seconds, its
# longest pause, also when it was told 6; where the registry asks for a minute, it asks six times in 15
# seconds and gives up. regctl waits as long as it is told. Needs Go 1.25 or newer.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
export GOBIN=$dir REGCTL_CONFIG=$dir/regctl.json
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install github.com/regclient/regclient/cmd/regctl@v0.11.7 2>/dev/null
go install oras.land/oras/cmd/oras@v1.3.6 2>/dev/null
cat >"$dir/registry.py" <<'PYTHON'
import http.server
import sys
import time

MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}'
asked = {}


class Registry(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        times = asked.setdefault(self.path, [])
        times.append(time.monotonic())
        if "/manifests/" not in self.path:
            self.answer(200, b"{}")
        elif len(times) == 1:
            self.answer(429, b"", Retry_After=6)
        else:
            print(f"{self.path.split('/')[2]} {times[1] - times[0]:.0f}", flush=True)
            self.answer(200, MANIFEST, Content_Type="application/vnd.oci.image.manifest.v1+json")


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
print(server.server_address[1], flush=True)
server.serve_forever()
PYTHON
python3 "$dir/registry.py" >"$dir/times" &
registry=$!
for _ in $(seq 100); do [ -s "$dir/times" ] && break; sleep 0.1; done
at=127.0.0.1:$(head -1 "$dir/times")
"$dir/regctl" registry set --tls disabled "$at" 2>>"$dir/log"
seen=
for tool in crane oras regctl; do
    status=0
    case $tool in
    crane) "$dir/crane" manifest "$at/crane:1" ;;
    oras) "$dir/oras" manifest fetch --plain-http "$at/oras:1" ;;
    regctl) "$dir/regctl" manifest get --format raw-body "$at/regctl:1" ;;
    esac >>"$dir/log" 2>&1 || status=$?
    waited=$(sed -n "s/^$tool //p" "$dir/times")
    echo "$tool, told to wait 6 seconds: exit $status, came again after ${waited:-(never)} seconds"
    seen+="$tool $status ${waited:-never} "
done
[ "$seen" = "crane 1 never oras 0 3 regctl 0 6 " ] || { echo "this has changed" >&2; exit 1; }
