"""A plain client of the distribution API, which checks nothing by itself."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import requests

from soci_cli.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST

Json = dict[str, Any]
TIMEOUT = 20


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def described(data: bytes, media_type: str = OCI_LAYER, **more: Any) -> Json:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


class Client:
    """Talks to one registry."""

    def __init__(self, address: str) -> None:
        self.url = f"http://{address}"
        self._session = requests.Session()

    def __call__(self, method: str, path: str, **more: Any) -> requests.Response:
        """One request; `path` is below /v2/ or begins with a slash."""
        target = path if path.startswith("/") else f"/v2/{path}"
        return self._session.request(method, self.url + target, timeout=TIMEOUT, **more)

    def push_blob(self, name: str, data: bytes, algorithm: str = "sha256") -> str:
        digest = digest_of(data, algorithm)
        done = self("POST", f"{name}/blobs/uploads/", params={"digest": digest}, data=data)
        assert done.status_code == 201, done.text
        return digest

    def start_upload(self, name: str, **params: str) -> str:
        """The location of a new upload."""
        begun = self("POST", f"{name}/blobs/uploads/", params=params)
        assert begun.status_code == 202, begun.text
        return begun.headers["Location"]

    def put_manifest(
        self, name: str, reference: str, document: Json | bytes, **headers: str
    ) -> requests.Response:
        data = document if isinstance(document, bytes) else encode(document)
        kind = "" if isinstance(document, bytes) else document.get("mediaType", "")
        return self(
            "PUT",
            f"{name}/manifests/{reference}",
            data=data,
            headers={"Content-Type": kind or OCI_MANIFEST, **headers},
        )

    def push_image(self, name: str, reference: str | None = None, **more: Any) -> Json:
        """Pushes an image of one layer, by digest without a reference; its descriptor.

        `seed` makes images differ; what else is in `more` goes into the manifest.
        """
        document = self.make_image(name, **more)
        data = encode(document)
        done = self.put_manifest(name, reference or digest_of(data), document)
        assert done.status_code == 201, done.text
        return described(data, OCI_MANIFEST)

    def make_image(self, name: str, seed: int = 0, **more: Any) -> Json:
        """Pushes the blobs of an image; its manifest."""
        config, layer = b'{"os":"linux"}', b"layer %d" % seed
        for blob in (config, layer):
            self.push_blob(name, blob)
        return {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": described(config, OCI_CONFIG),
            "layers": [described(layer)],
            **more,
        }


def index_of(manifests: list[Json], **more: Any) -> Json:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests, **more}


def encode(document: Json) -> bytes:
    return json.dumps(document).encode()


def codes(response: requests.Response) -> list[str]:
    """The error codes of a response; fails unless its body has the form of the spec."""
    errors = response.json()["errors"]
    assert errors
    assert all(isinstance(error["message"], str) for error in errors)
    return [error["code"] for error in errors]
