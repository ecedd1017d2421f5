"""The code blocks of a Markdown file, and whether what they show is what was printed.

A block of the language `console` is run in the shell of its file; what is no command is what the command
before it prints. Blocks that cannot be run have the language `text`. An HTML comment that begins
with `<!-- console` holds commands which readers need not see; what they print counts where it is there.

An ellipsis stands for any text, and alone in a line for any lines. Digests, sizes and times are not
compared, but a digest that is shown again must be the same one again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$"
    r"|^<!-- console\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
_DIGEST = re.compile(r"\b(?:sha256[:-])?([0-9a-f]{8,64})\b(…?)")
_MASKS = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?"), "TIME"),
    (re.compile(r"\b\d+[smh] ago\b"), "AGO"),
    (re.compile(r"\b\d+(\.\d+)? ?%"), "PERCENT"),
    (re.compile(r"\b\d+(\.\d+)? (B|KiB|MiB|GiB|bytes)\b"), "SIZE"),
    (re.compile(r"\b\d+(\.\d+)?[KMG]\b"), "SIZE"),
    (re.compile(r"\b\d+ (spans?|files?)\b"), "COUNT"),
    (re.compile(r"\b\d{3,}\b"), "NUMBER"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Block:
    """A block of a file; `hidden` ones are in comments."""

    line: int
    language: str
    text: str
    hidden: bool


@dataclass(frozen=True)
class Command:
    """What is typed, and the lines that it prints."""

    line: int
    text: str
    expected: tuple[str, ...]

    @property
    def fails(self) -> bool:
        """Whether it shows an error."""
        errors = [line for line in self.expected if line.startswith("soci: ")]
        return any(not line.startswith("soci: warning: ") for line in errors)


def blocks(path: Path) -> Iterator[Block]:
    """The code blocks of a file, in order."""
    text = path.read_text()
    for found in _BLOCK.finditer(text):
        hidden = found["hidden"] is not None
        indent = found["indent"] or ""
        body = "".join(
            line.removeprefix(indent)
            for line in (found["hidden"] or found["text"]).splitlines(True)
        )
        line = text.count("\n", 0, found.start()) + 2
        yield Block(line, "console" if hidden else found["language"], body, hidden)


def commands(block: Block) -> list[Command]:
    """The commands of a console block. A line that ends in a backslash or a pipe goes on in the next."""
    found: list[Command] = []
    goes_on = False
    for number, line in enumerate(block.text.splitlines(), block.line):
        if line.startswith("$ "):
            found.append(Command(number, line[2:], ()))
        elif not found:
            raise AssertionError(f"line {number} begins a block and is no command: {line}")
        elif goes_on:
            found[-1] = Command(found[-1].line, f"{found[-1].text}\n{line}", ())
        else:
            last = found[-1]
            found[-1] = Command(last.line, last.text, (*last.expected, line))
        goes_on = not found[-1].expected and line.endswith(("\\", "|"))
    return found


@dataclass
class Digests:
    """What the digests of a file stand for; they are shown shortened."""

    known: dict[str, str] = field(default_factory=dict)

    def fill_in(self, text: str) -> str:
        """A command with the digests that there really are."""

        def one(found: re.Match[str]) -> str:
            for shown, real in self.known.items():
                if found[2] and (shown.startswith(found[1]) or found[1].startswith(shown)):
                    return found[0].replace(found[1] + found[2], real)
            return found[0]

        return _DIGEST.sub(one, text)

    def learn(self, expected: str, actual: str) -> str:
        """Takes the digests of a line that was printed as expected; what is wrong with them, or ""."""
        if re.search(r"(?<![0-9a-f])…", expected):
            return ""  # which is which cannot be said
        pairs = zip(_DIGEST.findall(expected), _DIGEST.findall(actual), strict=False)
        for (shown, _), (real, _) in pairs:
            for before, is_real in self.known.items():
                same = before.startswith(shown) or shown.startswith(before)
                if same and not (is_real.startswith(real) or real.startswith(is_real)):
                    return f"{shown} stood for {is_real[:12]} before, and is {real[:12]} now"
            if len(real) >= len(self.known.get(shown, "")):
                self.known[shown] = real
        return ""


def masked(line: str) -> str:
    """A line without what differs from machine to machine."""
    line = _DIGEST.sub("DIGEST", line.rstrip())
    for pattern, name in _MASKS:
        line = pattern.sub(name, line)
    return line


def difference(expected: Sequence[str], actual: Sequence[str], digests: Digests) -> str:
    """ "" when that was printed which a block shows, else what is different."""
    pattern = ""
    for number, line in enumerate(expected):
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            text = re.escape(masked(line)).replace("…", ".*")
            pattern += rf"(?P<line{number}>{text})\n"
    printed = "".join(f"{masked(line)}\n" for line in actual)
    found = re.fullmatch(pattern, printed)
    if not found:
        return "\n".join(("expected", *expected, "and not", *actual))
    for name in found.groupdict():
        line = expected[int(name.removeprefix("line"))]
        wrong = digests.learn(line, actual[printed.count("\n", 0, found.start(name))])
        if wrong:
            return wrong
    return ""
