"""The images that containers run on: each mounted once, without a container's writes, for all who use it.

    STATE/images/KEY/lock    held by who mounts or unmounts an image of this name
    STATE/images/KEY/ID      where it is mounted

The mounts are those of `lazy.mounts`, with an owner of their own.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from soci_cli.errors import StorageError
from soci_cli.kernel.points import mount_namespace
from soci_cli.lazy.mounts.records import CONTAINERS, KeptConfig, Mount, MountRecord, Mounts, is_well
from soci_cli.lazy.mounts.request import ImageRequest
from soci_cli.run.image_config import ImageConfig, parse_image_config


@dataclass(frozen=True)
class ImageMount:
    """An image that is mounted; `name` is the id of the mount's folder."""

    name: str
    record: MountRecord
    config: ImageConfig


class RunImages:
    """The images that are mounted for containers; what is known of them is below the folder `state`."""

    def __init__(self, state: Path) -> None:
        self._root = state / "images"
        self._mounts = Mounts(state)

    @contextmanager
    def mounted(
        self,
        image: ImageRequest,
        current: Callable[[], str] | None,
        mount: Callable[[Path], str],
    ) -> Iterator[ImageMount]:
        """An image that is mounted already, or now by `mount`, which is given the folder.

        One whose reference does not lead to the digest `current` any more is not taken. Nobody unmounts it
        until the end of the `with`: who uses it has written that down by then. Raises what mounting raises.
        """
        key = _key(image)
        with self._turn(key) as folder:
            found = self._find(folder, current)
            if found is None:
                target = folder / os.urandom(6).hex()
                target.mkdir(mode=0o700)
                try:
                    name = mount(target)
                    found = self._read(self._mounts.root / name)
                except BaseException:
                    with suppress(OSError):
                        target.rmdir()
                    raise
                if found is None:
                    raise StorageError("the image's mount is gone again; run it once more")
            yield found

    def release(self, name: str, is_used: Callable[[], bool]) -> None:
        """Unmounts an image that nobody `is_used` by any more. Raises as `end_mount`."""
        mount = self._get(name)
        if mount is None:
            return
        target = Path(mount[1].target)
        with self._turn(target.parent.name):
            if is_used() or self._get(name) is None:
                return
            from soci_cli.lazy.mounts.unmounting import end_mount

            end_mount(self._mounts, mount, force=True)
            with suppress(OSError):
                target.rmdir()

    def names(self) -> list[str]:
        """Those that are mounted, by the ids of their folders."""
        return [folder.name for folder, record in self._mounts.of(CONTAINERS)]

    def _find(self, folder: Path, current: Callable[[], str] | None) -> ImageMount | None:
        for mount in reversed(self._mounts.of(CONTAINERS)):
            _, record = mount
            if Path(record.target).parent != folder or record.namespace != mount_namespace():
                continue
            if not is_well(mount):
                continue
            kept = KeptConfig.read(mount[0])
            if current is None or current() == kept.root:
                return _image_mount(mount, kept)
        return None

    def _read(self, path: Path) -> ImageMount | None:
        mount = self._get(path.name)
        return None if mount is None else _image_mount(mount, KeptConfig.read(mount[0]))

    def _get(self, name: str) -> Mount | None:
        return next((one for one in self._mounts.of(CONTAINERS) if one[0].name == name), None)

    @contextmanager
    def _turn(self, key: str) -> Iterator[Path]:
        folder = self._root / key
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(
                folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise StorageError(f"{folder}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(fd)


def _image_mount(mount: Mount, kept: KeptConfig) -> ImageMount:
    folder, record = mount
    config = parse_image_config(kept.config.encode(), f"the config of {record.image}")
    return ImageMount(folder.name, record, config)


def _key(image: ImageRequest) -> str:
    """The same for requests that mean the same image, as far as names say it."""
    containerd = image.containerd
    facts = (
        image.place,
        image.names,
        str(image.store),
        image.platforms,
        image.index_digest,
        (containerd.address, containerd.namespace),
    )
    return sha256(json.dumps(facts).encode()).hexdigest()[:16]
