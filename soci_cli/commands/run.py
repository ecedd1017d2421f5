"""`soci run`."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from soci_cli.commands.app import App
from soci_cli.commands.containers import own_containers
from soci_cli.commands.flags import flags_without_version, pass_app
from soci_cli.commands.image_reading import drawing, image_request
from soci_cli.commands.registry_flags import RegistryFlags, registry_flags
from soci_cli.commands.run_flags import FAILED, RunCommand, run_flags, run_request
from soci_cli.errors import SociError, StateError, UsageError
from soci_cli.lazy.mounts.client import HostFinder
from soci_cli.lazy.mounts.records import CONTAINERS
from soci_cli.lazy.mounts.request import ImageRequest, MountRequest
from soci_cli.lazy.mounts.sharing import host_key
from soci_cli.run.running import make_container, run_attached, run_detached
from soci_cli.run.runtime import find_runtimes, has_apparmor, has_cgroups

if TYPE_CHECKING:
    from soci_cli.targets.places import Place

# -h is --hostname.
_SETTINGS = {"help_option_names": ["--help"], "allow_interspersed_args": False}


@click.command(cls=RunCommand, context_settings=_SETTINGS)
@run_flags
@registry_flags
@flags_without_version
@click.argument("image")
@click.argument("words", metavar="[COMMAND] [ARG]...", nargs=-1, type=click.UNPROCESSED)
@pass_app
def command(
    app: App,
    /,
    image: str,
    words: tuple[str, ...],
    registry: RegistryFlags,
    **flags: Any,
) -> int:
    """Run COMMAND in a new container of IMAGE, whose layers stay where they are.

    The exit status is that of COMMAND; 125 where it could not be tried, 126 where it cannot be run, 127
    where IMAGE does not have it, and 128 and more for the signal that ended it.

    \b
    soci run --rm docker://example.com/app:1.0 app --help
    """
    try:
        return _run(app, image, words, registry, flags)
    except SociError as error:
        app.output.error(str(error))
        return error.exit_code if error.exit_code in (126, 127) else FAILED


def _run(
    app: App, name: str, words: tuple[str, ...], registry: RegistryFlags, flags: Mapping[str, Any]
) -> int:
    if os.geteuid() != 0:
        raise StateError("soci run is for root so far; soci mount is for everybody")
    request = run_request(flags, words, os.environ)
    if request.options.apparmor and not has_apparmor():
        app.output.note("--security-opt apparmor: this kernel has no AppArmor, so it does nothing")
        options = dataclasses.replace(request.options, apparmor=None)
        request = dataclasses.replace(request, options=options)
    is_attached = not flags["detach"]
    stdin = _descriptor(sys.stdin) if flags["interactive"] and is_attached else None
    if flags["terminal"] and stdin is not None and not os.isatty(stdin):
        raise UsageError("-t: stdin is no terminal; leave out -t, or -i")
    runtimes = find_runtimes(request.runtime, cgroups=has_cgroups())
    containers = own_containers()
    state = containers.root.parent
    place = app.place(name)
    image = image_request(app, place, flags["platform_name"], flags["soci_index_digest"], registry)
    current = _pulled(app, place, image, flags, registry)
    found = app.ahead or HostFinder(state, host_key(os.environ, CONTAINERS, debug=app.debug))
    with found as host, drawing(app) as observer:

        def mount(target: Path) -> str:
            asked = _mount_request(app, image, target, state)
            return host.mount(asked, observer, app.output.log_line)

        prepared = make_container(containers, request, runtimes, image, current, mount)
    if not is_attached:
        run_detached(prepared, state, app.output.note)
        app.output.result(prepared.folder.name)
        return 0
    return run_attached(containers, prepared, (stdin, 1, 2), app.output.note)


def _mount_request(app: App, image: ImageRequest, target: Path, state: Path) -> MountRequest:
    settings = app.settings.background_fetch
    return MountRequest(
        image,
        target,
        state,
        owner=CONTAINERS,
        suid=True,
        dev=True,
        background=not settings.disable,
        silence_period=settings.silence_period_msec / 1000,
        fetch_period=settings.fetch_period_msec / 1000,
        max_queue_size=settings.max_queue_size if settings.max_queue_size > 0 else sys.maxsize,
        prefetch=app.settings.prefetch.enable,
        engine=app.settings.soci.engine,
        debug=app.debug,
        keep_config=True,
    )


def _pulled(
    app: App,
    place: Place,
    image: ImageRequest,
    flags: Mapping[str, Any],
    registry: RegistryFlags,
) -> Callable[[], str] | None:
    """Pulls a name of the local store where --pull says so; asks what a reference leads to now.

    None for an image in a registry: as long as it is mounted, --pull missing asks no registry.
    """
    from soci_cli.errors import NotFoundError

    policy = flags["pull"]

    def current() -> str:
        from soci_cli.lazy.mounts.request import opened_source

        with opened_source(image) as source:
            return source.resolve().digest

    if place.kind == "docker":
        if policy == "never":
            raise UsageError(
                f"--pull never is for images that are here; {place.text} is in a registry"
            )
        return current if policy == "always" else None
    if place.kind == "store":
        try:
            if policy != "always":
                current()
                return current
        except NotFoundError as error:
            if policy == "never":
                raise error.explained("--pull never") from error
        _pull(app, place.text, flags, registry)
    return current


def _pull(app: App, name: str, flags: Mapping[str, Any], registry: RegistryFlags) -> None:
    from soci_cli.index.discover import IndexSources
    from soci_cli.index.pull import PullOptions, pull
    from soci_cli.oci import parse_reference
    from soci_cli.targets.places import DOCKER

    reference, modes = parse_reference(name), app.settings.pull_modes
    platform, digest = flags["platform_name"], flags["soci_index_digest"]
    options = PullOptions(
        platforms=app.platforms((platform,) if platform else (), all_platforms=False),
        index=IndexSources(digest, modes.soci_v2, modes.soci_v1),
        concurrency=app.downloads(registry),
    )
    with (
        app.registries(registry, reference) as registries,
        registries.source(reference, str(reference)) as source,
        app.open_image_target(name, registries) as target,
        app.output.progress() as observer,
    ):
        pull(source, f"{DOCKER}{reference.name}", target, options, observer)


def _descriptor(stream: Any) -> int | None:
    """The descriptor of a standard stream; None where it is closed."""
    return None if stream is None else int(stream.fileno())
