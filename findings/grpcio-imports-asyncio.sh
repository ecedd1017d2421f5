#!/usr/bin/env bash
# grpcio 1.76.0. `import grpc` imports grpc.aio at its own end, and with it asyncio, also in a program that only
# makes blocking calls; there is no switch. That is a third to a half of the time that the import takes, which a
# command line pays at each call.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.76.0
"$dir/venv/bin/python" - <<'PYTHON'
import sys

before = {name.partition(".")[0] for name in sys.modules}
import grpc

loaded = sorted(name for name in sys.modules if name.startswith("asyncio."))
print(f"grpc {grpc.__version__}: asyncio before {'asyncio' in before}, after {'asyncio' in sys.modules}")
print(f"{len(loaded)} modules of asyncio, and grpc.aio: {'grpc.aio' in sys.modules}")
assert "asyncio" not in before and "asyncio" in sys.modules and "grpc.aio" in sys.modules, "this has changed"
PYTHON
