"""An AWS Lambda function that indexes every image that is pushed to Amazon ECR.

EventBridge calls `handler` with ECR's "ECR Image Action" events. For each tagged image it makes a SOCI
index v1 beside the image, in the registry; nothing else is written, and no disk is used. Its own pushes
cause events too: those of SOCI indexes, of other artifacts and of tags that end in -soci are left alone,
and so are images that have an index already.

    SOCI_CONVERT          when set, a converted image (index v2) under TAG-soci is made instead
    SOCI_MIN_LAYER_SIZE   layers smaller than this get no zTOC; 10MiB by default
    SOCI_REGISTRY         the registry's host; by default that of the event's account and region

docs/library.md says how to set it up. `handle` is the same for tests, without Lambda.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from soci_cli import (
    ConvertOptions,
    IndexOptions,
    Source,
    convert,
    index_image,
    inspect,
    open_source,
    open_target,
    parse_place,
    parse_platform,
    read_blob,
)
from soci_cli.index.build import NothingToIndexError
from soci_cli.oci import parse_manifest
from soci_cli.oci.media_types import DOCKER_CONFIG, OCI_CONFIG, is_index
from soci_cli.settings import parse_size
from soci_cli.targets.registry import RegistryOptions
from soci_cli.targets.registry.place import Registries

NO_STORE = Path("no-store")
"""The local store; no place here is in it."""

_SUFFIX = "-soci"
# The fallback tags of registries without the Referrers API; signatures of cosign begin like that too.
_DIGEST_TAG = re.compile(r"sha(?:256|512)-[0-9a-f]{64}")


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """What Lambda calls. An exception makes Lambda try again; what cannot be indexed is no exception."""
    done = handle(event, os.environ)
    print(json.dumps(done))
    return done


def handle(event: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Index the image of an event; says what was done, with the digests of what was pushed.

    Raises SociError when the registry refuses or cannot be reached, and KeyError for other events.
    """
    detail = event["detail"]
    repository, digest, tag = (
        detail["repository-name"],
        detail["image-digest"],
        detail.get("image-tag"),
    )
    registry = environ.get("SOCI_REGISTRY") or _registry(event["account"], event["region"])
    image = f"{registry}/{repository}@{digest}"
    if (detail["action-type"], detail["result"]) != ("PUSH", "SUCCESS"):
        return _skipped(image, "not an image that was pushed")
    if not tag:
        return _skipped(image, "it has no tag: a part of an image, or a SOCI index")
    if tag.endswith(_SUFFIX) or _DIGEST_TAG.match(tag):
        return _skipped(image, f"its tag is {tag}")
    smallest = parse_size(environ.get("SOCI_MIN_LAYER_SIZE", "10MiB"))
    with closing(Registries(RegistryOptions(), environ)) as registries:
        try:
            if environ.get("SOCI_CONVERT"):
                target = f"{registry}/{repository}:{tag}{_SUFFIX}"
                return _convert(image, target, registries, smallest)
            return _index(image, registries, smallest)
        except NothingToIndexError as error:
            return _skipped(image, str(error))


def _index(image: str, registries: Registries, smallest: int) -> dict[str, Any]:
    place = parse_place(f"docker://{image}")
    with (
        open_source(place, NO_STORE, registries) as source,
        open_target(place, NO_STORE, registries=registries) as target,
    ):
        if reason := _not_an_image(source):
            return _skipped(image, reason)
        # Events may come twice, and an image may get several tags.
        wanted = tuple(
            parse_platform(manifest.platform)
            for manifest in inspect(source, look_into_ztocs=False).manifests
            if manifest.kind == "image" and not manifest.soci
        )
        if not wanted:
            return _skipped(image, "it has SOCI indexes already")
        reports = index_image(source, target, IndexOptions(wanted, min_layer_size=smallest))
    indexes = [report.index.digest for report in reports if report.index]
    return {"image": image, "outcome": "indexed", "pushed": indexes}


def _convert(image: str, name: str, registries: Registries, smallest: int) -> dict[str, Any]:
    with (
        open_source(parse_place(f"docker://{image}"), NO_STORE, registries) as source,
        open_target(parse_place(f"docker://{name}"), NO_STORE, registries=registries) as target,
    ):
        if reason := _not_an_image(source):
            return _skipped(image, reason)
        if inspect(source, look_into_ztocs=False).soci == "v2":
            return _skipped(image, "it is converted already")
        options = ConvertOptions(all_platforms=True, min_layer_size=smallest)
        result = convert(source, target, options)
    outcome = "converted" if result.changed else "unchanged"
    return {"image": image, "outcome": outcome, "pushed": [result.descriptor.digest]}


def _not_an_image(source: Source) -> str:
    """Why there is nothing to index: a SOCI index, a signature, a chart; empty for an image."""
    root = source.resolve()
    if is_index(root.media_type):
        return ""
    manifest = parse_manifest(read_blob(source, root), f"manifest {root.digest}", root.media_type)
    if manifest.subject or manifest.artifact_type:
        return "it is an artifact"
    kind = manifest.config.media_type
    return "" if kind in (OCI_CONFIG, DOCKER_CONFIG) else f"it is an artifact: {kind}"


def _registry(account: str, region: str) -> str:
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{account}.dkr.ecr.{region}.{domain}"


def _skipped(image: str, reason: str) -> dict[str, Any]:
    return {"image": image, "outcome": "skipped", "reason": reason}
