"""Whole images from every place, read lazily, against what umoci unpacks."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from soci_cli.commands import run
from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    NotFoundError,
    RegistryError,
    SociError,
)
from soci_cli.index.discover import IndexSources
from soci_cli.index.model import ztocs_by_layer
from soci_cli.lazy import File, LazyImage, OpenOptions
from soci_cli.oci import parse_reference
from soci_cli.oci.media_types import OCI_LAYER, OCI_LAYER_ZSTD
from soci_cli.targets.registry.download import BlobStream
from soci_cli.targets.registry.options import RegistryOptions
from soci_cli.targets.registry.place import Registries
from soci_cli.targets.registry.retry import RetryPolicy
from soci_cli.trial_registry import RegistryServer
from tests.lazy.tools import opened, whole
from tests.support.images import (
    LayoutMaker,
    gz,
    noise,
    options,
    run_convert,
    sha256,
    tar_of,
    zst,
)
from tests.support.layers import mixed_data
from tests.support.machine import need
from tests.support.servers.actions import (
    CutAnswer,
    FlipByte,
    IgnoreRange,
    ResetAnswer,
    ShortenAnswer,
    error_reply,
)
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.support.tools import CONVERT
from tests.support.tools import run as tool

BIG = mixed_data(400_000)


def lower_layer() -> bytes:
    """Everything that an archive can hold."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes | None = None, kind: bytes = b"", **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.type = kind or (tarfile.REGTYPE if data is not None else tarfile.DIRTYPE)
            info.mode = 0o644 if data is not None else 0o755
            info.size = len(data or b"")
            info.mtime = 1_600_000_000.25
            info.uname, info.gname = "root", "root"
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data or b""))

        add("./", mode=0o755)
        add("bin/")
        add("bin/tool", BIG, mode=0o4755)
        add("bin/hard", kind=tarfile.LNKTYPE, linkname="bin/tool", mode=0o4755)
        add("bin/soft", kind=tarfile.SYMTYPE, linkname="/bin/tool", mode=0o777)
        add("etc/")
        add("etc/hosts", b"127.0.0.1 localhost\n", uid=1, gid=2)
        add("etc/ümlaut\udcff", b"odd", mode=0o600)
        add("etc/" + "long" * 60, b"long")
        add("tmp/", mode=0o1777)
        add("gone/")
        add("gone/1", b"1")
        add("gone/2", b"2")
        add("opaque/")
        add("opaque/old", b"old")
        add("file-to-dir", b"file")
        add("dir-to-file/x", b"x")
        add("with-xattr", b"x", pax_headers={"SCHILY.xattr.user.color": "blue"})
        add("pipe", kind=tarfile.FIFOTYPE, mode=0o640)
        add("empty", b"")
    return out.getvalue()


def upper_layer() -> bytes:
    """Everything that an upper layer can do to a lower one."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("file-to-dir/")
        info.type, info.mode = tarfile.DIRTYPE, 0o750
        tar.addfile(info)
    files = {
        "etc/hosts": b"10.0.0.1 other\n",
        ".wh.gone": b"",
        "opaque/.wh..wh..opq": b"",
        "opaque/new": b"new",
        "file-to-dir/x": b"y",
        ".wh.dir-to-file": b"",
        "dir-to-file": b"now a file",
        "tmp/later": noise(5, 100_000),
    }
    return out.getvalue()[:512] + tar_of(files)


def make(root: Path, *, zstd: bool = False) -> LayoutMaker:
    """A layout with an image of three layers, the topmost a plain tar."""
    maker = LayoutMaker(root)
    tars = [lower_layer(), upper_layer(), tar_of({"plain/x": b"in a plain layer"})]
    layers = [
        maker.blob(gz(tars[0])),
        maker.blob(zst(tars[1]), OCI_LAYER_ZSTD) if zstd else maker.blob(gz(tars[1])),
        maker.blob(tars[2], OCI_LAYER),
    ]
    maker.tag(maker.manifest(layers, maker.config([sha256(tar) for tar in tars])))
    return maker


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layout with that image, all layers indexed."""
    folder = tmp_path_factory.mktemp("converted")
    run_convert(make(folder / "image").root, folder / "soci")
    return folder / "soci"


def walk(image: LazyImage, start: File | None = None) -> Iterator[File]:
    waiting = [start or image.root]
    while waiting:
        for file in image.children(waiting.pop()):
            yield file
            if file.is_directory:
                waiting.append(file)


KINDS = {"reg": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO}
Facts = dict[bytes, tuple[object, ...]]


