#!/usr/bin/env bash
# fuse-overlayfs 1.10 (Debian 12) and Linux (5.11 and newer, seen on 6.18). An upper directory that
# fuse-overlayfs wrote in a user namespace is not one for the kernel's overlayfs, also with userxattr: where
# a directory was deleted and made again, fuse-overlayfs writes user.fuseoverlayfs.opaque and a file
# .wh..wh..opq, and the kernel looks for user.overlay.opaque. What was deleted is there again, and the
# marker is shown as a file. Plain whiteouts are understood. Nothing fails or warns when storage that was
# made with one (mount_program) is used with the other. Needs /dev/fuse for everybody, user namespaces, and
# apt with Debian 12's packages.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+rwx "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download fuse-overlayfs=1.10-1 >log 2>&1 || { echo "no fuse-overlayfs 1.10-1 here" >&2; exit 2; }
dpkg-deb -x fuse-overlayfs_*.deb .
usr/bin/fuse-overlayfs --version | sed -n 's/^fuse-overlayfs/&/p'
echo "Linux $(uname -r)"
mkdir -p lower/dir upper work merged
echo text >lower/dir/deleted
echo text >lower/deleted
cat >inside.sh <<'INSIDE'
look() { (cd merged && find . -type f | sort | paste -sd' '); }
usr/bin/fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work merged 2>>log || exit 2
rm -r merged/dir merged/deleted
mkdir merged/dir
echo text >merged/dir/new
look
umount merged
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work,userxattr merged 2>>log || exit 2
look
umount merged
INSIDE
timeout 60 unshare --user --map-root-user --mount bash inside.sh >seen || { cat log >&2; echo "no FUSE or no overlays in user namespaces here" >&2; exit 2; }
{ read -r fuse && read -r kernel; } <seen
echo "files, by fuse-overlayfs: $fuse"
echo "the same upper directory by the kernel: $kernel"
[ "$fuse" = "./dir/new" ] && [ "$kernel" = "./dir/.wh..wh..opq ./dir/deleted ./dir/new" ] || { echo "this has changed" >&2; exit 1; }
