#!/usr/bin/env bash
# oras-py 0.2.43 with requests 2.34.2. A registry whose host has an entry in ~/.netrc, as hosts with git and
# a registry often have, cannot be read from, though everybody may read there and the registry gives a token
# to everybody: requests puts the name and the password of .netrc into each request in the place of the
# token that oras-py set as a header. The token is fetched and never sent, and the error is 401. curl reads
# .netrc only when it is told to, Docker's tools never do. Needs Python.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check oras==0.2.43 requests==2.34.2
"$dir/venv/bin/python" - "$dir" <<'PYTHON'
import http.server
import json
import os
import sys
import threading
from pathlib import Path

import oras.client

MANIFEST = json.dumps({
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    },
    "layers": [],
}).encode()
asked = []


class Registry(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        scheme = (self.headers["Authorization"] or "none").partition(" ")[0]
        asked.append(f"{self.path.partition('?')[0]} ({scheme})")
        if self.path.startswith("/token"):
            self.answer(200, b'{"token": "for-everybody"}')
        elif self.headers["Authorization"] == "Bearer for-everybody":
            self.answer(200, MANIFEST)
        else:
            realm = f"http://{self.headers['Host']}/token"
            self.answer(401, b"{}", f'Bearer realm="{realm}",service="example",scope="repository:app:pull"')

    def answer(self, status, body, challenge=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if challenge:
            self.send_header("WWW-Authenticate", challenge)
        self.end_headers()
        self.wfile.write(body)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
threading.Thread(target=server.serve_forever, daemon=True).start()
at = f"127.0.0.1:{server.server_address[1]}"
netrc = Path(sys.argv[1], "netrc")
os.environ["NETRC"] = str(netrc)
os.environ["HOME"] = os.environ["DOCKER_CONFIG"] = sys.argv[1]
seen = []
for what, entries in (("without an entry", ""), ("with one", "machine 127.0.0.1 login name password word\n")):
    netrc.write_text(entries)
    asked.clear()
    try:
        oras.client.OrasClient(hostname=at, insecure=True).get_manifest(f"{at}/app:1")
        seen.append("read")
    except Exception as error:
        seen.append(f"{type(error).__name__}: {error}")
    print(f"{what}: {seen[-1]}\n  asked {', '.join(asked)}")
assert seen[0] == "read" and seen[1].endswith("Unauthorized"), "this has changed"
assert all("(Basic)" in request for request in asked) and len(asked) == 3, "this has changed"
PYTHON
