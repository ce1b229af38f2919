"""Which SPDY streams of a port-forward belong together. Pure.

Source: `k8s.io/cri-streaming` (portforward/httpstream.go). For each TCP connection a client opens
two streams with the same `requestid` and `port`: one of type `error`, one of type `data`. A client
that sends no `requestid` opens them one right after the other, the error stream first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PROTOCOL: Final = "portforward.k8s.io"
"""X-Stream-Protocol-Version of a port-forward over SPDY."""

TUNNEL: Final = "SPDY/3.1+portforward.k8s.io"
"""WebSocket subprotocol: the bytes of a SPDY connection in binary messages (KEP-4006)."""

STREAM_CREATION_TIMEOUT: Final = 30.0
"""Seconds that the second stream of a pair may take; as a kubelet's."""

_ERROR, _DATA = "error", "data"


class BadStream(Exception):
    """A stream that is none of a port-forward; it is to be reset. The text is for a log."""


class PairTaken(Exception):
    """A pair has such a stream already; the text goes to its error stream."""

    def __init__(self, text: str, error_id: int | None) -> None:
        super().__init__(text)
        self.error_id = error_id


@dataclass(frozen=True, slots=True)
class Pair:
    """The two streams of one TCP connection to a port."""

    request_id: str
    port: int
    data_id: int
    error_id: int


@dataclass(slots=True)
class _Half:
    port: int
    since: float
    data_id: int | None = None
    error_id: int | None = None


class Pairing:
    """Puts the streams of one connection together, in whatever order they come."""

    def __init__(self) -> None:
        self._halves: dict[str, _Half] = {}

    def add(self, stream_id: int, headers: Mapping[str, str], now: float) -> Pair | None:
        """The pair that this stream completes, None where it is the first of one.

        `now` in seconds of any steady clock. Raises `BadStream` and `PairTaken`.
        """
        port = _port(headers)
        kind = headers.get("streamtype", "")
        if kind not in (_ERROR, _DATA):
            raise BadStream(f'invalid stream type "{kind}"' if kind else "no stream type")
        request_id = headers.get("requestid", "")
        if not request_id:
            request_id = str(stream_id if kind == _ERROR else stream_id - 2)
        half = self._halves.setdefault(request_id, _Half(port, now))
        if (half.error_id if kind == _ERROR else half.data_id) is not None:
            raise PairTaken(
                f"error processing stream for request {request_id}: {kind} stream already assigned",
                half.error_id,
            )
        if kind == _ERROR:
            half.error_id = stream_id
        else:
            # As a kubelet: the data stream's port is the one that counts.
            half.data_id, half.port = stream_id, port
        if half.error_id is None or half.data_id is None:
            return None
        del self._halves[request_id]
        return Pair(request_id, half.port, half.data_id, half.error_id)

    def expire(self, now: float) -> list[tuple[str, list[int], int | None]]:
        """Of each pair that was not completed in time: the text for its error stream, its
        streams, and its error stream if there is one."""
        late = []
        for request_id, half in list(self._halves.items()):
            if now - half.since >= STREAM_CREATION_TIMEOUT:
                del self._halves[request_id]
                ids = [one for one in (half.data_id, half.error_id) if one is not None]
                text = f"(request={request_id}) timed out waiting for streams"
                late.append((text, ids, half.error_id))
        return late


def _port(headers: Mapping[str, str]) -> int:
    text = headers.get("port", "")
    if not text:
        raise BadStream('"port" header is required')
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535:
        raise BadStream(f'"{text[:20]}" is not a port')
    return int(text)
