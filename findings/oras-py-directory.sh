#!/usr/bin/env bash
# oras-py 0.2.43 and oras 1.3.6. A directory that the Python library pushed is pulled by the command as one
# file with the directory's name, a gzipped archive, and exit status 0. Both send the directory as an
# archive; the command marks it with the annotation io.deis.oras.content.unpack and unpacks only what is
# marked, the library sets no mark and unpacks by the media type. The other way round it works. Needs Go
# 1.25 or newer.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
export GOBIN=$dir/bin
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install oras.land/oras/cmd/oras@v1.3.6 2>/dev/null
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check oras==0.2.43
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=127.0.0.1:$port
bin/crane registry serve --address "$at" >log 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done
mkdir -p model from-library/by-library from-library/by-command from-command/by-library from-command/by-command
echo text >model/weights
cat >client.py <<'PYTHON'
import sys

import oras.client

what, target, outdir = sys.argv[1:]
client = oras.client.OrasClient(hostname=target.partition("/")[0], insecure=True)
if what == "push":
    client.push(target=target, files=["model"], disable_path_validation=True)
else:
    client.pull(target=target, outdir=outdir)
PYTHON
venv/bin/python client.py push "$at/model:from-library" . >>log
bin/oras push --plain-http "$at/model:from-command" model >>log
seen=
for from in from-library from-command; do
    venv/bin/python client.py pull "$at/model:$from" $from/by-library >>log
    bin/oras pull --plain-http -o $from/by-command "$at/model:$from" >>log
    for by in by-library by-command; do
        [ -d $from/$by/model ] && what=directory || what=file
        echo "pushed $from, pulled $by: model is a $what"
        seen+="$what "
    done
done
gzip -dc from-library/by-command/model | tar -t
[ "$seen" = "directory file directory directory " ] || { echo "this has changed" >&2; exit 1; }
