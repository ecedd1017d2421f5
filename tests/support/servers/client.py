"""A registry client of a few lines, on plain requests, to try the servers with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import requests

from tests.support.servers.fixtures import PASSWORD, USER

LOGIN = (USER, PASSWORD)
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def session(**settings: Any) -> requests.Session:
    """A session that heeds no variable of the environment; `settings` are its attributes."""
    made = requests.Session()
    made.trust_env = False
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def push_blob(
    http: requests.Session, repository: str, data: bytes, headers: Mapping[str, str] | None = None
) -> str:
    """Uploads a blob to a repository, named by its URL such as http://host/v2/name; its digest."""
    started = http.post(f"{repository}/blobs/uploads/", headers=headers)
    assert started.status_code == 202, started.text
    url = f"{started.headers['Location']}&digest={sha256(data)}"
    done = http.put(url, data=data, headers=headers)
    assert done.status_code == 201, done.text
    return sha256(data)


def push_image(
    http: requests.Session,
    repository: str,
    tag: str,
    layer: bytes,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Uploads an image of one layer; its manifest."""
    config, digest = (push_blob(http, repository, data, headers) for data in (b"{}", layer))
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config,
                "size": 2,
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": digest,
                    "size": len(layer),
                }
            ],
        }
    ).encode()
    done = http.put(
        f"{repository}/manifests/{tag}",
        data=manifest,
        headers={**(headers or {}), "Content-Type": OCI_MANIFEST},
    )
    assert done.status_code == 201, done.text
    return manifest


def pull(
    http: requests.Session, repository: str, tag: str, headers: Mapping[str, str] | None = None
) -> bytes:
    """Downloads a manifest."""
    answer = http.get(
        f"{repository}/manifests/{tag}", headers={**(headers or {}), "Accept": OCI_MANIFEST}
    )
    assert answer.status_code == 200, answer.text
    return answer.content
