#!/usr/bin/env bash
# Linux (seen on 6.18) with fuse-overlayfs 1.10 (Debian 12). A new mount namespace (unshare --mount, a
# container, rootless podman of any user) begins with a copy of every mount, FUSE mounts too. Unmounting in
# the old namespace takes the mount away there, and the server, which ends when its last mount is gone, goes
# on as long as the namespace lives, with its memory, its open files and what it serves; nothing in the old
# namespace shows why. Whoever waits for the server's end after unmounting may wait for days. Needs
# /dev/fuse for everybody, user namespaces, and apt with Debian 12's packages.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+rwx "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download fuse-overlayfs=1.10-1 >log 2>&1 || { echo "no fuse-overlayfs 1.10-1 here" >&2; exit 2; }
dpkg-deb -x fuse-overlayfs_*.deb .
usr/bin/fuse-overlayfs --version | sed -n 's/^fuse-overlayfs/&/p'
echo "Linux $(uname -r)"
mkdir lower upper work merged
cat >inside.sh <<'INSIDE'
serve() {
    usr/bin/fuse-overlayfs -f -o lowerdir=lower,upperdir=upper,workdir=work merged 2>>log &
    server=$!
    for _ in $(seq 100); do grep -q " $PWD/merged " /proc/self/mountinfo && return; sleep 0.1; done
    exit 2
}
ended() { # within five seconds
    for _ in $(seq 50); do kill -0 $server 2>/dev/null || { echo ends; return; }; sleep 0.1; done
    echo "goes on"
}
serve
umount merged
echo "unmounted: the server $(ended)"
serve
unshare --mount sleep 60 &
other=$!
for _ in $(seq 100); do [ "$(readlink /proc/$other/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ] && break; sleep 0.1; done
umount merged
grep -q " $PWD/merged " /proc/self/mountinfo && exit 2
echo "unmounted, with another mount namespace: the server $(ended)"
kill $other
echo "that namespace ended: the server $(ended)"
INSIDE
timeout 60 unshare --user --map-root-user --mount bash inside.sh 2>>log | tee seen
[ "$(sed 's/.*server //' seen | paste -sd,)" = "ends,goes on,ends" ] || { cat log >&2; echo "this has changed" >&2; exit 1; }
