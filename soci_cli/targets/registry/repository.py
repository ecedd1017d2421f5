"""A repository of a registry: the paths and scopes of what is in it, and requests for that."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from soci_cli.errors import NotFoundError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.references import Reference
from soci_cli.targets.registry.client import Client
from soci_cli.targets.registry.request import Body, Request


@dataclass(frozen=True)
class Repository:
    """A repository of a registry.

    A repository that is `written` is read where it is written: what a mirror has need not be there.
    """

    client: Client
    reference: Reference
    written: bool

    @property
    def name(self) -> str:
        return self.reference.repository

    @property
    def pull_scope(self) -> str:
        return f"repository:{self.name}:pull"

    @property
    def push_scope(self) -> str:
        return f"repository:{self.name}:pull,push"

    def path(self, kind: str, what: str) -> str:
        """`/REPO/KIND/WHAT`, where kind is blobs, manifests or referrers."""
        return f"/{self.name}/{kind}/{what}"

    def reading(
        self,
        capability: str,
        kind: str,
        what: str,
        *,
        method: str = "GET",
        accept: str = "",
        byte_range: str = "",
        ok: Container[int] = (200,),
        query: Sequence[tuple[str, str]] = (),
    ) -> Request:
        """A request for something that is read; `capability` is "pull" or "resolve"."""
        headers = {"Accept": accept, "Range": byte_range}
        return Request(
            method,
            self.path(kind, what),
            scope=self.pull_scope,
            capability="push" if self.written else capability,
            ok=ok,
            headers={name: value for name, value in headers.items() if value},
            query=query,
            keeps_redirect=kind == "blobs" and method == "GET",
        )

    def writing(
        self,
        method: str,
        path: str,
        *,
        ok: Container[int],
        headers: Mapping[str, str] | None = None,
        body: bytes | Body | None = None,
        query: Sequence[tuple[str, str]] = (),
        more_scope: str = "",
    ) -> Request:
        """A request that writes; `path` is of this repository, or the URL of an upload."""
        return Request(
            method,
            path,
            scope=f"{self.push_scope} {more_scope}".rstrip(),
            capability="push",
            ok=ok,
            headers=headers or {},
            body=body,
            query=query,
        )

    def has_blob(self, descriptor: Descriptor, attempts: int | None = None) -> bool:
        """Whether the blob is there with the descriptor's size. `attempts` as for `Client.call`."""
        request = self.reading("pull", "blobs", descriptor.digest, method="HEAD")
        try:
            answer = self.client.call(request, attempts)
        except NotFoundError:
            return False
        answer.finish()
        size = answer.headers.get("Content-Length")
        return size is None or size == str(descriptor.size)
