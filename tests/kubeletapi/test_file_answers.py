"""Conditions, ranges, types and listings of files that are served, without files."""

from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes, urljoin

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vknode.kubeletapi.file_answers import (
    Answer,
    answer,
    content_range,
    content_type,
    dated,
    http_date,
    is_unchanged,
    listing,
    unconditional,
)

NOON = 1_700_000_000
BEFORE, AT, AFTER = (http_date(NOON + seconds) for seconds in (-1, 0, 1))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("", Answer(200, 0, 10)),
        ("bytes=0-3", Answer(206, 0, 4)),
        ("bytes=4-", Answer(206, 4, 6)),
        ("bytes=-3", Answer(206, 7, 3)),
        ("bytes=-30", Answer(206, 0, 10)),
        ("bytes=8-200", Answer(206, 8, 2)),
        ("bytes= 1 - 2 ", Answer(206, 1, 2)),
        ("bytes=,2-2,", Answer(206, 2, 1)),
        ("bytes=,", Answer(200, 0, 10)),
        ("bytes=0-1,4-5", Answer(200, 0, 10)),
        ("bytes=0-1,40-50", Answer(206, 0, 2)),
        ("bytes=10-", Answer(416, error="invalid range: failed to overlap")),
        ("bytes=5-2", Answer(416, error="invalid range")),
        ("bytes=--2", Answer(416, error="invalid range")),
        ("bytes=5", Answer(416, error="invalid range")),
        ("bytes=-", Answer(416, error="invalid range")),
        ("bytes=\u0663-", Answer(416, error="invalid range")),
        (f"bytes=0-{2**63}", Answer(416, error="invalid range")),
        ("lines=1-2", Answer(416, error="invalid range")),
    ],
)
def test_a_part_of_a_file(wanted: str, expected: Answer) -> None:
    assert answer({"Range": wanted} if wanted else {}, NOON, 10) == expected


@pytest.mark.parametrize("modified", [0, -5, 1 << 40])
def test_a_time_that_is_not_told_is_not_compared(modified: int) -> None:
    assert dated(modified) == {}
    for name in ("If-Modified-Since", "If-Unmodified-Since"):
        for when in (http_date(0), AT):
            assert unconditional({name: when}, modified) is None
    assert not is_unchanged({"If-Modified-Since": AT}, modified)


def test_a_part_of_nothing_is_nothing() -> None:
    assert answer({"Range": "bytes=0-99"}, NOON, 0) == Answer(200, 0, 0)


def test_where_a_part_lies_is_told() -> None:
    assert content_range(answer({"Range": "bytes=2-3"}, NOON, 10), 10) == "bytes 2-3/10"
    assert content_range(answer({"Range": "bytes=20-"}, NOON, 10), 10) == "bytes */10"
    assert content_range(answer({"Range": "nothing"}, NOON, 10), 10) is None
    assert content_range(answer({}, NOON, 10), 10) is None


@given(st.text("bytes=0123456789-, ", max_size=30), st.integers(0, 2**40))
def test_no_range_leads_out_of_the_file(wanted: str, size: int) -> None:
    found = answer({"Range": wanted}, NOON, size)
    assert found.status in (200, 206, 416)
    assert 0 <= found.start <= found.start + found.length <= size


@given(st.binary(max_size=50), st.data())
def test_a_part_is_what_pythons_slices_say(content: bytes, data: st.DataObject) -> None:
    size = len(content)
    start = data.draw(st.integers(0, size - 1) if size else st.just(0))
    end = data.draw(st.integers(start, size + 10))
    found = answer({"Range": f"bytes={start}-{end}"}, NOON, size)
    assert content[found.start : found.start + found.length] == content[start : end + 1]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-Modified-Since": AT}, 304),
        ({"If-Modified-Since": AFTER}, 304),
        ({"If-Modified-Since": BEFORE}, None),
        ({"If-Modified-Since": "yesterday"}, None),
        ({"If-Unmodified-Since": AT}, None),
        ({"If-Unmodified-Since": BEFORE}, 412),
        ({"If-Match": "*"}, None),
        ({"If-Match": '"tag"'}, 412),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"tag"', "If-Modified-Since": AT}, None),
    ],
)
def test_conditions(headers: dict[str, str], status: int | None) -> None:
    assert unconditional(headers, NOON) == status
    assert answer(headers, NOON, 10).status == (status or 200)


@pytest.mark.parametrize(
    ("unless", "status"), [(AT, 206), (BEFORE, 200), ('"tag"', 200), ("", 200)]
)
def test_a_part_of_what_has_changed_is_all_of_it(unless: str, status: int) -> None:
    assert answer({"Range": "bytes=1-", "If-Range": unless}, NOON, 10).status == status


@given(st.integers(-(2**62), 2**62))
def test_any_time_of_a_file_can_be_told_or_is_left_out(modified: int) -> None:
    told = dated(modified)
    assert told == {} or is_unchanged({"If-Modified-Since": told["Last-Modified"]}, modified)


@pytest.mark.parametrize(
    ("beginning", "expected"),
    [
        (b"", "text/plain; charset=utf-8"),
        (b"a line\n\x1b[31mred\t\r\n", "text/plain; charset=utf-8"),
        ("größer".encode(), "text/plain; charset=utf-8"),
        (b"<html><script>alert(1)</script>", "text/plain; charset=utf-8"),
        (b"\x1f\x8b\x08\x00rest", "application/x-gzip"),
        (b"text\x00", "application/octet-stream"),
    ],
)
def test_types(beginning: bytes, expected: str) -> None:
    assert content_type(beginning) == expected


class Links(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name == "href"]


def test_a_page_as_gos_file_server_writes_it() -> None:
    entries = ((b"a&b", False), (b"c:d", False), (b"pods", True), (b"what?.log", False))
    assert listing(entries).splitlines()[2:] == [
        "<pre>",
        '<a href="a&amp;b">a&amp;b</a>',
        '<a href="./c:d">c:d</a>',
        '<a href="pods/">pods/</a>',
        '<a href="what%3F.log">what?.log</a>',
        "</pre>",
    ]


NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: name not in (b".", b"..") and not set(name) & set(b"/\0")
)


@given(NAMES, st.booleans())
@example(b";", False)
def test_a_link_leads_to_its_name_whatever_that_is(name: bytes, is_folder: bool) -> None:
    """And is nothing but a link."""
    links = Links(listing(((name, is_folder),)))
    (link,) = links.found
    assert links.tags == {"meta", "pre", "a"}
    base = "https://node/logs/"
    place = urljoin(base, link)
    assert unquote_to_bytes(place.removeprefix(base)) == name + (b"/" if is_folder else b"")
