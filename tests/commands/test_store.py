"""The commands of the local store."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.commands.test_convert import CONVERT
from tests.support.commands import Soci, process
from tests.support.images import (
    GOLDEN,
    LayoutMaker,
    check_complete,
    gz,
    layer_tar,
    listing,
    make_image,
)


def rows(soci: Soci, *arguments: str) -> list[dict[str, object]]:
    text = soci("image", "ls", "--format", "json", *arguments).good().text
    return [json.loads(line) for line in text.splitlines()]


def test_an_empty_store(soci: Soci) -> None:
    done = soci("images").good()
    assert done.text.split() == ["NAME", "DIGEST", "PLATFORMS", "SOCI", "SIZE"]
    assert soci("images", "-q").good().out == b""
    assert rows(soci) == []
    assert not soci.store.exists()
    soci("rmi", "nosuch").bad(1, "docker.io/library/nosuch:latest")
    soci("rmi", "--force", "nosuch").good()


def test_a_life_in_the_store(soci: Soci, image: Path, tmp_path: Path) -> None:
    digest = soci(*CONVERT, f"oci:{image}", "app:v1").good().last
    (row,) = rows(soci)
    assert row["name"] == "docker.io/library/app:v1"
    assert row["digest"] == digest
    assert row["platforms"] == ["linux/amd64"]
    assert row["soci"] == "v2"
    assert isinstance(row["size"], int)
    lines = soci("image", "ls").good().text.splitlines()
    assert lines[1].split()[:2] == ["app:v1", digest[:19]]
    assert digest in soci("images", "--no-trunc").good().text
    assert soci("images", "-q").good().text == f"{digest}\n"

    assert soci("image", "tag", "app:v1", "other/app").good().out == b""
    assert [row["name"] for row in rows(soci)] == [
        "docker.io/library/app:v1",
        "docker.io/other/app:latest",
    ]
    assert len(rows(soci, "other/app")) == 1

    archive = tmp_path / "saved.tar"
    assert soci("image", "save", "-o", archive, "other/app").good().out == b""
    check_complete(f"oci-archive:{archive}")
    # Other than with a tag, the last name takes the blobs along.
    first = soci("rmi", "app:v1").good()
    assert first.text == "Untagged: docker.io/library/app:v1\n"
    second = soci("image", "rm", "other/app").good()
    assert second.text.splitlines()[0] == "Untagged: docker.io/other/app:latest"
    assert f"Deleted: {digest}" in second.text
    assert rows(soci) == []
    assert not [name for name in listing(soci.store) if name.startswith("blobs")]

    loaded = soci("image", "load", "-i", archive).good()
    assert loaded.text == "Loaded image: docker.io/other/app:latest\n"
    assert soci("images", "-q").good().text == f"{digest}\n"
    check_complete("other/app", store=soci.store)
    assert soci("image", "inspect", "other/app").good().text.count("zTOC") == 2


def test_rm_of_several(soci: Soci, image: Path) -> None:
    for name in ("one", "two"):
        soci(*CONVERT, f"oci:{image}", name).good()
    done = soci("rmi", "one", "three", "two")
    assert done.status == 1
    assert "docker.io/library/three:latest" in done.err
    assert rows(soci) == []
    soci("image", "rm", "bad name").bad(2, "bad name")


def test_shared_blobs_stay(soci: Soci, tmp_path: Path) -> None:
    layers = [gz(layer_tar(number)) for number in range(3)]
    soci(*CONVERT, f"oci:{make_image(tmp_path / 'a', layers[:2]).root}", "a").good()
    soci(*CONVERT, f"oci:{make_image(tmp_path / 'b', layers[1:]).root}", "b").good()
    soci("rmi", "a").good()
    check_complete("b", store=soci.store)


def test_load_and_save_through_pipes(soci: Soci, image: Path, tmp_path: Path) -> None:
    digest = soci(*CONVERT, f"oci:{image}", "app").good().last
    saved = process("--root", soci.store, "image", "save", "app", home=tmp_path).good()
    loaded = process("--root", "new", "image", "load", home=tmp_path, stdin=saved.out).good()
    assert loaded.text == "Loaded image: docker.io/library/app:latest\n"
    blobs = check_complete("app", store=tmp_path / "new")
    assert digest in blobs
    again = process("--root", "new", "image", "save", "app", home=tmp_path).good()
    (tmp_path / "again.tar").write_bytes(again.out)
    assert check_complete(f"oci-archive:{tmp_path}/again.tar") == blobs


def test_load_what_skopeo_made(soci: Soci, tmp_path: Path) -> None:
    source = f"oci:{GOLDEN}/images/multi-platform:latest"
    archive = tmp_path / "a.tar"
    for target, flags, name in (
        (f"oci-archive:{archive}:app:v1", [], "docker.io/library/app:v1"),
        (f"oci-archive:{archive}:ghcr.io/a/b:v2", [], "ghcr.io/a/b:v2"),
        (f"oci-archive:{archive}", ["--name", "c"], "docker.io/library/c:latest"),
    ):
        archive.unlink(missing_ok=True)
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "-q", "--all", source, target], check=True
        )
        done = soci("image", "load", "--input", archive, *flags).good()
        assert done.text == f"Loaded image: {name}\n"
        check_complete(name, store=soci.store)
    assert len(rows(soci)) == 3


def test_load_a_folder_of_several(soci: Soci, tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    for number in range(2):
        maker.tag(maker.manifest([maker.blob(gz(layer_tar(number)))]), f"app:v{number}")
    done = soci("image", "load", "-i", maker.root).good()
    assert done.text.splitlines() == [
        f"Loaded image: docker.io/library/app:v{number}" for number in range(2)
    ]


def test_load_what_is_no_image(soci: Soci, image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    soci("image", "load", "-i", tmp_path / "file").bad(1, "file")
    soci("image", "load", "-i", tmp_path / "none").bad(1, "none")
    soci("image", "load", "-i", image).bad(2, "--name")
    soci("image", "load", "-i", image, "--name", "a b").bad(2, "a b")
    process("image", "load", home=tmp_path, stdin=b"").bad(1, "stdin")
    LayoutMaker(tmp_path / "empty")
    soci("image", "load", "-i", tmp_path / "empty").bad(1, "holds no image")


def test_save_over_another_image(soci: Soci, image: Path, tmp_path: Path) -> None:
    """The archive is written whole: its image has its own name, and not that of the one before."""
    archive = tmp_path / "a.tar"
    for name in ("one:1", "two:2"):
        soci("image", "load", "-i", image, "--name", name).good()
        soci("image", "save", "-o", archive, name).good()
    soci("rmi", "one:1", "two:2").good()
    assert (
        soci("image", "load", "-i", archive).good().text
        == "Loaded image: docker.io/library/two:2\n"
    )


def test_save_what_is_not_there(soci: Soci, tmp_path: Path) -> None:
    soci("image", "save", "-o", tmp_path / "a.tar", "nosuch").bad(1, "nosuch")
    assert not (tmp_path / "a.tar").exists()
    soci("image", "tag", "nosuch", "other").bad(1, "nosuch")


def test_a_damaged_image_does_not_hide_the_others(soci: Soci, image: Path, tmp_path: Path) -> None:
    digest = soci(*CONVERT, f"oci:{image}", "bad").good().last
    other = make_image(tmp_path / "other", [gz(layer_tar(9))]).root
    soci(*CONVERT, f"oci:{other}", "good").good()
    (soci.store / "blobs" / "sha256" / digest[7:]).write_bytes(b"x")
    bad, good = rows(soci)
    assert digest in str(bad["error"])
    assert "error" not in good
    assert "damaged" in soci("images").good().text
    soci("rmi", "bad").good()
    check_complete("good", store=soci.store)


def test_where_the_store_is(image: Path, tmp_path: Path) -> None:
    arguments = [*CONVERT, f"oci:{image}", "app"]
    process(*arguments, home=tmp_path).good()
    assert (tmp_path / ".local" / "share" / "soci" / "index.json").exists()
    process(*arguments, home=tmp_path, env={"XDG_DATA_HOME": str(tmp_path / "data")}).good()
    assert (tmp_path / "data" / "soci" / "index.json").exists()
    process(*arguments, home=tmp_path, env={"SOCI_ROOT": str(tmp_path / "root")}).good()
    assert (tmp_path / "root" / "index.json").exists()
    env = {"SOCI_ROOT": str(tmp_path / "unused")}
    process(*arguments, "--root", tmp_path / "flag", home=tmp_path, env=env).good()
    assert (tmp_path / "flag" / "index.json").exists()
    assert not (tmp_path / "unused").exists()
