"""Cuts a watch's byte stream into lines. Sans-IO: chunks in, complete lines out.

A watch response is one JSON document per line. Chunk borders fall anywhere, so an unfinished
tail is kept until its newline comes. What is kept is bounded: a server (or a proxy) that never
sends a newline must not eat the process.
"""

from __future__ import annotations

# etcd refuses objects above 1.5 MiB; JSON of such an object stays well under this.
MAX_LINE_BYTES = 16 * 1024 * 1024


class LineTooLong(Exception):
    """A line grew over the limit without a newline."""


class LineSplitter:
    __slots__ = ("_held", "_max", "_tail")

    def __init__(self, max_line: int = MAX_LINE_BYTES) -> None:
        self._max = max_line
        self._tail: list[bytes] = []
        self._held = 0

    @property
    def pending(self) -> int:
        """Bytes of the unfinished line: more than 0 at end of stream means it was cut off."""
        return self._held

    def feed(self, chunk: bytes) -> list[bytes]:
        """Adds bytes, returns the lines they complete (without newline; empty ones left out).

        Raises `LineTooLong` when a line, finished or not, is longer than the limit.
        """
        pieces = chunk.split(b"\n")
        if len(pieces) == 1:
            self._keep(chunk)
            return []
        first, last = pieces[0], pieces[-1]
        if self._tail:
            self._tail.append(first)
            first = b"".join(self._tail)
            self._tail.clear()
            self._held = 0
        pieces[0] = first
        pieces.pop()
        if last:
            self._keep(last)
        lines = [line for line in pieces if line]
        if lines and max(map(len, lines)) > self._max:
            raise LineTooLong(f"a watch line is longer than {self._max} bytes")
        return lines

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        self._held += len(piece)
        if self._held > self._max:
            raise LineTooLong(f"a watch line is longer than {self._max} bytes")
        self._tail.append(piece)
