"""WebSocket channel framing of exec and attach, and of older port-forwards, for both sides.

Source: Kubernetes' KEP-4006 and `k8s.io/streaming` (wsstream). One WebSocket message carries one
channel number and data; in v5 the number 0xFF followed by a channel half-closes that channel.
The base64 forms carry the channel as an ASCII digit and the data as base64, in text messages.
A client that names no subprotocol at all gets the oldest one, as from a kubelet.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

_CLOSE: Final = 0xFF


class Channel(IntEnum):
    STDIN = 0
    STDOUT = 1
    STDERR = 2
    ERROR = 3
    RESIZE = 4


class ChannelError(Exception):
    """A message that breaks the framing; the connection cannot go on."""


@dataclass(frozen=True, slots=True)
class ChannelData:
    """`channel` may be a number that nobody knows: peers ignore such messages."""

    channel: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The peer will send no more on this channel (v5 only)."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class ChannelProtocol:
    """One version of the framing.

    name:    the WebSocket subprotocol, empty if the client named none
    version: 1, 4 or 5
    text:    messages are text with base64 data
    """

    name: str
    version: int
    text: bool = False

    @property
    def half_close(self) -> bool:
        """Whether one channel can be closed while the others go on."""
        return self.version >= 5

    @property
    def status_is_json(self) -> bool:
        """Whether the error channel carries a JSON Status; before v4 it is plain text."""
        return self.version >= 4

    def encode(self, channel: int, data: bytes) -> bytes:
        """The payload of one message; empty data is allowed and means nothing but "I am here"."""
        if self.text:
            return chr(ord("0") + channel).encode() + base64.b64encode(data)
        return bytes((channel,)) + data

    def encode_close(self, channel: Channel) -> bytes:
        """Raises `ChannelError` before v5, which has no half-close."""
        if not self.half_close:
            raise ChannelError(f"subprotocol {self.name!r} cannot close a single channel")
        return bytes((_CLOSE, channel))

    def decode(self, message: bytes) -> ChannelData | ChannelClosed | None:
        """Returns None for an empty message, which peers skip; raises `ChannelError`."""
        if not message:
            return None
        if self.half_close and message[0] == _CLOSE:
            if len(message) != 2:
                raise ChannelError("a close signal must be followed by exactly one channel byte")
            try:
                return ChannelClosed(Channel(message[1]))
            except ValueError:
                raise ChannelError(f"close signal for the unknown channel {message[1]}") from None
        if not self.text:
            return ChannelData(message[0], message[1:])
        try:
            data = base64.b64decode(message[1:], validate=True)
        except binascii.Error:
            raise ChannelError("a message is not valid base64") from None
        return ChannelData(message[0] - ord("0"), data)


V5: Final = ChannelProtocol("v5.channel.k8s.io", 5)
V4: Final = ChannelProtocol("v4.channel.k8s.io", 4)
V4_BASE64: Final = ChannelProtocol("v4.base64.channel.k8s.io", 4, text=True)
V1: Final = ChannelProtocol("channel.k8s.io", 1)
V1_BASE64: Final = ChannelProtocol("base64.channel.k8s.io", 1, text=True)
UNNAMED: Final = ChannelProtocol("", 1)

PROTOCOLS: Final = (V5, V4, V4_BASE64, V1, V1_BASE64)
"""What a server here speaks, the best first."""


def choose_protocol(offered: Sequence[str]) -> ChannelProtocol | None:
    """Server side: v5 if it is offered at all, else the client's first choice that we speak.

    `offered` is the client's Sec-WebSocket-Protocol list. None: nothing fits, answer 403.
    """
    if not offered:
        return UNNAMED
    known = {protocol.name: protocol for protocol in PROTOCOLS}
    if V5.name in offered:
        return V5
    return next((known[name] for name in offered if name in known), None)


def agreed_protocol(name: str) -> ChannelProtocol:
    """Client side: the protocol that the server named. Raises `ChannelError` if unknown."""
    for protocol in (*PROTOCOLS, UNNAMED):
        if protocol.name == name:
            return protocol
    raise ChannelError(f"the server chose the unknown subprotocol {name!r}")
