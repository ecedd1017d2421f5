#!/usr/bin/env bash
# Linux (5.11 and newer, seen on 6.18). An overlay mounted in a user namespace without the option userxattr
# works at first sight: reading, writing and deleting files is right. But its marks are trusted.*
# attributes, which nobody in a user namespace may read or write. Removing a directory of the image that is
# not empty fails with EIO, making one where something was deleted, too, and what a mount with userxattr hid
# behind a new directory is shown again. Mounting says nothing of it: the option is to be given always.
# Needs user namespaces and a temporary folder on a file system with user.* attributes that is no overlay.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+rwx "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p lower/dir upper work merged
echo text >lower/dir/deleted
echo text >lower/file
echo "Linux $(uname -r)"
cat >inside.sh <<'INSIDE'
overlay() { mount -t overlay overlay -o "lowerdir=lower,upperdir=$1,workdir=work$2" merged; }
mkdir plain
overlay plain '' || exit 2
rm -r merged/dir 2>err && echo removed || sed 's/.*: //' err
rm merged/file
mkdir merged/file 2>err && echo made || sed 's/.*: //' err
umount merged
overlay upper ,userxattr || exit 2
rm -r merged/dir
mkdir merged/dir || exit 2
echo "$(ls merged/dir | wc -l) files"
umount merged
overlay upper '' || exit 2
echo "$(ls merged/dir | wc -l) files"
umount merged
INSIDE
LC_ALL=C unshare --user --map-root-user --mount bash inside.sh >out 2>err.mount || { cat err.mount >&2; echo "no overlays in user namespaces here" >&2; exit 2; }
{ read -r removed && read -r made && read -r with && read -r without; } <out
echo "without userxattr, removing a directory with a file in it: $removed"
echo "without userxattr, a directory where a file was deleted: $made"
echo "with userxattr, in a directory that was deleted and made again: $with"
echo "the same upper directory mounted without userxattr: $without"
[ "$removed, $made, $with, $without" = "Input/output error, Input/output error, 0 files, 1 files" ] || { echo "this has changed" >&2; exit 1; }
