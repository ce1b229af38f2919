"""A watch's lines come out whole wherever the network cuts the stream."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.kube.lines import LineSplitter, LineTooLong


@given(
    lines=st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b), max_size=20),
    tail=st.binary(max_size=20).filter(lambda b: b"\n" not in b),
    cuts=st.lists(st.integers(min_value=0, max_value=900), max_size=30),
)
def test_cutting_anywhere_gives_the_same_lines(
    lines: list[bytes], tail: bytes, cuts: list[int]
) -> None:
    stream = b"".join(line + b"\n" for line in lines) + tail
    splitter = LineSplitter()
    got: list[bytes] = []
    borders = sorted({0, len(stream), *(c for c in cuts if c < len(stream))})
    for start, end in itertools.pairwise(borders):
        got += splitter.feed(stream[start:end])
    assert got == [line for line in lines if line]
    assert splitter.pending == len(tail)


@given(chunks=st.lists(st.binary(min_size=1, max_size=50), max_size=50))
def test_held_bytes_never_exceed_the_limit(chunks: list[bytes]) -> None:
    splitter = LineSplitter(max_line=64)
    try:
        for chunk in chunks:
            for line in splitter.feed(chunk):
                assert len(line) <= 64
            assert splitter.pending <= 64
    except LineTooLong:
        longest = max(map(len, b"".join(chunks).split(b"\n")))
        assert longest > 64


def test_a_line_over_the_limit_is_refused_before_its_newline() -> None:
    splitter = LineSplitter(max_line=10)
    splitter.feed(b"12345")
    with pytest.raises(LineTooLong):
        splitter.feed(b"678901")
