#!/usr/bin/env bash
# oras 1.3.6 and regctl 0.11.7 with a registry without the Referrers API (CNCF distribution 2.8.2). What
# refers to an image is listed in an index under the tag sha256-DIGEST, which each client reads, adds its
# entry to and writes back. When several attach something to one image at the same time, as the steps of a
# pipeline that sign, scan and index it do, all exit with 0 and most entries are lost: neither looks again,
# or writes on the condition that nobody else wrote. What was attached is in the registry and nobody finds
# it. Needs Go 1.25 or newer, and apt with Debian 12's packages.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
export GOBIN=$dir/bin REGCTL_CONFIG=$dir/regctl.json
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install oras.land/oras/cmd/oras@v1.3.6 2>/dev/null
go install github.com/regclient/regclient/cmd/regctl@v0.11.7 2>/dev/null
apt-get download docker-registry=2.8.2+ds1-1 >log 2>&1 || { echo "no docker-registry 2.8.2+ds1-1 here" >&2; exit 2; }
dpkg-deb -x docker-registry_*.deb .
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=127.0.0.1:$port
printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: $dir/data}}" "http: {addr: '$at'}" >config.yml
usr/bin/docker-registry serve config.yml >>log 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done
bin/regctl registry set --tls disabled "$at" 2>>log
echo hello >hello
tar -cf layer.tar hello
attach() { # TOOL IMAGE NUMBER
    case $1 in
    oras) bin/oras attach --plain-http --artifact-type "application/vnd.example.n$3" "$2" hello ;;
    regctl) bin/regctl artifact put --artifact-type "application/vnd.example.n$3" --subject "$2" -f hello ;;
    esac
}
for tool in oras regctl; do
    for round in 1 2 3 4 5; do
        image=$at/$tool$round:1
        bin/crane append --oci-empty-base -f layer.tar -t "$image" >>log 2>&1
        pids=() attached=0
        for number in 1 2 3 4 5 6 7 8; do
            attach $tool "$image" $number >"out$number" 2>&1 &
            pids+=($!)
        done
        for pid in "${pids[@]}"; do wait "$pid" && attached=$((attached + 1)); done
        listed=$(bin/oras discover --plain-http --format json "$image" | python3 -c 'import json, sys; print(len(json.load(sys.stdin).get("referrers") or []))')
        [ "$attached" = 8 ] && [ "$listed" -lt 8 ] && break
    done
    echo "$tool: attached $attached at once, all with exit status 0; listed: $listed"
    [ "$attached" = 8 ] && [ "$listed" -lt 8 ] || { echo "this has changed" >&2; exit 1; }
done
