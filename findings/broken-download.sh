#!/usr/bin/env bash
# crane 0.20.6, oras 1.3.6, regctl 0.11.7. A connection that breaks in the middle of a layer ends `crane
# pull` and `oras copy` at once ("unexpected EOF"), whatever was downloaded, though the registry takes
# ranges: they try requests again, not what broke off later. regctl asks for the rest and is done. (So does
# containers/image 5.42.1, of current skopeo and podman; skopeo 1.9.3 gave up here.) A large layer over a
# bad line never comes through with the first two. Needs Go 1.25 or newer.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
export GOBIN=$dir REGCTL_CONFIG=$dir/regctl.json
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install github.com/regclient/regclient/cmd/regctl@v0.11.7 2>/dev/null
go install oras.land/oras/cmd/oras@v1.3.6 2>/dev/null
cat >"$dir/registry.py" <<'PYTHON'
import hashlib
import http.server
import json
import random
import re

OCI = "application/vnd.oci.image"
LAYER = random.Random(1).randbytes(1_000_000)
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["%s"]}}'
CONFIG = CONFIG.replace(b"%s", f"sha256:{hashlib.sha256(LAYER).hexdigest()}".encode())


def describe(kind, data):
    return {"mediaType": f"{OCI}.{kind}", "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}


config, layer = describe("config.v1+json", CONFIG), describe("layer.v1.tar", LAYER)
MANIFEST = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": [layer]}
MANIFEST = json.dumps(MANIFEST).encode()
BLOBS = {config["digest"]: CONFIG, layer["digest"]: LAYER}
asked = {}


class Registry(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def answer(self, status, body, sent=None, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])

    def do_GET(self):
        blob = BLOBS.get(self.path.split("/")[-1])
        if "/manifests/" in self.path:
            self.answer(200, MANIFEST, Content_Type=f"{OCI}.manifest.v1+json")
        elif blob is None:
            self.answer(200, b"{}")
        elif blob is CONFIG:
            self.answer(200, blob)
        else:
            asked[self.path] = asked.get(self.path, 0) + 1
            print(self.path.split("/")[2], asked[self.path], self.headers["Range"], flush=True)
            start = int(re.match(r"bytes=(\d+)-|", self.headers["Range"] or "")[1] or 0)
            part = {"Content_Range": f"bytes {start}-{len(blob) - 1}/{len(blob)}"} if start else {}
            broken = asked[self.path] == 1
            self.answer(206 if start else 200, blob[start:], 400_000 if broken else None, Accept_Ranges="bytes", **part)
            self.close_connection = broken

    do_HEAD = do_GET


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
print(server.server_address[1], flush=True)
server.serve_forever()
PYTHON
python3 "$dir/registry.py" >"$dir/asked" &
registry=$!
for _ in $(seq 100); do [ -s "$dir/asked" ] && break; sleep 0.1; done
at=127.0.0.1:$(head -1 "$dir/asked")
"$dir/regctl" registry set --tls disabled "$at" 2>>"$dir/log"
seen=
for tool in crane oras regctl; do
    status=0
    case $tool in
    crane) "$dir/crane" pull --format oci "$at/crane:1" "$dir/with-crane" ;;
    oras) "$dir/oras" copy --from-plain-http --to-oci-layout "$at/oras:1" "$dir/with-oras:1" ;;
    regctl) "$dir/regctl" image copy "$at/regctl:1" "ocidir://$dir/with-regctl:1" ;;
    esac >"$dir/out" 2>&1 || status=$?
    echo "$tool: exit $status $(grep -o 'unexpected EOF' "$dir/out" | head -1)"
    seen+="$tool $status "
done
sed -n 's/^regctl 2/regctl asked for/p' "$dir/asked"
[ "$seen" = "crane 1 oras 1 regctl 0 " ] || { echo "this has changed" >&2; exit 1; }
