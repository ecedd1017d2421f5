"""containerd as a place: `containerd:IMAGE`. Needs the extra `containerd` (grpcio and protobuf)."""

import importlib
import sys
from types import ModuleType


def _import_grpc_without_aio() -> None:
    """Leaves out grpc.aio until somebody asks for it: it brings asyncio, and a third of the import's time.

    grpc imports it at its own end. Whoever has grpc already is left alone.
    """
    if "grpc" in sys.modules:
        return
    sys.modules["grpc.aio"] = ModuleType("grpc.aio")
    try:
        grpc = importlib.import_module("grpc")
    finally:
        del sys.modules["grpc.aio"]
    del grpc.aio

    def later(name: str) -> object:
        if name == "aio":
            return importlib.import_module("grpc.aio")
        raise AttributeError(f"module 'grpc' has no attribute {name!r}")

    vars(grpc)["__getattr__"] = later


_import_grpc_without_aio()
