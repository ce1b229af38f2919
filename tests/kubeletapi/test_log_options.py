"""The query of a log request: decoded and refused as a kubelet of 1.37 does."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.kubeletapi.backend import LogStream
from vknode.kubeletapi.log_options import LogQueryError, parse_log_options

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def parse(**query: str) -> object:
    return parse_log_options("c", {name: [value] for name, value in query.items()}, NOW)


def test_everything_that_an_api_server_sends() -> None:
    options = parse_log_options(
        "c",
        {
            "follow": ["true"],
            "previous": ["true"],
            "timestamps": ["true"],
            "sinceSeconds": ["60"],
            "limitBytes": ["1"],
            "stream": ["Stderr"],
        },
        NOW,
    )
    assert (options.follow, options.previous, options.timestamps) == (True, True, True)
    assert options.since == NOW - timedelta(seconds=60)
    assert options.limit_bytes == 1
    assert options.stream is LogStream.STDERR
    assert options.tail_lines is None


def test_nothing_asked() -> None:
    options = parse_log_options("c", {}, NOW)
    assert options.stream is LogStream.ALL
    assert not (options.follow or options.previous or options.timestamps)
    assert (options.since, options.tail_lines, options.limit_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("", True), ("yes", True), ("False", False), ("0", False), ("FALSE", False)],
)
def test_a_flag_is_true_unless_it_says_otherwise(text: str, value: bool) -> None:
    assert parse_log_options("c", {"follow": [text]}, NOW).follow is value


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02T03:04:05Z", NOW),
        ("2026-01-02T04:04:05+01:00", NOW),
        ("2026-01-02T03:04:05.5Z", NOW + timedelta(milliseconds=500)),
        ("2026-01-02T03:04:05.123456789Z", NOW + timedelta(microseconds=123456)),
        ("0001-01-01T00:00:00+01:00", datetime.min.replace(tzinfo=UTC)),
        ("9999-12-31T23:59:59-01:00", datetime.max.replace(tzinfo=UTC)),
        ("", None),
        ("null", None),
    ],
)
def test_since_time(text: str, moment: datetime | None) -> None:
    assert parse_log_options("c", {"sinceTime": [text]}, NOW).since == moment


def test_the_old_spelling_of_tail() -> None:
    assert parse_log_options("c", {"tail": ["5"]}, NOW).tail_lines == 5
    both = {"tail": ["all"], "tailLines": ["3"]}
    assert parse_log_options("c", both, NOW).tail_lines is None


def test_a_time_span_before_all_time_is_everything() -> None:
    assert parse_log_options("c", {"sinceSeconds": [str(2**62)]}, NOW).since is None


@pytest.mark.parametrize(
    "query",
    [
        {"tailLines": "x"},
        {"tailLines": ""},
        {"tailLines": "1_0"},
        {"tailLines": "1.5"},
        {"limitBytes": str(2**63)},
        {"sinceSeconds": " 5"},
        {"sinceTime": "yesterday"},
        {"sinceTime": "2026-01-02"},
        {"sinceTime": "2026-13-02T03:04:05Z"},
    ],
)
def test_what_cannot_be_decoded(query: dict[str, str]) -> None:
    with pytest.raises(LogQueryError) as caught:
        parse(**query)
    assert (caught.value.status, str(caught.value)) == (
        400,
        '{"message": "Unable to decode query."}',
    )


@pytest.mark.parametrize(
    "query",
    [
        {"tailLines": "-1"},
        {"limitBytes": "0"},
        {"sinceSeconds": "0"},
        {"sinceSeconds": "5", "sinceTime": "2026-01-02T03:04:05Z"},
        {"stream": "stdout"},
        {"stream": "Stdout", "tailLines": "5"},
    ],
)
def test_what_is_not_valid(query: dict[str, str]) -> None:
    with pytest.raises(LogQueryError) as caught:
        parse(**query)
    assert (caught.value.status, str(caught.value)) == (422, '{"message": "Invalid request."}')


@given(
    st.dictionaries(
        st.sampled_from(["tail", "tailLines", "sinceTime", "sinceSeconds", "limitBytes", "stream"]),
        st.lists(st.text(max_size=25), min_size=1, max_size=2),
    )
)
def test_any_query_is_taken_or_refused(query: dict[str, list[str]]) -> None:
    try:
        options = parse_log_options("c", query, NOW)
    except LogQueryError as error:
        assert error.status in (400, 422)
    else:
        assert options.tail_lines is None or options.tail_lines >= 0
        assert options.limit_bytes is None or options.limit_bytes >= 1
