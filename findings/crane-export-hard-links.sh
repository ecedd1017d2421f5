#!/usr/bin/env bash
# crane 0.20.6 (go-containerregistry). `crane export` and `crane flatten` go through the layers from the top
# and keep the first entry of each name, hard links as they are. Where an upper layer replaces one name of a
# file with several, the links of the lower layer now point to the new file: the other names get its
# content, without an error. Where the upper layer deletes that name, the archive has links without a
# target, and tar fails. On a node the other names keep what they had, as hard links are to files and not to
# names. Debian's perl and gzip, for example, come with hard links. Needs Go 1.24 or newer.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
GOBIN=$dir go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=127.0.0.1:$port
"$dir/crane" registry serve --address "$at" >"$dir/log" 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done
crane() { "$dir/crane" "$@" 2>>"$dir/log"; }
cd "$dir"
mkdir base upper exported
echo old >base/tool
ln base/tool base/tool-1.0
echo new >upper/tool
tar -cf base.tar -C base tool tool-1.0
tar -cf upper.tar -C upper tool
crane append --oci-empty-base -f base.tar -f upper.tar -t "$at/app:1" >/dev/null
crane export "$at/app:1" - | tar -x -C exported
crane flatten -t "$at/app:flat" "$at/app:1" >/dev/null
flat=$(crane export "$at/app:flat" - | tar -xO tool 2>/dev/null)
links=$(crane export "$at/app:flat" - | tar -tv | grep -c 'tool-1.0 link to tool' || true)
echo "tool-1.0 is \"$(cat base/tool-1.0)\" in the image, and exported \"$(cat exported/tool-1.0)\""
echo "flattened: tool is \"$flat\", and tool-1.0 a hard link to it: $links"

mkdir deleted
: >deleted/.wh.tool
tar -cf deleted.tar -C deleted .wh.tool
crane append --oci-empty-base -f base.tar -f deleted.tar -t "$at/app:2" >/dev/null
status=0
crane export "$at/app:2" - | tar -x -C deleted 2>err || status=$?
echo "with tool deleted: tar exits with $status, $(head -1 err)"
[ "$(cat exported/tool-1.0) $flat $links $status" = "new new 1 2" ] || { echo "this has changed" >&2; exit 1; }
