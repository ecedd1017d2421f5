"""Whose the files of a mount are."""

from __future__ import annotations

from collections.abc import Callable

from soci_cli.kernel.namespaces import mapped_ids

Owners = Callable[[int, int], tuple[int, int]]
"""The user and group that a file of this user and group gets where the image is mounted."""


def same_owners(user: int, group: int) -> tuple[int, int]:
    """Those of the image: for the real root, and where owners are not checked."""
    return user, group


def namespace_owners() -> Owners:
    """Those of the image, but root for ids that this process's user namespace does not have."""
    users, groups = mapped_ids("uid"), mapped_ids("gid")

    def owners(user: int, group: int) -> tuple[int, int]:
        return (
            user if any(user in ids for ids in users) else 0,
            group if any(group in ids for ids in groups) else 0,
        )

    return owners
