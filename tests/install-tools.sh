#!/bin/sh
# Installs the real tools that the integration tests use, where that is possible. A test whose tool is
# missing says so when it skips.
set -u
PATH=$PATH:/usr/sbin:/sbin

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

install_packages() {
    missing=
    for tool in docker-registry containerd runc crun skopeo umoci podman buildah pigz zstd; do
        command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
    done
    # Packages that are not called like their programs, and only of use on Linux.
    if [ "$(uname)" = Linux ]; then
        command -v fusermount3 >/dev/null 2>&1 || missing="$missing fuse3"
        command -v fuse-overlayfs >/dev/null 2>&1 || missing="$missing fuse-overlayfs"
        command -v getfattr >/dev/null 2>&1 || missing="$missing attr"
        # With these and Go, tests/reference builds its program on the reference's library.
        command -v gcc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
        [ -e /usr/include/zlib.h ] || missing="$missing zlib1g-dev"
        command -v bsdtar >/dev/null 2>&1 || missing="$missing libarchive-tools"
        command -v fsck.erofs >/dev/null 2>&1 || missing="$missing erofs-utils"
    fi
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null 2>&1 || return 0
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
}

# Go 1.25 or newer, the first that there is.
find_go() {
    for go in "$(command -v go)" /usr/local/go/bin/go; do
        version=$("$go" env GOVERSION 2>/dev/null) || continue
        oldest=$(printf 'go1.25\n%s\n' "$version" | sort -V | head -n 1)
        [ "$oldest" != go1.25 ] || { echo "$go" && return; }
    done
    return 1
}

# A newer containerd than Debian's, in a folder that is named after its version and filled only once.
install_newer_containerd() {
    version=2.4.2 # also in tests/support/servers/containerd.py
    folder=${XDG_CACHE_HOME:-$HOME/.cache}/soci-cli-tests/containerd-$version
    [ "$(uname)" = Linux ] && [ ! -d "$folder" ] || return 0
    skipped="not installed: containerd $version (tests that need it are skipped)"
    go=$(find_go) || { echo "$skipped, as Go 1.25 or newer is missing" >&2 && return; }
    echo "installing containerd $version with $go"
    mkdir -p "${folder%/*}" && fresh=$(mktemp -d "$folder.XXXXXX") || return
    programs=github.com/containerd/containerd/v2/cmd
    if CGO_ENABLED=0 GOBIN=$fresh "$go" install "$programs/containerd@v$version" \
        "$programs/ctr@v$version" "$programs/containerd-shim-runc-v2@v$version" >"$fresh/log" 2>&1; then
        # Another one may have been as quick.
        mv -T "$fresh" "$folder" 2>/dev/null || rm -rf "$fresh"
    else
        echo "$skipped: $(tail -n 1 "$fresh/log")" >&2
        rm -rf "$fresh"
    fi
}

install_packages
install_newer_containerd
exit 0
