"""Logs: the bytes, the limits, who waits for whom, and what a kubelet says when there are none."""

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator

import aiohttp
import pytest

from tests.kubeletapi.conftest import Served
from tests.kubeletapi.local_backend import OpenLogs, running
from vknode.kubeletapi import BackendError, ContainerView, LogOptions, LogStream, PodView

LOGS = "/containerLogs/default/web/main"


def pieces(*data: bytes) -> OpenLogs:
    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        for piece in data:
            yield piece

    return log


async def test_a_log(served: Served) -> None:
    served.backend.add("web")
    served.backend.logs = pieces(b"", b"one\n", b"two\n")
    async with served.http.get(served.url + LOGS) as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert await response.read() == b"one\ntwo\n"


async def test_an_empty_log(served: Served) -> None:
    served.backend.add("web")
    served.backend.logs = pieces()
    assert await served.get(LOGS) == (200, "")


async def test_options_reach_the_backend(served: Served) -> None:
    served.backend.add("web")
    served.backend.logs = pieces(b"x")
    await served.get(LOGS, tailLines="5", timestamps="true", previous="false", limitBytes="9")
    await served.get(LOGS, stream="Stdout", follow="true")
    first, second = served.backend.asked
    assert first == LogOptions("main", tail_lines=5, timestamps=True, limit_bytes=9)
    assert second == LogOptions("main", follow=True, stream=LogStream.STDOUT)


@pytest.mark.parametrize("limit", [1, 4, 5, 7, 8, 9, 1000])
async def test_limit_bytes_is_exact(served: Served, limit: int) -> None:
    served.backend.add("web")
    served.backend.logs = pieces(b"", b"1234", b"5678", b"")
    _, text = await served.get(LOGS, limitBytes=str(limit), follow="true")
    assert text == "12345678"[:limit]


async def test_the_answer_starts_before_there_is_a_line(served: Served) -> None:
    go_on = asyncio.Event()

    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        yield b""
        await go_on.wait()
        yield b"late\n"

    served.backend.add("web")
    served.backend.logs = log
    async with served.http.get(served.url + LOGS, params={"follow": "true"}) as response:
        assert response.status == 200
        go_on.set()
        assert await response.content.readline() == b"late\n"


async def test_a_client_that_leaves_ends_the_pools_stream(served: Served) -> None:
    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        yield b"first\n"
        await asyncio.Event().wait()

    served.backend.add("web")
    served.backend.logs = log
    response = await served.http.get(served.url + LOGS, params={"follow": "true"})
    assert await response.content.readline() == b"first\n"
    response.close()
    async with asyncio.timeout(60):
        await served.backend.logs_closed.wait()


async def test_100_mb_arrive_whole_and_never_pile_up(served: Served) -> None:
    given = taken = furthest = 0
    size, total = 64 * 1024, 1600
    block = random.Random(1).randbytes(size)
    sent, received = hashlib.sha256(), hashlib.sha256()

    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        nonlocal given, furthest
        for _ in range(total):
            sent.update(block)
            given += size
            furthest = max(furthest, given - taken)
            yield block

    served.backend.add("web")
    served.backend.logs = log
    async with served.http.get(served.url + LOGS) as response:
        async for data in response.content.iter_chunked(size):
            taken += len(data)
            received.update(data)
    assert taken == size * total
    assert received.digest() == sent.digest()
    # The sockets of both sides, TLS and the test client hold some; not tens of megabytes.
    assert furthest < 16 * 1024 * 1024


async def test_a_slow_client_stops_the_pool(served: Served) -> None:
    given = 0

    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        nonlocal given
        while True:
            given += 64 * 1024
            yield bytes(64 * 1024)

    served.backend.add("web")
    served.backend.logs = log
    response = await served.http.get(served.url + LOGS)
    before = -1
    async with asyncio.timeout(60):
        while before != given:  # until a fifth of a second brings nothing more
            before = given
            await asyncio.sleep(0.2)
    assert 0 < given < 32 * 1024 * 1024
    response.close()
    async with asyncio.timeout(60):
        await served.backend.logs_closed.wait()


async def test_an_error_before_the_first_byte_is_a_kubelets_400(served: Served) -> None:
    async def log(_pod: PodView, options: LogOptions) -> AsyncGenerator[bytes, None]:
        if not options.follow:
            raise BackendError("the pool az1 is away")
        yield b""

    served.backend.add("web")
    served.backend.logs = log
    assert await served.get(LOGS) == (400, "the pool az1 is away")


async def test_an_error_in_the_middle_is_not_a_clean_end(served: Served) -> None:
    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        yield b"half of it"
        raise BackendError("the pool az1 is away")

    served.backend.add("web")
    served.backend.logs = log
    with pytest.raises(aiohttp.ClientError):
        await served.get(LOGS)


async def test_a_stop_cuts_a_followed_log(served: Served) -> None:
    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        yield b"line\n"
        await asyncio.Event().wait()

    served.backend.add("web")
    served.backend.logs = log
    async with served.http.get(served.url + LOGS, params={"follow": "true"}) as response:
        assert await response.content.readline() == b"line\n"
        async with asyncio.timeout(20):  # less than it would wait for who does not end
            await served.api.stop()
        with pytest.raises(aiohttp.ClientError):
            await response.content.readline()
    assert served.backend.logs_closed.is_set()


async def test_unknown_pod_and_container(served: Served) -> None:
    served.backend.add("web")
    assert await served.get("/containerLogs/default/gone/main") == (
        404,
        'pod "gone" does not exist',
    )
    assert await served.get("/containerLogs/other/web/main") == (404, 'pod "web" does not exist')
    assert await served.get("/containerLogs/default/web/side") == (
        404,
        'container "side" not found in pod "web"',
    )


async def test_a_wrong_query_is_refused_before_the_pod_is_looked_for(served: Served) -> None:
    status, text = await served.get("/containerLogs/default/gone/main", tailLines="x")
    assert (status, text) == (400, '{"message": "Unable to decode query."}')
    assert (await served.get("/containerLogs/default/gone/main", limitBytes="0"))[0] == 422


@pytest.mark.parametrize(
    ("view", "previous", "words"),
    [
        (ContainerView("main"), False, "is not available"),
        (
            ContainerView("main", "waiting", "ContainerCreating"),
            False,
            "is waiting to start: ContainerCreating",
        ),
        (
            ContainerView("main", "waiting", "ErrImagePull"),
            False,
            "is waiting to start: image can't be pulled",
        ),
        (
            ContainerView("main", "waiting", "ImagePullBackOff"),
            False,
            "is waiting to start: trying and failing to pull image",
        ),
        (ContainerView("main", "terminated"), False, "is terminated"),
        (ContainerView("main", "waiting", "CrashLoopBackOff", False, True), False, None),
        (ContainerView("main", "waiting", "CrashLoopBackOff", False, True), True, None),
        (ContainerView("main", "terminated", started=True), False, None),
        (running("main"), False, None),
    ],
)
async def test_the_kubelets_words(
    served: Served, view: ContainerView, previous: bool, words: str | None
) -> None:
    served.backend.add("web", view)
    served.backend.logs = pieces(b"log")
    answer = await served.get(LOGS, previous=str(previous).lower())
    if words is None:
        assert answer == (200, "log")
    else:
        assert answer == (400, f'container "main" in pod "web" {words}')


async def test_no_previous_instance(served: Served) -> None:
    served.backend.add("web")
    assert await served.get(LOGS, previous="true") == (
        400,
        'previous terminated container "main" in pod "web" not found',
    )