def facts_of(image: LazyImage) -> Facts:
    """All about every file of an image."""
    found: Facts = {}
    for file in walk(image):
        node = image.node(file)
        content = (
            hashlib.sha256(b"".join(image.pieces(file))).digest() if node.type == "reg" else b""
        )
        found[file.path] = (
            KINDS[node.type] | node.mode,
            (node.uid, node.gid),
            node.linkname,
            content,
            node.mtime_ns if not file.is_directory else 0,
            1 if file.is_directory else image.link_count(file),
            dict(node.xattrs),
        )
    return found


def facts_on_disk(root: Path) -> Facts:
    found: Facts = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(folder, name)  # noqa: PTH118 - bytes
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content = Path(os.fsdecode(path)).read_bytes() if kind == stat.S_IFREG else None
            found[os.path.relpath(path, top)] = (
                status.st_mode,
                (status.st_uid, status.st_gid),
                os.readlink(path) if kind == stat.S_IFLNK else b"",  # noqa: PTH115 - bytes
                b"" if content is None else hashlib.sha256(content).digest(),
                0 if kind == stat.S_IFDIR else status.st_mtime_ns,
                1 if kind == stat.S_IFDIR else status.st_nlink,
                {
                    name.encode(): os.getxattr(path, name, follow_symlinks=False)
                    for name in os.listxattr(path, follow_symlinks=False)
                    if not name.startswith("user.rootlesscontainers")
                },
            )
    return found


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory, need_root: None) -> Facts:
    """What umoci makes of the image, with its owners."""
    umoci = need("umoci")
    folder = tmp_path_factory.mktemp("umoci")
    layout = make(folder / "image").root
    tool(umoci, "unpack", "--image", f"{layout}:latest", folder / "bundle")
    return facts_on_disk(folder / "bundle" / "rootfs")


def test_an_indexed_image_is_what_umoci_unpacks(
    converted: Path, unpacked: Facts, tmp_path: Path
) -> None:
    with opened(f"oci:{converted}", tmp_path) as image:
        assert all(layer.indexed for layer in image.layers)
        assert facts_of(image) == unpacked


@pytest.mark.parametrize("zstd", [False, True])
def test_an_image_without_an_index_is_what_umoci_unpacks(
    unpacked: Facts, tmp_path: Path, zstd: bool
) -> None:
    layout = make(tmp_path / "image", zstd=zstd).root
    for _ in range(2):
        with opened(f"oci:{layout}", tmp_path / "cache") as image:
            assert not any(layer.indexed for layer in image.layers)
            assert facts_of(image) == unpacked
        # The second time the layers are not needed.
        for blob in (layout / "blobs" / "sha256").iterdir():
            if blob.stat().st_size > 5000:
                blob.unlink()


# Places and indexes.


Serve = Callable[..., "Registry"]


class Registry:
    """A registry behind a proxy that fails on purpose."""

    def __init__(self, folder: Path) -> None:
        self.server = RegistryServer(folder)
        self.proxy = FaultProxy(self.server.address)
        self.place = f"docker://{self.server.address}/app:1"

    def close(self) -> None:
        self.proxy.close()
        self.server.close()

    def blobs(self, digest: str) -> list[str]:
        """The ranges of a blob that were asked for."""
        return [
            seen.headers.get("Range", "") for seen in self.proxy.seen("GET", f"/blobs/{digest}")
        ]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path / "registry")
    yield made
    made.close()


@pytest.fixture
def pushed(registry: Registry, converted: Path) -> Registry:
    """With the indexed image."""
    assert run([*CONVERT, f"oci:{converted}", registry.place]) == 0
    return registry


def test_every_place(converted: Path, pushed: Registry, tmp_path: Path) -> None:
    store = tmp_path / "store"
    archive = f"oci-archive:{tmp_path}/image.tar:1"
    name = pushed.place.removeprefix("docker://")
    soci = ["--root", str(store)]
    assert run([*soci, *CONVERT, f"oci:{converted}", archive]) == 0
    assert run([*soci, "pull", name]) == 0
    with opened(f"oci:{converted}", tmp_path / "0") as image:
        expected = facts_of(image)
    for number, place in enumerate((pushed.place, archive, name), 1):
        with opened(place, tmp_path / str(number), store) as image:
            assert all(layer.indexed for layer in image.layers), place
            assert facts_of(image) == expected


