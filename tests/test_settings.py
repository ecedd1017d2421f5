from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import ConfigError, SociError, UsageError
from soci_cli.settings import (
    BackgroundFetch,
    ParallelPull,
    Prefetch,
    PullModes,
    Settings,
    SociTable,
    load_settings,
    parse_size,
    store_root,
)

# A file that the reference snapshotter reads.
REFERENCE_FILE = """
max_concurrency = 100
metadata_store = 'db'
[http]
  DialTimeoutMsec = 3000
  maxretries = 8
[blob]
  valid_interval = 60
[pull_modes.soci_v2]
  enable = true
[pull_modes.parallel_pull_unpack]
  max_concurrent_downloads = -1
  [pull_modes.parallel_pull_unpack.decompress_streams.gzip]
    path = '/usr/bin/unpigz'
[resolver.host."docker.io"]
  mirrors = [{ host = "mirror.example", insecure = true }]
[snapshotter]
  min_layer_size = 0
[content_store]
  type = 'soci'
"""


class Files:
    """The two settings files below a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.system = folder / "system.toml"
        self.user = folder / "home" / ".config" / "soci" / "config.toml"
        self.user.parent.mkdir(parents=True)
        self.environ = {"HOME": str(folder / "home")}

    def load(self) -> tuple[Settings, list[str]]:
        return load_settings(self.environ, self.system)

    def settings(self, text: str) -> Settings:
        self.user.write_text(text, "utf-8")
        settings, warnings = self.load()
        assert warnings == []
        return settings

    def warnings(self, text: str) -> list[str]:
        self.user.write_text(text, "utf-8")
        return self.load()[1]

    def error(self) -> str:
        with pytest.raises(ConfigError) as info:
            self.load()
        message = str(info.value)
        assert "\n" not in message
        return message


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_defaults(files: Files) -> None:
    expected = Settings(
        None,
        4194304,
        10485760,
        "soci-cli",
        "skip",
        (),
        None,
        3,
        5,
        PullModes(),
        (),
        BackgroundFetch(False, 30_000, 500, 300),
        Prefetch(True),
    )
    assert files.load() == (expected, [])
    assert load_settings({}, files.system) == (expected, [])
    assert files.settings("") == expected


def test_every_key(files: Files) -> None:
    settings = files.settings(
        """
        root = "~/soci store"
        span_size = "1MiB"
        min_layer_size = 0
        build_tool_identifier = "AWS SOCI CLI v0.2"
        zstd_layers = "recompress"
        optimizations = ["xattr"]
        max_concurrency = 3
        max_concurrent_blobs = 7
        max_concurrent_uploads = 1
        pull_modes.soci_v1.enable = true
        pull_modes.soci_v2.enable = false
        platforms = ["linux/amd64", "arm64"]
        prefetch.enable = false
        redirect_hosts = ["localhost:9000"]
        [background_fetch]
        disable = true
        silence_period_msec = 1
        fetch_period_msec = 2
        max_queue_size = 3
        [soci]
        reader_deadline_sec = 9
        """
    )
    assert settings == Settings(
        Path(files.environ["HOME"], "soci store"),
        1 << 20,
        0,
        "AWS SOCI CLI v0.2",
        "recompress",
        ("xattr",),
        3,
        7,
        1,
        PullModes(soci_v1=True, soci_v2=False),
        ("linux/amd64", "arm64"),
        BackgroundFetch(True, 1, 2, 3),
        Prefetch(False),
        ("localhost:9000",),
        SociTable(9),
    )
    assert files.settings('root = "/r"').root == Path("/r")
    assert files.settings("span_size = 65536").span_size == 65536


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("root = 1", "key 'root': expected an absolute path"),
        ('root = ""', "key 'root': expected an absolute path"),
        ('root = "a/b"', "got 'a/b'"),
        ('root = "/a\\u0000"', "key 'root': expected"),
        ("span_size = 0", "key 'span_size': expected a size from 1 to 2**62 bytes, got 0"),
        ("span_size = true", "key 'span_size': expected bytes, or text such as '4MiB', got true"),
        ("span_size = 1.5", "got 1.5"),
        ('span_size = "0"', "key 'span_size': expected a size from 1"),
        ('span_size = "4Q"', "key 'span_size': not a size: '4Q'"),
        ("span_size = 4611686018427387905", "key 'span_size': expected a size from 1"),
        ("min_layer_size = -1", "key 'min_layer_size': expected a size from 0"),
        ("build_tool_identifier = []", "key 'build_tool_identifier': expected a string"),
        ('zstd_layers = "x"', "expected 'skip' or 'recompress', got 'x'"),
        ("zstd_layers = {}", "expected 'skip' or 'recompress', got an object"),
        ('optimizations = "xattr"', "key 'optimizations': expected a list of strings"),
        ('optimizations = ["fast"]', "expected a list of 'xattr', got 'fast'"),
        ("max_concurrency = 0", "key 'max_concurrency': expected a whole number from 1, got 0"),
        ("max_concurrency = true", "got true"),
        ("max_concurrent_blobs = 0", "expected a whole number from 1, got 0"),
        ("max_concurrent_uploads = 1.5", "expected a whole number from 1, got 1.5"),
        ("redirect_hosts = 'x'", "key 'redirect_hosts': expected a list of strings"),
        ("pull_modes = 1", "key 'pull_modes': expected a table, got 1"),
        ("pull_modes.soci_v1 = true", "key 'pull_modes.soci_v1': expected a table, got true"),
        (
            "pull_modes.soci_v2.enable = 1",
            "key 'pull_modes.soci_v2.enable': expected true or false",
        ),
        ("background_fetch = 1", "key 'background_fetch': expected a table, got 1"),
        (
            "background_fetch.disable = 0",
            "key 'background_fetch.disable': expected true or false, got 0",
        ),
        (
            "background_fetch.silence_period_msec = -1",
            "key 'background_fetch.silence_period_msec': expected a whole number from 0, got -1",
        ),
        (
            "background_fetch.fetch_period_msec = 1.5",
            "key 'background_fetch.fetch_period_msec': expected a whole number from 0, got 1.5",
        ),
        (
            "background_fetch.max_queue_size = -2",
            "key 'background_fetch.max_queue_size': expected a whole number from -1, got -2",
        ),
        ("prefetch = true", "key 'prefetch': expected a table, got true"),
        (
            "soci.reader_deadline_sec = 0",
            "key 'soci.reader_deadline_sec': expected a whole number from 1, got 0",
        ),
        ("prefetch.enable = 'x'", "key 'prefetch.enable': expected true or false, got 'x'"),
        ("platforms = [1]", "key 'platforms': expected a list of strings, got a list"),
        ('platforms = ["linux/"]', "key 'platforms': not a platform: 'linux/'"),
        ("root = 2020-01-01", "got a date"),
    ],
)
def test_wrong_values(files: Files, line: str, message: str) -> None:
    files.user.write_text(line + "\n")
    error = files.error()
    assert error.startswith(f"{files.user}: key '")
    assert message in error


def test_unknown_keys(files: Files) -> None:
    file = files.user
    assert files.warnings('span_sise = 1\n[other]\nx = 1\n"a\\n" = 2') == [
        f"{file}: unknown key 'span_sise'; did you mean 'span_size'?",
        f"{file}: unknown key 'other'",
    ]
    assert files.warnings('"q\\nq\\u001b" = 1') == [f"{file}: unknown key 'q\\nq\\x1b'"]


def test_the_reference_file_is_passed_over(files: Files) -> None:
    files.system.write_text(REFERENCE_FILE)
    assert files.load() == (Settings(), [])


def test_pull_modes_of_the_reference_file_and_of_the_user(files: Files) -> None:
    files.system.write_text("[Pull_Modes.SOCI_v1]\nEnable = true\n")
    assert files.load() == (Settings(pull_modes=PullModes(soci_v1=True)), [])
    settings = files.settings("pull_modes.soci_v2.enable = false")
    assert settings.pull_modes == PullModes(soci_v1=True, soci_v2=False)
    assert files.settings("pull_modes.soci_v1.enable = false").pull_modes == PullModes()
    files.system.write_text("[pull_modes.soci_v1]\nenable = 'yes'\n")
    assert "key 'pull_modes.soci_v1.enable': expected true or false" in files.error()


def test_parallel_requests(files: Files) -> None:
    assert files.settings("").pull_modes.parallel_pull_unpack == ParallelPull(-1, 3, 0)
    table = "[pull_modes.parallel_pull_unpack]\n"
    files.system.write_text(
        f"{table}max_concurrent_downloads = 8\nConcurrent_Download_Chunk_Size = '8mb'\n"
    )
    assert files.settings("").pull_modes.parallel_pull_unpack == ParallelPull(8, 3, 8 << 20)
    files.system.unlink()
    text = "max_concurrent_downloads_per_image = -1\nconcurrent_download_chunk_size = ''\n"
    assert files.settings(table + text).pull_modes.parallel_pull_unpack == ParallelPull(-1, -1, 0)
    text = "max_concurrent_downloads = 2\nconcurrent_download_chunk_size = '16MiB'\n"
    assert files.settings(table + text).pull_modes.parallel_pull_unpack == ParallelPull(
        2, 2, 16 << 20
    )
    for text, message in (
        ("max_concurrent_downloads = 0", "a whole number from 1, or -1, got 0"),
        (
            "max_concurrent_downloads = 2\nmax_concurrent_downloads_per_image = 3",
            "3 is more than 2",
        ),
        ("concurrent_download_chunk_size = 8", "text such as '8MiB', or '', got 8"),
        ("concurrent_download_chunk_size = '-1'", "not a size: '-1'"),
    ):
        with pytest.raises(ConfigError, match=message):
            files.settings(table + text)


def test_the_old_name_of_blobs_at_a_time(files: Files) -> None:
    files.user.write_text("max_concurrent_downloads = 7\n")
    settings, warnings = files.load()
    assert settings.max_concurrent_blobs == 7
    (warning,) = warnings
    assert "'max_concurrent_downloads' is called 'max_concurrent_blobs' now" in warning


def test_background_fetch_and_prefetch_of_the_reference_file_and_of_the_user(files: Files) -> None:
    files.system.write_text(
        "[background_fetch]\ndisable = true\nFetch_Period_msec = 7\ndrop_policy = 'oldest'\n"
        "silence_period_msec = 0\nmax_queue_size = -1\n[prefetch]\nenable = false\nmax_concurrency = 2\n"
    )
    expected = Settings(
        background_fetch=BackgroundFetch(True, 30_000, 7, -1), prefetch=Prefetch(False)
    )
    assert files.load() == (expected, [])
    settings = files.settings("background_fetch.disable = false\nprefetch.enable = true")
    assert settings.background_fetch == BackgroundFetch(False, 30_000, 7, -1)
    assert settings.prefetch == Prefetch(True)


def test_the_table_of_this_program(files: Files) -> None:
    files.system.write_text("[soci]\nreader_deadline_sec = 60\n")
    assert files.load() == (Settings(soci=SociTable(60)), [])
    assert files.settings("soci.reader_deadline_sec = 5").soci == SociTable(5)


def test_unknown_keys_of_the_reference_file(files: Files) -> None:
    files.system.write_text("[blob]\nvalid_intervall = 1\n[zzz]\nspan_size = 2\n")
    assert files.load()[1] == [
        f"{files.system}: unknown key 'blob.valid_intervall'; did you mean 'blob.valid_interval'?",
        f"{files.system}: unknown key 'zzz'",
    ]


def test_broken_files(files: Files) -> None:
    for file in (files.user, files.system):
        file.write_text("span_size = \n")
        error = files.error()
        assert error.startswith(f"{file}: not valid TOML: ")
        assert "line 1, column 13" in error
        file.write_bytes(b'root = "\xff"')
        assert "not UTF-8" in files.error()
        file.write_text("a = " + "[" * 100_000)
        assert "not valid TOML" in files.error()
        file.write_text("a = " + "9" * 5000)
        assert "not valid TOML" in files.error()
        file.write_bytes(b"#" * (1 << 20) + b"#")
        assert "no settings file" in files.error()
        file.unlink()
        file.mkdir()
        assert files.error() == f"{file}: cannot be read: Is a directory"
        file.rmdir()


def test_files_without_permission(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    denied = {files.system}
    plain_open = Path.open

    def refuse(path: Path, mode: str = "r") -> object:
        if path in denied:
            raise PermissionError(13, "Permission denied")
        return plain_open(path, mode)

    monkeypatch.setattr(Path, "open", refuse)
    # An ordinary user must not fail over a file that is root's and sets nothing.
    assert files.load()[1] == [f"{files.system}: cannot be read: permission denied; left out"]
    denied.add(files.user)
    assert files.error() == f"{files.user}: cannot be read: permission denied"


def test_where_the_user_file_is(files: Files, tmp_path: Path) -> None:
    files.user.write_text("max_concurrency = 1")
    xdg = tmp_path / "xdg" / "soci" / "config.toml"
    xdg.parent.mkdir(parents=True)
    xdg.write_text("max_concurrency = 2")
    chosen = tmp_path / "chosen.toml"
    chosen.write_text("max_concurrency = 3")

    assert files.load()[0].max_concurrency == 1
    files.environ["XDG_CONFIG_HOME"] = "relative"
    assert files.load()[0].max_concurrency == 1
    files.environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert files.load()[0].max_concurrency == 2
    files.environ["SOCI_CONFIG"] = str(chosen)
    assert files.load()[0].max_concurrency == 3
    files.environ["SOCI_CONFIG"] = ""
    assert files.load()[0].max_concurrency == 2
    files.environ["SOCI_CONFIG"] = str(tmp_path / "absent.toml")
    assert "no such file, but SOCI_CONFIG names it" in files.error()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4194304", 4194304),
        ("4MiB", 4194304),
        ("4M", 4194304),
        ("4mb", 4194304),
        (" 4 MiB ", 4194304),
        ("1B", 1),
        ("2k", 2048),
        ("2KB", 2048),
        ("2kib", 2048),
        ("1G", 1 << 30),
        ("1.5MiB", 1572864),
        ("0.5k", 512),
        ("1.0", 1),
        ("4611686018427387904", 2**62),
        ("4294967296G", 2**62),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected bytes"),
        (" ", "expected bytes"),
        ("-1", "expected bytes"),
        ("+1", "expected bytes"),
        ("1e3", "expected bytes"),
        ("1__000", "expected bytes"),
        ("0x", "expected bytes"),
        (".5k", "expected bytes"),
        ("1.k", "expected bytes"),
        ("4 i", "expected bytes"),
        ("4iB", "expected bytes"),
        ("4T", "expected bytes"),
        ("4MiBs", "expected bytes"),
        ("٤", "expected bytes"),
        ("NaN", "expected bytes"),
        ("9" * 5000, "expected bytes"),
        ("0.5", "whole number of bytes"),
        ("1.0001k", "whole number of bytes"),
        ("4611686018427387905", "more than"),
        ("9999999999999G", "more than"),
    ],
)
def test_parse_size_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as info:
        parse_size(text)
    assert str(info.value).startswith("not a size: ")


@given(st.integers(0, 2**62))
def test_parse_size_of_plain_bytes(size: int) -> None:
    assert parse_size(str(size)) == parse_size(f"{size}B") == size


@given(st.text(max_size=20) | st.text("0123456789. kKmMgGiIbB-", max_size=20))
def test_parse_size_raises_nothing_else(text: str) -> None:
    try:
        assert 0 <= parse_size(text) <= 2**62
    except SociError as error:
        assert "\n" not in str(error)


def test_store_root(tmp_path: Path) -> None:
    environ = {"HOME": "/home/u"}
    assert store_root(Settings(), environ, None) == Path("/home/u/.local/share/soci")
    environ["XDG_DATA_HOME"] = "not/absolute"
    assert store_root(Settings(), environ, None) == Path("/home/u/.local/share/soci")
    environ["XDG_DATA_HOME"] = "/data"
    assert store_root(Settings(), environ, None) == Path("/data/soci")
    settings = Settings(root=Path("/set"))
    assert store_root(settings, environ, None) == Path("/set")
    environ["SOCI_ROOT"] = "/env"
    assert store_root(settings, environ, None) == Path("/env")
    assert store_root(settings, environ, "flag") == Path("flag")
    with pytest.raises(UsageError, match="empty"):
        store_root(settings, environ, "")
    with pytest.raises(ConfigError, match="set SOCI_ROOT, or HOME"):
        store_root(Settings(), {}, None)


KEYS = [
    "root", "span_size", "min_layer_size", "build_tool_identifier", "zstd_layers", "optimizations",
    "max_concurrency", "max_concurrent_uploads", "pull_modes", "platforms", "background_fetch",
    "background_fetch.max_queue_size", "prefetch", "redirect_hosts", "other",
]  # fmt: skip
VALUES = ["1", "-1", "true", "1.5", '""', '"x"', "[]", "[1]", '["x"]', "{}", "nan", "12:00:00", "="]


@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3))
def test_any_document(tmp_path_factory: pytest.TempPathFactory, document: dict[str, str]) -> None:
    file = tmp_path_factory.mktemp("any") / "config.toml"
    file.write_text("".join(f"{key} = {value}\n" for key, value in document.items()))
    try:
        load_settings({"SOCI_CONFIG": str(file)}, file.parent / "absent")
    except SociError as error:
        assert str(error).startswith(f"{file}: ")
        assert "\n" not in str(error)
