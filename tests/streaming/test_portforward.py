"""Streams of a port-forward find each other, in whatever order and however many."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.streaming.portforward import BadStream, Pair, Pairing, PairTaken


def headers(kind: str, port: str = "80", request: str = "") -> dict[str, str]:
    found = {"streamtype": kind, "port": port}
    return found | ({"requestid": request} if request else {})


@given(st.integers(1, 20), st.randoms(use_true_random=False))
def test_any_order_makes_each_pair_once(count: int, chance: random.Random) -> None:
    streams = [(kind, str(number)) for number in range(count) for kind in ("error", "data")]
    chance.shuffle(streams)
    pairing = Pairing()
    ids: dict[tuple[str, str], int] = {}
    pairs: list[Pair] = []
    for position, (kind, request) in enumerate(streams):
        stream_id = 2 * position + 1
        ids[kind, request] = stream_id
        pair = pairing.add(stream_id, headers(kind, f"{1000 + int(request)}", request), 0.0)
        if pair is not None:
            pairs.append(pair)
    assert len(pairs) == count
    for pair in pairs:
        assert pair.port == 1000 + int(pair.request_id)
        assert pair.data_id == ids["data", pair.request_id]
        assert pair.error_id == ids["error", pair.request_id]
    assert pairing.expire(1e9) == []


def test_an_old_client_names_no_request() -> None:
    pairing = Pairing()
    assert pairing.add(1, headers("error"), 0.0) is None
    assert pairing.add(3, headers("data"), 0.0) == Pair("1", 80, 3, 1)


@pytest.mark.parametrize(
    "bad",
    [
        {"streamtype": "data"},
        {"port": "80"},
        {"port": "80", "streamtype": "stdin"},
        *(
            {"port": port, "streamtype": "data"}
            for port in ("0", "65536", "-1", "x", "\u0661", "9" * 99)
        ),
    ],
)
def test_streams_of_something_else_are_refused(bad: dict[str, str]) -> None:
    with pytest.raises(BadStream):
        Pairing().add(1, bad, 0.0)


def test_a_second_stream_of_one_kind_is_told_on_the_first_ones_error_stream() -> None:
    pairing = Pairing()
    pairing.add(1, headers("error", request="7"), 0.0)
    with pytest.raises(PairTaken, match="error stream already assigned") as taken:
        pairing.add(3, headers("error", request="7"), 0.0)
    assert taken.value.error_id == 1
    assert pairing.add(5, headers("data", request="7"), 0.0) == Pair("7", 80, 5, 1)


def test_what_stays_alone_expires() -> None:
    pairing = Pairing()
    pairing.add(1, headers("data", request="a"), 0.0)
    pairing.add(3, headers("error", request="b"), 10.0)
    assert pairing.expire(29.9) == []
    assert pairing.expire(30.0) == [("(request=a) timed out waiting for streams", [1], None)]
    assert pairing.expire(40.0) == [("(request=b) timed out waiting for streams", [3], 3)]
    assert pairing.expire(1e9) == []
