"""`soci ls`, `soci cat` and `soci cp`: what they print and write, and how little they fetch."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from soci_cli.trial_registry import RegistryServer
from tests.support.commands import SOCI, Soci, environment, on_terminal, process
from tests.support.images import LayoutMaker, gz, noise, run_convert, sha256, tar_of
from tests.support.layers import mixed_data
from tests.support.machine import PROJECT
from tests.support.servers.actions import Hang
from tests.support.servers.fault_proxy import Fault, FaultProxy

BIG = mixed_data(3_000_000)


def lower_layer() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(
            name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: object
        ) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.mtime = kind, len(data), 1_700_000_000
            info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))

        add("etc/", kind=tarfile.DIRTYPE, mode=0o750)
        add("etc/hosts", b"127.0.0.1 localhost\n", uname="root", gname="wheel", mtime=1.5)
        add("etc/link", kind=tarfile.SYMTYPE, linkname="../usr/small", mode=0o777)
        add("usr/big", BIG, mode=0o4755)
        add("usr/big2", kind=tarfile.LNKTYPE, linkname="usr/big")
        add("usr/small", b"small\n", pax_headers={"SCHILY.xattr.user.color": "blue"})
        add("usr/dir", kind=tarfile.SYMTYPE, linkname="/etc")
        add("dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
        add("dev/pipe", kind=tarfile.FIFOTYPE)
        add("odd \x1b[31m\n", b"x")
    return out.getvalue()


def indexed_layout(folder: Path) -> Path:
    """An indexed image of two layers."""
    maker = LayoutMaker(folder / "image")
    tars = [lower_layer(), tar_of({"usr/upper": noise(1, 70_000), ".wh.absent": b""})]
    layers = [maker.blob(gz(tar)) for tar in tars]
    maker.tag(maker.manifest(layers, maker.config([sha256(tar) for tar in tars])))
    run_convert(maker.root, folder / "soci")
    return folder / "soci"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return indexed_layout(tmp_path_factory.mktemp("reading"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOCI_CACHE", str(tmp_path / "cache"))


def start(*arguments: str | Path, home: Path) -> subprocess.Popen[bytes]:
    """Starts a command as a process, with the cache that all share."""
    return subprocess.Popen(
        [*SOCI, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=home,
        env=environment(home, SOCI_CACHE=os.environ["SOCI_CACHE"]),
    )


class Remote:
    """The image in a registry that writes down what is asked for."""

    def __init__(self, folder: Path) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.server = RegistryServer(
            folder,
            observer=lambda method, path, _, size, __: self.seen.append((method, path, size)),
        )
        self.image = f"docker://{self.server.address}/app:1"

    def forget(self) -> None:
        """Begins anew. What has been answered is written down a moment later, so that is waited for."""
        known = -1
        while known != len(self.seen):
            known = len(self.seen)
            time.sleep(0.1)
        self.seen.clear()

    def blobs(self) -> list[tuple[str, int]]:
        """The blobs that were fetched, and how much of each."""
        return [
            (path.rpartition("/")[2], size)
            for method, path, size in self.seen
            if method == "GET" and "/blobs/" in path
        ]


@pytest.fixture
def remote(tmp_path: Path, layout: Path, soci: Soci) -> Iterator[Remote]:
    made = Remote(tmp_path / "registry")
    convert = (
        "image",
        "convert",
        "--soci",
        *["--soci-min-layer-size", "0", "--soci-span-size", "65536"],
    )
    soci(*convert, f"oci:{layout}", made.image).good()
    made.forget()
    yield made
    made.server.close()


def layers_of(soci: Soci, image: str) -> dict[str, str]:
    """The layers of an image, and their zTOCs."""
    facts = json.loads(soci("image", "inspect", "--format", "json", image).good().text)
    return {
        layer["digest"]: layer["ztoc"]["digest"]
        for manifest in facts["manifests"]
        for layer in manifest["layers"]
    }


# ls


def test_ls(soci: Soci, layout: Path) -> None:
    image = f"oci:{layout}"
    assert soci("ls", image).good().text.splitlines() == ["dev", "etc", "odd \\x1b[31m\\n", "usr"]
    assert soci("ls", image, "usr").text == "big\nbig2\ndir\nsmall\nupper\n"
    assert soci("ls", image, "/usr/dir").text == "hosts\nlink\n"
    assert soci("ls", image, "/etc/hosts").text == "/etc/hosts\n"
    soci("ls", image, "/nothing").bad(1, "has no file /nothing")
    soci("ls", image, "/etc/hosts/").bad(1, "no directory")


def test_ls_long(soci: Soci, layout: Path) -> None:
    image = f"oci:{layout}"
    lines = soci("ls", "-l", image, "/etc").good().text.splitlines()
    assert lines == [
        "-rw-r--r-- 1 root wheel 20 1970-01-01T00:00:01.5Z hosts",
        "lrwxrwxrwx 1 0    0     12 2023-11-14T22:13:20Z   link -> ../usr/small",
    ]
    assert soci("ls", "-l", image, "/usr/dir").text.endswith("/usr/dir -> /etc\n")
    usr = soci("ls", "-l", image, "/usr").text.splitlines()
    assert [line.split()[:2] for line in usr[:2]] == [["-rwsr-xr-x", "2"]] * 2
    devices = soci("ls", "-l", image, "/dev").text.splitlines()
    assert devices[0].startswith("crw-rw-rw- 1 0 0 1, 3 ")
    assert devices[1].startswith("prw-r--r-- 1 0 0    0 ")


def test_ls_recursive(soci: Soci, layout: Path) -> None:
    image = f"oci:{layout}"
    assert soci("ls", "-R", image, "/etc").good().text == "/etc:\nhosts\nlink\n"
    blocks = soci("ls", "-R", image).text.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["/:", "/dev:", "/etc:", "/usr:"]
    blocks = soci("ls", "-R", image, ".").text.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [".:", "./dev:", "./etc:", "./usr:"]


def test_ls_json(soci: Soci, layout: Path) -> None:
    image = f"oci:{layout}"
    rows = [
        json.loads(line)
        for line in soci("ls", "-R", "--format", "json", image).good().text.splitlines()
    ]
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == 13
    small = by_path["/usr/small"]
    assert small == {
        "path": "/usr/small",
        "type": "reg",
        "size": 6,
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "uname": "",
        "gname": "",
        "mtime": "2023-11-14T22:13:20Z",
        "linkname": "",
        "devmajor": 0,
        "devminor": 0,
        "xattrs": {"user.color": "blue"},
        "layer": next(iter(layers_of(soci, image))),
        "indexed": True,
    }
    assert by_path["/etc/link"]["linkname"] == "../usr/small"
    assert by_path["/odd \x1b[31m\n"]["size"] == 1
    (one,) = soci("ls", "--format", "json", image, "etc/hosts").text.splitlines()
    assert json.loads(one)["mtime"] == "1970-01-01T00:00:01.5Z"


def test_ls_needs_no_byte_of_an_indexed_layer(soci: Soci, remote: Remote) -> None:
    soci("ls", "-lR", remote.image).good()
    fetched = {digest for digest, _ in remote.blobs()}
    assert fetched == set(layers_of(soci, remote.image).values())


# cat


def test_cat(soci: Soci, layout: Path) -> None:
    image = f"oci:{layout}"
    assert soci("cat", image, "/etc/hosts").good().out == b"127.0.0.1 localhost\n"
    assert soci("cat", image, "etc/link", "/usr/dir/link").good().out == b"small\n" * 2
    assert soci("cat", image, "usr/big2").good().out == BIG
    soci("cat", image, "/etc").bad(1, "/etc is a directory")
    soci("cat", image, "/dev/pipe").bad(1, "named pipe")
    assert soci("cat", image, "/etc/hosts", "/nothing").bad(1, "no file /nothing").out == b""
    soci("cat", "oci:/nowhere", "/x").bad(1, "/nowhere")
    soci("cat", image, "/x", "--platform", "linux/arm64").bad(1, "linux/amd64")


def test_cat_fetches_one_span_and_the_ztocs(soci: Soci, remote: Remote) -> None:
    layers = layers_of(soci, remote.image)
    remote.forget()
    assert soci("cat", remote.image, "/usr/small").good().out == b"small\n"
    ranges = [size for digest, size in remote.blobs() if digest in layers]
    assert len(ranges) == 1
    assert ranges[0] < 200_000
    assert {digest for digest, _ in remote.blobs()} - layers.keys() == set(layers.values())
    remote.forget()
    assert soci("cat", remote.image, "/usr/small").good().out == b"small\n"
    assert not remote.blobs()


def test_cat_of_a_lazily_pulled_image(soci: Soci, remote: Remote) -> None:
    name = remote.image.removeprefix("docker://")
    soci("pull", name).good()
    layers = layers_of(soci, remote.image)
    remote.forget()
    assert soci("cat", name, "/usr/big").good().out == BIG
    assert {digest for digest, _ in remote.blobs()} <= layers.keys()


def test_two_processes_fetch_a_layer_once(soci: Soci, remote: Remote, tmp_path: Path) -> None:
    layers = layers_of(soci, remote.image)
    remote.forget()
    both = [start("cat", remote.image, "/usr/big", home=tmp_path) for _ in range(2)]
    assert [one.communicate(timeout=60)[0] == BIG for one in both] == [True, True]
    fetched = [size for digest, size in remote.blobs() if digest in layers]
    assert sum(fetched) < 1.1 * len(gz(lower_layer()))


@pytest.mark.parametrize("signal_, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_while_the_registry_hangs(
    soci: Soci, remote: Remote, tmp_path: Path, signal_: int, status: int
) -> None:
    layer = next(iter(layers_of(soci, remote.image)))
    with FaultProxy(remote.server.address, Fault(Hang(), layer)) as proxy:
        running = start("cat", f"docker://{proxy.host}/app:1", "/usr/big", home=tmp_path)
        deadline = time.monotonic() + 20
        while not proxy.seen("GET", layer) and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(signal_)
        running.communicate(timeout=10)
    assert running.returncode == status


def test_cat_on_a_terminal(layout: Path, tmp_path: Path) -> None:
    status, said = on_terminal("cat", f"oci:{layout}", "/usr/small", home=tmp_path)
    assert (status, said) == (0, "")


# cp


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def attributes(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return stat.S_IMODE(status.st_mode), status.st_mtime_ns


def test_cp_a_file(soci: Soci, layout: Path, tmp_path: Path) -> None:
    image = f"oci:{layout}"
    soci("cp", f"{image}:/etc/hosts", tmp_path / "new").good()
    assert (tmp_path / "new").read_bytes() == b"127.0.0.1 localhost\n"
    assert attributes(tmp_path / "new") == (0o644, 1_500_000_000)
    soci("cp", image, "usr/big", tmp_path / "new").good()
    assert (tmp_path / "new").read_bytes() == BIG
    assert attributes(tmp_path / "new")[0] == (0o4755 if os.geteuid() == 0 else 0o755)
    (tmp_path / "there").mkdir()
    soci("cp", image, "/usr/small", tmp_path / "there").good()
    assert (tmp_path / "there/small").read_bytes() == b"small\n"
    soci("cp", image, "/etc/link", tmp_path / "there/").good()
    assert (tmp_path / "there/link").readlink() == Path("../usr/small")
    soci("cp", image, "/usr/small", f"{tmp_path}/absent/").bad(1, "make it first")
    soci("cp", image, "/usr/small", tmp_path / "absent/x").bad(1, "parent directory")
    soci("cp", image, "/nothing", tmp_path / "x").bad(1, "no file /nothing")
    assert names(tmp_path / "there") == ["link", "small"]


def test_cp_a_directory(soci: Soci, layout: Path, tmp_path: Path) -> None:
    image = f"oci:{layout}"
    soci("cp", f"{image}:/usr", tmp_path / "new").good()
    new = tmp_path / "new"
    assert names(new) == ["big", "big2", "dir", "small", "upper"]
    assert (new / "big").samefile(new / "big2")
    assert (new / "big").read_bytes() == BIG
    assert (new / "upper").read_bytes() == noise(1, 70_000)
    assert (new / "dir").readlink() == Path("/etc")
    assert attributes(new / "dir")[1] == 1_700_000_000 * 10**9
    # Once more, over what is there: all is replaced.
    soci("cp", f"{image}:/usr/.", new).good()
    assert (new / "big").samefile(new / "big2")
    soci("cp", f"{image}:/usr", new).good()
    assert (new / "usr/big").read_bytes() == BIG
    soci("cp", f"{image}:/etc", tmp_path / "etc").good()
    assert attributes(tmp_path / "etc") == (0o750, 1_700_000_000 * 10**9)
    soci("cp", f"{image}:/etc", new / "small").bad(1, "is no directory")
    assert not list(tmp_path.rglob(".soci-*"))


def test_cp_everything(soci: Soci, layout: Path, tmp_path: Path) -> None:
    done = soci("cp", f"oci:{layout}:/", tmp_path / "all").good()
    assert names(tmp_path / "all") == ["dev", "etc", "odd \x1b[31m\n", "usr"]
    assert stat.S_ISFIFO((tmp_path / "all/dev/pipe").lstat().st_mode)
    if (tmp_path / "all/dev/null").exists():
        assert (tmp_path / "all/dev/null").is_char_device()
    else:
        assert "only root can make devices: /dev/null" in done.err


def test_cp_xattrs(soci: Soci, layout: Path, tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, "user.try", b"1")
    except OSError:
        pytest.skip("the file system of temporary files has no xattrs")
    soci("cp", f"oci:{layout}:/usr/small", tmp_path).good()
    assert os.getxattr(tmp_path / "small", "user.color") == b"blue"


def test_cp_writes_nothing_outside(soci: Soci, tmp_path: Path) -> None:
    """Links at the destination are not followed, nor are those that come along."""
    maker = LayoutMaker(tmp_path / "image")
    tar = tar_of({"d/escape/x": b"evil", "d/file": b"evil", "d/../../up": b"evil"})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as upper:
        info = tarfile.TarInfo("d/link")
        info.type, info.linkname = tarfile.SYMTYPE, "/"
        upper.addfile(info)
        info = tarfile.TarInfo("d/link/x")
        upper.addfile(info)
    layers = [maker.blob(gz(tar)), maker.blob(gz(out.getvalue()))]
    maker.tag(maker.manifest(layers, maker.config()))
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (outside / "file").write_bytes(b"good")
    (target / "d").mkdir(parents=True)
    (target / "d/escape").symlink_to(outside)
    (target / "d/file").symlink_to(outside / "file")
    soci("cp", f"oci:{maker.root}:/d", target).bad(1, "in the way")
    (target / "d/escape").unlink()
    soci("cp", f"oci:{maker.root}:/d", target).good()
    assert (target / "d/file").read_bytes() == b"evil"
    assert not (target / "d/file").is_symlink()
    assert (target / "d/link").readlink() == Path("/")
    assert names(outside) == ["file"]
    assert (outside / "file").read_bytes() == b"good"
    assert names(tmp_path) == ["cache", "image", "outside", "target"]


def test_cp_what_is_in_the_way(soci: Soci, layout: Path, tmp_path: Path) -> None:
    (tmp_path / "usr/small/x").mkdir(parents=True)
    soci("cp", f"oci:{layout}:/usr", tmp_path).bad(1, "usr/small", "a directory is in the way")
    (tmp_path / "etc").write_bytes(b"file")
    soci("cp", f"oci:{layout}:/etc", tmp_path).bad(1, "no directory is in the way")
    assert not list(tmp_path.rglob(".soci-*"))


AS_NOBODY = """
import os, sys
from soci_cli.commands import run
# All that is imported late: that user may be unable to read where it is.
cache = os.environ["SOCI_CACHE"]
os.environ["SOCI_CACHE"] = cache + ".root"
assert not run([*sys.argv[1:-1], sys.argv[-1] + ".root"])
os.environ["SOCI_CACHE"] = cache
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.root
def test_cp_as_somebody_else(layout: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # those of pytest are root's alone
        place = Path(folder, "image")
        shutil.copytree(layout, place)
        for path in (Path(folder), place, *place.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o644)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, "cp", f"oci:{place}:/", f"{folder}/out"],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            env=environment(Path(folder), SOCI_CACHE=f"{folder}/cache"),
        )
        assert (done.returncode, done.stdout) == (0, "")
        assert "left out, because only root can make devices: /dev/null" in done.stderr
        out = Path(folder, "out")
        assert attributes(out / "usr/big")[0] == 0o755, "no set-user-ID program of another user"
        assert (out / "usr/big").lstat().st_uid == 65534
        assert names(out / "dev") == ["pipe"]


