"""Whole images: copied through containerd, converted inside it, and taken on by containerd's own tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from soci_cli.errors import IntegrityError, NotFoundError, SociError
from soci_cli.index.convert import ConvertResult, convert
from soci_cli.index.packing import HEAD
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.references import parse_reference
from soci_cli.targets import BlobReader, Layout, Source, WritableLayout, copy_graph
from soci_cli.targets.containerd.client import Containerd
from soci_cli.targets.containerd.place import ContainerdSource
from soci_cli.targets.registry import RegistryOptions
from soci_cli.targets.registry.place import Registries
from tests.support.images import (
    check_complete,
    gz,
    layer_tar,
    make_image,
    make_zstd_image,
    noise,
    options,
)
from tests.support.places import GOLDEN, copy, describe
from tests.support.servers.containerd import DEBIAN, ContainerdServer
from tests.support.servers.docker_registry import DockerRegistry
from tests.targets.containerd.tools import FULL, Sent, fails, push, source_at, target_at

IMAGES = sorted(path.name for path in GOLDEN.iterdir())


class Fetched:
    """Writes down which blobs are read out of containerd."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.digests: list[str] = []
        fetch = ContainerdSource.fetch

        def noted(
            place: ContainerdSource,
            descriptor: Descriptor,
            offset: int = 0,
            length: int | None = None,
        ) -> BlobReader:
            # The first bytes tell what a layer without a clear type is.
            if length is None or length > HEAD:
                self.digests.append(descriptor.digest)
            return fetch(place, descriptor, offset, length)

        monkeypatch.setattr(ContainerdSource, "fetch", noted)


def load(client: Containerd, layout: Path, name: str = "app:1") -> Descriptor:
    """Copies an image from a layout into containerd."""
    with Layout(layout, None, f"oci:{layout}") as source, target_at(client, name) as target:
        return copy(source, target)


def save(source: Source, layout: Path) -> dict[str, bytes]:
    """Copies an image into a layout; all its blobs."""
    with WritableLayout(layout, "latest", f"oci:{layout}") as target:
        copy(source, target)
    return check_complete(layout)


@pytest.mark.parametrize("image", IMAGES)
def test_through_containerd_and_a_registry(
    client: Containerd,
    containerd: ContainerdServer,
    docker_registry: DockerRegistry,
    tmp_path: Path,
    image: str,
) -> None:
    root = load(client, GOLDEN / image)
    containerd.collect()
    reference = parse_reference(f"{docker_registry.host}/{client.namespace}:1")
    registries = Registries(RegistryOptions(hosts_dirs=()), {})
    with Containerd(containerd.address, client.namespace + "-other") as other:
        with target_at(other) as target:
            assert copy(source_at(client), target) == source_at(client).resolve()
        # Each has what it needs without the other.
        client.delete_image(FULL)
        assert not containerd.blobs(client.namespace)
        with registries.target(reference, f"docker://{reference}") as target:
            copy(source_at(other), target)
        other.delete_image(FULL)
        assert not containerd.blobs(other.namespace)
    with (
        registries.source(reference, f"docker://{reference}") as source,
        target_at(client) as target,
    ):
        back = copy(source, target)
    assert (back.digest, back.size, back.media_type) == (root.digest, root.size, root.media_type)
    containerd.collect()
    assert save(source_at(client), tmp_path / "out") == check_complete(GOLDEN / image)


def converted(source: Source, client: Containerd, name: str) -> ConvertResult:
    with target_at(client, name) as target:
        return convert(source, target, options(all_platforms=True))


