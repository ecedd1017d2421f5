"""Debian's docker-registry as a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bcrypt

from soci_cli.closing import Closing
from tests.support.servers.ca import KeyPair
from tests.support.servers.token_server import TokenServer

_START_SECONDS = 15.0
_STOP_SECONDS = 10.0


class DockerRegistry(Closing):
    """A registry at `host`, 127.0.0.1 and a port that it picks itself.

    It keeps its blobs in `storage` below the folder, where another registry on the same folder finds
    them, and writes to `log`. `htpasswd` are passwords by user, `client_ca` the authority that
    certificates of clients must come from.
    """

    def __init__(
        self,
        folder: Path,
        *,
        htpasswd: Mapping[str, str] | None = None,
        token: TokenServer | None = None,
        tls: KeyPair | None = None,
        client_ca: Path | None = None,
        delete: bool = True,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.storage = folder / "storage"
        self.log = folder / "registry.log"
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage)},
                "delete": {"enabled": delete},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": {"addr": "127.0.0.1:0", "secret": "secret of a test"},
        }
        if htpasswd is not None:
            config["auth"] = _htpasswd(folder / "htpasswd", htpasswd)
        if token is not None:
            config["auth"] = {"token": token.registry_config()}
        if tls is not None:
            config["http"]["tls"] = {"certificate": str(tls.cert), "key": str(tls.key)}
            if client_ca is not None:
                config["http"]["tls"]["clientcas"] = [str(client_ca)]
        (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        self._process = self._start(folder / "config.yml")
        try:
            self.host = self._wait()
        except BaseException:
            self.close()
            raise
        self.url = f"http{'s' if tls else ''}://{self.host}"

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self, config: Path) -> subprocess.Popen[bytes]:
        # REGISTRY_... variables would change the settings
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REGISTRY_")}
        with self.log.open("wb") as log:
            return subprocess.Popen(
                ["docker-registry", "serve", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def _wait(self) -> str:
        """The address that it listens on, which it logs when it does."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := re.search(rb"listening on (127\.0\.0\.1:[0-9]+)", self.log.read_bytes()):
                return found[1].decode()
            time.sleep(0.01)
        raise AssertionError(f"docker-registry did not start:\n{self.log.read_text()}")


def _htpasswd(path: Path, users: Mapping[str, str]) -> dict[str, Any]:
    cheap = 4  # rounds, the fewest that there are
    path.write_bytes(
        b"".join(
            b"%b:%b\n" % (user.encode(), bcrypt.hashpw(password.encode(), bcrypt.gensalt(cheap)))
            for user, password in users.items()
        )
    )
    return {"htpasswd": {"realm": "the test's registry", "path": str(path)}}
