"""Images in a registry, for the examples to work on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from soci_cli.targets import copy_graph, open_source, open_target, parse_place
from soci_cli.targets.registry import Credentials, RegistryOptions
from soci_cli.targets.registry.place import Registries

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def push_layout(root: Path, name: str, login: Sequence[str] = ()) -> str:
    """Pushes the only image of a layout as HOST/REPOSITORY:TAG, as user and password; its digest."""
    known = {name.partition("/")[0]: Credentials(*login)} if login else {}
    with (
        closing(Registries(RegistryOptions(credentials=known), os.environ)) as registries,
        open_source(parse_place(f"oci:{root}"), root) as source,
        open_target(parse_place(f"docker://{name}"), root, registries=registries) as target,
    ):
        found = source.resolve()
        copy_graph(source, target, found)
        target.tag(found)
    return found.digest
