"""Images of real tools, all their files, by EROFS, by FUSE trees, and as umoci unpacks them."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.integration.mounts import Facts, Person, facts, lower_tar, upper_tar
from tests.integration.published import CONVERT, FLAGS, QUIET, compare, new_folder
from tests.support.images import GOLDEN, Json, LayoutMaker, gz, noise, sha256
from tests.support.machine import need
from tests.support.tools import run

pytestmark = pytest.mark.usefixtures("need_fuse")
ENGINES = ("erofs", "fuse")


def seen(person: Person, root: Path) -> dict[str, Facts]:
    """All files of the image in a layout, by each engine."""
    target = person.home / f"{root.name}-soci"
    person.soci(*CONVERT, *FLAGS, "0", f"oci:{root}", f"oci:{target}:latest").good()
    found = {}
    for engine in ENGINES:
        with person.mounted(f"oci:{target}:latest", None, *QUIET, "--engine", engine) as place:
            found[engine] = facts(place)
            about = os.statvfs(place)
            assert about.f_namemax == 255
            assert about.f_bavail == 0
            assert about.f_flag & os.ST_RDONLY
            assert about.f_bsize == 4096
            assert about.f_blocks
    return found


def unpacked(root: Path, folder: Path) -> Facts:
    """What umoci makes of it."""
    run("umoci", "unpack", "--image", f"{root}:latest", folder)
    return facts(folder / "rootfs")


def unpack_tar(archive: bytes, folder: Path) -> None:
    subprocess.run(
        ["tar", "-x", "--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"],
        input=archive,
        cwd=folder,
        check=True,
    )


def change(root: Path) -> None:
    """What a second layer shall have: files changed, replaced, removed, added, and a link across layers."""
    (root / "etc/hosts").write_bytes(b"changed\n")
    (root / "etc/early").unlink()
    shutil.rmtree(root / "gone")
    shutil.rmtree(root / "opaque")
    (root / "opaque").mkdir(mode=0o705)
    (root / "opaque/new").write_bytes(b"new")
    (root / "file-to-dir").unlink()
    (root / "file-to-dir").mkdir()
    (root / "merged/above").write_bytes(noise(4, 150_000))
    (root / "tmp/later").write_bytes(noise(5, 100_000))
    (root / "tmp/later-too").hardlink_to(root / "tmp/later")
    os.chown(root / "twice", 1234, 4321)


def by_umoci(folder: Path) -> Path:
    """An image that umoci made of two states of a tree."""
    root, bundle = folder / "umoci", folder / "bundle"
    run("umoci", "init", "--layout", root)
    image = ("--image", f"{root}:latest")
    run("umoci", "new", *image)
    run("umoci", "unpack", *image, bundle)
    unpack_tar(lower_tar(), bundle / "rootfs")
    run("umoci", "repack", "--refresh-bundle", *image, bundle)
    change(bundle / "rootfs")
    run("umoci", "repack", *image, bundle)
    return root


def by_bsdtar(folder: Path) -> Path:
    """An image of layers that bsdtar packed, in its two formats of tar."""
    need("bsdtar")
    tree = new_folder(folder / "tree")
    unpack_tar(lower_tar(), tree)
    for name in ("etc/ümlaut\udcff\udc80", "etc/early"):  # which bsdtar writes otherwise than it is
        (tree / name).unlink()
    maker = LayoutMaker(folder / "bsdtar")
    blobs: list[Json] = []
    diff_ids: list[str] = []
    for name in ("pax", "gnutar"):
        if blobs:
            change_some(tree)
        archive = folder / f"{name}.tar"
        # Names and owners alone tell gnutar's from pax' for the second layer.
        run("bsdtar", f"--format={name}", "--numeric-owner", "-cf", archive, "-C", tree, ".")
        data = archive.read_bytes()
        blobs.append(maker.blob(gz(data)))
        diff_ids.append(sha256(data))
    maker.tag(maker.manifest(blobs, maker.config(diff_ids)))
    return maker.root


def change_some(tree: Path) -> None:
    (tree / "etc/hosts").write_bytes(b"changed\n")
    shutil.rmtree(tree / "deep")
    (tree / "added").write_bytes(noise(9, 70_000))


_CONTAINERFILE = """\
FROM scratch
ADD lower.tar /
ADD upper.tar /
COPY file /copied/file
"""


def by_podman(folder: Path) -> Path:
    """An image that `podman build` made of two archives and a file."""
    return built(folder, "podman", "--events-backend=file", "--cgroup-manager=cgroupfs")


def by_buildah(folder: Path) -> Path:
    """The same by buildah itself."""
    return built(folder, "buildah")


def built(folder: Path, tool: str, *flags: str) -> Path:
    need(tool)
    context = new_folder(folder / "context")
    (context / "lower.tar").write_bytes(lower_tar())
    (context / "upper.tar").write_bytes(upper_tar())
    (context / "file").write_bytes(noise(3, 40_000))
    (context / "Containerfile").write_text(_CONTAINERFILE)
    (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    layered = "--layers" if tool == "buildah" else "--layers=true"
    file = ("-f", context / "Containerfile", "-t", "localhost/made:1")
    policy = f"--signature-policy={folder}/policy.json"
    with tempfile.TemporaryDirectory() as name:  # podman takes short paths only
        store = (f"--root={name}/store", f"--runroot={name}/run", "--storage-driver=vfs", *flags)
        run(tool, *store, "build", layered, "--isolation=chroot", *file, context)
        run(tool, *store, "push", "-q", policy, "localhost/made:1", f"oci:{folder}/{tool}:latest")
    return folder / tool


@pytest.mark.parametrize("make", [by_umoci, by_bsdtar, by_podman, by_buildah])
def test_every_file(
    tmp_path: Path, person: Person, need_umoci: str, make: Callable[[Path], Path]
) -> None:
    root = make(new_folder(tmp_path / "made"))
    expected = unpacked(root, tmp_path / "unpacked")
    assert len(expected) > 40
    for found in seen(person, root).values():
        compare(found, expected)


GOLDEN_LAYERS = (
    "fixed-huffman", "flushed-blocks", "gnu-l9-named", "gnu-long", "multi-member", "stored-l0",
    "ustar-prefix", "v7",
)  # fmt: skip


@pytest.mark.parametrize(
    "names", [*((name,) for name in GOLDEN_LAYERS), GOLDEN_LAYERS], ids="+".join
)
def test_golden_layers(person: Person, tmp_path: Path, names: Sequence[str]) -> None:
    """Each as an image of its own, and all over each other."""
    layers = [(GOLDEN / "layers" / f"{name}.tar.gz").read_bytes() for name in names]
    maker = LayoutMaker(tmp_path / "golden")
    diff_ids = [sha256(gzip.decompress(layer)) for layer in layers]
    maker.tag(maker.manifest([maker.blob(layer) for layer in layers], maker.config(diff_ids)))
    expected = unpacked(maker.root, tmp_path / "unpacked")
    for found in seen(person, maker.root).values():
        # Folders that only whiteouts imply, containerd makes and umoci does not.
        implied = found.keys() - expected.keys()
        assert all(found[one]["mode"] == "0o40755" for one in implied)
        compare({key: fact for key, fact in found.items() if key not in implied}, expected)


@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "images").iterdir()))
def test_golden_images(person: Person, name: str) -> None:
    (root,) = [path.parent for path in (GOLDEN / "images" / name).rglob("oci-layout")] or [
        GOLDEN / "images" / name
    ]
    found = seen(person, root)
    compare(found["erofs"], found["fuse"])
