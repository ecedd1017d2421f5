"""Blobs written into containerd: resumed, side by side, wrong, and broken off."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

import pytest

from soci_cli.errors import IntegrityError, LostUploadError, NotFoundError, StorageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import new_hash
from soci_cli.targets import WritableLayout, copy_blob
from soci_cli.targets.containerd import streams
from soci_cli.targets.containerd.api import content_pb2
from soci_cli.targets.containerd.client import Containerd, Lease
from tests.support.images import noise
from tests.support.places import describe
from tests.support.servers.containerd import DEBIAN, ContainerdServer, Programs
from tests.targets.containerd.tools import (
    Sent,
    fails,
    finish,
    read,
    source_at,
    start,
    target_at,
    wait_until_it_answers,
    write,
)

WRITE = """
import sys, time
from soci_cli.targets.containerd.client import Containerd
from tests.targets.containerd.tools import target_at
from tests.support.images import noise
from tests.support.places import describe

address, namespace, seed, size, upto = sys.argv[1:]
data = noise(int(seed), int(size))
with Containerd(address, namespace) as client, target_at(client) as target:
    writer = target.open_writer(describe(data))
    for start in range(0, int(upto), 100_000):
        writer.write(data[start : start + 100_000])
    if int(upto) < int(size):
        print("waiting", flush=True)
        time.sleep(60)
    writer.commit()
"""

COPY = """
import json, resource, sys
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets.containerd.client import Containerd
from tests.targets.containerd.tools import target_at
from tests.support.images import noise
from tests.support.places import describe

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

address, namespace, digest, size = sys.argv[1:]
large = Descriptor("x", digest, int(size))
piece = noise(90, 1 << 20)
with Containerd(address, namespace) as client, target_at(client) as target:
    target.push(describe(piece), piece)
    with target.fetch(describe(piece)) as stream:
        stream.read()
    before = peak()
    writer = target.open_writer(large)
    for _ in range(large.size >> 20):
        writer.write(piece)
    writer.commit()
    buffer = bytearray(1 << 20)
    with target.fetch(large) as stream:
        while stream.readinto(buffer):
            pass
    print(json.dumps(peak() - before))
