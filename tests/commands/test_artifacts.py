"""The commands about SOCI artifacts, without containerd: images on disk, artifacts in the local store."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.commands.durations import ago, parse_duration
from soci_cli.errors import UsageError
from tests.support.commands import Soci, process
from tests.support.images import (
    LayoutMaker,
    check_complete,
    gz,
    layer_tar,
    make_image,
    noise,
    tar_of,
)

CREATE = ("create", "--min-layer-size", "0")
NONE = "sha256:" + "0" * 64


def lines(soci: Soci, *arguments: str) -> list[dict[str, object]]:
    text = soci(*arguments, "--format", "json").good().text
    return [json.loads(line) for line in text.splitlines()]


def digests(soci: Soci, *arguments: str) -> list[str]:
    return soci(*arguments, "-q").good().text.split()


def table(soci: Soci, *arguments: str) -> list[list[str]]:
    """The cells of a table; an empty one is lost."""
    text = soci(*arguments).good().text
    return [re.split(r"\s{2,}", line) for line in text.splitlines()]


# create


def test_create_prints_nothing_but_remarks(soci: Soci, image: Path) -> None:
    done = soci(*CREATE, f"oci:{image}").good()
    assert done.out == b""
    assert done.err.startswith("linux/amd64: SOCI v1 index sha256:")
    assert "2 of 2 layers indexed" in done.err
    quiet = soci(*CREATE, "--quiet", f"oci:{image}").good()
    assert quiet.err == ""
    assert quiet.text.split() == digests(soci, "index", "ls")
    assert not soci("images", "-q").good().out


def test_create_with_every_flag(soci: Soci, tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    manifests = []
    for number, architecture in enumerate(("amd64", "arm64")):
        layer = maker.blob(gz(layer_tar(number)))
        manifests.append(
            maker.manifest([layer], maker.config(architecture=architecture))
            | {"platform": {"os": "linux", "architecture": architecture}}
        )
    maker.tag(maker.index(manifests))
    place = f"oci:{maker.root}"
    (tmp_path / "files.json").write_text('["/etc/0/2"]')
    flags = ("--span-size", "65536", "--optimizations", "xattr", "--prefetch-file", "/etc/0/1")
    more = ("--prefetch-files-json", str(tmp_path / "files.json"), "--force")
    soci(*CREATE, *flags, *more, "-p", "linux/amd64", place).good()
    (index,) = lines(soci, "index", "ls")
    document = json.loads(soci("index", "info", str(index["digest"])).good().text)
    ztoc, prefetch = document["layers"]
    assert ztoc["annotations"]["com.amazon.soci.span-size"] == "65536"
    assert ztoc["annotations"]["com.amazon.soci.disable-xattrs"] == "true"
    assert prefetch["mediaType"] == "application/vnd.amazon.soci.prefetch.v1+json"
    assert index["platform"] == "linux/amd64"
    for platforms in (("--all-platforms",), ("--platform", "linux/amd64,linux/arm64")):
        soci(*CREATE, *platforms, "--span-size", "64KiB", place).good()
        names = {row["platform"] for row in lines(soci, "index", "ls")}
        assert names == {"linux/amd64", "linux/arm64"}
    assert len(lines(soci, "index", "ls", "-p", "linux/arm64")) == 1
    assert len(lines(soci, "index", "ls", "--platform", "linux/amd64")) == 2
    assert len(lines(soci, "index", "ls", "--ref", place)) == 3
    assert len(lines(soci, "index", "ls", "--ref", place, "-p", "linux/arm64")) == 1
    soci("index", "ls", "--ref", place, "-p", "linux/s390x").bad(1, "linux/s390x")


def test_create_uses_ztocs_that_exist(soci: Soci, tmp_path: Path) -> None:
    maker = make_image(tmp_path / "image")
    soci(*CREATE, f"oci:{maker.root}").good()
    first = digests(soci, "index", "ls")
    # The layers need not be read again: damage to them is not seen.
    for descriptor in json.loads(maker.path(maker.entries[0]["digest"]).read_bytes())["layers"]:
        path = maker.path(descriptor["digest"])
        path.write_bytes(bytes(path.stat().st_size))
    soci(*CREATE, f"oci:{maker.root}").good()
    assert digests(soci, "index", "ls") == first
    soci(*CREATE, "--force", f"oci:{maker.root}").bad(1, "layer sha256:")


def test_create_that_fails(soci: Soci, image: Path) -> None:
    soci(*CREATE, "oci:/nosuch").bad(1, "/nosuch")
    soci("create", f"oci:{image}").bad(1, "nothing to index")
    soci("--content-store", "containerd", *CREATE, f"oci:{image}").bad(2, "--content-store")
    soci(*CREATE, "--span-size", "0", f"oci:{image}").bad(2, "span size")
    assert digests(soci, "index", "ls") == []
    soci(*CREATE, "-p", "linux/s390x", f"oci:{image}").bad(1, "linux/s390x", "linux/amd64")


# index


def test_index_ls(soci: Soci, image: Path) -> None:
    titles = table(soci, "index", "ls")
    assert titles == [
        ["DIGEST", "SIZE", "IMAGE REF", "PLATFORM", "MEDIA TYPE", "MANIFEST VERSION", "CREATED"]
    ]
    soci(*CREATE, f"oci:{image}").good()
    soci("image", "convert", "--soci", "--soci-min-layer-size", "0", f"oci:{image}", "app").good()
    _, v2, v1 = table(soci, "index", "list")
    assert v2[2:6] == [
        "docker.io/library/app:latest",
        "linux/amd64",
        "application/vnd.oci.image.manifest.v1+json",
        "v2",
    ]
    assert re.fullmatch(r"[0-9]s ago", v2[6])
    assert v1[2:5] == ["linux/amd64", "application/vnd.oci.image.manifest.v1+json", "v1"]
    assert digests(soci, "index", "ls") == [v2[0], v1[0]]
    one, two = lines(soci, "index", "ls")
    assert (one["digest"], one["image_ref"]) == (v2[0], "docker.io/library/app:latest")
    assert (two["manifest_version"], two["content_store"]) == ("v1", "soci")


def test_index_info(soci: Soci, image: Path) -> None:
    soci(*CREATE, f"oci:{image}").good()
    (digest,) = digests(soci, "index", "ls")
    shown = soci("index", "info", digest).good().text
    stored = (soci.store / "blobs" / "sha256" / digest[7:]).read_bytes()
    assert shown == json.dumps(json.loads(stored), indent=2) + "\n"
    ztoc = digests(soci, "ztoc", "ls")[0]
    soci("index", "info", ztoc).bad(2, "soci ztoc info")
    soci("index", "info", NONE).bad(1, NONE)
    soci("index", "info", "abc").bad(1, "not a digest")


def test_index_rm(soci: Soci, tmp_path: Path) -> None:
    places = []
    for number in range(3):
        root = make_image(tmp_path / str(number), [gz(layer_tar(number))]).root
        places.append(f"oci:{root}")
        soci(*CREATE, places[-1]).good()
    third, second, first = digests(soci, "index", "ls")
    assert soci("index", "rm", first, third).good().out == b""
    assert digests(soci, "index", "ls") == [second]
    assert len(digests(soci, "ztoc", "ls")) == 1
    soci("index", "remove", "--ref", places[1]).good()
    assert digests(soci, "index", "ls") == []
    assert not list((soci.store / "blobs" / "sha256").iterdir())
    soci("index", "rm").good()
    soci("index", "rm", "--ref", places[1]).good()
    soci("index", "rm", "--ref", places[1], first).bad(2, "not both")
    soci("index", "rm", first).bad(1, first)


def test_images_come_and_go_and_indexes_stay(soci: Soci, image: Path) -> None:
    soci(*CREATE, f"oci:{image}").good()
    (digest,) = digests(soci, "index", "ls")
    soci("image", "convert", "--soci", "--soci-min-layer-size", "0", f"oci:{image}", "app").good()
    assert digest not in soci("image", "rm", "app").good().text
    assert digests(soci, "index", "ls") == [digest]
    assert soci("index", "info", digest).good().out


# ztoc


def test_ztocs(soci: Soci, image: Path) -> None:
    soci(*CREATE, f"oci:{image}").good()
    titles, *rows = table(soci, "ztoc", "ls")
    assert titles == ["DIGEST", "SIZE", "LAYER DIGEST"]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    digest, size, layer = rows[0]
    assert (image / "blobs" / "sha256" / layer[7:]).exists()
    assert table(soci, "ztoc", "list", "--ztoc-digest", digest)[1:] == [rows[0]]
    assert table(soci, "ztoc", "ls", "--ztoc-digest", NONE) == [titles]
    of_image = table(soci, "ztoc", "ls", "--image-ref", f"oci:{image}")[1:]
    assert sorted(of_image) == rows
    chosen = ("--image-ref", f"oci:{image}", "--ztoc-digest", digest)
    assert digests(soci, "ztoc", "ls", *chosen) == [digest]
    soci("ztoc", "ls", *chosen[:3], NONE).bad(1, NONE)
    facts = json.loads(soci("ztoc", "info", digest).good().text)
    assert list(facts) == [
        "version",
        "build_tool",
        "size",
        "span_size",
        "num_spans",
        "num_files",
        "num_multi_span_files",
        "files",
    ]
    assert facts["size"] == int(size) == lines(soci, "ztoc", "ls")[0]["size"]
    assert "span size" in soci("ztoc", "info", "--format", "text", digest).good().text
    soci("ztoc", "info", digests(soci, "index", "ls")[0]).bad(2, "soci index info")
    soci("ztoc", "info", NONE).bad(1, NONE)


def test_get_file_from_the_local_store(soci: Soci, tmp_path: Path) -> None:
    data = noise(1, 300_000)
    image = make_image(tmp_path / "image", [gz(tar_of({"a/b": data, "c": noise(2, 900_000)}))]).root
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
    soci(*convert, "--soci-span-size", "64KiB", f"oci:{image}", "app").good()
    (ztoc,) = digests(soci, "ztoc", "ls")
    assert soci("ztoc", "get-file", ztoc, "a/b").good().out == data
    done = soci("ztoc", "get-file", "-o", tmp_path / "out", ztoc, "/a/b").good()
    assert done.err.startswith("read ")
    assert (tmp_path / "out").read_bytes() == data
    soci("ztoc", "get-file", ztoc, "nosuch").bad(1, "nosuch")
    soci("ztoc", "get-file", NONE, "a/b").bad(1, NONE)
    soci("ztoc", "get-file", ztoc).bad(2, "DIGEST")
    soci("ztoc", "get-file", "file", "a/b").bad(2, "DIGEST")
    soci("rmi", "app").good()
    soci("ztoc", "get-file", ztoc, "a/b").bad(1, ztoc)


# prefetch


def test_prefetch(soci: Soci, image: Path) -> None:
    titles = ["DIGEST", "LAYER DIGEST", "SPANS", "CREATED"]
    assert table(soci, "prefetch", "ls") == [titles]
    assert soci("prefetch", "ls", "--json").good().text == "[]\n"
    soci(*CREATE, "--prefetch-file", "/etc/1/1, /etc/1/2", f"oci:{image}").good()
    _, row = table(soci, "prefetch", "list")
    digest, layer = row[:2]
    assert row[2] == "1"
    (told,) = json.loads(soci("prefetch", "ls", "--json").good().text)
    assert list(told) == ["Digest", "LayerDigest", "TotalSpans", "CreatedAt"]
    assert (told["Digest"], told["LayerDigest"], told["TotalSpans"]) == (digest, layer, 1)
    assert told["CreatedAt"].endswith("Z")
    assert lines(soci, "prefetch", "ls")[0]["spans"] == 1
    assert digests(soci, "prefetch", "ls") == [digest]
    text = soci("prefetch", "info", digest).good().text
    assert f"Digest:        {digest}\nVersion:       1.0\nSpan Ranges:   1\n" in text
    assert f"Layer Digest:  {layer}\n" in text
    assert "  [0] StartSpan: 0, EndSpan: 0 (covers 1 spans)\n" in text
    assert text.endswith("\nTotal spans to prefetch: 1\n")
    raw = soci("prefetch", "info", "--json", digest).good().text
    document = json.loads(raw.partition("\nRaw JSON:\n")[2])
    assert document == {"version": "1.0", "prefetch_spans": [{"start_span": 0, "end_span": 0}]}
    soci("prefetch", "info", digests(soci, "ztoc", "ls")[0]).bad(2, "soci ztoc info")
    (soci.store / "blobs" / "sha256" / digest[7:]).unlink()
    assert table(soci, "prefetch", "ls")[1][2] == "N/A"
    soci("prefetch", "info", digest).bad(1, digest)


# rebuild-db


@pytest.mark.parametrize("name", ["rebuild-db", "rebuild_db"])
def test_rebuild_db(soci: Soci, image: Path, name: str) -> None:
    soci(*CREATE, "--prefetch-file", "/etc/1/1", f"oci:{image}").good()
    before = (
        lines(soci, "index", "ls"),
        digests(soci, "ztoc", "ls"),
        digests(soci, "prefetch", "ls"),
    )
    (soci.store / "soci.db").unlink()
    assert digests(soci, "index", "ls") == []
    done = soci(name).good()
    assert done.out == b""
    assert "only the local store" in done.err
    after = lines(soci, "index", "ls"), digests(soci, "ztoc", "ls"), digests(soci, "prefetch", "ls")
    assert after[1:] == before[1:]
    assert after[0][0]["digest"] == before[0][0]["digest"]
    soci(name, "-q").good()


# convert --standalone


@pytest.mark.parametrize("archive", [False, True])
def test_standalone(soci: Soci, image: Path, tmp_path: Path, archive: bool) -> None:
    convert = ("convert", "--standalone", "--min-layer-size", "0", "--span-size", "65536")
    source = image
    if archive:
        source = tmp_path / "in.tar"
        soci("image", "load", "-i", image, "--name", "app").good()
        soci("image", "save", "-o", source, "app").good()
    done = soci(*convert, source, tmp_path / "out: 1.tar").good()
    assert done.last.startswith("sha256:")
    soci(*convert, "--format", "oci-dir", source, tmp_path / "out").good()
    soci(*convert, "--format", "oci-archive", source, tmp_path / "out.tar").good()
    assert check_complete(f"oci:{tmp_path}/out") == check_complete(
        f"oci-archive:{tmp_path}/out.tar"
    )
    shown = soci("image", "inspect", f"oci:{tmp_path}/out").good().text
    assert "SOCI v2, 2 of 2 layers indexed" in shown
    assert digests(soci, "index", "ls") == []


def test_standalone_that_fails(soci: Soci, tmp_path: Path) -> None:
    soci("convert", "--standalone", tmp_path / "none", tmp_path / "out").bad(1, "none")
    soci("convert", "--standalone", tmp_path, tmp_path / "out").bad(1, str(tmp_path))
    assert soci("convert", "--standalone", "--format", "zip", "a", "b").status == 2
    assert soci("convert", "--standalone", "a").status == 2


# Global flags


def test_containerd_is_not_there(soci: Soci, tmp_path: Path) -> None:
    socket = tmp_path / "none.sock"
    for arguments in (
        (*CREATE, "app"),
        ("convert", "app", "app:2"),
        ("index", "ls", "--ref", "app"),
        ("image", "inspect", "app"),
        ("push", "app"),
        ("rebuild-db",),
    ):
        soci("-a", socket, *arguments).bad(1, str(socket), "no such socket", "--address")
    soci("--address", "nosocket", *CREATE, "app").bad(2, "nosocket")
    soci("--namespace", "a b\n", *CREATE, "app").bad(2, "namespace")
    soci("--content-store", "other", "images")
    soci("--timeout", "soon", "images").bad(2, "soon", "1m30s")


def test_without_flags_names_are_the_stores(soci: Soci, image: Path) -> None:
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
    soci(*convert, f"oci:{image}", "app").good()
    assert "SOCI v2" in soci("image", "inspect", "app").good().text
    soci("push", "nosuch").bad(1, "docker.io/library/nosuch:latest is not in the local store")
    soci("push", "docker://127.0.0.1:1/nosuch").bad(1, "nosuch:latest is not in the local store")


def test_a_place_in_containerd_needs_a_tag(soci: Soci, image: Path) -> None:
    for name in ("app", "registry.example:5000/app", f"app@{NONE}", f"app:1@{NONE}"):
        soci("convert", f"oci:{image}", name).bad(2, name, "a name with a tag")
        soci("image", "convert", "--soci", f"oci:{image}", f"containerd:{name}").bad(2, "tag")


def test_without_grpc(image: Path, tmp_path: Path) -> None:
    """As where the extra is not installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys; sys.modules['grpc'] = None\n")
    path = f"{folder}:{Path(__file__).parent.parent.parent}"
    env = {"PYTHONPATH": path}
    done = process(*CREATE, "app", home=tmp_path, env=env)
    done.bad(2, "pip install 'soci-cli[containerd]'")
    process("-n", "k8s.io", "image", "inspect", "app", home=tmp_path, env=env).bad(2, "grpc")
    process("push", "app", home=tmp_path, env=env).bad(1, "not in the local store")
    process(*CREATE, f"oci:{image}", home=tmp_path, env=env).good()
    listed = process("index", "ls", home=tmp_path, env=env).good()
    assert "v1" in listed.text
    process("rebuild-db", home=tmp_path, env=env).good()


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("30s", 30),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("1h2m3.5s", 3723.5),
        ("+5s", 5),
        (".5s", 0.5),
        ("2us", 2e-6),
        ("2µs", 2e-6),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1d", "1s ", "1 s", "1h" * 40, "٣s", "9e9s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        parse_duration(text)


@given(st.text("0123456789.hmsnuµ+-", max_size=20))
def test_durations_are_numbers_or_refused(text: str) -> None:
    try:
        assert parse_duration(text) >= 0
    except UsageError as error:
        assert "\n" not in str(error)


@given(st.integers(0, 10**7))
def test_how_long_ago(seconds: int) -> None:
    said = ago(datetime.now(timezone.utc) - timedelta(seconds=seconds))
    assert said.endswith("s ago")
    assert abs(parse_duration(said.removesuffix(" ago")) - seconds) <= 1


def test_times_of_the_future() -> None:
    assert ago(datetime.fromtimestamp(time.time() + 100, timezone.utc)) == "0s ago"
