#!/usr/bin/env bash
# runc 1.5.3. `runc run` exits with the program's status, and with 1 where the program is absent or may not
# be executed, for which docker and podman give 127 and 126; a script whose interpreter is absent gives 255.
# So 1 may be the program's own answer or a container that never ran, and only the text on stderr tells
# which. Needs Go 1.25 or newer, a C compiler and user namespaces.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
export GOBIN=$dir
go install github.com/opencontainers/runc@v1.5.3 2>/dev/null
mkdir -p bundle/rootfs
cat >seven.go <<'GO'
package main

import "os"

func main() { os.Exit(7) }
GO
CGO_ENABLED=0 go build -o bundle/rootfs/seven seven.go
printf '#!/absent\n' >bundle/rootfs/script
chmod +x bundle/rootfs/script
echo text >bundle/rootfs/text
cat >inside.sh <<'INSIDE'
cd bundle
../runc spec
for program in /seven /absent /text /script; do
    python3 - "$program" <<'PYTHON'
import json
import sys

with open("config.json") as file:
    spec = json.load(file)
spec["process"].update(args=sys.argv[1:], terminal=False)
spec["linux"].pop("resources", None)
kept = {"pid", "ipc", "uts", "mount"}
spec["linux"]["namespaces"] = [one for one in spec["linux"]["namespaces"] if one["type"] in kept]
spec["mounts"] = [one for one in spec["mounts"] if one["destination"] in ("/proc", "/dev")]
with open("config.json", "w") as file:
    json.dump(spec, file)
PYTHON
    status=0
    ../runc --root ../state run example 2>../err || status=$?
    echo "$program $status $(sed 's/.*msg="//; s/^exec //' ../err)"
done
INSIDE
./runc --version | head -1
unshare --user --map-root-user --mount bash inside.sh >seen
cat seen
[ "$(cut -d' ' -f1,2 seen | paste -sd' ')" = "/seven 7 /absent 1 /text 1 /script 255" ] || { echo "this has changed" >&2; exit 1; }
