#!/bin/sh
# Installs the real tools that the integration tests use, where that is possible. A test whose tool is
# missing says so when it skips.
set -u
PATH=$PATH:/usr/sbin:/sbin
missing=
for tool in docker-registry containerd runc skopeo umoci pigz zstd; do
    command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
# Packages that are not called like their programs, and only of use on Linux.
if [ "$(uname)" = Linux ]; then
    command -v fusermount3 >/dev/null 2>&1 || missing="$missing fuse3"
    command -v fuse-overlayfs >/dev/null 2>&1 || missing="$missing fuse-overlayfs"
    command -v getfattr >/dev/null 2>&1 || missing="$missing attr"
fi
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null 2>&1 || exit 0

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

echo "installing$missing"
for service in docker-registry containerd; do
    case $missing in
    *"$service"*)
        # Its package would start one for everybody on this machine.
        [ ! -d /run/systemd/system ] || as_root systemctl mask "$service" >/dev/null 2>&1
        ;;
    esac
done
export DEBIAN_FRONTEND=noninteractive
as_root apt-get update -qq >/dev/null 2>&1
# shellcheck disable=SC2086
as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
    echo "not installed:$missing (tests that need them are skipped)" >&2
exit 0