def test_cp_into_a_device(soci: Soci, layout: Path, tmp_path: Path) -> None:
    soci("cp", f"oci:{layout}:/etc/hosts", "/dev/null").good()
    assert Path("/dev/null").is_char_device()
    (tmp_path / "stdout").symlink_to("/dev/stdout")
    done = process("cp", f"oci:{layout}:/etc/hosts", tmp_path / "stdout", home=tmp_path).good()
    assert done.out == b"127.0.0.1 localhost\n"
    soci("cp", f"oci:{layout}:/etc", "/dev/null").bad(1, "/etc is a directory")


def test_cp_as_tar(layout: Path, tmp_path: Path) -> None:
    done = process("cp", f"oci:{layout}:/usr", "-", home=tmp_path).good()
    with tarfile.open(fileobj=io.BytesIO(done.out)) as tar:
        members = {member.name: member for member in tar}
        assert set(members) == {
            f"usr{name}" for name in ("", "/big", "/big2", "/dir", "/small", "/upper")
        }
        assert members["usr/big2"].linkname == "usr/big"
        assert members["usr/small"].pax_headers["SCHILY.xattr.user.color"] == "blue"
        content = tar.extractfile("usr/big")
        assert content is not None
        assert content.read() == BIG
    hosts = process("cp", f"oci:{layout}:/etc/hosts", "-", home=tmp_path).good().out
    listed = subprocess.run(["tar", "-tvf", "-"], input=hosts, capture_output=True, check=True)
    assert listed.stdout.endswith(b" hosts\n")
    everything = process("cp", f"oci:{layout}:/", "-", home=tmp_path).good().out
    with tarfile.open(fileobj=io.BytesIO(everything)) as tar:
        assert tar.getmember("./etc/hosts").mtime == 1.5


