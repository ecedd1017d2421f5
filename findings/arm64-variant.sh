#!/usr/bin/env bash
# crane 0.20.6, oras 1.3.6, regctl 0.11.7, and containerd's platforms 1.0.0-rc.5. linux/arm64 and
# linux/arm64/v8 are the same platform to containerd and regctl. crane and oras take an entry with v8 where
# linux/arm64 is asked for, and not the other way: asked for linux/arm64/v8, as many indexes have it, they
# find nothing in an index that says linux/arm64, as many others do. Scripts that copy the platform of one
# image to ask for another work with some tools only. Needs Go 1.25 or newer.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
export GOBIN=$dir/bin REGCTL_CONFIG=$dir/regctl.json
go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
go install oras.land/oras/cmd/oras@v1.3.6 2>/dev/null
go install github.com/regclient/regclient/cmd/regctl@v0.11.7 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=127.0.0.1:$port
bin/crane registry serve --address "$at" >>log 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done
bin/regctl registry set --tls disabled "$at" 2>>log
crane() { "$dir/bin/crane" "$@" 2>>"$dir/log"; }
echo hello >hello
tar -cf layer.tar hello
for architecture in amd64 arm64; do
    crane append --oci-empty-base -f layer.tar -t "$at/app:$architecture" >>log
    crane mutate --set-platform "linux/$architecture" -t "$at/app:$architecture" "$at/app:$architecture" >>log
done
crane index append -m "$at/app:amd64" -m "$at/app:arm64" -t "$at/app:1" >>log
digest=$(crane digest "$at/app:arm64") size=$(crane manifest "$at/app:arm64" | wc -c)
oci=application/vnd.oci.image
for variant in none v8; do
    curl -sf -X PUT -H "Content-Type: $oci.index.v1+json" "http://$at/v2/app/manifests/$variant" --data-binary \
        '{"schemaVersion":2,"mediaType":"'$oci'.index.v1+json","manifests":[{"mediaType":"'$oci'.manifest.v1+json","digest":"'"$digest"'","size":'"$size"',"platform":{"os":"linux","architecture":"arm64"'"$([ $variant = none ] || echo ',"variant":"v8"')"'}}]}'
done
cat >main.go <<'GO'
package main

import (
	"os"

	"github.com/containerd/platforms"
)

func main() {
	entry, asked := platforms.MustParse("linux/arm64"), platforms.MustParse(os.Args[2])
	if os.Args[1] == "v8" {
		entry.Variant = "v8"
	}
	if !platforms.OnlyStrict(asked).Match(entry) {
		os.Exit(1)
	}
}
GO
go mod init example.com/variant >>log 2>&1
go get github.com/containerd/platforms@v1.0.0-rc.5 >>log 2>&1
go build -o match .
finds() { # TOOL VARIANT-OF-THE-ENTRY PLATFORM
    case $1 in
    crane) crane digest --platform "$3" "$at/app:$2" ;;
    oras) bin/oras resolve --plain-http --platform "$3" "$at/app:$2" ;;
    regctl) bin/regctl image digest --platform "$3" "$at/app:$2" ;;
    containerd) ./match "$2" "$3" ;;
    esac >>log 2>&1 && echo yes || echo no
}
seen=
for tool in containerd crane oras regctl; do
    line=
    for variant in none v8; do for platform in linux/arm64 linux/arm64/v8; do line+=" $(finds $tool $variant $platform)"; done; done
    read -r a b c d <<<"$line"
    echo "$tool: entry without variant: arm64 $a, arm64/v8 $b; entry with v8: arm64 $c, arm64/v8 $d"
    seen+="$line,"
done
[ "$seen" = " yes yes yes yes, yes no yes yes, yes no yes yes, yes yes yes yes," ] || { echo "this has changed" >&2; exit 1; }
