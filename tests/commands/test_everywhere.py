"""What every command has: version, help, completion, settings, quiet, progress, imports."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from soci_cli import __version__
from tests.commands.test_convert import CONVERT, span_sizes
from tests.support.commands import SOCI, Soci, environment, on_terminal, process
from tests.support.images import make_image, make_zstd_image
from tests.support.machine import PROJECT

COMMANDS = [
    [],
    ["cache"],
    ["cache", "ls"],
    ["cache", "prune"],
    ["cat"],
    ["completion"],
    ["convert"],
    ["cp"],
    ["create"],
    ["image"],
    ["image", "convert"],
    ["image", "inspect"],
    ["image", "load"],
    ["image", "ls"],
    ["image", "rm"],
    ["image", "save"],
    ["image", "tag"],
    ["images"],
    ["index"],
    ["index", "info"],
    ["index", "list"],
    ["index", "ls"],
    ["index", "remove"],
    ["index", "rm"],
    ["login"],
    ["logout"],
    ["ls"],
    ["mount"],
    ["mounts"],
    ["prefetch"],
    ["prefetch", "info"],
    ["prefetch", "list"],
    ["prefetch", "ls"],
    ["pull"],
    ["push"],
    ["rebuild-db"],
    ["rebuild_db"],
    ["registry"],
    ["registry", "serve"],
    ["rmi"],
    ["stats"],
    ["umount"],
    ["ztoc"],
    ["ztoc", "build"],
    ["ztoc", "get-file"],
    ["ztoc", "info"],
    ["ztoc", "list"],
    ["ztoc", "ls"],
]


def test_version(soci: Soci) -> None:
    done = soci("--version").good()
    assert len(done.text.splitlines()) == 1
    # The first number is what nerdctl takes for the version, the reference's one.
    assert re.findall(r"v?(\d+\.\d+\.\d+)", done.text)[0] == "0.16.1"
    assert f"soci-cli {__version__}" in done.text


def test_short_forms(soci: Soci) -> None:
    assert soci("-v").good().out == soci("--version").good().out
    assert soci("help").good().out == soci("--help").good().out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(soci: Soci, command: list[str]) -> None:
    done = soci(*command, "--help").good()
    assert done.text.startswith("Usage: soci")
    assert "--debug" in done.text
    assert "--quiet" in done.text
    assert soci(*command, "-h").good().out == done.out
    assert max(map(len, done.text.splitlines())) <= 80


# Completion


def complete(shell: str, words: str, position: int, tmp_path: Path) -> list[str]:
    env = {"_SOCI_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    return process(home=tmp_path, env=env).good().text.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(soci: Soci, shell: str) -> None:
    script = soci("completion", shell).good().text
    assert f"_SOCI_COMPLETE={shell}_complete" in script
    assert "soci" in script


def test_completion(soci: Soci, tmp_path: Path) -> None:
    assert complete("bash", "soci im", 1, tmp_path) == ["plain,image", "plain,images"]
    assert "plain,--zstd-layers" in complete("bash", "soci image convert --z", 3, tmp_path)
    found = complete("bash", "soci image convert --zstd-layers ", 4, tmp_path)
    assert found == ["plain,skip", "plain,recompress"]
    zsh = complete("zsh", "soci ztoc ", 2, tmp_path)
    assert zsh[:2] == ["plain", "build"]
    env = {"_SOCI_COMPLETE": "fish_complete", "COMP_WORDS": "soci ztoc", "COMP_CWORD": "in"}
    assert process(home=tmp_path, env=env).good().text.startswith("plain,info\t")


def test_completion_in_bash(tmp_path: Path) -> None:
    """As bash itself does it: source the script, then call its function for a line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "soci").write_text(f'#!/bin/sh\nexec {" ".join(SOCI)} "$@"\n')
    (folder / "soci").chmod(0o755)
    script = (
        f"PATH={folder}:$PATH; source <(soci completion bash); complete -p soci >/dev/null || exit 9;"
        "COMP_WORDS=(soci im); COMP_CWORD=1; _soci_completion soci; echo ${COMPREPLY[*]}"
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment(tmp_path)
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "image images\n")


# Settings


