"""One dash before a long flag, as programs written in Go take it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# The long flags of the reference's `soci`. Short flags of ours, and what follows them, stay as they are.
_FLAGS = frozenset(
    [
        "address",
        "all-platforms",
        "content-store",
        "debug",
        "existing-index",
        "force",
        "format",
        "hosts-dir",
        "http-dump",
        "http-trace",
        "max-concurrent-uploads",
        "min-layer-size",
        "namespace",
        "optimizations",
        "plain-http",
        "platform",
        "prefetch-file",
        "prefetch-files-json",
        "quiet",
        "ref",
        "refresh",
        "skip-verify",
        "snapshotter",
        "span-size",
        "standalone",
        "timeout",
        "tlscacert",
        "tlscert",
        "tlskey",
        "user",
        "image-ref",
        "verbose",
        "version",
        "help",
    ]
)


def with_two_dashes(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments with two dashes before each of the reference's long flags; none after `--` changes."""
    rest = iter(arguments)
    for argument in rest:
        name = argument[1:].partition("=")[0]
        yield f"-{argument}" if argument.startswith("-") and name in _FLAGS else argument
        if argument == "--":
            yield from rest
