"""What exec and attach say on their error and resize streams.

Source: `k8s.io/cri-streaming` (remotecommand) and client-go's decoders. The same over SPDY and
over WebSocket: from v4 on the error stream carries one JSON Status, before it plain text; the
resize stream carries JSON objects one after the other without a separator.
"""

import json
from dataclasses import dataclass
from typing import Final

SPDY_PROTOCOLS: Final = (
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
)
"""Values for X-Stream-Protocol-Version, the best first; from v3 on there is a resize stream."""

SPDY_UPGRADE: Final = "SPDY/3.1"
STREAM_TYPE_HEADER: Final = "streamtype"

_MAX_RESIZE_OBJECT: Final = 1024
_JSON_SPACE: Final = b" \t\r\n"  # what json takes for white space; Python takes more


@dataclass(frozen=True, slots=True)
class Exited:
    """The command ran to its end; 0 is success."""

    code: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The command could not be run or watched; the message is for the user."""

    message: str


Outcome = Exited | Failed


def encode_outcome(outcome: Outcome, *, as_json: bool) -> bytes:
    """What a server writes on the error stream; empty means: write nothing."""
    status: dict[str, object]
    if isinstance(outcome, Exited):
        if outcome.code == 0:
            return b'{"metadata":{},"status":"Success"}' if as_json else b""
        text = (
            "command terminated with non-zero exit code: "
            f"command terminated with exit code {outcome.code}"
        )
        status = {
            "metadata": {},
            "status": "Failure",
            "message": text,
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(outcome.code)}]},
        }
    else:
        text = f"Internal error occurred: {outcome.message}"
        status = {
            "metadata": {},
            "status": "Failure",
            "message": text,
            "reason": "InternalError",
            "details": {"causes": [{"message": outcome.message}]},
            "code": 500,
        }
    if not as_json:
        return text.encode()
    return json.dumps(status, separators=(",", ":")).encode()


def decode_outcome(data: bytes, *, as_json: bool) -> Outcome:
    """What a client makes of the whole error stream. Never raises.

    An empty stream is success: old servers say nothing when all went well.
    """
    if not data:
        return Exited(0)
    if not as_json:
        return Failed(data.decode("utf-8", "replace"))
    try:
        status = json.loads(data.decode())  # of bytes it would guess UTF-16, too
    except (ValueError, RecursionError):
        return Failed(f"the error stream is not a Status: {data[:200]!r}")
    if not isinstance(status, dict):
        return Failed("the error stream is not a Status object")
    if status.get("status") == "Success":
        return Exited(0)
    if status.get("reason") == "NonZeroExitCode":
        code = _exit_code(status)
        if code is None:
            return Failed("the error stream tells of an exit code but does not give it")
        return Exited(code)
    message = status.get("message")
    return Failed(message if isinstance(message, str) and message else "unknown error")


def _exit_code(status: dict[str, object]) -> int | None:
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    for cause in causes if isinstance(causes, list) else ():
        if isinstance(cause, dict) and cause.get("reason") == "ExitCode":
            try:
                return int(str(cause.get("message")))
            except ValueError:
                return None
    return None


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Columns and rows, 0 to 65535."""

    width: int
    height: int


def encode_resize(size: TerminalSize) -> bytes:
    """Client side: one object for the resize stream."""
    return b'{"Width":%d,"Height":%d}' % (size.width, size.height)


class ResizeParser:
    """Server side: reads the resize stream, wherever it was split.

    A stream that cannot be understood sets `broken` and gives nothing more; the session itself
    goes on, as with a kubelet.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.broken = False

    def feed(self, data: bytes) -> list[TerminalSize]:
        """Returns the sizes that `data` completes, in order."""
        sizes: list[TerminalSize] = []
        if self.broken:
            return sizes
        self._buffer += data
        while (end := self._buffer.find(b"}")) >= 0:
            whole = bytes(self._buffer[: end + 1]).lstrip(_JSON_SPACE)
            size = _parse_size(whole) if len(whole) <= _MAX_RESIZE_OBJECT else None
            if size is None:
                self._break()
                return sizes
            sizes.append(size)
            del self._buffer[: end + 1]
        rest = self._buffer.lstrip(_JSON_SPACE)
        if len(rest) > _MAX_RESIZE_OBJECT or (rest and not rest.startswith(b"{")):
            self._break()
        else:
            self._buffer = rest
        return sizes

    def _break(self) -> None:
        self.broken = True
        self._buffer.clear()


def _parse_size(text: bytes) -> TerminalSize | None:
    try:
        value = json.loads(text.decode())  # of bytes it would guess UTF-16, too
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    # Go matches the names of JSON fields without regard to case, and takes 0 for a missing one.
    fields = {name.lower(): number for name, number in value.items()}
    width, height = fields.get("width", 0), fields.get("height", 0)
    for number in (width, height):
        if type(number) is not int or not 0 <= number <= 0xFFFF:
            return None
    return TerminalSize(width, height)
