#!/usr/bin/env bash
# GNU tar 1.34 and containerd 2.4.2. `tar --acls` stores POSIX ACLs as text (SCHILY.acl.access). containerd
# reads only SCHILY.xattr.* of a layer and drops them without a word: the files of the image have none.
# tar's option --xattrs --xattrs-include='*' stores the same ACL as the attribute system.posix_acl_access,
# and then it is there. Needs Go 1.25 or newer, GNU tar, and a temporary folder on a file system with ACLs.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
cat >main.go <<'GO'
package main

import (
	"context"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
)

func main() {
	layer, err := os.Open(os.Args[1])
	if err != nil {
		panic(err)
	}
	if _, err := archive.Apply(context.Background(), os.Args[2], layer, archive.WithNoSameOwner()); err != nil {
		panic(err)
	}
}
GO
go mod init example.com/acls >/dev/null 2>&1
go get github.com/containerd/containerd/v2/pkg/archive@v2.4.2 >/dev/null 2>&1
go build -o apply .
cat >acl.py <<'PYTHON'
import os
import struct
import sys

NAME, what, path = "system.posix_acl_access", *sys.argv[1:]
if what == "set":  # owner rw-, user 12345 rw-, group r--, mask rw-, others r--
    entries = [(1, 6, 2**32 - 1), (2, 6, 12345), (4, 4, 2**32 - 1), (16, 6, 2**32 - 1), (32, 4, 2**32 - 1)]
    os.setxattr(path, NAME, struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries))
else:
    print("yes" if NAME in os.listxattr(path) else "no")
PYTHON
mkdir tree
echo text >tree/file
python3 acl.py set tree/file 2>/dev/null || { echo "no ACLs on the file system of $dir" >&2; exit 2; }
tar --version | head -1
seen=
for options in --acls "--xattrs --xattrs-include=*"; do
    mkdir -p by-tar by-containerd
    (set -f && tar $options -cf layer.tar -C tree file)
    (set -f && tar $options -xf layer.tar -C by-tar)
    ./apply layer.tar by-containerd
    tar=$(python3 acl.py get by-tar/file) containerd=$(python3 acl.py get by-containerd/file)
    echo "tar $options: an ACL after tar: $tar, after containerd: $containerd"
    seen+="$tar $containerd "
    rm -r by-tar by-containerd
done
[ "$seen" = "yes no yes yes " ] || { echo "this has changed" >&2; exit 1; }
