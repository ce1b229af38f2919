"""Our client against what a real containerd said, replayed byte for byte."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vknode.streaming.remotecommand import Exited, Failed, decode_outcome
from vknode.streaming.spdy import (
    DataReceived,
    GoAwayReceived,
    RstStatus,
    SpdyConnection,
    StreamEnded,
    StreamReplied,
    StreamReset,
)

VECTORS = Path(__file__).parent / "vectors" / "containerd-1.6.20.json"
CONVERSATIONS: dict[str, Any] = json.loads(VECTORS.read_text())["conversations"]


@dataclass
class Heard:
    """What the client made of a conversation, by stream type."""

    data: dict[str, bytes] = field(default_factory=dict)
    replied: set[str] = field(default_factory=set)
    ended: dict[str, str] = field(default_factory=dict)
    go_away: int | None = None


def replay(name: str, cuts: list[int]) -> Heard:
    conversation = CONVERSATIONS[name]
    client = SpdyConnection(client=True)
    kinds = {
        client.open_stream(headers): headers["streamtype"] for headers in conversation["opened"]
    }
    ids = {kind: stream_id for stream_id, kind in kinds.items()}
    for piece in conversation["sent"]:
        client.send_data(ids[piece["stream"]], piece["data"].encode(), fin=piece["fin"])
    client.data_to_send()
    wire = bytes.fromhex("".join(conversation["received"]))
    heard = Heard()
    for cut in [*cuts, len(wire)]:
        chunk, wire = wire[:cut], wire[cut:]
        for event in client.receive_data(chunk):
            match event:
                case StreamReplied(stream_id):
                    heard.replied.add(kinds[stream_id])
                case DataReceived(stream_id, data):
                    kind = kinds[stream_id]
                    heard.data[kind] = heard.data.get(kind, b"") + data
                case StreamEnded(stream_id):
                    heard.ended[kinds[stream_id]] = "fin"
                case StreamReset(stream_id, status, True):
                    heard.ended[kinds[stream_id]] = RstStatus(status).name
                case GoAwayReceived(_, status):
                    heard.go_away = status
                case other:
                    raise AssertionError(other)
    assert client.data_to_send() == b""
    return heard


def test_an_exit_code() -> None:
    heard = replay("exec_exit_7", [])
    assert heard.data["stdout"] == b"out\n"
    assert heard.data["stderr"] == b"err\n"
    assert decode_outcome(heard.data["error"], as_json=True) == Exited(7)
    # containerd ends the error stream by a reset, and the conversation by GOAWAY.
    assert heard.ended == {"stdout": "fin", "stderr": "fin", "error": "CANCEL"}
    assert heard.go_away == 0


def test_stdin() -> None:
    heard = replay("exec_stdin", [])
    assert heard.data["stdout"] == b"hello\nworld\n"
    assert decode_outcome(heard.data["error"], as_json=True) == Exited(0)


def test_a_command_that_is_not_there() -> None:
    heard = replay("exec_missing", [])
    outcome = decode_outcome(heard.data["error"], as_json=True)
    assert isinstance(outcome, Failed)
    assert "executable file not found in $PATH" in outcome.message


def test_a_terminal() -> None:
    heard = replay("exec_tty", [])
    assert heard.data["stdout"] == b"40 100\r\n"
    assert heard.replied == {"error", "stdin", "stdout", "resize"}


def test_port_forward() -> None:
    echo = replay("portforward_echo", [])
    assert echo.data == {"data": b"ping"}
    assert echo.ended == {"data": "fin", "error": "fin"}
    refused = replay("portforward_refused", [])
    assert b"connection refused" in refused.data["error"]


@pytest.mark.parametrize("name", list(CONVERSATIONS))
@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), max_size=60))
def test_the_split_does_not_matter(name: str, cuts: list[int]) -> None:
    assert replay(name, cuts) == replay(name, [])
