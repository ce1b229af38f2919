"""One PATCH per real change: coalesced, newest wins, retried, dropped where it must be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import structlog

from vknode.agent.status_writer import StatusWriter, Write
from vknode.kube.backoff import Backoff
from vknode.kube.errors import ApiError, Unreachable


class Server:
    """Answers PATCHes; `hold` keeps them open until it is set."""

    def __init__(self) -> None:
        self.patches: list[tuple[str, bytes]] = []
        self.failures: list[Exception] = []
        self.hold: asyncio.Event | None = None
        self.running = self.most = 0

    async def patch_status(
        self,
        path: str,
        body: bytes,
        *,
        impersonate: str | None = None,
        timeout: float = 30.0,
        retry: bool = True,
    ) -> bytes:
        assert impersonate == "cell-1"
        assert retry is False
        self.patches.append((path, body))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.hold is not None:
                await self.hold.wait()
            else:
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        if self.failures:
            raise self.failures.pop(0)
        return body


class Statuses:
    """What we want and what the API server has, as bytes."""

    def __init__(self) -> None:
        self.wanted: dict[str, bytes] = {}
        self.there: dict[str, bytes] = {}
        self.gone: list[str] = []

    def render(self, uid: str) -> Write | None:
        want = self.wanted.get(uid)
        if want is None or want == self.there.get(uid):
            return None
        return Write(f"/pods/{uid}", want, "cell-1")

    def written(self, uid: str, write: Write, answer: bytes) -> None:
        self.there[uid] = answer

    def dropped(self, uid: str, write: Write, error: ApiError) -> None:
        self.gone.append(uid)
        self.wanted.pop(uid, None)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def statuses() -> Statuses:
    return Statuses()


@pytest.fixture
async def writer(server: Server, statuses: Statuses) -> AsyncIterator[StatusWriter]:
    writer = StatusWriter(
        server,
        statuses,
        slots=3,
        make_backoff=lambda: Backoff(base=0.01, maximum=0.02, jitter=0.0),
    )
    yield writer
    await writer.close()


async def when(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_mark_sends_in_the_same_turn(
    server: Server, statuses: Statuses, writer: StatusWriter
) -> None:
    statuses.wanted["a"] = b"1"
    writer.mark("a")
    await asyncio.sleep(0)
    assert server.patches == [("/pods/a", b"1")]


async def test_nothing_new_nothing_sent(
    server: Server, statuses: Statuses, writer: StatusWriter
) -> None:
    statuses.wanted["a"] = statuses.there["a"] = b"1"
    writer.mark("a")
    await writer.settled("a")
    assert server.patches == []


async def test_changes_during_a_patch_become_one_more_with_the_newest(
    server: Server, statuses: Statuses, writer: StatusWriter
) -> None:
    server.hold = asyncio.Event()
    for number in range(5):
        statuses.wanted["a"] = b"%d" % number
        writer.mark("a")
        await asyncio.sleep(0)
    server.hold.set()
    await writer.settled("a")
    assert [body for _, body in server.patches] == [b"0", b"4"]


async def test_a_delayed_mark_waits_and_an_urgent_one_overtakes_it(
    server: Server, statuses: Statuses, writer: StatusWriter
) -> None:
    statuses.wanted["a"] = b"pending"
    writer.mark("a", 60.0)
    await asyncio.sleep(0.01)
    assert server.patches == []
    statuses.wanted["a"] = b"running"
    writer.mark("a")
    await writer.settled("a")
    assert server.patches == [("/pods/a", b"running")]


async def test_the_newest_wins_over_a_retry(
    server: Server, statuses: Statuses, writer: StatusWriter
) -> None:
    server.failures = [ApiError(503, "ServiceUnavailable", "x"), Unreachable("cut off")]
    statuses.wanted["a"] = b"1"
    writer.mark("a")
    await when(lambda: len(server.patches) == 1 and not server.failures[1:])
    statuses.wanted["a"] = b"2"
    writer.mark("a")
    await writer.settled("a")
    assert server.patches[-1] == ("/pods/a", b"2")
    assert statuses.there["a"] == b"2"
    assert writer.retries == 2


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "NotFound"), (409, "Conflict"), (422, "Invalid")]
)
async def test_what_can_never_be_written_is_dropped(
    server: Server, statuses: Statuses, writer: StatusWriter, status: int, reason: str
) -> None:
    server.failures = [ApiError(status, reason, "no")]
    statuses.wanted["a"] = b"1"
    writer.mark("a")
    await writer.settled("a")
    assert statuses.gone == ["a"]
    assert len(server.patches) == 1
    assert writer.depth == 0


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        ('Pod "a" is invalid: metadata.uid: Invalid value: "b": field is immutable', 0),
        ('Pod "a" is invalid: status.phase: Invalid value: "Walking"', 1),
    ],
)
async def test_only_a_defect_is_logged_as_one(
    server: Server, statuses: Statuses, writer: StatusWriter, message: str, logged: int
) -> None:
    server.failures = [ApiError(422, "Invalid", message)]
    statuses.wanted["a"] = b"1"
    with structlog.testing.capture_logs() as logs:
        writer.mark("a")
        await writer.settled("a")
    assert statuses.gone == ["a"]
    assert sum(entry["event"] == "status_refused" for entry in logs) == logged


async def test_many_pods_few_at_once(
    server: Server, statuses: Statuses, writer: StatusWriter
) -> None:
    for number in range(20):
        statuses.wanted[str(number)] = b"x"
        writer.mark(str(number))
    await when(lambda: len(statuses.there) == 20)
    assert server.most == 3
    assert len(server.patches) == 20


async def test_flush_sends_what_was_delayed_and_gives_up_in_time(
    server: Server, statuses: Statuses, writer: StatusWriter
) -> None:
    statuses.wanted["a"] = b"1"
    writer.mark("a", 60.0)
    assert await writer.flush(60.0) == 0
    assert statuses.there == {"a": b"1"}
    server.hold = asyncio.Event()
    statuses.wanted["a"] = b"2"
    writer.mark("a")
    assert await writer.flush(0.02) == 1


async def test_a_forgotten_pod_is_not_written(
    server: Server, statuses: Statuses, writer: StatusWriter
) -> None:
    statuses.wanted["a"] = b"1"
    writer.mark("a", 0.01)
    writer.forget("a")
    statuses.wanted["b"] = b"1"
    writer.mark("b", 0.02)
    await when(lambda: "b" in statuses.there)
    assert server.patches == [("/pods/b", b"1")]


async def test_one_pod_that_cannot_be_rendered_does_not_stop_the_others(
    server: Server, statuses: Statuses, writer: StatusWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = statuses.render

    def broken(uid: str) -> Write | None:
        if uid == "bad":
            raise KeyError("spec")
        return render(uid)

    monkeypatch.setattr(statuses, "render", broken)
    writer.mark("bad")
    statuses.wanted["good"] = b"1"
    writer.mark("good")
    await writer.settled("good")
    assert server.patches == [("/pods/good", b"1")]


async def test_what_became_of_each_request_is_counted_and_timed(
    server: Server, statuses: Statuses
) -> None:
    took: list[float] = []
    writer = StatusWriter(
        server,
        statuses,
        make_backoff=lambda: Backoff(base=0.01, maximum=0.02, jitter=0.0),
        took=took.append,
    )
    server.failures = [
        ApiError(503, "ServiceUnavailable", "busy"),
        ApiError(404, "NotFound", "gone"),
        RuntimeError("a defect"),
    ]
    for uid in ("a", "b", "c"):
        statuses.wanted[uid] = b"1"
        writer.mark(uid)
        await when(lambda: writer.depth == 0)
    counts = (writer.patches, writer.written, writer.retries, writer.drops, writer.failures)
    assert counts == (4, 1, 1, 1, 1)
    assert len(took) == 4 and all(0 <= seconds < 60 for seconds in took)
    await writer.close()
