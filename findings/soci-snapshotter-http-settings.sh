#!/usr/bin/env bash
# soci-snapshotter 0.16.1 (awslabs). Keys of its configuration are written with underscores (max_retries,
# min_wait_msec), in [blob], [fuse] and all other tables but one: in [http] the same keys are called as in
# the Go code (MaxRetries, MinWaitMsec). The reader ignores keys that it does not know, without a word, so
# the limits that somebody set for a slow registry in [http] as in [blob] are not in force. Needs Go 1.26 or
# newer.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
cat >config.toml <<'TOML'
[http]
max_retries = 2
request_timeout_msec = 1000
MinWaitMsec = 5

[blob]
max_retries = 2
min_wait_msec = 5
TOML
cat >main.go <<'GO'
package main

import (
	"fmt"

	"github.com/awslabs/soci-snapshotter/config"
)

func main() {
	read, err := config.NewConfigFromToml("config.toml")
	fmt.Println("error:", err)
	http, blob := read.RetryableHTTPClientConfig, read.BlobConfig
	fmt.Printf("[http] retries %d, request timeout %d ms, least wait %d ms\n", http.MaxRetries, http.RequestTimeoutMsec, http.MinWaitMsec)
	fmt.Printf("[blob] retries %d, least wait %d ms\n", blob.MaxRetries, blob.MinWaitMsec)
}
GO
go mod init example.com/settings >/dev/null 2>&1
go get github.com/awslabs/soci-snapshotter/config@v0.16.1 >/dev/null 2>&1
cat config.toml
seen=$(go run .)
echo "$seen"
[ "$seen" = "error: <nil>
[http] retries 8, request timeout 300000 ms, least wait 5 ms
[blob] retries 2, least wait 5 ms" ] || { echo "this has changed" >&2; exit 1; }
