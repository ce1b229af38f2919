"""What the server has served and serves now, as its operator's metrics show it."""

import asyncio
from collections.abc import AsyncGenerator

import aiohttp

from tests.kubeletapi.conftest import Served, client_context
from vknode.kubeletapi import LogOptions, PodView

LOGS = "/containerLogs/default/web/main"


async def one_line(_pod: PodView, options: LogOptions) -> AsyncGenerator[bytes, None]:
    yield b"one\n"
    if options.follow:
        await asyncio.Event().wait()


async def test_what_was_served_is_counted_by_endpoint_and_status(served: Served) -> None:
    served.backend.add("web")
    served.backend.logs = one_line
    for path in ("/pods", LOGS, "/containerLogs/default/web/other", "/exec/default/none/main"):
        await served.get(path)
    # What anybody may make up is one endpoint.
    for path in ("/a-path/of/somebody", "/another", "//pods/x"):
        await served.get(path)
    connector = aiohttp.TCPConnector(ssl=client_context(served.authority, None))
    async with (
        aiohttp.ClientSession(connector=connector) as nobody,
        nobody.get(served.url + "/pods") as response,
    ):
        assert response.status == 401
    counted = served.api.counts.requests()
    assert {key: count for key, count in counted.items() if key[0] != "exec"} == {
        ("pods", "200"): 1,
        ("pods", "401"): 1,
        ("containerLogs", "200"): 1,
        ("containerLogs", "404"): 1,
        ("other", "404"): 2,
        ("pods", "404"): 1,
    }
    assert sum(count for (endpoint, _), count in counted.items() if endpoint == "exec") == 1


async def test_an_open_stream_is_counted_until_its_client_leaves(served: Served) -> None:
    served.backend.add("web")
    served.backend.logs = one_line
    response = await served.http.get(served.url + LOGS, params={"follow": "true"})
    assert await response.content.readline() == b"one\n"
    open_streams = served.api.counts.streams()
    assert open_streams == {"attach": 0, "containerLogs": 1, "exec": 0, "portForward": 0}
    assert served.api.counts.requests() == {}
    response.close()
    async with asyncio.timeout(60):
        while served.api.counts.streams()["containerLogs"]:
            await asyncio.sleep(0.01)
    assert served.api.counts.requests() == {("containerLogs", "499"): 1}
