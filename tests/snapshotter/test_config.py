"""config.toml."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from soci_cli.errors import ConfigError
from soci_cli.settings import _REFERENCE_KEYS
from soci_cli.snapshotter.config import DEFAULT_FILE, Config, dump_config, load_config


def write(path: Path, text: str) -> Path:
    file = path / "config.toml"
    file.write_text(text)
    return file


def test_all_keys_of_the_reference_are_known() -> None:
    document = tomli.loads(dump_config(Config()))
    for table, keys in _REFERENCE_KEYS.items():
        inner = document
        for part in filter(None, table.split(".")):
            inner = inner[part]
        missing = set(keys.split()) - {key.lower() for key in inner}
        # Tables that are empty are not written.
        assert missing <= {"decompress_streams", "host"}, table


def test_what_is_written_is_read(tmp_path: Path) -> None:
    text = """
metrics_address = "127.0.0.1:1338"
mount_timeout_sec = 0
[http]
DialTimeoutMsec = 1
maxretries = 2
[pull_modes.soci_v1]
enable = true
[pull_modes.parallel_pull_unpack.decompress_streams.gzip]
path = "/usr/bin/unpigz"
args = ["-d", "-c"]
[resolver.host."registry.example:5000"]
mirrors = [{host = "https://mirror.example", insecure = true}]
[soci]
reader_deadline_sec = 5
"""
    config, warnings = load_config(write(tmp_path, text))
    assert config.http.dial_timeout == 1
    assert config.http.max_retries == 2
    assert config.mount_timeout_sec == 30
    assert config.pull_modes.soci_v1.enable and config.pull_modes.soci_v2.enable
    assert config.resolver.host["registry.example:5000"].mirrors[0].insecure
    assert config.soci.reader_deadline_sec == 5
    assert len(warnings) == 3
    assert "decompress_streams.gzip.path' has no effect: layers are inflated by" in warnings[0]
    again, _ = load_config(write(tmp_path, dump_config(config)))
    assert again == config


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("max_retries = 1", "unknown key"),
        (
            "[http]\nmax_retries = 1",
            "unknown key 'http.max_retries', which is left out; did you mean",
        ),
        ("[blob]\ncheck_always = true", "key 'blob.check_always' has no effect: "),
    ],
)
def test_warnings(tmp_path: Path, text: str, part: str) -> None:
    config, warnings = load_config(write(tmp_path, text))
    assert len(warnings) == 1
    assert part.replace("'", "") in warnings[0].replace("'", "").replace('"', "")
    assert config.http == Config().http


def test_defaults_are_no_reason_to_warn(tmp_path: Path) -> None:
    config, warnings = load_config(write(tmp_path, dump_config(Config())))
    assert (config, warnings) == (Config(), [])


@pytest.mark.parametrize(
    "text",
    [
        "metrics_address = 1",
        "debug = 1",
        "mount_timeout_sec = true",
        'mount_timeout_sec = "30"',
        "http = 3",
        "soci = []",
        'metadata_store = "bolt"',
        '[content_store]\ntype = "other"',
        '[background_fetch]\ndrop_policy = "random"',
        "mount_timeout_sec = 99999999999999999",
        "= 1",
        '[resolver]\ncustom_headers = ["Host"]',
        '[resolver]\ncustom_headers = ["Proxy-Authorization"]',
        '[resolver]\ncustom_headers = ["a b"]',
        "[resolver]\ncustom_headers = [1]",
    ],
)
def test_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config.toml: "):
        load_config(write(tmp_path, text))


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "config.toml")
    monkeypatch.setattr("soci_cli.snapshotter.config.DEFAULT_FILE", tmp_path / "config.toml")
    assert load_config(tmp_path / "config.toml") == (Config(), [])
    assert str(DEFAULT_FILE) == "/etc/soci-snapshotter-grpc/config.toml"
