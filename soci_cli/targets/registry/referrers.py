"""What refers to a manifest: the Referrers API and, where a registry lacks it, the fallback tag.

See the OCI distribution spec, "Listing Referrers" and "Referrers Tag Schema". The fallback tag is an index
that clients keep up themselves. HTTP has no transaction over it, so `add_to_fallback` makes lost entries
unlikely and visible: the write is conditional (If-Match) where the registry knows that, and the tag is read
again until the entry is seen to have stayed. What remains: a client that read the tag before our write and
writes after our last look, and does not check, takes our entry away.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urljoin, urlsplit

from soci_cli.errors import InvalidDataError, NotFoundError, RegistryError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import algorithm_of, digest_of, encoded_of
from soci_cli.oci.manifest import MAX_ENTRIES, Index, encode, parse_index
from soci_cli.oci.media_types import OCI_INDEX, is_manifest
from soci_cli.targets.registry.messages import redacted
from soci_cli.targets.registry.repository import Repository
from soci_cli.targets.registry.request import Answer

LIMIT = 4 << 20
_PAGES = 100
_UNKNOWN = 50  # entries whose type is looked up, for each list
_ROUNDS = 12
_SECOND_LOOK = 0.3  # seconds after which a rival that had read before our write will have written
# 429 is what GHCR may answer, by a redirect, for what it does not have.
_UNSUPPORTED = frozenset({400, 401, 403, 405, 406, 415, 429, 500, 501})


def list_referrers(
    repository: Repository,
    subject: str,
    artifact_type: str,
    type_of: Callable[[Descriptor], str],
) -> tuple[Descriptor, ...]:
    """The referrers of the manifest with the digest `subject` that have an artifact type.

    From the Referrers API or, where that knows none, from the fallback tag. `type_of` reads the type of an
    entry that comes without one: Quay lists a manifest's artifactType, and not the type of its config, by
    which it does not filter either.
    """

    def fitting(entries: Iterable[Descriptor]) -> tuple[Descriptor, ...]:
        unknown = 0
        found = []
        for one in entries:
            if not one.artifact_type and unknown < _UNKNOWN and is_manifest(one.media_type):
                unknown += 1
                one = replace(one, artifact_type=type_of(one))
            if one.artifact_type == artifact_type:
                found.append(one)
        return tuple(found)

    listed = _from_api(repository, subject, artifact_type)
    found = fitting(listed.entries)
    if listed.is_filtered and not found:
        listed = _from_api(repository, subject, "")
        found = fitting(listed.entries)
    if listed.entries:
        return found
    return fitting(_from_fallback(repository, subject).entries)


def add_to_fallback(repository: Repository, subject: str, referrer: Descriptor) -> None:
    """Put a referrer into the fallback tag of `subject` and keep all that others put there.

    RegistryError when other clients overwrite the entry again and again.
    """
    seen = False
    for number in range(_ROUNDS):
        known = _from_fallback(repository, subject)
        if any(one.digest == referrer.digest for one in known.entries):
            # Once more after a while, unless it was there before we came.
            if seen or number == 0:
                return
            seen = True
            time.sleep(_SECOND_LOOK * random.uniform(1.0, 1.5))
            continue
        seen = False
        if number:
            if not known.is_list:
                raise RegistryError(
                    f"{repository.reference.name} keeps no list of referrers: its tag "
                    f"{fallback_tag(subject)} is something else; convert the image instead, which "
                    "needs none"
                )
            time.sleep(random.uniform(0, 0.05 * 2 ** min(number, 5)))
            known = _from_fallback(repository, subject)
        _put_fallback(repository, subject, known, replace(referrer, platform=None))
    raise RegistryError(
        f"the referrers of {subject} in {repository.reference.name} are written by others all the "
        "time; push again"
    )


def fallback_tag(subject: str) -> str:
    """The tag that lists the referrers of a digest: its first 64 digits behind the algorithm."""
    return f"{algorithm_of(subject)}-{encoded_of(subject)[:64]}"


@dataclass(frozen=True)
class _Listed:
    """What the Referrers API lists, and whether it left out what has another type."""

    entries: Sequence[Descriptor] = ()
    is_filtered: bool = False


def _from_api(repository: Repository, subject: str, artifact_type: str) -> _Listed:
    """What the Referrers API says, asked for a type or, with an empty one, for all; nothing without it."""
    query = [("artifactType", artifact_type)] if artifact_type else []
    found: list[Descriptor] = []
    for _ in range(_PAGES):
        try:
            data, answer = repository.client.document(
                repository.reading("pull", "referrers", subject, accept=OCI_INDEX, query=query),
                LIMIT,
                "the list of referrers",
                _both,
            )
        except NotFoundError:
            if found:
                raise
            return _Listed()
        except RegistryError as error:
            if error.status in _UNSUPPORTED and not found:
                return _Listed()
            raise
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        if kind != OCI_INDEX and not found:
            return _Listed()
        what = f"the referrers of {subject} from {redacted(answer.url)}"
        found += parse_index(data, what, OCI_INDEX).manifests
        if len(found) > MAX_ENTRIES:
            raise InvalidDataError(f"{what}: more than {MAX_ENTRIES}")
        following = answer.response.links.get("next", {}).get("url")
        if not following:
            return _Listed(found, "OCI-Filters-Applied" in answer.headers)
        # Only the query of the next page is taken, so it can lead nowhere else.
        try:
            query = parse_qsl(urlsplit(urljoin(answer.url, following)).query)
        except ValueError as error:
            raise RegistryError(f"{what}: the link to the next page cannot be used") from error
    raise RegistryError(f"the referrers of {subject} in {repository.reference.name} have no end")


def _both(data: bytes, answer: Answer) -> tuple[bytes, Answer]:
    return data, answer


@dataclass(frozen=True)
class _Fallback:
    """What the fallback tag lists, the condition under which that may be replaced, and whether the tag is
    a list at all."""

    entries: tuple[Descriptor, ...]
    condition: Mapping[str, str]
    is_list: bool = True


def _from_fallback(repository: Repository, subject: str) -> _Fallback:
    tag = fallback_tag(subject)
    try:
        data, answer = repository.client.document(
            repository.reading("resolve", "manifests", tag, accept=OCI_INDEX),
            LIMIT,
            "the list of referrers",
            _both,
        )
    except NotFoundError:
        return _Fallback((), {"If-None-Match": "*"})
    what = f"the referrers of {subject} from {redacted(answer.url)}"
    etag = answer.headers.get("ETag")
    condition = {"If-Match": etag} if etag else {}
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    if is_manifest(kind):
        # GitLab gives the image itself for this tag.
        return _Fallback((), condition, is_list=False)
    return _Fallback(parse_index(data, what).manifests, condition)


def _put_fallback(
    repository: Repository, subject: str, known: _Fallback, referrer: Descriptor
) -> None:
    data = encode(Index(2, OCI_INDEX, "", (*known.entries, referrer)))
    answer = repository.client.call(
        repository.writing(
            "PUT",
            repository.path("manifests", fallback_tag(subject)),
            headers={"Content-Type": OCI_INDEX, **known.condition},
            body=data,
            # 412: somebody was quicker; the next round sees what is there now.
            ok=(201, 200, 202, 412),
        )
    )
    answer.finish()
    told = answer.headers.get("Docker-Content-Digest")
    if answer.status != 412 and told and told != digest_of(data):
        raise RegistryError(f"PUT {redacted(answer.url)}: the registry stored something else")
