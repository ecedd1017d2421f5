#!/usr/bin/env bash
# grpcio 1.76.0 (Linux). A server that binds unix:PATH while another one serves there gets no error, as it
# would from bind(2) (EADDRINUSE): gRPC removes the socket first. The first server goes on without clients.
# When that first one stops, it removes PATH again, which is the second one's socket now: nobody is reachable.
# A daemon that offers a Unix socket by gRPC has to bind aside and rename, and to ask first who is there.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.76.0
"$dir/venv/bin/python" - "$dir" <<'PYTHON'
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

path = Path(sys.argv[1], "socket")


class Named(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.name.encode())


def serve(name):
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Named(name),))
    bound = server.add_insecure_port(f"unix:{path}")
    server.start()
    return server, bound


def ask():
    with grpc.insecure_channel(f"unix:{path}") as channel:
        try:
            return channel.unary_unary("/any.Service/Who")(b"", timeout=5).decode()
        except grpc.RpcError as error:
            return error.code().name


first, _ = serve("first")
seen = [("one server", ask())]
second, bound = serve("second")
seen.append((f"a second one, add_insecure_port returned {bound}", ask()))
first.stop(None).wait()
seen.append((f"the first one stopped, socket there: {path.exists()}", ask()))
second.stop(None).wait()
for what, answer in seen:
    print(f"{what}: {answer}")
assert [answer for _, answer in seen] == ["first", "second", "UNAVAILABLE"], "this has changed"
PYTHON