"""


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == line + "\n"


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (3 << 20) + 1])
def test_write_and_commit(client: Containerd, containerd: ContainerdServer, size: int) -> None:
    data = noise(10 + size, size)
    with target_at(client) as target:
        writer = target.open_writer(describe(data))
        assert writer.write(data) == size
        assert not source_at(client).exists(describe(data))
        writer.commit()
        writer.abort()
        assert target.exists(describe(data))
        assert not containerd.ingests(client.namespace)
    assert read(client, describe(data)) == data
    info = client.info(describe(data).digest)
    assert info.size == size
    assert info.created is not None
    assert abs(info.created.timestamp() - time.time()) < 60
    assert [one.digest for one in client.list_content()] == [info.digest]


def test_blob_that_is_there_is_not_sent(
    client: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(11, 3_000_000)
    write(client, describe(data), data)
    sent = Sent(monkeypatch)
    write(client, describe(data), data)
    assert sent.size == 0
    # Bytes are checked all the same.
    with fails("does not have that digest", kind=IntegrityError):
        write(client, describe(data), b"x" + data[1:])
    assert read(client, describe(data)) == data


def test_wrong_bytes(client: Containerd, containerd: ContainerdServer) -> None:
    data = noise(12, 2_000_000)
    wrong = [b"x" + data[1:], data[:-1], data + b"x", b""]
    for bad in wrong:
        with fails(describe(data).digest, kind=IntegrityError):
            write(client, describe(data), bad)
        assert not containerd.ingests(client.namespace)
        assert not containerd.blobs(client.namespace)
    write(client, describe(data), data)


def test_abort(client: Containerd, containerd: ContainerdServer) -> None:
    data = noise(13, 2_000_000)
    with target_at(client) as target:
        writer = target.open_writer(describe(data))
        writer.write(data[:1_500_000])
        assert containerd.ingests(client.namespace) == [f"soci-{describe(data).digest}"]
        writer.abort()
        writer.abort()
        assert not containerd.ingests(client.namespace)
        # What is aborted can be begun anew at once.
        writer = target.open_writer(describe(data))
        writer.write(data)
        writer.commit()
    assert not list((containerd.content / "ingest").iterdir())


def unfinished(client: Containerd, descriptor: Descriptor, data: bytes) -> None:
    """Leaves an unfinished write behind, as a program that died did."""
    with Lease(client) as lease:
        writer = streams.ContentWriter(client, lease, descriptor, "a test", {})
        writer.write(data)
        # Waits for the answers.
        writer._send(content_pb2.WriteContentRequest(ref=writer._ref), unanswered=0)
        writer._end()


def test_resume(
    client: Containerd, containerd: ContainerdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(14, 5_000_000)
    unfinished(client, describe(data), data[:3_456_789])
    assert len(containerd.ingests(client.namespace)) == 1
    sent = Sent(monkeypatch)
    write(client, describe(data), data, size=777_777)
    assert sent.size == 5_000_000 - 3_456_789
    assert read(client, describe(data)) == data
    assert not containerd.ingests(client.namespace)


def test_resume_with_all_bytes(client: Containerd, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(15, 2_000_000)
    unfinished(client, describe(data), data)
    sent = Sent(monkeypatch)
    write(client, describe(data), data)
    assert sent.size == 0
    assert read(client, describe(data)) == data


def test_unfinished_write_with_other_bytes(
    client: Containerd, containerd: ContainerdServer, tmp_path: Path
) -> None:
    """As a machine that lost its power may leave it."""
    data = noise(16, 2_000_000)

    def damage() -> None:
        unfinished(client, describe(data), data[:1_000_000])
        (ingest,) = (containerd.content / "ingest").iterdir()
        (ingest / "data").write_bytes(bytes(1_000_000))

    damage()
    with fails("other bytes", "try again", kind=LostUploadError):
        write(client, describe(data), data)
    assert not containerd.ingests(client.namespace)
    assert not containerd.blobs(client.namespace)
    write(client, describe(data), data)
    client.delete_content(describe(data).digest)
    containerd.collect()

    # Copying tries again by itself.
    damage()
    with WritableLayout(tmp_path / "layout", "1") as layout:
        layout.push(describe(data), data)
        with target_at(client) as target:
            assert copy_blob(layout, target, describe(data)) == "copied"
    assert read(client, describe(data)) == data


def test_unfinished_write_that_is_too_long(
    client: Containerd, containerd: ContainerdServer
) -> None:
    data = noise(17, 1_000_000)
    unfinished(client, describe(data), data[:500_000])
    (ingest,) = (containerd.content / "ingest").iterdir()
    (ingest / "data").write_bytes(bytes(1_000_001))
    write(client, describe(data), data)
    assert read(client, describe(data)) == data


def test_blob_of_another_namespace_is_not_sent(
    client: Containerd, containerd: ContainerdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """containerd shares content between namespaces, but each sees what is its own."""
    data = noise(18, 3_000_000)
    with Containerd(containerd.address, client.namespace + "-other") as other:
        write(other, describe(data), data)
        assert not source_at(client).exists(describe(data))
        with fails(client.namespace, kind=NotFoundError):
            read(client, describe(data))
        with fails("does not have that digest", kind=IntegrityError):
            write(client, describe(data), b"x" + data[1:])
        assert not source_at(client).exists(describe(data))
        sent = Sent(monkeypatch)
        write(client, describe(data), data)
        assert sent.size == 0
        assert read(client, describe(data)) == data
        other.delete_content(describe(data).digest)
    containerd.collect()


def test_two_processes_write_the_same_blob(
    client: Containerd, containerd: ContainerdServer
) -> None:
    writers = [
        start(WRITE, containerd, client.namespace, "19", "20000000", "20000000") for _ in range(2)
    ]
    for writer in writers:
        finish(writer)
    data = noise(19, 20_000_000)
    assert read(client, describe(data)) == data
    assert not containerd.ingests(client.namespace)


def test_writer_that_dies(
    client: Containerd, containerd: ContainerdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one waits for it, and goes on with what it has written."""
    monkeypatch.setattr(streams, "_LOCKED_PAUSE", 0.05)
    data = noise(20, 5_000_000)
    process = start(WRITE, containerd, client.namespace, "20", "5000000", "4000000")
    wait_for(process, "waiting")
    sent = Sent(monkeypatch)
    with futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(write, client, describe(data), data)
        with pytest.raises(futures.TimeoutError):
            # The blob is locked.
            waiting.result(0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        waiting.result(30)
    assert sent.size <= 1_000_000 + (4 << 20)
    assert read(client, describe(data)) == data
    # Its lease ends by itself, and is of no harm until then.
    (lease,) = containerd.leases(client.namespace)
    assert lease.startswith("soci-")
    listed = containerd.ctr("leases", "ls", namespace=client.namespace)
    assert "containerd.io/gc.expire=20" in listed
    containerd.ctr("leases", "delete", "--sync", lease, namespace=client.namespace)


def test_writer_that_hangs(
    client: Containerd, containerd: ContainerdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_LOCKED_PAUSE", 0.01)
    monkeypatch.setattr(streams, "_LOCKED_SECONDS", 0.1)
    data = noise(21, 1_000_000)
    with target_at(client) as target:
        writer = target.open_writer(describe(data))
        writer.write(data[:1000])
        with fails(describe(data).digest, "another process", kind=StorageError):
            write(client, describe(data), data)
        # Which has not harmed it.
        writer.write(data[1000:])
        writer.commit()
    assert read(client, describe(data)) == data


def test_blob_comes_from_elsewhere_while_it_is_written(
    client: Containerd, containerd: ContainerdServer
) -> None:
    """`ctr` writes under another reference; its lease is not ours."""
    data = noise(22, 2_000_000)
    digest = describe(data).digest

    def ingest() -> None:
        command = ("content", "ingest", f"--expected-digest={digest}", "other")
        done = subprocess.run(
            ["ctr", "-a", containerd.address, "-n", client.namespace, *command],
            input=data,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr

    with target_at(client) as target:
        writer = target.open_writer(describe(data))
        writer.write(data)
        ingest()
        writer.commit()
        writer.abort()
        containerd.collect()
        assert read(client, describe(data)) == data
        assert not containerd.ingests(client.namespace)
    containerd.collect()

    # The other one's blob may go again before it is ours.
    with target_at(client) as target:
        writer = target.open_writer(describe(data))
        ingest()
        writer.write(data)
        keep = Lease.keep

        def late(lease: Lease, kept: str) -> None:
            client.delete_content(kept)
            keep(lease, kept)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Lease, "keep", late)
            with fails(digest, "gone again", kind=LostUploadError):
                writer.commit()
        writer.abort()
    containerd.collect()


def test_sha512(client: Containerd, containerd: ContainerdServer) -> None:
    data = noise(23, 100_000)
    digest = new_hash("sha512:" + "0" * 128)
    digest.update(data)
    descriptor = Descriptor("x", f"sha512:{digest.hexdigest()}", len(data))
    assert not source_at(client).exists(descriptor)
    if containerd.version == DEBIAN:
        with fails("sha512", "containerd before 2.3", kind=StorageError):
            write(client, descriptor, data)
    else:
        write(client, descriptor, data)
        assert read(client, descriptor) == data
    assert not containerd.ingests(client.namespace)


def test_containerd_that_stops(
    tmp_path: Path, containerd_programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next command goes on where it was, with the same connection or a new one."""
    data = noise(24, 10_000_000)
    with (
        ContainerdServer(tmp_path, containerd_programs) as server,
        Containerd(server.address) as client,
    ):
        sent = Sent(monkeypatch)
        sent.on_message = lambda: server.kill() if sent.size > 8_000_000 else None
        with fails("cannot be reached", server.address, kind=StorageError):
            write(client, describe(data), data)
        assert sent.size < 10_000_000
        with fails("nobody listens", kind=StorageError):
            write(client, describe(data), data)
        server.start()
        sent.size, sent.on_message = 0, int
        wait_until_it_answers(client)
        write(client, describe(data), data)
        assert 0 < sent.size < 9_000_000
        assert read(client, describe(data)) == data
        assert len(server.leases()) == 1


def test_full_disk(small_disk: Callable[[str], Path], containerd_programs: Programs) -> None:
    folder = small_disk("8m")
    with (
        ContainerdServer(folder, containerd_programs) as server,
        Containerd(server.address) as client,
    ):
        data = noise(25, 12_000_000)
        with fails("no space left", kind=StorageError):
            write(client, describe(data), data)
        assert not server.ingests()
        small = noise(26, 1_000_000)
        write(client, describe(small), small)
        assert read(client, describe(small)) == small


def test_memory_stays_flat(client: Containerd, containerd: ContainerdServer) -> None:
    piece, size = noise(90, 1 << 20), 300 << 20
    digest = new_hash("sha256:" + "0" * 64)
    for _ in range(size >> 20):
        digest.update(piece)
    process = start(COPY, containerd, client.namespace, f"sha256:{digest.hexdigest()}", str(size))
    assert json.loads(finish(process)) < 60
    containerd.collect()
