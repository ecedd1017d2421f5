#!/usr/bin/env bash
# crane 0.20.6, regctl 0.11.7, oras 1.3.6, skopeo 1.9.3 (also its library at 5.42.1). Asked for a platform
# of an index, all of them take the first entry that names it, as the image specification says, but whatever
# it is: nobody looks at the entry's artifactType or at the media type of its config. An index that lists an
# image and, for the same platform, an artifact, as SOCI v2 does, is right as long as the image comes first;
# a tool that sorts the entries or puts one in front breaks it. (containerd 2.4.2 pulls such an image
# without an error, and it has no files.) Needs Go 1.25 or newer; skopeo is asked where it is there.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
export GOBIN=$dir REGCTL_CONFIG=$dir/regctl.json
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install github.com/regclient/regclient/cmd/regctl@v0.11.7 2>/dev/null
go install oras.land/oras/cmd/oras@v1.3.6 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=127.0.0.1:$port
"$dir/crane" registry serve --address "$at" >"$dir/log" 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done
"$dir/regctl" registry set --tls disabled "$at" 2>>"$dir/log"

oci=application/vnd.oci.image
digest() { printf 'sha256:%s' "$(printf %s "$1" | sha256sum | cut -d' ' -f1)"; }
put() { curl -sf -X PUT -H "Content-Type: $1" --data-binary "$3" "http://$at/v2/app/manifests/$2"; }
blob() { curl -sf -X POST --data-binary "$1" "http://$at/v2/app/blobs/uploads/?digest=$(digest "$1")"; }
config='{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
blob "$config"
blob '{}'
manifest() { echo '{"schemaVersion":2,"mediaType":"'$oci'.manifest.v1+json","config":{"mediaType":"'"$1"'","digest":"'"$(digest "$2")"'","size":'${#2}'},"layers":[]}'; }
entry() { echo '{"mediaType":"'$oci'.manifest.v1+json","digest":"'"$(digest "$1")"'","size":'${#1}','"$2"'"platform":{"architecture":"amd64","os":"linux"}}'; }
image=$(manifest $oci.config.v1+json "$config") artifact=$(manifest application/vnd.example.index '{}')
for one in "$image" "$artifact"; do put $oci.manifest.v1+json "$(digest "$one")" "$one"; done
first=$(entry "$image" '') second=$(entry "$artifact" '"artifactType":"application/vnd.example.index",')
put $oci.index.v1+json image-first '{"schemaVersion":2,"mediaType":"'$oci'.index.v1+json","manifests":['"$first,$second"']}'
put $oci.index.v1+json artifact-first '{"schemaVersion":2,"mediaType":"'$oci'.index.v1+json","manifests":['"$second,$first"']}'

asked() { # TOOL TAG; prints the digest that it takes for linux/amd64
    case $1 in
    crane) "$dir/crane" digest --platform linux/amd64 "$at/app:$2" ;;
    regctl) "$dir/regctl" image digest --platform linux/amd64 "$at/app:$2" ;;
    oras) "$dir/oras" resolve --plain-http --platform linux/amd64 "$at/app:$2" ;;
    skopeo)
        skopeo --insecure-policy --override-os linux --override-arch amd64 copy -q --src-tls-verify=false \
            "docker://$at/app:$2" "dir:$dir/$2" >&2
        echo "sha256:$(sha256sum "$dir/$2/manifest.json" | cut -d' ' -f1)"
        ;;
    esac 2>>"$dir/log"
}
tools="crane regctl oras"
[ "$(skopeo --version 2>/dev/null)" != "skopeo version 1.9.3" ] || tools+=" skopeo"
for tool in $tools; do
    for tag in image-first artifact-first; do
        took=$(asked $tool $tag)
        case $took in "$(digest "$image")") took=image ;; "$(digest "$artifact")") took=artifact ;; esac
        echo "$tool, $tag: takes the $took"
        [ "$took-first" = "$tag" ] || { echo "this has changed" >&2; exit 1; }
    done
done
