"""Block devices out of files (loop(4)), for kernels that cannot mount files themselves."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from soci_cli.errors import MountError

_CONTROL = "/dev/loop-control"
_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A  # linux/loop.h
_READ_ONLY, _AUTOCLEAR = 1, 4
_ATTEMPTS = 64
# struct loop_config: the file, the block size, a struct loop_info64 whose flags count, 64 reserved bytes.
_CONFIG = struct.Struct("<II52xI176x64x")


def attach(fd: int, block_size: int) -> int:
    """A read-only block device of what an open file has; its descriptor.

    The device goes when it is closed and nothing mounted uses it. MountError.
    """
    config = _CONFIG.pack(fd, block_size, _READ_ONLY | _AUTOCLEAR)
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(_ATTEMPTS):
                number = fcntl.ioctl(control, _GET_FREE)
                device = os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(device, _CONFIGURE, config)
                except OSError as error:
                    os.close(device)
                    if error.errno != errno.EBUSY:  # somebody else was quicker
                        raise
                else:
                    return device
        finally:
            os.close(control)
    except OSError as error:
        raise MountError(f"no loop device can be had: {error.strerror}") from error
    raise MountError("no loop device can be had: all that become free are taken at once")