def compare_conversions(
    client: Containerd,
    containerd: ContainerdServer,
    image: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(client, image)
    with (
        Layout(image, None, f"oci:{image}") as source,
        WritableLayout(folder / "converted", "latest", "oci:converted") as written,
    ):
        try:
            wanted = convert(source, written, options(all_platforms=True))
        except SociError as error:
            with pytest.raises(type(error)):
                converted(source_at(client), client, "app:2")
            assert [one.name for one in client.images()] == [FULL]
            return
    result = converted(source_at(client), client, "app:2")
    assert result.descriptor.digest == wanted.descriptor.digest
    assert result.changed
    expected = check_complete(folder / "converted")

    # Everything stays, also when the first image goes.
    client.delete_image(FULL)
    assert save(source_at(client, "app:2"), folder / "out") == expected
    assert containerd.blobs(client.namespace) == set(expected)

    # Again, out of itself: nothing changes, and nothing large is read.
    fetched, sent = Fetched(monkeypatch), Sent(monkeypatch)
    again = converted(source_at(client, "app:2"), client, "app:2")
    assert again.descriptor == result.descriptor
    assert not again.changed
    assert sent.size == 0
    layers = {report.layer.digest for one in result.platforms for report in one.layers}
    assert not layers & set(fetched.digests)
    assert not containerd.leases(client.namespace)
    client.delete_image("docker.io/library/app:2")
    assert not containerd.blobs(client.namespace)


@pytest.mark.parametrize("image", IMAGES)
def test_conversion(
    client: Containerd,
    containerd: ContainerdServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image: str,
) -> None:
    compare_conversions(client, containerd, GOLDEN / image, tmp_path, monkeypatch)


def test_conversion_of_other_images(
    client: Containerd,
    containerd: ContainerdServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for make in (make_image, make_zstd_image):
        folder = tmp_path / make.__name__
        root = make(folder / "image").root
        with monkeypatch.context() as patch:
            compare_conversions(client, containerd, root, folder, patch)


def test_conversion_in_place(
    client: Containerd, containerd: ContainerdServer, tmp_path: Path
) -> None:
    load(client, make_image(tmp_path / "image").root)
    containerd.ctr("images", "label", FULL, "mine=stays", namespace=client.namespace)
    result = converted(source_at(client), client, "app:1")
    assert source_at(client).resolve().digest == result.descriptor.digest
    assert client.image(FULL).labels == {"mine": "stays"}
    assert not converted(source_at(client), client, "app:1").changed
    containerd.collect()
    save(source_at(client), tmp_path / "out")


def test_conversion_that_fails(
    client: Containerd, containerd: ContainerdServer, tmp_path: Path
) -> None:
    """A layer that is missing, or damaged: nothing has changed, and nothing is left behind."""
    maker = make_image(tmp_path / "image")
    root = load(client, maker.root)
    everything = containerd.blobs(client.namespace)
    layers = [one for one in everything if client.info(one).size > 10_000]
    path = containerd.content / "blobs" / "sha256" / layers[0].partition(":")[2]
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(bytes(len(data)))
    with fails(layers[0], "containerd:app:1"):
        converted(source_at(client), client, "app:2")
    path.write_bytes(data)
    containerd.collect()
    assert containerd.blobs(client.namespace) == everything

    client.delete_content(layers[1])
    with fails(layers[1], "containerd:app:1", kind=NotFoundError):
        converted(source_at(client), client, "app:2")
    with (
        WritableLayout(tmp_path / "out", "1") as layout,
        fails(layers[1], "pull", kind=NotFoundError),
    ):
        copy_graph(source_at(client), layout, root)
    assert [one.name for one in client.images()] == [FULL]
    containerd.collect()
    assert containerd.blobs(client.namespace) == everything - {layers[1]}


def test_two_sizes_of_a_blob(client: Containerd) -> None:
    root = push(client)
    wrong = Descriptor(root.media_type, root.digest, root.size + 1)
    with target_at(client, "app:2") as target:
        with fails(root.digest, kind=IntegrityError):
            target.fetch(wrong)
        assert not target.exists(wrong)
        with fails("cannot be tagged", kind=NotFoundError):
            target.tag(wrong)
        assert target.exists(describe(noise(0, 5000)))


def test_ctr_pushes_and_pulls_what_was_converted(
    client: Containerd,
    containerd: ContainerdServer,
    docker_registry: DockerRegistry,
    tmp_path: Path,
) -> None:
    load(client, make_image(tmp_path / "image", [gz(layer_tar(1)), gz(layer_tar(2))]).root)
    name = f"{docker_registry.host}/ctr/{client.namespace}:1"
    result = converted(source_at(client), client, name)
    expected = save(source_at(client, name), tmp_path / "one")
    containerd.ctr("images", "push", "--plain-http", name, namespace=client.namespace)
    client.delete_image(FULL)
    client.delete_image(name)
    assert not containerd.blobs(client.namespace)

    fresh = client.namespace + "-fresh"
    # Newer ones would let containerd pull, which unpacks for snapshotters of its configuration only.
    local = () if containerd.version == DEBIAN else ("--local",)
    pull = ("images", "pull", *local, "--plain-http", "--snapshotter", "native", name)
    containerd.ctr(*pull, namespace=fresh)
    with Containerd(containerd.address, fresh) as other:
        source = source_at(other, name)
        assert source.resolve().digest == result.descriptor.digest
        assert save(source, tmp_path / "two") == expected
        assert not converted(source, other, name).changed
    # It is unpacked as well.
    snapshots = containerd.ctr("snapshots", "--snapshotter", "native", "ls", namespace=fresh)
    assert snapshots.count("Committed") == 2


def test_what_ctr_imports_and_exports(
    client: Containerd, containerd: ContainerdServer, tmp_path: Path
) -> None:
    root = load(client, make_image(tmp_path / "image").root)
    converted(source_at(client), client, "app:2")
    archive = tmp_path / "out.tar"
    containerd.ctr(
        "images", "export", archive, "docker.io/library/app:2", namespace=client.namespace
    )
    fresh = client.namespace + "-fresh"
    containerd.ctr("images", "import", "--no-unpack", archive, namespace=fresh)
    with Containerd(containerd.address, fresh) as other:
        assert save(source_at(other, "app:2"), tmp_path / "two") == save(
            source_at(client, "app:2"), tmp_path / "one"
        )
        assert not source_at(other, "app:2").exists(root)
