#!/usr/bin/env bash
# Linux (seen on 6.18). The mount id that /proc/self/mountinfo and statx(2) give, and the device number of a
# file system without a device (overlayfs, FUSE, tmpfs), are free again once it is unmounted, and the very
# next mount gets both. "Same path, same mount id, same st_dev" does not mean that it is the mount that one
# made: it may be another one's, by a daemon that was faster or by a restart. STATX_MNT_ID_UNIQUE (6.8)
# never comes again. Needs user namespaces. (Another process may mount in between, so it is tried some
# times.)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir point
cat >ids.py <<'PYTHON'
import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
point = os.path.realpath("point")


def ids():
    for line in open("/proc/self/mountinfo"):
        fields = line.split()
        if fields[4] == point:
            mount_id, device = fields[0], fields[2]
    buffer = ctypes.create_string_buffer(256)
    unique = 0x4000  # STATX_MNT_ID_UNIQUE
    if libc.statx(-100, point.encode(), 0, unique, buffer) or not int.from_bytes(buffer[:4], "little") & unique:
        return mount_id, device, None
    return mount_id, device, int.from_bytes(buffer[0x90:0x98], "little")


def mounted(name):
    if libc.mount(name, point.encode(), b"tmpfs", 0, None):
        raise SystemExit(os.strerror(ctypes.get_errno()))
    seen = ids()
    libc.umount2(point.encode(), 0)
    return seen


for attempt in range(20):
    one, other = mounted(b"one"), mounted(b"other")
    if one[:2] == other[:2]:
        break
for name, seen in (("one", one), ("the next", other)):
    print(f"{name}: mount id {seen[0]}, device {seen[1]}, unique id {seen[2] or 'not known to this kernel'}")
raise SystemExit(0 if one[:2] == other[:2] and (one[2] is None or one[2] != other[2]) else 1)
PYTHON
echo "Linux $(uname -r)"
unshare --user --map-root-user --mount python3 ids.py || { echo "this has changed" >&2; exit 1; }