def test_indexes_that_refer_to_the_image(registry: Registry, tmp_path: Path) -> None:
    store, layout = tmp_path / "store", make(tmp_path / "image").root
    name = registry.place.removeprefix("docker://")
    soci = ["--root", str(store)]
    assert run([*soci, "image", "load", "-i", str(layout), "--name", name]) == 0
    assert run([*soci, "push", "--soci-min-layer-size", "0", name]) == 0
    v1 = OpenOptions(index=IndexSources(v1=True))
    with opened(registry.place, tmp_path / "1") as image:
        assert not any(layer.indexed for layer in image.layers)
    with opened(registry.place, tmp_path / "2", options=v1) as image:
        assert all(layer.indexed for layer in image.layers)
        facts = facts_of(image)
    with opened(name, tmp_path / "3", store) as image:  # what was pushed from here
        assert facts_of(image) == facts
    absent = OpenOptions(index=IndexSources(sha256(b"absent")))
    for place in (registry.place, name, f"oci:{layout}"):
        with pytest.raises(NotFoundError), opened(place, tmp_path / "4", store, absent):
            pass


# Only what is needed.

QUICK = RegistryOptions(retries=RetryPolicy(first=0.001, longest=0.01))


@contextmanager
def through_proxy(pushed: Registry, tmp_path: Path) -> Iterator[LazyImage]:
    """The image, no layer of which is open."""
    reference = parse_reference(f"{pushed.proxy.host}/app:1")
    with (
        Registries(QUICK, {"HOME": str(tmp_path)}) as registries,
        registries.source(reference, "the place") as source,
        opened(source, tmp_path / "cache") as image,
    ):
        yield image


def fetched_ztocs(pushed: Registry, image: LazyImage) -> list[int]:
    """How often the zTOC of each layer was fetched."""
    assert image.index is not None
    ztocs = ztocs_by_layer(image.index.manifest)
    return [len(pushed.blobs(ztocs[layer.descriptor.digest].digest)) for layer in image.layers]


@pytest.mark.parametrize(
    "path, fetched",
    [
        (b"plain/x", [0, 0, 1]),
        (b"etc/hosts", [0, 1, 1]),
        (b"opaque/new", [0, 1, 1]),
        (b"opaque/old", [0, 1, 1]),
        (b"gone/1", [0, 1, 1]),
        (b"file-to-dir/x", [0, 1, 1]),
        (b"dir-to-file/x", [0, 1, 1]),
        (b"tmp/none", [1, 1, 1]),
        (b"bin/soft", [1, 1, 1]),
    ],
)
def test_layers_below_the_file_are_not_opened(
    pushed: Registry, tmp_path: Path, path: bytes, fetched: list[int]
) -> None:
    with through_proxy(pushed, tmp_path) as image:
        assert fetched_ztocs(pushed, image) == [0, 0, 0]
        with suppress(NotFoundError):
            file = image.find(path)
            image.node(file)
            image.read(file, 0, 1)
        assert fetched_ztocs(pushed, image) == fetched


def test_attributes_are_from_the_topmost_layer_that_has_them(
    pushed: Registry, tmp_path: Path
) -> None:
    with through_proxy(pushed, tmp_path) as image:
        folder = image.find(b"file-to-dir")
        assert image.node(folder).mode == 0o750
        assert fetched_ztocs(pushed, image) == [0, 1, 1]
        assert folder.layers == (1,)
        assert image.node(image.find(b"tmp")).mode == 0o1777  # layer 1 does not name it
        assert fetched_ztocs(pushed, image) == [1, 1, 1]


def test_all_layers_are_opened_at_once(pushed: Registry, tmp_path: Path) -> None:
    with through_proxy(pushed, tmp_path) as image:
        image.open_all()
        assert fetched_ztocs(pushed, image) == [1, 1, 1]
        image.open_all()
        assert facts_of(image)
        assert fetched_ztocs(pushed, image) == [1, 1, 1]


def test_many_threads_open_a_layer_once(pushed: Registry, tmp_path: Path) -> None:
    paths = [b"bin/tool", b"etc/hosts", b"opaque", b"tmp/later", b"plain", b"tmp", b""] * 4
    with through_proxy(pushed, tmp_path / "1") as image:
        expected = [(image.find(path), image.node(image.find(path))) for path in paths]
        image.open_all()
    before = fetched_ztocs(pushed, image)
    with through_proxy(pushed, tmp_path / "2") as image, ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda path: (image.find(path), image.node(image.find(path))), paths)
        assert list(found) == expected
    assert [now - then for now, then in zip(fetched_ztocs(pushed, image), before, strict=True)] == [
        1,
        1,
        1,
    ]


