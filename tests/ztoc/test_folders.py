"""Entries sorted by folder."""

from __future__ import annotations

from soci_cli.ztoc.folders import FOLDER, IMPLIED, Folders


def sorted_entries(*entries: tuple[bytes, bytes]) -> Folders:
    types = [kind for _, kind in entries]
    return Folders([name for name, _ in entries], types.__getitem__, 1 << 20)


EXAMPLE = (
    (b"usr/", b"dir"),
    (b"usr/bin/tool", b"reg"),
    (b"etc/hosts", b"reg"),
    (b"usr/bin/tool", b"reg"),
    (b"etc", b"symlink"),
)


def test_the_example_of_the_module() -> None:
    folders = sorted_entries(*EXAMPLE)
    assert folders.paths == [b"", b"usr", b"usr/bin", b"etc"]
    assert [folders.parents[number] for number in range(1, 4)] == [0, 1, 0]
    inside = [list(folders.inside(number)) for number in range(4)]
    assert inside == [[0, FOLDER + 1, FOLDER + 3, 4], [FOLDER + 2], [1, 3], [2]]
    assert [folders.last_of(number) for number in range(4)] == [4, 3, 3, 2]
    assert folders.root == IMPLIED


def test_names_as_they_are_written_make_no_difference() -> None:
    """Numbers depend on what is in which folder, not on how names are spelled."""
    odd = sorted_entries(
        (b"./usr/", b"dir"),
        (b"/usr//bin/./tool", b"reg"),
        (b"./etc/hosts", b"reg"),
        (b"usr/bin/tool", b"reg"),
        (b"etc/", b"symlink"),
    )
    plain = sorted_entries(*EXAMPLE)
    assert odd.paths == plain.paths
    assert [list(odd.inside(n)) for n in range(4)] == [list(plain.inside(n)) for n in range(4)]
