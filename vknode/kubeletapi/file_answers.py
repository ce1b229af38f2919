"""How a file server answers, without the files: conditions, ranges, types, listings. Pure.

As Go's http.FileServer (net/http fs.go), which a kubelet shows /var/log with. Three things
differ. A file's type is told by its content only, not by its name and the tables of the machine,
and is never HTML: who writes into a log must not run scripts in the browser of who reads it. More
than one range at once gets the whole file, as every server may do. `index.html` is a file like
others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import quote

#: Bytes of a file's beginning that tell its type.
SNIFFED = 512
_LARGEST = 2**63 - 1
_LAST_SECOND = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
# Bytes that no text has; from the table of mimesniff.spec.whatwg.org that Go uses, too.
_BINARY = frozenset({*range(0x09), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)})
# What Go's url.URL leaves as it is in a path, but for the semicolon: some clients take what is
# behind it for parameters.
_PLAIN = "-_.~$&+,/:=@"
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"})
_HEAD = '<!doctype html>\n<meta name="viewport" content="width=device-width">\n<pre>\n'


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` 200 or 206: `length` bytes from `start` on. 304 and 412 have no body; 416 has
    `error`, and `overlaps` says whether the range could be understood only."""

    status: int
    start: int = 0
    length: int = 0
    error: str = ""


class _RangeError(Exception):
    """The text is a client's to read."""


_NO_OVERLAP = "invalid range: failed to overlap"


def answer(headers: Mapping[str, str], modified: int, size: int) -> Answer:
    """To a GET with these headers of a file of `size` bytes, last modified then (seconds since
    the epoch). There are no entity tags."""
    if (early := unconditional(headers, modified)) is not None:
        return Answer(early)
    wanted = headers.get("Range", "")
    if "If-Range" in headers and _date(headers["If-Range"]) != modified:
        wanted = ""
    try:
        ranges = _ranges(wanted, size)
    except _RangeError as error:
        return Answer(416, error=str(error))
    if len(ranges) != 1:
        return Answer(200, 0, size)
    (start, length), *_ = ranges
    return Answer(206, start, length)


def unconditional(headers: Mapping[str, str], modified: int) -> int | None:
    """The status that ends it, 304 or 412, if a condition of the client's does not hold
    (RFC 9110, 13.2.2); else None."""
    if "If-Match" in headers:
        if headers["If-Match"].strip() != "*":
            return 412
    elif dated(modified):
        limit = _date(headers.get("If-Unmodified-Since", ""))
        if limit is not None and modified > limit:
            return 412
    if "If-None-Match" in headers:
        return 304 if headers["If-None-Match"].strip() == "*" else None
    return 304 if is_unchanged(headers, modified) else None


def is_unchanged(headers: Mapping[str, str], modified: int) -> bool:
    """By If-Modified-Since alone: for a listing no other condition counts. A time that is not
    told cannot be what a client has seen (Go's isZeroTime)."""
    if not dated(modified):
        return False
    since = _date(headers.get("If-Modified-Since", ""))
    return since is not None and modified <= since


def http_date(seconds: int) -> str:
    """Of seconds since the epoch, until the year 9999."""
    return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


def dated(modified: int) -> dict[str, str]:
    """The header Last-Modified, unless the time is obviously none."""
    return {"Last-Modified": http_date(modified)} if 0 < modified <= _LAST_SECOND else {}


def _date(text: str) -> int | None:
    """Seconds since the epoch; None if it is no date."""
    try:
        found = parsedate_to_datetime(text)
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _ranges(text: str, size: int) -> list[tuple[int, int]]:
    """Start and length of each that is within the file."""
    if not text:
        return []
    unit, equals, specs = text.partition("=")
    if unit != "bytes" or not equals:
        raise _RangeError("invalid range")
    found: list[tuple[int, int]] = []
    beyond = False
    for spec in filter(None, (spec.strip() for spec in specs.split(","))):
        first, dash, last = (part.strip() for part in spec.partition("-"))
        if not dash:
            raise _RangeError("invalid range")
        if not first:  # so many at the end
            length = min(_number(last), size)
            found.append((size - length, length))
            continue
        start = _number(first)
        if start >= size:
            beyond = True
            continue
        end = min(_number(last), size - 1) if last else size - 1
        if end < start:
            raise _RangeError("invalid range")
        found.append((start, end - start + 1))
    if beyond and not found and size:
        # Of an empty file everything is beyond: clients that always ask for a part get it.
        raise _RangeError(_NO_OVERLAP)
    return found


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > _LARGEST:
        raise _RangeError("invalid range")
    return int(text)


def content_range(found: Answer, size: int) -> str | None:
    """The header's value, where there is one."""
    if found.status == 206:
        return f"bytes {found.start}-{found.start + found.length - 1}/{size}"
    return f"bytes */{size}" if found.error == _NO_OVERLAP else None


def content_type(beginning: bytes) -> str:
    """By the first `SNIFFED` bytes."""
    if beginning.startswith(b"\x1f\x8b\x08"):
        return "application/x-gzip"
    if _BINARY.isdisjoint(beginning):
        return "text/plain; charset=utf-8"
    return "application/octet-stream"


def reference(name: bytes) -> str:
    """A name in a folder as a relative URL."""
    quoted = quote(name, safe=_PLAIN)
    # What has a colon would be a scheme's name.
    return f"./{quoted}" if ":" in quoted.partition("/")[0] else quoted


def listing(entries: Iterable[tuple[bytes, bool]]) -> str:
    """The page of a folder: names, and whether each is a folder itself."""
    lines = [_HEAD]
    for name, is_folder in entries:
        whole = name + b"/" if is_folder else name
        shown = whole.decode(errors="replace").translate(_ENTITIES)
        lines.append(f'<a href="{reference(whole).translate(_ENTITIES)}">{shown}</a>\n')
    lines.append("</pre>\n")
    return "".join(lines)
