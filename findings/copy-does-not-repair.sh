#!/usr/bin/env bash
# crane 0.20.6, regctl 0.11.7, oras 1.3.6. An index whose tag is there and one of whose manifests is gone,
# as clean-ups by "untagged" leave it, is not mended by copying the image again. crane and regctl see that
# the index is there, copy nothing and exit with 0; the platform stays away. oras sees the same, then pushes
# the index for its tag and fails, as the registry (CNCF distribution 2.8.2) knows that a manifest is
# missing. `regctl image copy --force-recursive` mends it. Needs Go 1.25 or newer, and apt with Debian 12's
# packages.
set -euo pipefail
dir=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null; wait || true; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
export GOBIN=$dir/bin REGCTL_CONFIG=$dir/regctl.json
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install github.com/regclient/regclient/cmd/regctl@v0.11.7 2>/dev/null
go install oras.land/oras/cmd/oras@v1.3.6 2>/dev/null
apt-get download docker-registry=2.8.2+ds1-1 >log 2>&1 || { echo "no docker-registry 2.8.2+ds1-1 here" >&2; exit 2; }
dpkg-deb -x docker-registry_*.deb .
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
up() { for _ in $(seq 100); do curl -sf "http://$1/v2/" >/dev/null && return; sleep 0.1; done; }
from=127.0.0.1:$(free)
bin/crane registry serve --address "$from" >>log 2>&1 &
pids=$!
up "$from"
to=127.0.0.1:$(free)
printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: $dir/data}, delete: {enabled: true}}" \
    "http: {addr: '$to'}" >config.yml
usr/bin/docker-registry serve config.yml >>log 2>&1 &
pids="$pids $!"
up "$to"
crane() { "$dir/bin/crane" "$@" 2>>"$dir/log"; }
for host in "$from" "$to"; do bin/regctl registry set --tls disabled "$host" >>log 2>&1; done

echo hello >hello
tar -cf layer.tar hello
for architecture in amd64 arm64; do
    crane append --oci-empty-base -f layer.tar -t "$from/app:$architecture" >>log
    crane mutate --set-platform "linux/$architecture" -t "$from/app:$architecture" "$from/app:$architecture" >>log
done
crane index append -m "$from/app:amd64" -m "$from/app:arm64" -t "$from/app:1" >>log
gone=$(crane digest "$from/app:arm64")

copy() { # TOOL FROM TO
    case $1 in
    crane) "$dir/bin/crane" copy "$2" "$3" ;;
    regctl) "$dir/bin/regctl" image copy "$2" "$3" ;;
    oras) "$dir/bin/oras" copy --from-plain-http --to-plain-http "$2" "$3" ;;
    forced) "$dir/bin/regctl" image copy --force-recursive "$2" "$3" ;;
    esac >out 2>&1
}
seen=
for tool in crane regctl oras forced; do
    copy "$tool" "$from/app:1" "$to/$tool:1"
    curl -sf -X DELETE "http://$to/v2/$tool/manifests/$gone"
    status=0
    copy "$tool" "$from/app:1" "$to/$tool:1" || status=$?
    there=$(curl -s -o /dev/null -w '%{http_code}' -I -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$to/v2/$tool/manifests/$gone")
    echo "$tool: copied again, exit $status; the manifest that was gone: $there"
    grep -o 'manifest blob unknown' out || true
    seen+="$status $there "
done
[ "$seen" = "0 404 0 404 1 404 0 200 " ] || { echo "this has changed" >&2; exit 1; }
