"""Metrics, as Prometheus reads them."""

from __future__ import annotations

import http.client
import re
import socket
from pathlib import Path

import pytest

from soci_cli.errors import ConfigError
from soci_cli.snapshotter.metrics import Metrics, MetricsServer, Sample
from tests.integration.published import Published
from tests.snapshotter.client import Client
from tests.snapshotter.pulling import pull
from tests.snapshotter.world import Daemon

LINE = re.compile(r'[a-z_]+\{([a-z_]+="(?:[^"\\]|\\.)*",?)*\} -?[0-9.e+-]+')


def test_text() -> None:
    metrics = Metrics()
    metrics.count("fuse_mount_failure_count", "sha256:a")
    metrics.count("fuse_mount_failure_count", "sha256:a")
    metrics.observe("mount", "sha256:a", 0.003)
    metrics.observe("mount", "sha256:a", 100.0)
    text = metrics.text([Sample("ours", "gauge", 1.5, {"of": 'a "b" \\ c'})])
    for line in text.splitlines():
        assert line.startswith("# TYPE ") or LINE.fullmatch(line), line
    labels = 'operation_type="mount",layer="sha256:a"'
    name = "soci_fs_operation_duration_milliseconds"
    assert f'{name}_bucket{{{labels},le="2"}} 0' in text
    assert f'{name}_bucket{{{labels},le="4"}} 1' in text
    assert f'{name}_bucket{{{labels},le="16384"}} 1' in text
    assert f'{name}_bucket{{{labels},le="+Inf"}} 2' in text
    assert f"{name}_sum{{{labels}}} 100003" in text
    failures = '{operation_type="fuse_mount_failure_count",layer="sha256:a"} 2'
    assert f"soci_fs_operation_count{failures}" in text
    assert 'ours{of="a \\"b\\" \\\\ c"} 1.5' in text


def test_addresses(tmp_path: Path) -> None:
    with MetricsServer("tcp", "127.0.0.1:0", lambda: "text\n") as server:
        assert isinstance(server.address, tuple)
        connection = http.client.HTTPConnection(*server.address[:2])
        for path, status in (("/metrics", 200), ("/other", 404)):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == status
            answer.read()
        connection.close()
    with (
        MetricsServer("unix", str(tmp_path / "m"), lambda: "text\n"),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(tmp_path / "m"))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").read().endswith(b"\r\n\r\ntext\n")
    assert not (tmp_path / "m").exists()
    with pytest.raises(ConfigError):
        MetricsServer("tcp", "localhost", lambda: "")


def test_of_layers(image: Published, tmp_path: Path, need_fuse: None) -> None:
    path = tmp_path / "m"
    config = f'metrics_network = "unix"\nmetrics_address = "{path}"\n'
    with Daemon(tmp_path / "daemon", config=config) as daemon, Client(daemon.address) as client:
        pull(client, image)
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(path))
            asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = asking.makefile("rb").read().decode().partition("\r\n\r\n")[2]
    for line in text.splitlines():
        assert line.startswith("# TYPE ") or LINE.fullmatch(line), line
    for digest in image.layers:
        layer = f'operation_type="mount",layer="{digest}"'
        assert f"soci_fs_operation_duration_milliseconds_count{{{layer}}} 1" in text
    assert text.count("soci_fs_layer_size_bytes{") >= 2
    mounted = re.findall(r"soci_snapshotter_layers\{.*\} (\d+)", text)
    assert sum(map(int, mounted)) == 3