def settings(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "soci.toml"
    path.write_text(text)
    return {"SOCI_CONFIG": str(path)}


def test_settings_are_used(image: Path, tmp_path: Path) -> None:
    env = settings(tmp_path, f'span_size = "16KiB"\nmin_layer_size = 0\nroot = "{tmp_path}/root"\n')
    convert = ("image", "convert", "--soci", f"oci:{image}")
    assert process(*convert, f"oci:{tmp_path}/d", home=tmp_path, env=env).good().err == ""
    assert span_sizes(tmp_path / "d") == {"16384"}
    flag = ("--soci-span-size", "32k", f"oci:{tmp_path}/e")
    process(*convert, *flag, home=tmp_path, env=env).good()
    assert span_sizes(tmp_path / "e") == {"32768"}
    process(*convert, "app", home=tmp_path, env=env).good()
    assert (tmp_path / "root" / "index.json").exists()
    tool = settings(tmp_path, 'min_layer_size = 0\nbuild_tool_identifier = "mine"')
    process(*convert, f"oci:{tmp_path}/f", home=tmp_path, env=tool).good()
    blobs = (tmp_path / "f" / "blobs" / "sha256").iterdir()
    assert any(b'"com.amazon.soci.build-tool-identifier":"mine"' in b.read_bytes() for b in blobs)


def test_settings_say_how_to_treat_zstd_and_which_platforms(tmp_path: Path) -> None:
    image = make_zstd_image(tmp_path / "image").root
    env = settings(
        tmp_path, 'zstd_layers = "recompress"\nmin_layer_size = 0\nplatforms = ["linux/amd64"]'
    )
    arguments = ("image", "convert", "--soci", f"oci:{image}", f"oci:{tmp_path}/d")
    assert process(*arguments, home=tmp_path, env=env).good().err == ""
    back = process(*arguments, "--zstd-layers", "skip", home=tmp_path, env=env).good()
    assert "zstd" in back.err
    env = settings(tmp_path, 'platforms = ["linux/s390x"]\nmin_layer_size = 0')
    process(*arguments, home=tmp_path, env=env).bad(1, "linux/s390x")
    process(*arguments, "--all-platforms", home=tmp_path, env=env).good()


def test_the_users_own_file(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "soci"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('span_size = "16KiB"')
    process(*CONVERT, f"oci:{image}", f"oci:{tmp_path}/d", home=tmp_path).good()
    assert span_sizes(tmp_path / "d") == {"16384"}


def test_unknown_keys_are_named_once(image: Path, tmp_path: Path) -> None:
    env = settings(tmp_path, "span_sise = 1\n")
    done = process(*CONVERT, f"oci:{image}", f"oci:{tmp_path}/d", home=tmp_path, env=env).good()
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("soci: warning: ")
    assert env["SOCI_CONFIG"] in done.err
    assert "'span_size'" in done.err
    assert done.last.startswith("sha256:")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("span_size = true", "key 'span_size'"),
        ("min_layer_size = 'much'", "key 'min_layer_size'"),
        ("build_tool_identifier = 1", "key 'build_tool_identifier'"),
        ("zstd_layers = 'burn'", "key 'zstd_layers'"),
        ("platforms = 'linux'", "key 'platforms'"),
        ("max_concurrency = 0", "key 'max_concurrency'"),
        ("span_size = ", "not valid TOML"),
    ],
)
def test_a_wrong_setting(image: Path, tmp_path: Path, text: str, words: str) -> None:
    env = settings(tmp_path, text)
    done = process(*CONVERT, f"oci:{image}", f"oci:{tmp_path}/d", home=tmp_path, env=env)
    done.bad(1, env["SOCI_CONFIG"], words)
    assert not (tmp_path / "d").exists()


# Output


def test_quiet_stands_anywhere(soci: Soci, tmp_path: Path) -> None:
    image = make_zstd_image(tmp_path / "image").root
    for number, flags in enumerate((["-q"], ["image", "--quiet"], ["image", "convert", "-q"])):
        rest = list(CONVERT)[len(flags) - 1 :]
        done = soci(*flags, *rest, f"oci:{image}", f"oci:{tmp_path}/{number}").good()
        assert done.err == ""
        assert len(done.text.splitlines()) == 1
    # Errors are no remarks.
    soci("-q", *CONVERT, f"oci:{tmp_path}/none", f"oci:{tmp_path}/d").bad(1, "none")


def test_progress_on_a_terminal(image: Path, tmp_path: Path) -> None:
    status, seen = on_terminal(*CONVERT, f"oci:{image}", f"oci:{tmp_path}/d", home=tmp_path)
    assert status == 0
    assert "━" in seen
    assert "spans" in seen
    assert "2 of 2 layers indexed" in seen
    status, seen = on_terminal(*CONVERT, "-q", f"oci:{image}", f"oci:{tmp_path}/e", home=tmp_path)
    assert (status, seen) == (0, "")


def test_notes_and_errors_on_a_terminal(tmp_path: Path) -> None:
    image = make_zstd_image(tmp_path / "image").root
    status, seen = on_terminal(*CONVERT, f"oci:{image}", f"oci:{tmp_path}/d", home=tmp_path)
    assert status == 0
    assert "its compression cannot be indexed: zstd" in seen
    maker = make_image(tmp_path / "bad")
    for path in (maker.root / "blobs" / "sha256").iterdir():
        if path.stat().st_size > 10_000:
            path.write_bytes(bytes(path.stat().st_size))
    status, seen = on_terminal(*CONVERT, f"oci:{maker.root}", f"oci:{tmp_path}/e", home=tmp_path)
    assert status == 1
    assert "Traceback" not in seen
    assert "soci: layer sha256:" in seen


def test_binary_output_is_not_for_a_terminal(tmp_path: Path, image: Path) -> None:
    """Where stdout is a terminal, zTOCs and archives need a file."""
    code = (
        "import pty, os, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn("
        f"{[*SOCI, 'ztoc', 'build', '/etc/hostname']!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(tmp_path),
    )
    assert done.returncode == 2
    assert "terminal" in done.stdout


# Imports


def loaded_after(code: str, tmp_path: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
        env=environment(tmp_path),
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import soci_cli",
        "import soci_cli.commands",
        "from soci_cli.commands import run; run(['--help'])",
        "from soci_cli.commands import run; run(['images'])",
        "import soci_cli.commands.image_convert, soci_cli.commands.ztoc_build",
        "import soci_cli.commands.mount, soci_cli.lazy.mounts.server, soci_cli.lazy.mounts.unmounting",
    ],
)
def test_heavy_modules_are_not_imported_before_they_are_needed(tmp_path: Path, code: str) -> None:
    loaded = loaded_after(code, tmp_path)
    assert not loaded & {"rich", "oras", "requests", "flatbuffers", "pyfuse3", "grpc", "trio"}
