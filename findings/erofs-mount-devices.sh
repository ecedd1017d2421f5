#!/usr/bin/env bash
# util-linux 2.38, erofs-utils 1.5 (both Debian 12) and Linux 6.12 or newer with EROFS_FS_BACKED_BY_FILE. An
# EROFS image whose data lies in a second file (mkfs.erofs --blobdev) can be mounted from the two files by
# mount(2). mount(8) with the same options fails, "wrong fs type, bad option": it puts any image that is a
# file on a loop device unasked, and the kernel takes either files or block devices, not one of each. This
# version has no option that stops it. Needs root, Python, and apt with Debian 12's packages.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "run it as root" >&2; exit 2; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download erofs-utils=1.5-1 >log 2>&1 || { echo "no erofs-utils 1.5-1 here" >&2; exit 2; }
dpkg-deb -x erofs-utils_*.deb .
mount --version
mkdir tree merged
head -c 100000 /dev/urandom >tree/file
usr/bin/mkfs.erofs --chunksize=4096 --blobdev=blob image tree >>log 2>&1
cat >by-hand.py <<'PYTHON'
import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"image", b"merged", b"erofs", 1, b"device=blob"):
    raise SystemExit(os.strerror(ctypes.get_errno()))
PYTHON
cat >inside.sh <<'INSIDE'
python3 by-hand.py 2>why && cmp -s merged/file tree/file && echo right || cat why
umount merged 2>/dev/null
mount -t erofs -o ro,device=blob image merged 2>err && echo mounted || grep -o 'wrong fs type, bad option' err
INSIDE
unshare --mount bash inside.sh >out
{ read -r call && read -r command; } <out
echo "mount(2), Linux $(uname -r): $call"
echo "mount(8): $command"
case $call in *"ot supported"* | *"No such device"* | *"lock device required"*) echo "this kernel mounts no files" >&2; exit 2 ;; esac
[ "$call, $command" = "right, wrong fs type, bad option" ] || { echo "this has changed" >&2; exit 1; }