def test_a_layer_that_cannot_be_opened(pushed: Registry, tmp_path: Path) -> None:
    with through_proxy(pushed, tmp_path) as image:
        assert image.index is not None
        ztoc = ztocs_by_layer(image.index.manifest)[big_layer(image)]
        pushed.proxy.add(Fault(error_reply(404, "BLOB_UNKNOWN"), f"/blobs/{ztoc.digest}"))
        with pytest.raises(NotFoundError, match=ztoc.digest):
            image.open_all()
        with pytest.raises(NotFoundError, match=ztoc.digest):
            image.find(b"bin/tool")
        assert image.read(image.find(b"etc/hosts"), 0, 100) == b"10.0.0.1 other\n"
        pushed.proxy.clear()
        assert image.read(image.find(b"bin/tool"), 0, 100) == BIG[:100]


def test_what_the_image_is_and_what_it_wants_prefetched(tmp_path: Path) -> None:
    wanted = options(span_size=1 << 16, prefetch_files=("bin/tool", "etc/hosts"))
    run_convert(make(tmp_path / "image").root, tmp_path / "soci", wanted)
    with opened(f"oci:{tmp_path / 'soci'}", tmp_path / "cache") as image:
        assert image.digest.startswith("sha256:")
        assert image.platform is not None and image.platform.os == "linux"
        assert image.index is not None and image.index.version == "v2"
        spans = [layer.prefetch_ranges() for layer in image.layers]
        assert spans[1:] == [((0, 0),), ()]
        ((first, last),) = spans[0]
        assert first == 0 and last >= 3  # 400,000 bytes
        opener, layer = image.layers[0]._opener, image.layers[0].descriptor
        assert opener is not None
        assert opener.prefetch_ranges(layer, last + 1) == spans[0]
        with pytest.raises(InvalidDataError, match="names spans"):
            opener.prefetch_ranges(layer, last)
    with opened(whole(tmp_path / "other", gz(tar_of({"x": b"1"}))), tmp_path / "cache") as image:
        assert (image.index, image.layers[0].prefetch_ranges()) == (None, ())


# Faults on the way.


def big_layer(image: LazyImage) -> str:
    return image.layers[0].descriptor.digest


@pytest.mark.parametrize(
    "action",
    [
        ResetAnswer(70_000),
        CutAnswer(70_000),
        ShortenAnswer(10_000),
        FlipByte(5_000),
        error_reply(503, "UNAVAILABLE"),
        IgnoreRange(),
    ],
    ids=lambda action: type(action).__name__,
)
@pytest.mark.parametrize("times", [1, None])
def test_faults(pushed: Registry, tmp_path: Path, action: object, times: int | None) -> None:
    reference = parse_reference(f"{pushed.proxy.host}/app:1")
    with (
        Registries(QUICK, {"HOME": str(tmp_path)}) as registries,
        registries.source(reference, "the place") as source,
        opened(source, tmp_path / "cache") as image,
    ):
        digest = big_layer(image)
        pushed.proxy.add(Fault(action, f"/blobs/{digest}", "GET", times))  # type: ignore[arg-type]
        file = image.find(b"bin/soft")
        always_wrong = times is None and not isinstance(
            action, (ResetAnswer, CutAnswer, IgnoreRange)
        )
        try:
            assert b"".join(image.pieces(file)) == BIG
            assert not always_wrong
        except SociError as error:
            assert always_wrong, error
            assert isinstance(error, (IntegrityError, RegistryError))
            assert "\n" not in str(error)
            assert digest in str(error)
        pushed.proxy.clear()
        assert b"".join(image.pieces(file)) == BIG


def test_a_registry_that_ignores_range_sends_the_layer_twice_at_most(
    pushed: Registry, tmp_path: Path
) -> None:
    if not hasattr(BlobStream, "skipped"):
        pytest.skip("BlobStream does not say how much it skipped")
    pushed.proxy.add(Fault(IgnoreRange(), "/blobs/"))
    reference = parse_reference(f"{pushed.proxy.host}/app:1")
    with (
        Registries(QUICK, {"HOME": str(tmp_path)}) as registries,
        registries.source(reference, "the place") as source,
        opened(source, tmp_path / "cache") as image,
    ):
        digest = big_layer(image)
        file = image.find(b"bin/tool")
        for at in range(len(BIG) - 10, 0, -50_000):
            assert image.read(file, at, 10) == BIG[at : at + 10]
        assert len(pushed.proxy.seen("GET", f"/blobs/{digest}")) <= 3
