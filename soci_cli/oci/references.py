"""Image references as Docker and containerd read them.

The grammar is that of the distribution project's reference module: a short name is on Docker Hub,
a first component with a dot, a colon or an upper-case letter, or `localhost`, is a registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from soci_cli.errors import UsageError, explaining
from soci_cli.oci.digest import parse_digest
from soci_cli.text import quote

DOCKER_HUB = "docker.io"
DEFAULT_TAG = "latest"

_LEGACY_DOCKER_HUB = "index.docker.io"
_OFFICIAL = "library/"
_MAX_NAME = 255
_MAX_REFERENCE = 1024

_HOST_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BARE_ID = re.compile(r"[a-f0-9]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A full reference: `docker.io/library/alpine:latest` and not `alpine`."""

    domain: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.domain}/{self.repository}"

    def __str__(self) -> str:
        return self.name + _suffix(self)


def parse_reference(text: str) -> Reference:
    """Read a reference, short or full; without tag and digest the tag is `latest`.

    Raises UsageError for what Docker refuses: upper case in the repository, a repository of more
    than 255 characters, a bare image ID, a broken tag or digest.
    """
    if not text or len(text) > _MAX_REFERENCE:
        raise _bad(text, "expected NAME[:TAG][@DIGEST], such as docker.io/library/alpine:latest")
    if _BARE_ID.fullmatch(text):
        raise _bad(text, "an image ID is not a name; add @sha256: after a repository name")
    domain, rest = _split_domain(text)
    rest, has_digest, digest = rest.partition("@")
    repository, has_tag, tag = rest.partition(":")
    if not _DOMAIN.fullmatch(domain):
        raise _bad(text, f"{quote(domain)} is not a registry name")
    if repository != repository.lower():
        raise _bad(text, "the repository name must be lower case")
    if not _REPOSITORY.fullmatch(repository):
        raise _bad(text, f"{quote(repository)} is not a repository name")
    if len(repository) > _MAX_NAME:
        raise _bad(text, f"the repository name is longer than {_MAX_NAME} characters")
    if has_tag and not _TAG.fullmatch(tag):
        raise _bad(text, f"{quote(tag)} is not a tag")
    if has_digest:
        with explaining(f"not an image reference: {quote(text)}"):
            parse_digest(digest, UsageError)
    if not has_tag and not has_digest:
        tag = DEFAULT_TAG
    return Reference(domain, repository, tag or None, digest or None)


def familiar(reference: Reference) -> str:
    """The short form that Docker shows: without Docker Hub's domain and `library/`.

    The full form where the short one would be read as something else.
    """
    if reference.domain != DOCKER_HUB:
        return str(reference)
    short = reference.repository.removeprefix(_OFFICIAL)
    # Only official images are one component below library/.
    name = reference.repository if "/" in short else short
    text = name + _suffix(reference)
    # On Docker Hub a repository may start like a registry: docker.io/example.com/app.
    return text if _split_domain(text)[0] == DOCKER_HUB else str(reference)


def _suffix(reference: Reference) -> str:
    tag = f":{reference.tag}" if reference.tag else ""
    return f"{tag}@{reference.digest}" if reference.digest else tag


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash:
        return DOCKER_HUB, _OFFICIAL + text
    if first == _LEGACY_DOCKER_HUB:
        first = DOCKER_HUB
    is_domain = first == "localhost" or "." in first or ":" in first or first != first.lower()
    if not is_domain:
        return DOCKER_HUB, text
    if first == DOCKER_HUB and "/" not in rest:
        rest = _OFFICIAL + rest
    return first, rest


def _bad(text: str, reason: str) -> UsageError:
    return UsageError(f"not an image reference: {quote(text)}: {reason}")
