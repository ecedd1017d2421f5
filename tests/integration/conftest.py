"""A large image, made once."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import LayoutMaker, sha256
from tests.support.tools import skopeo


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
