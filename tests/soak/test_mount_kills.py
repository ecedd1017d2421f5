"""Servers of mounts that are killed two thousand times while all is read: no error, no wrong byte."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.commands.mounting import Home, until
from tests.commands.test_mount_restart import kill, kill_holder, make_large, reading, server
from tests.support.scale import scaled


@pytest.mark.parametrize("way", ["resend", "journal"])
@pytest.mark.parametrize("engine", ["erofs", "fuse"])
def test_readers(tmp_path: Path, need_fuse: None, engine: str, way: str) -> None:
    home = Home(tmp_path)
    home.use_engine(engine)
    if way == "journal":
        home.env["SOCI_WITHOUT"] = "resend"
    image = f"oci:{make_large(tmp_path)}"
    moments = random.Random(f"{engine} {way}")
    kills = scaled(500)
    try:
        home("mount", image, home.target).good()
        with reading(home.target, tmp_path / "stop"):
            for number in range(kills):
                time.sleep(moments.uniform(0, 0.5))
                if number % 10 == 3:
                    kill_holder(server(home))
                if number % 10 == 7:
                    home("mounts", "--restart", "-q").good()
                if number % 10 == 9:
                    kill(home)  # and once more as soon as there is another
                kill(home)
        home("umount", home.target).good()
        until(lambda: home.left == [])
    finally:
        home.clean()
    print(f"\n{kills} servers killed under readers of {engine}, {way}: no error, no wrong byte")
