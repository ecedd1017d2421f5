"""Where the spans of a layer lie in its archive, and which of them come with one request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc import Ztoc
from soci_cli.ztoc.zinfo import too_large

_MAX_GAP = 256 << 10  # compressed bytes that are read through rather than asked around
_MAX_OUTPUT = 32 << 20  # what a request may inflate to
_MAX_SPANS = 32


class SpanTable:
    """The spans of one zTOC, by number. All offsets are uncompressed but those that say otherwise."""

    def __init__(self, ztoc: Ztoc) -> None:
        self.spans = ztoc.spans
        self.size = ztoc.uncompressed_archive_size
        """Bytes of the archive."""
        self._starts = ztoc.spans.starts

    def __len__(self) -> int:
        return len(self._starts)

    def holding(self, offset: int, length: int) -> range:
        """The spans that hold some of these bytes. InvalidDataError for bytes that there are not."""
        end = offset + length
        if length <= 0:
            return range(0)
        if offset < 0 or end > self.size or not self._starts:
            raise InvalidDataError(f"there are no bytes {offset} to {end}")
        first = self.spans.span_of(offset)
        if first + 1 == len(self._starts) or end <= self._starts[first + 1]:
            return range(first, first + 1)
        return range(first, self.spans.span_of(end - 1) + 1)

    def parts(
        self, numbers: Sequence[int], offset: int, length: int
    ) -> Iterator[tuple[int, int, int]]:
        """Of each span what is wanted: its number, where that begins in it, and how much it is."""
        for number in numbers:
            start, end = self.range(number)
            begin = max(offset, start)
            count = min(offset + length, end) - begin
            if count > 0:
                yield number, begin - start, count

    def range(self, number: int) -> tuple[int, int]:
        """Where a span begins and ends."""
        start = self._starts[number]
        last = number + 1 == len(self._starts)
        return start, max(start, self.size) if last else self._starts[number + 1]

    def sizes(self, number: int) -> tuple[int, int]:
        """A span's compressed and uncompressed size. InvalidDataError when one is out of all reason."""
        start, end = self.spans.compressed_range(number)
        first, last = self.range(number)
        largest = max(end - start, last - first)
        problem = too_large(largest)
        if problem:
            raise InvalidDataError(problem, span=number)
        return end - start, last - first

    def packed_size(self, number: int) -> int:
        """A span's compressed size."""
        start, end = self.spans.compressed_range(number)
        return end - start

    def is_sane(self, number: int) -> bool:
        """Whether a span can be read lazily."""
        try:
            self.sizes(number)
        except InvalidDataError:
            return False
        return True

    def count_in(self, size: int) -> int:
        """How many spans hold about `size` bytes."""
        return -(-size * len(self._starts) // self.size) if self.size else 0

    def together(self, first: int, is_wanted: Callable[[int], bool], limit: int) -> list[int]:
        """`first` and those of the wanted spans after it that come best with the same request.

        A span of `limit` compressed bytes and more comes alone.
        """
        begin, end = self.spans.compressed_range(first)
        output = self.sizes(first)[1]
        numbers = [first]
        for number in range(first + 1, len(self._starts)):
            start, stop = self.spans.compressed_range(number)
            if start - end > _MAX_GAP or stop - begin > limit or len(numbers) == _MAX_SPANS:
                break
            if is_wanted(number):
                output += self.sizes(number)[1]
                if output > _MAX_OUTPUT:
                    break
                numbers.append(number)
                end = stop
        return numbers

    def chunks(self, numbers: Iterable[int], limit: int) -> Iterator[list[int]]:
        """Cuts ascending spans into what one request of about `limit` compressed bytes asks for."""
        left = deque(number for number in numbers if self.is_sane(number))
        wanted = set(left)
        while left:
            chunk = self.together(left[0], wanted.__contains__, limit)
            for _ in chunk:
                left.popleft()
            yield chunk
