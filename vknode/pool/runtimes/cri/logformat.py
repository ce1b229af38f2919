"""The CRI log format: `TIME stdout|stderr P|F TEXT`, decoded for a client. Pure.

Theory of operation
-------------------
`LogDecoder.feed` takes the bytes of a log file in any pieces and returns what a client
should see of them. Only whole lines are looked at; the rest waits for the next piece.
"P" marks a part of a longer line: its newline is the format's, not the program's.

As long as no filter needs single lines and a piece holds only whole ("F") lines of the
right form, one regular expression strips all their prefixes at once; everything else
takes lines apart one by one. `since` needs single lines only until the first that is
late enough: times in a file rise.

The format is k8s.io/cri-api's (pkg/apis/runtime/v1/constants.go), the treatment of bad
lines (skipped) and of limits the kubelet's (k8s.io/cri-client/pkg/logs). Times come as
RFC 3339 with 0 to 9 digits; they go out in UTC with 9.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from vknode.pool.runtimes.base import LogOptions
from vknode.pool.v1 import stream_pb2

_FULL_PREFIX = re.compile(rb"^[^ \n]+ std(?:out|err) F ", re.MULTILINE)
_PARTIAL_PREFIX = re.compile(rb"^[^ \n]+ std(?:out|err) P[ :]", re.MULTILINE)
_TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
# Runtimes cut lines at 8 or 16 KiB; more without a newline is no log of ours.
_MAX_LINE = 1 << 20
_LONG_LINE = 200
_STREAMS = {
    stream_pb2.LOG_STREAM_STDOUT: b"stdout",
    stream_pb2.LOG_STREAM_STDERR: b"stderr",
}


def parse_time(stamp: bytes) -> int | None:
    """Nanoseconds since the epoch, None where it is no RFC 3339 time."""
    match = _TIME.fullmatch(stamp)
    if match is None:
        return None
    second, fraction, zone = match.groups()
    try:
        # "Z" itself is understood only from Python 3.11 on, which we require.
        whole = datetime.fromisoformat((second + zone).decode())
    except ValueError:
        return None
    return int(whole.timestamp()) * 10**9 + int((fraction or b"").ljust(9, b"0"))


def format_time(stamp: bytes) -> bytes:
    """The same time in UTC with nine digits; as it is where it is no time."""
    if len(stamp) == 30 and stamp[-1:] == b"Z":
        return stamp
    time = parse_time(stamp)
    if time is None:
        return stamp
    second, nano = divmod(time, 10**9)
    text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{nano:09d}Z".encode()


def first_time(data: bytes) -> int | None:
    """The time of the first whole line that starts in `data` after its first newline."""
    start = data.find(b"\n") + 1
    if start == 0:
        return None
    end = data.find(b" ", start, start + 64)
    return parse_time(data[start:end]) if end > 0 else None


def count_lines(data: bytes) -> int:
    """Whole lines of a program in whole lines of the format."""
    return data.count(b"\n") - len(_PARTIAL_PREFIX.findall(data))


def ends_open(data: bytes) -> bool:
    """Whether the last whole line of the format is a part: the program's goes on."""
    start = data.rfind(b"\n", 0, len(data) - 1) + 1
    return bool(data) and _PARTIAL_PREFIX.match(data, start) is not None


def tail_start(data: bytes, lines: int) -> int:
    """Where the last `lines` finished lines of a program start, with an unfinished one
    behind them, in whole lines of the format. 0 where there are not more than these."""
    position = len(data)
    while position > 0:
        start = data.rfind(b"\n", 0, position - 1) + 1
        if _PARTIAL_PREFIX.match(data, start) is None:
            if lines == 0:
                return position
            lines -= 1
        position = start
    return 0


class LogDecoder:
    """One client's view of one log. `done` is True once its byte limit is reached."""

    def __init__(self, options: LogOptions) -> None:
        self._since = options.since
        self._timestamps = options.timestamps
        self._stream = _STREAMS.get(options.stream)
        self._left = options.limit_bytes
        self._rest = b""
        self._skipping = False  # inside a line too long to be one
        self._line_start = True
        self.done = self._left is not None and self._left <= 0

    def feed(self, data: bytes) -> bytes:
        """What to show of the next bytes of the file."""
        if self.done:
            return b""
        end = data.rfind(b"\n") + 1
        if end == 0:
            if not self._skipping:
                self._rest += data
                if len(self._rest) > _MAX_LINE:
                    self._rest, self._skipping = b"", True
            return b""
        if self._skipping:
            start, self._skipping = data.find(b"\n") + 1, False
        else:
            start = 0
        whole = self._rest + data[start:end]
        self._rest = data[end:]
        return self._limit(self._whole(whole))

    def finish(self) -> bytes:
        """What to show of a last line without a newline."""
        rest, self._rest = self._rest, b""
        if self.done or not rest or self._skipping:
            return b""
        return self._limit(self._single(rest, ended=False))

    def _whole(self, block: bytes) -> bytes:
        if self._since is None and not self._timestamps and self._stream is None:
            lines_here = block.count(b"\n")
            # The expression looks at every byte; long lines are quicker taken apart.
            if len(block) < _LONG_LINE * lines_here:
                text, stripped = _FULL_PREFIX.subn(b"", block)
                if stripped == lines_here:
                    self._line_start = True
                    return text
        lines = block.split(b"\n")
        lines.pop()
        return b"".join([self._single(line, ended=True) for line in lines])

    def _single(self, line: bytes, *, ended: bool) -> bytes:
        fields = line.split(b" ", 3)
        if len(fields) == 3 and fields[2][:1] in (b"P", b"F"):
            fields.append(b"")  # an empty line whose last space was lost
        if len(fields) < 4 or fields[1] not in (b"stdout", b"stderr"):
            return b""
        stamp, stream, tags, text = fields
        if self._since is not None:
            time = parse_time(stamp)
            if time is None or time < self._since:
                return b""
            self._since = None
        if self._stream is not None and stream != self._stream:
            return b""
        if ended and tags.partition(b":")[0] != b"P":
            text += b"\n"
        if self._timestamps and self._line_start:
            text = format_time(stamp) + b" " + text
        self._line_start = text.endswith(b"\n") or not text
        return text

    def _limit(self, text: bytes) -> bytes:
        if self._left is None:
            return text
        text = text[: self._left]
        self._left -= len(text)
        self.done = self._left <= 0
        return text
