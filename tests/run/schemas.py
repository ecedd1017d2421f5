"""The runtime specification's JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).with_name("schema")


def check_config(config: Any) -> None:
    """Fails unless it is a config.json of the runtime specification."""
    jsonschema = pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    resources = []
    for path in _FOLDER.glob("*.json"):
        content = json.loads(path.read_text())
        draft = referencing.jsonschema.DRAFT4 if "id" in content else referencing.jsonschema.DRAFT7
        resources.append((path.name, draft.create_resource(content)))
    registry = referencing.Registry().with_resources(resources)
    schema = json.loads((_FOLDER / "config-schema.json").read_text())
    jsonschema.Draft7Validator(schema, registry=registry).validate(config)
