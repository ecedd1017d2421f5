#!/usr/bin/env bash
# Linux (seen on 6.18) and GNU du. On an overlay whose layers lie on several file systems, as the mounted
# layers of lazy snapshotters do, directories have the overlay's device number, and each file of a lower
# layer has one of its layer's own, unless xino is on. `du -x`, the usual way to ask how large a container's
# root is, takes those files for other file systems and leaves them out: the image's own files count
# nothing. With all layers on one file system, as after an ordinary pull, it counts them. Needs user
# namespaces.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
cat >inside.sh <<'INSIDE'
mount -t tmpfs tmpfs . || exit 2
cd "$PWD"
mkdir lower upper same merged
mount -t tmpfs tmpfs lower
mount -t tmpfs tmpfs upper
head -c 1000000 /dev/zero >lower/file
mkdir upper/upper upper/work same/lower same/upper same/work
cp lower/file same/lower
look() { # WHAT LOWER UPPER WORK OPTION
    mount -t overlay overlay -o "lowerdir=$2,upperdir=$3,workdir=$4,userxattr$5" merged || exit 2
    [ "$(stat -c %d merged)" = "$(stat -c %d merged/file)" ] && device="the overlay's" || device="another"
    echo "$1: the file's device is $device; du -s: $(du -s --apparent-size merged | cut -f1) KB, du -sx: $(du -sx --apparent-size merged | cut -f1) KB"
    umount merged
}
look "layers on one file system" same/lower same/upper same/work ""
look "layers on two" lower upper/upper upper/work ""
look "layers on two, xino=on" lower upper/upper upper/work ",xino=on"
INSIDE
echo "Linux $(uname -r), $(du --version | head -1)"
unshare --user --map-root-user --mount bash inside.sh >seen || { echo "no overlays in user namespaces here" >&2; exit 2; }
cat seen
counted=$(sed 's/.*du -s: \([0-9]*\) KB, du -sx: \([0-9]*\) KB/\1 \2/' seen | awk '{print ($1 > 900) ($2 > 900)}' | paste -sd' ')
[ "$counted" = "11 10 11" ] || { echo "this has changed" >&2; exit 1; }
