#!/usr/bin/env bash
# containerd 2.4.2. `ctr images pull --snapshotter native NAME` fails although that snapshotter is loaded:
# "unable to initialize unpacker: no unpack platforms defined". Pulls go through the transfer service by now,
# which unpacks only for the snapshotters of its own configuration (unpack_config, overlayfs by default).
# `--local` pulls in the client, as 1.x did, and works. So it is with every proxy snapshotter, too: an entry in
# proxy_plugins alone is not enough. Needs root and Go 1.25 or newer; containerd is built, so it takes minutes.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "run it as root" >&2; exit 2; }
dir=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null; wait $pids 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
export GOBIN=$dir/bin
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install github.com/containerd/containerd/v2/cmd/{containerd,ctr}@v2.4.2 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$dir/bin/crane" registry serve --address "127.0.0.1:$port" >"$dir/registry.log" 2>&1 &
pids=$!
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/v2/" >/dev/null && break; sleep 0.1; done
echo hello >"$dir/hello"
tar -cf "$dir/layer.tar" -C "$dir" hello
image=127.0.0.1:$port/app:1
"$dir/bin/crane" append --oci-empty-base -f "$dir/layer.tar" -t "$image" >/dev/null 2>&1
"$dir/bin/crane" mutate --set-platform "linux/$(go env GOARCH)" -t "$image" "$image" >/dev/null 2>&1
cat >"$dir/config.toml" <<TOML
version = 3
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = "$dir/containerd.sock"
[ttrpc]
address = "$dir/containerd.sock.ttrpc"
TOML
"$dir/bin/containerd" --config "$dir/config.toml" >"$dir/containerd.log" 2>&1 &
pids="$pids $!"
ctr() { "$dir/bin/ctr" --address "$dir/containerd.sock" "$@"; }
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
ctr plugins ls | grep 'snapshotter.*native'
status=0 other=0
ctr images pull --plain-http --snapshotter native "$image" >"$dir/out" 2>&1 || status=$?
ctr images pull --plain-http --local --snapshotter native "$image" >"$dir/local" 2>&1 || other=$?
echo "ctr images pull --snapshotter native: exit $status: $(grep -o 'unable to initialize unpacker.*' "$dir/out")"
echo "ctr images pull --local --snapshotter native: exit $other"
[ "$status" != 0 ] && [ "$other" = 0 ] && grep -q 'no unpack platforms defined' "$dir/out" || {
    echo "this has changed" >&2
    cat "$dir/out" "$dir/local" >&2
    exit 1
}
