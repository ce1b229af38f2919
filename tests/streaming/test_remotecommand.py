"""Exit codes survive the error stream; terminal sizes survive any split of the resize stream."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.streaming.remotecommand import (
    Exited,
    Failed,
    ResizeParser,
    TerminalSize,
    decode_outcome,
    encode_outcome,
    encode_resize,
)

_SIZES = st.builds(TerminalSize, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))


@given(st.integers(0, 255))
def test_exit_code_survives(code: int) -> None:
    assert decode_outcome(encode_outcome(Exited(code), as_json=True), as_json=True) == Exited(code)


def test_status_as_kubectl_reads_it() -> None:
    status = json.loads(encode_outcome(Exited(7), as_json=True))
    assert status["status"] == "Failure"
    assert status["reason"] == "NonZeroExitCode"
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]
    success = encode_outcome(Exited(0), as_json=True)
    assert json.loads(success) == {"metadata": {}, "status": "Success"}


def test_internal_error() -> None:
    data = encode_outcome(Failed("the pool is away"), as_json=True)
    assert json.loads(data)["code"] == 500
    outcome = decode_outcome(data, as_json=True)
    assert outcome == Failed("Internal error occurred: the pool is away")


def test_before_v4_it_is_plain_text_and_silence_is_success() -> None:
    assert encode_outcome(Exited(0), as_json=False) == b""
    assert decode_outcome(b"", as_json=False) == Exited(0)
    text = encode_outcome(Exited(3), as_json=False)
    assert text.endswith(b"exit code 3")
    assert decode_outcome(text, as_json=False) == Failed(text.decode())


@given(st.binary(max_size=80))
def test_a_client_survives_any_error_stream(data: bytes) -> None:
    assert isinstance(decode_outcome(data, as_json=True), Exited | Failed)


@pytest.mark.parametrize(
    "details",
    [None, {}, {"causes": None}, {"causes": [{}]}, {"causes": [{"reason": "ExitCode"}]}],
)
def test_exit_reason_without_a_code_is_a_failure(details: object) -> None:
    status = {"status": "Failure", "reason": "NonZeroExitCode", "details": details}
    assert isinstance(decode_outcome(json.dumps(status).encode(), as_json=True), Failed)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, '{"status":"Success"}'.encode("utf-16"), b"\xff", b"[]"]
)
def test_an_error_stream_that_is_no_status_is_a_failure(text: bytes) -> None:
    assert isinstance(decode_outcome(text, as_json=True), Failed)


@given(st.lists(_SIZES, max_size=8), st.lists(st.integers(1, 7)), st.sampled_from([b"", b"\n "]))
def test_resize_split_anywhere(sizes: list[TerminalSize], cuts: list[int], gap: bytes) -> None:
    stream = b"".join(encode_resize(size) + gap for size in sizes)
    parser = ResizeParser()
    seen: list[TerminalSize] = []
    for cut in cuts:
        seen += parser.feed(stream[:cut])
        stream = stream[cut:]
    seen += parser.feed(stream)
    assert seen == sizes
    assert not parser.broken


@pytest.mark.parametrize(
    "stream",
    [
        b"[1]",
        b'{"Width":-1}',
        b'{"Width":70000}',
        b'{"Width":"9"}',
        b'{"W":{}}',
        b"{" + b" " * 2000,
        b"{" + b" " * 2000 + b"}",
        b"\v",  # white space to Python, not to JSON
        '{"Width":9}'.encode("utf-16-be"),
        b'{"W":' + b"[" * 1010 + b"}",
    ],
)
def test_a_broken_resize_stream_ends_quietly(stream: bytes) -> None:
    parser = ResizeParser()
    assert parser.feed(stream) == []
    assert parser.broken
    assert parser.feed(b'{"Width":1,"Height":1}') == []


def test_field_names_without_regard_to_case() -> None:
    assert ResizeParser().feed(b'{"width":80,"HEIGHT":24}') == [TerminalSize(80, 24)]
