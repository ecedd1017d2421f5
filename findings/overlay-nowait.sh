#!/usr/bin/env bash
# Linux (seen on 6.18). preadv2(2) with RWF_NOWAIT reads what is in the page cache, or says EAGAIN where it
# would have to wait for the disk. On overlayfs it is EOPNOTSUPP, also for a file whose bytes were read a
# moment ago, and also where the file system below knows it. A container's root is an overlay, so in it a
# program that asks so before it hands the read to a thread does the latter always, or fails. Needs user
# namespaces, and a temporary folder on a file system that knows RWF_NOWAIT (ext4 does, tmpfs does not).
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+rwx "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
mkdir lower upper work merged
echo text >lower/file
cat >read.py <<'PYTHON'
import os
import sys

for path in sys.argv[1:]:
    opened = os.open(path, os.O_RDONLY)
    os.pread(opened, 4, 0)
    try:
        print(os.preadv(opened, [bytearray(4)], 0, os.RWF_NOWAIT), "bytes")
    except OSError as error:
        print(error.strerror)
PYTHON
cat >inside.sh <<'INSIDE'
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work,userxattr merged || exit 2
echo text >merged/written
python3 read.py lower/file merged/file upper/written merged/written
INSIDE
unshare --user --map-root-user --mount bash inside.sh >seen || { echo "no overlays in user namespaces here" >&2; exit 2; }
{ read -r lower && read -r from_lower && read -r upper && read -r from_upper; } <seen
echo "Linux $(uname -r)"
echo "lower directory:    $lower, through the overlay: $from_lower"
echo "upper directory:    $upper, through the overlay: $from_upper"
[ "$lower" = "4 bytes" ] || { echo "the file system of $dir does not know RWF_NOWAIT" >&2; exit 2; }
[ "$from_lower, $upper, $from_upper" = "Operation not supported, 4 bytes, Operation not supported" ] || { echo "this has changed" >&2; exit 1; }
