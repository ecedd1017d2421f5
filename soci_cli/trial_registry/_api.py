"""The HTTP API of the OCI distribution specification 1.1, from requests to responses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from urllib.parse import quote, urlencode

from soci_cli.errors import InvalidDataError, StorageError
from soci_cli.new_file import unlink_quietly
from soci_cli.oci.canonical import dumps
from soci_cli.oci.digest import new_hash, parse_digest
from soci_cli.oci.media_types import OCI_INDEX
from soci_cli.targets._disk import disk_errors
from soci_cli.targets._folder import LayoutFolder, write_all
from soci_cli.trial_registry._http import (
    FileRegion,
    Refused,
    Request,
    Response,
    entity_tag,
    json_response,
    parse_content_range,
    parse_range,
    precondition,
)
from soci_cli.trial_registry._manifests import MANIFEST_LIMIT, ManifestFacts, read_facts
from soci_cli.trial_registry._names import is_repository, is_tag
from soci_cli.trial_registry._repositories import Repositories
from soci_cli.trial_registry._uploads import Upload, Uploads

_PAGE_ENTRIES = 100
_PAGE_BYTES = 3 * 1024 * 1024
"""Referrers on one page: at most so many, and so many bytes, as clients read 4 MiB of an index."""

_Handler = Callable[[Request, str, str], Response]


class Api:
    """Answers requests. All methods may be called from several threads."""

    def __init__(self, folder: LayoutFolder, referrers_api: bool) -> None:
        self._folder = folder
        self._repositories = Repositories(folder)
        self._uploads = Uploads(folder)
        self._referrers_api = referrers_api
        routes: dict[str, dict[str, _Handler]] = {
            "/v2/(.+)/blobs/uploads/?()": {"POST": self._start_upload},
            "/v2/(.+)/blobs/uploads/([^/]+)": {
                "GET": self._get_upload,
                "PATCH": self._continue_upload,
                "PUT": self._finish_upload,
                "DELETE": self._cancel_upload,
            },
            "/v2/(.+)/blobs/([^/]+)": {"GET": self._get_blob, "DELETE": self._delete_blob},
            "/v2/(.+)/manifests/([^/]+)": {
                "GET": self._get_manifest,
                "PUT": self._put_manifest,
                "DELETE": self._delete_manifest,
            },
            "/v2/(.+)/tags/list()": {"GET": self._list_tags},
        }
        if referrers_api:
            routes["/v2/(.+)/referrers/([^/]+)"] = {"GET": self._list_referrers}
        self._routes = [(re.compile(pattern), handlers) for pattern, handlers in routes.items()]

    def answer(self, request: Request) -> Response:
        """The response to a request. Raises Refused, ClientGone, BadBody, or another SociError."""
        method = "GET" if request.method == "HEAD" else request.method
        if request.path in ("/v2/", "/v2") and method == "GET":
            return json_response(200, {})
        if request.path == "/v2/_catalog" and method == "GET":
            return json_response(200, {"repositories": self._repositories.names()})
        for pattern, handlers in self._routes:
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            if not is_repository(match[1]):
                raise Refused(400, "NAME_INVALID", "this is no repository name")
            if method not in handlers:
                allowed = ", ".join(handlers)
                raise Refused(
                    405, "UNSUPPORTED", f"only {allowed} can be done here", {"Allow": allowed}
                )
            return handlers[method](request, match[1], match[2])
        raise Refused(404, "UNSUPPORTED", "there is nothing at this address")

    def close(self) -> None:
        """Remove what unfinished uploads left."""
        self._uploads.close()

    # Blobs

    def _get_blob(self, request: Request, name: str, text: str) -> Response:
        digest = _digest(text)
        opened = (
            self._repositories.open_file(digest)
            if self._repositories.has_blob(name, digest)
            else None
        )
        if opened is None:
            raise Refused(404, "BLOB_UNKNOWN", f"{name} has no blob {digest}")
        fd, size = opened
        headers = {**_content_headers(digest, "application/octet-stream"), "Accept-Ranges": "bytes"}
        try:
            part = (
                parse_range(request.headers.get("Range"), size) if request.method == "GET" else None
            )
        except Refused:
            os.close(fd)
            raise
        if part is None:
            return Response(200, headers, FileRegion(fd, 0, size))
        start, length = part
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size}"
        return Response(206, headers, FileRegion(fd, start, length))

    def _delete_blob(self, _: Request, name: str, text: str) -> Response:
        digest = _digest(text)
        if not self._repositories.remove_blob(name, digest):
            raise Refused(404, "BLOB_UNKNOWN", f"{name} has no blob {digest}")
        return Response(202)

    # Uploads

    def _start_upload(self, request: Request, name: str, _: str) -> Response:
        query = request.query
        if "mount" in query:
            digest = _digest(query["mount"])
            if self._repositories.mount_blob(name, digest, query.get("from", "")):
                return _blob_made(name, digest)
        elif "digest" in query:
            digest = _digest(query["digest"])
            upload = self._uploads.start(name)
            try:
                upload.append(request.body, None)
                return self._made(upload, digest)
            finally:
                self._uploads.end(upload)
        return _upload_response(202, self._uploads.start(name))

    def _get_upload(self, _: Request, name: str, id_: str) -> Response:
        return _upload_response(204, self._uploads.find(name, id_))

    def _continue_upload(self, request: Request, name: str, id_: str) -> Response:
        with self._uploads.held(name, id_) as upload:
            self._append(request, upload)
            return _upload_response(202, upload)

    def _finish_upload(self, request: Request, name: str, id_: str) -> Response:
        digest = _digest(request.query.get("digest", ""))
        with self._uploads.held(name, id_) as upload:
            self._append(request, upload)
            try:
                return self._made(upload, digest)
            finally:
                self._uploads.end(upload)

    def _cancel_upload(self, _: Request, name: str, id_: str) -> Response:
        with self._uploads.held(name, id_) as upload:
            self._uploads.end(upload)
        return Response(204)

    def _append(self, request: Request, upload: Upload) -> None:
        """Take a chunk, which must begin where the last one ended."""
        chunk = parse_content_range(request.headers.get("Content-Range"))
        length = request.body.length
        if chunk is not None:
            if chunk[0] != upload.size:
                raise Refused(
                    416,
                    "BLOB_UPLOAD_INVALID",
                    f"the next chunk must begin at byte {upload.size}",
                    _upload_response(416, upload).headers,
                )
            if length not in (None, chunk[1]):
                raise Refused(400, "SIZE_INVALID", "Content-Range and Content-Length differ")
            length = chunk[1]
        try:
            upload.append(request.body, length)
        except StorageError:
            self._uploads.end(upload)  # a full disk gets its space back
            raise

    def _made(self, upload: Upload, digest: str) -> Response:
        upload.check(digest)
        self._repositories.add_blob(upload.repository, digest, upload.path)
        return _blob_made(upload.repository, digest)

    # Manifests

    def _get_manifest(self, _: Request, name: str, text: str) -> Response:
        facts = self._repositories.manifest(name, _reference(text))
        opened = self._repositories.open_file(facts.digest) if facts else None
        if facts is None or opened is None:
            raise Refused(404, "MANIFEST_UNKNOWN", f"{name} has no manifest {text}")
        headers = _content_headers(facts.digest, facts.descriptor.media_type)
        return Response(200, headers, FileRegion(opened[0], 0, opened[1]))

    def _put_manifest(self, request: Request, name: str, text: str) -> Response:
        reference = _reference(text)
        if (request.body.length or 0) > MANIFEST_LIMIT:
            raise _too_large()
        data = request.body.read(MANIFEST_LIMIT)
        if len(data) > MANIFEST_LIMIT:
            raise _too_large()
        tag = None if ":" in reference else reference
        content = new_hash(reference) if tag is None else new_hash(_SHA256)
        content.update(data)
        digest = f"{content.name}:{content.hexdigest()}"
        if tag is None and digest != reference:
            raise Refused(400, "DIGEST_INVALID", f"the manifest has the digest {digest}")
        try:
            facts = read_facts(data, digest, request.headers.get("Content-Type", ""))
        except InvalidDataError as error:
            raise Refused(400, "MANIFEST_INVALID", str(error)) from error
        fd, aside = self._folder.new_file()
        try:
            with disk_errors("write", aside):
                try:
                    write_all(fd, data)
                finally:
                    os.close(fd)
            self._repositories.put_manifest(name, tag, facts, aside, precondition(request.headers))
        finally:
            unlink_quietly(aside)
        headers = {
            "Location": f"/v2/{name}/manifests/{digest}",
            "Docker-Content-Digest": digest,
            "ETag": entity_tag(digest),
        }
        if facts.subject is not None and self._referrers_api:
            headers["OCI-Subject"] = facts.subject
        return Response(201, headers)

    def _delete_manifest(self, _: Request, name: str, text: str) -> Response:
        reference = _reference(text)
        if ":" in reference:
            found = self._repositories.remove_manifest(name, reference)
        else:
            found = self._repositories.remove_tag(name, reference)
        if not found:
            raise Refused(404, "MANIFEST_UNKNOWN", f"{name} has no manifest {reference}")
        return Response(202)

    # Lists

    def _list_tags(self, _: Request, name: str, __: str) -> Response:
        tags = self._repositories.tags(name)
        if tags is None:
            raise Refused(404, "NAME_UNKNOWN", f"there is no repository {name}")
        return json_response(200, {"name": name, "tags": tags})

    def _list_referrers(self, request: Request, name: str, text: str) -> Response:
        subject = _digest(text)
        wanted = request.query.get("artifactType")
        last = request.query.get("last", "")
        found = [
            facts
            for facts in self._repositories.referrers(name, subject)
            if facts.digest > last and wanted in (None, facts.artifact_type)
        ]
        page = _page(found)
        headers = {"Content-Type": OCI_INDEX}
        if wanted is not None:
            headers["OCI-Filters-Applied"] = "artifactType"
        if len(page) < len(found):
            more = {} if wanted is None else {"artifactType": wanted}
            headers["Link"] = _next_link(
                request.path, {**more, "last": found[len(page) - 1].digest}
            )
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page}
        return Response(200, headers, dumps(index))


_SHA256 = "sha256:" + 64 * "0"


def _digest(text: str) -> str:
    try:
        return parse_digest(text)
    except InvalidDataError as error:
        raise Refused(400, "DIGEST_INVALID", str(error)) from error


def _reference(text: str) -> str:
    """A tag or a digest."""
    if ":" in text:
        return _digest(text)
    if not is_tag(text):
        raise Refused(400, "MANIFEST_INVALID", "this is neither a tag nor a digest")
    return text


def _too_large() -> Refused:
    return Refused(413, "MANIFEST_INVALID", f"a manifest has at most {MANIFEST_LIMIT} bytes")


def _content_headers(digest: str, media_type: str) -> dict[str, str]:
    return {
        "Content-Type": media_type,
        "Docker-Content-Digest": digest,
        "ETag": entity_tag(digest),
    }


def _blob_made(name: str, digest: str) -> Response:
    return Response(
        201, {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    )


def _upload_response(status: int, upload: Upload) -> Response:
    """Where the upload goes on. An empty one has the Range 0-0, as no other can be written."""
    return Response(
        status,
        {
            "Location": f"/v2/{upload.repository}/blobs/uploads/{upload.id}",
            "Range": f"0-{max(0, upload.size - 1)}",
            "Docker-Upload-UUID": upload.id,
        },
    )


def _page(found: list[ManifestFacts]) -> list[dict[str, object]]:
    """As many referrers as fit on one page, and at least one."""
    page: list[dict[str, object]] = []
    size = 0
    for facts in found[:_PAGE_ENTRIES]:
        entry = facts.as_referrer()
        size += len(dumps(entry))
        if page and size > _PAGE_BYTES:
            break
        page.append(entry)
    return page


def _next_link(path: str, query: dict[str, str]) -> str:
    return f'<{quote(path, safe="/:")}?{urlencode(query)}>; rel="next"'
