#!/usr/bin/env bash
# crane 0.20.6 (go-containerregistry). `crane export` and `crane flatten` know whiteouts of single names
# only. An opaque whiteout (.wh..wh..opq, image specification, "Whiteouts") is taken for a file called
# ".wh..opq" that is gone: what lower layers have in that directory, and a node does not show, is back in
# the archive. And a name that a layer both whites out and has is lost, though whiteouts apply to lower
# layers only. Layers of overlayfs have opaque whiteouts wherever a directory was removed and made again.
# Needs Go 1.24 or newer.
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
mkdir -p base/cache upper/cache
echo 1 >base/cache/deleted
echo 1 >base/settings
: >upper/cache/.wh..wh..opq
echo 2 >upper/cache/made-again
: >upper/.wh.settings
echo 2 >upper/settings
tar -cf base.tar -C base cache settings
tar -cf upper.tar -C upper cache .wh.settings settings
crane append --oci-empty-base -f base.tar -f upper.tar -t "$at/app:1" >/dev/null
crane flatten -t "$at/app:flat" "$at/app:1" >/dev/null
files() { crane export "$1" - | tar -tv | grep ^- | awk '{print $NF}' | sort | paste -sd' '; }
export=$(files "$at/app:1") flat=$(files "$at/app:flat")
echo "files in the image:  cache/made-again settings"
echo "after crane export:  $export"
echo "after crane flatten: $flat"
[ "$export" = "cache/deleted cache/made-again" ] && [ "$flat" = "$export" ] || { echo "this has changed" >&2; exit 1; }
