"""What the config of an image says of its containers (OCI image spec, config.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from soci_cli.errors import InvalidDataError
from soci_cli.oci.canonical import loads
from soci_cli.oci.manifest import CONFIG_LIMIT
from soci_cli.oci.values import as_object, text_field, text_map_field, texts_field

_MAX_TEXTS = 10_000


@dataclass(frozen=True)
class ImageConfig:
    """How programs of an image are started unless somebody says otherwise."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    stop_signal: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def parse_image_config(data: bytes, what: str) -> ImageConfig:
    """Reads a config. InvalidDataError, which begins with `what`."""
    config = as_object(loads(data, what, CONFIG_LIMIT), what).get("config")
    where = f"{what}: config"
    fields = {} if config is None else as_object(config, where)
    found = ImageConfig(
        entrypoint=texts_field(fields, "Entrypoint", where, _MAX_TEXTS),
        command=texts_field(fields, "Cmd", where, _MAX_TEXTS),
        env=texts_field(fields, "Env", where, _MAX_TEXTS),
        user=text_field(fields, "User", where),
        working_dir=text_field(fields, "WorkingDir", where),
        stop_signal=text_field(fields, "StopSignal", where),
        labels=text_map_field(fields, "Labels", where),
    )
    texts = (*found.entrypoint, *found.command, *found.env, found.user, found.working_dir)
    if any("\0" in text for text in texts):
        raise InvalidDataError(f"{where}: it has a NUL in it, which no program can be given")
    return found
