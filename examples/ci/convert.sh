#!/bin/sh
# Makes an image lazily loadable in its registry, without any local copy.
#
#   convert.sh IMAGE [CONVERTED]
#
# IMAGE is HOST/REPOSITORY:TAG. CONVERTED is where the result goes, by default IMAGE with -soci at its end.
# stdout gets the digest of the converted image; the log is on stderr. The exit code is that of soci, or 2.
#
#   REGISTRY_USER, REGISTRY_PASSWORD   who to be there; by default what docker, podman or a credential
#                                      helper has stored. For two registries use `soci login`.
#   SOCI_FLAGS                         more flags for `soci image convert`, such as --all-platforms
set -eu

fail() {
    printf 'convert.sh: %s\n' "$1" >&2
    exit 2
}

# The password goes through a pipe: it is in no file and in no list of processes.
run() {
    if [ -n "${REGISTRY_PASSWORD:-}" ]; then
        printf '%s' "$REGISTRY_PASSWORD" | soci "$@" --user "${REGISTRY_USER:?}" --password-stdin
    else
        soci "$@"
    fi
}

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    fail 'usage: convert.sh IMAGE [CONVERTED]'
fi
image=$1
case ${image##*/} in
*@*) [ $# -eq 2 ] || fail "$image has no tag, so say where the converted image goes" ;;
*:*) ;;
*) image=$image:latest ;;
esac
converted=${2:-$image-soci}

# shellcheck disable=SC2086 # several flags
digest=$(run image convert --soci ${SOCI_FLAGS:-} "docker://$image" "docker://$converted")
run image inspect "docker://$converted" >&2
printf '%s\n' "$digest"
