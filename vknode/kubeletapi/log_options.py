"""The query of a log request, as a kubelet of 1.37 decodes and validates it.

Source: getContainerLogs in k8s.io/kubernetes pkg/kubelet/server, the query conversions of
k8s.io/apimachinery, and ValidatePodLogOptions in pkg/apis/core/validation.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from vknode.kubeletapi.backend import LogOptions, LogStream

_INTEGER = re.compile(r"[+-]?[0-9]+")
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})(?:[.,](\d+))?(Z|[+-]\d{2}:\d{2})", re.ASCII
)
_BEGINNING, _END = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

Query = Mapping[str, Sequence[str]]


class LogQueryError(Exception):
    """The query is wrong; `status` and the text are a kubelet's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def parse_log_options(container: str, query: Query, now: datetime) -> LogOptions:
    """Raises `LogQueryError`: 400 for what cannot be decoded, 422 for what is not valid."""
    try:
        tail_lines = _integer(query, "tailLines")
        if tail := _first(query, "tail"):  # an old spelling
            tail_lines = None if tail == "all" else _integer(query, "tail")
        since_seconds = _integer(query, "sinceSeconds")
        since_time = _time(query, "sinceTime")
        limit_bytes = _integer(query, "limitBytes")
    except ValueError:
        raise LogQueryError(400, '{"message": "Unable to decode query."}') from None
    stream_name = _first(query, "stream")
    stream = next((s for s in LogStream if s.value == (stream_name or "All")), None)
    if (
        (tail_lines is not None and tail_lines < 0)
        or (limit_bytes is not None and limit_bytes < 1)
        or (since_seconds is not None and (since_seconds < 1 or "sinceTime" in query))
        or stream is None
        or (stream is not LogStream.ALL and tail_lines is not None)
    ):
        raise LogQueryError(422, '{"message": "Invalid request."}')
    since = since_time
    if since_seconds is not None:
        try:
            since = now - timedelta(seconds=since_seconds)
        except OverflowError:
            since = None  # before all time: everything
    return LogOptions(
        container=container,
        follow=_flag(query, "follow"),
        previous=_flag(query, "previous"),
        tail_lines=tail_lines,
        since=since,
        limit_bytes=limit_bytes,
        timestamps=_flag(query, "timestamps"),
        stream=stream,
    )


def _first(query: Query, name: str) -> str | None:
    values = query.get(name)
    return values[0] if values else None


def _flag(query: Query, name: str) -> bool:
    """Anything but "0" and "false" is true, the empty string too."""
    value = _first(query, name)
    return value is not None and value != "0" and value.lower() != "false"


def _integer(query: Query, name: str) -> int | None:
    text = _first(query, name)
    if text is None:
        return None
    if not _INTEGER.fullmatch(text) or not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError(name)
    return number


def _time(query: Query, name: str) -> datetime | None:
    text = _first(query, name)
    if text is None or text in ("", "null"):
        return None
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(name)
    moment = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
    if match[2]:
        moment += timedelta(microseconds=int(match[2][:6].ljust(6, "0")))
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return _BEGINNING if moment.year == 1 else _END
