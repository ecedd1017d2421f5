"""Images that are made once, and who mounts them."""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.mounts import NOBODY, Facts, Person, facts, make_odd_image, python_for
from tests.integration.published import FILES, OTHER, Published, living, new_folder, publish
from tests.support.images import LayoutMaker, gz, sha256, tar_of
from tests.support.servers import DockerRegistry, FaultProxy
from tests.support.tools import run, skopeo


def large_tar(path: Path, megabytes: int) -> None:
    """An archive of files that do not compress and of text, in turn."""
    source = random.Random(7)
    words = [source.randbytes(4).hex() for _ in range(50)]
    text = " ".join(source.choice(words) for _ in range(120_000)).encode()[: 1 << 20]
    with path.open("wb") as out, tarfile.open(fileobj=out, mode="w|") as tar:
        for number in range(megabytes):
            data = text if number % 5 else source.randbytes(1 << 20)
            info = tarfile.TarInfo(f"data/{number}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def large_archive(
    tmp_path_factory: pytest.TempPathFactory, need_pigz: str, need_skopeo: str
) -> Iterator[Path]:
    """An OCI archive with an image whose layer has about 200 MB unpacked."""
    folder = tmp_path_factory.mktemp("large")
    large_tar(folder / "layer.tar", 200)
    subprocess.run([need_pigz, "-1", "-n", "layer.tar"], cwd=folder, check=True)
    maker = LayoutMaker(folder / "layout")
    layer = maker.blob((folder / "layer.tar.gz").read_bytes())
    (folder / "layer.tar.gz").unlink()
    maker.tag(maker.manifest([layer], maker.config([sha256(b"")])))
    skopeo(f"oci:{maker.root}:latest", f"oci-archive:{folder}/large.tar:latest")
    shutil.rmtree(maker.root)
    yield folder / "large.tar"
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mounts")


@pytest.fixture(scope="session")
def odd(folder: Path, docker_registry: DockerRegistry) -> Published:
    """The odd image in a docker-registry."""
    root = make_odd_image(folder / "odd").root
    return publish(folder, docker_registry.host, "odd", root, 10 << 10)


@pytest.fixture(scope="session")
def plain(folder: Path, docker_registry: DockerRegistry) -> Published:
    """An image of two indexed layers with CONTENT."""
    maker = LayoutMaker(folder / "plain")
    tars = [tar_of(FILES), tar_of(OTHER)]
    blobs = [maker.blob(gz(tar)) for tar in tars]
    maker.tag(maker.manifest(blobs, maker.config([sha256(tar) for tar in tars])))
    return publish(folder, docker_registry.host, "plain", maker.root)


@pytest.fixture(scope="session")
def unpacked(folder: Path, need_umoci: str) -> Facts:
    """What umoci makes of the odd image."""
    root = make_odd_image(folder / "for-umoci", all_gzip=True).root
    run(need_umoci, "unpack", "--image", f"{root}:latest", folder / "bundle")
    return facts(folder / "bundle" / "rootfs")


@pytest.fixture
def proxy(docker_registry: DockerRegistry) -> Iterator[FaultProxy]:
    with FaultProxy(docker_registry.host) as made:
        yield made


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    """Who runs the tests, with a home of his own. What he leaves mounted is taken away."""
    yield from living(Person(new_folder(tmp_path / "home")))


@pytest.fixture
def fuse_for_all() -> Iterator[None]:
    """/dev/fuse as ordinary machines have it."""
    mode = stat.S_IMODE(Path("/dev/fuse").stat().st_mode)
    Path("/dev/fuse").chmod(0o666)
    yield
    Path("/dev/fuse").chmod(mode)


@pytest.fixture
def nobody(fuse_for_all: None) -> Iterator[Person]:
    """An ordinary user. His home is where he may get to."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    python = python_for(NOBODY)
    with tempfile.TemporaryDirectory(prefix="soci-test-") as home:
        os.chown(home, NOBODY, NOBODY)
        yield from living(Person(Path(home), python, NOBODY))