def test_folders_keep_their_times_in_a_tar_stream(layout: Path, tmp_path: Path) -> None:
    """Each is followed by what is in it, as tar writes it, however the layers have it."""
    done = process("cp", f"oci:{layout}:/", "-", home=tmp_path).good()
    with tarfile.open(fileobj=io.BytesIO(done.out)) as tar:
        members = [member.name for member in tar]
        assert members.index("./usr/big") < members.index("./usr/big2")
        for member in tar:
            inside = [at for at, name in enumerate(members) if name.startswith(member.name + "/")]
            if inside:
                at = members.index(member.name)
                assert inside == list(range(at + 1, at + 1 + len(inside)))
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", "-", "-C", tmp_path / "out"], input=done.out, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.out)) as tar:
        for member in tar:
            if member.isdir():
                assert int((tmp_path / "out" / member.name).stat().st_mtime) == int(member.mtime)


@pytest.mark.parametrize(
    "given", [("image",), ("image:path", "x"), ("docker://host/app", "x"), ("oci:/dir", "x"), ()]
)
def test_cp_without_a_path(soci: Soci, given: tuple[str, ...]) -> None:
    assert soci("cp", *given).status == 2


def test_cp_shows_progress_on_a_terminal(layout: Path, tmp_path: Path) -> None:
    status, said = on_terminal("cp", f"oci:{layout}:/usr", str(tmp_path / "out"), home=tmp_path)
    assert status == 0
    assert "copied" in said
    status, said = on_terminal("-q", "cp", f"oci:{layout}:/usr", str(tmp_path / "b"), home=tmp_path)
    assert (status, said) == (0, "")
