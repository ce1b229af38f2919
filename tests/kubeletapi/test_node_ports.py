"""Each node has a port of its own, and shows there its own Pods and no others."""

import asyncio
import errno
import resource
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kubeletapi.conftest import Served, make_settings
from tests.kubeletapi.local_backend import LocalBackend
from tests.kubeletapi.local_nodes import LocalNodes
from tests.kubeletapi.reviewers import Rules
from vknode.devcluster.pki import Authority
from vknode.kubeletapi import KubeletApi, KubeletApiError, LogOptions, PodView, PortRange
from vknode.kubeletapi.node_ports import PortBook

NODES = st.sampled_from([f"node-{number}" for number in range(6)])
PORTS = st.integers(9_998, 10_007)
ACTIONS = st.one_of(
    st.tuples(st.just("claim"), NODES, PORTS),
    st.tuples(st.just("open"), NODES, st.integers(0, 3)),
    st.tuples(st.just("close"), NODES, st.just(0)),
)


@settings(deadline=None)
@given(st.lists(ACTIONS, max_size=40))
def test_no_two_nodes_ever_have_one_port(actions: list[tuple[str, str, int]]) -> None:
    """Ports are claimed, opened (some are in use by strangers) and closed in any order."""
    book = PortBook(PortRange(10_000, 10_005), never={10_003})
    open_: dict[str, int] = {}
    for action, node, number in actions:
        if action == "claim":
            book.claim(node, number)
        elif action == "close":
            book.release(node)
            open_.pop(node, None)
        elif node not in open_:
            offered = list(book.candidates(node))
            assert len(set(offered)) == len(offered)
            assert not set(offered) & set(open_.values())
            assert set(offered) <= {10_000, 10_001, 10_002, 10_004, 10_005}
            if offered[number:]:  # the first `number` of them are not free on this machine
                book.take(node, offered[number])
                open_[node] = offered[number]


@settings(deadline=None)
@given(st.sets(NODES, min_size=1), st.permutations(range(6)))
def test_a_node_that_comes_back_gets_the_same_port(nodes: set[str], order: list[int]) -> None:
    """In whatever order an agent that was restarted meets its Nodes."""
    book = PortBook(PortRange(10_000, 10_005))
    before = {}
    for node in sorted(nodes):
        before[node] = next(book.candidates(node))
        book.take(node, before[node])
    again = PortBook(PortRange(10_000, 10_005))
    for node, port in before.items():
        again.claim(node, port)
    names = sorted(nodes)
    for node in [names[index] for index in order if index < len(names)]:
        port = next(again.candidates(node))
        again.take(node, port)
        assert port == before[node]


def test_a_port_follows_from_the_name_alone() -> None:
    books = [PortBook(PortRange(20_000, 29_999)) for _ in range(2)]
    names = [f"az1-{number}" for number in range(100)]
    ports = [next(books[0].candidates(name)) for name in names]
    assert ports == [next(books[1].candidates(name)) for name in reversed(names)][::-1]
    assert len(set(ports)) > 90, "different nodes begin at different places"


def test_what_lies_outside_the_range_is_not_kept() -> None:
    book = PortBook(PortRange(20_000, 20_009))
    book.claim("a", 10_250)
    assert next(book.candidates("a")) in range(20_000, 20_010)


def test_without_a_range_the_kernel_chooses_after_the_old_port() -> None:
    book = PortBook(None, never={40_000})
    book.claim("a", 35_000)
    book.claim("b", 40_000)  # all nodes' own
    book.claim("c", 80)
    assert [list(book.candidates(node)) for node in "abc"] == [[35_000, 0], [0], [0]]


async def test_a_node_shows_its_own_pods_only(served: Served) -> None:
    served.nodes.names = ["node-1", "node-2"]
    served.backend.add("web", uid="u-1", node="node-1")
    served.backend.add("db", uid="u-2", node="node-2")
    first, second = await served.api.open_node("node-1"), await served.api.open_node("node-2")
    assert first != second
    assert '"web"' in (await served.get("/pods", first))[1]
    assert '"db"' not in (await served.get("/pods", first))[1]
    assert '"db"' in (await served.get("/pods/", second))[1]
    everything = (await served.get("/pods"))[1]
    assert '"web"' in everything and '"db"' in everything, "the shared port is all nodes'"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/containerLogs/default/web/main", 'pod "web" does not exist'),
        ("/exec/default/web/main?command=true&output=1", "pod does not exist"),
        ("/attach/default/web/main?output=1", "pod does not exist"),
        ("/portForward/default/web", "pod does not exist"),
    ],
)
async def test_a_pod_of_another_node_is_not_there(served: Served, path: str, answer: str) -> None:
    served.nodes.names = ["node-1", "node-2"]
    served.backend.add("web", node="node-1")
    other = await served.api.open_node("node-2")
    assert await served.get(path, other) == (404, answer)
    # Nothing a client sends makes it another node's port.
    headers = {"Host": served.url.removeprefix("https://")}
    url = f"https://127.0.0.1:{other}{path}"
    async with served.http.get(url, headers=headers) as response:
        assert response.status == 404


async def test_sessions_and_logs_of_a_nodes_own_pods(served: Served) -> None:
    served.backend.add("web", node="node-1")

    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        yield b"a line\n"

    served.backend.logs = log
    port = await served.api.open_node("node-1")
    assert await served.get("/containerLogs/default/web/main", port) == (200, "a line\n")
    url = f"https://127.0.0.1:{port}/exec/default/web/main?command=echo&command=hi&output=1"
    async with served.http.ws_connect(url, protocols=("v5.channel.k8s.io",)) as socket_:
        said = b"".join([message.data async for message in socket_])
    assert b"hi\n" in said


async def test_a_nodes_port_is_opened_once(served: Served) -> None:
    port = await served.api.open_node("node-1")
    assert await served.api.open_node("node-1") == port


async def test_a_closed_port_answers_no_more_and_streams_end_by_themselves(
    served: Served,
) -> None:
    served.backend.add("web", node="node-1")
    more = asyncio.Event()

    async def log(_pod: PodView, _options: LogOptions) -> AsyncGenerator[bytes, None]:
        yield b"before\n"
        await more.wait()
        yield b"after\n"

    served.backend.logs = log
    port = await served.api.open_node("node-1")
    assert (await served.get("/healthz", port))[0] == 200  # leaves an idle connection
    url = f"https://127.0.0.1:{port}/containerLogs/default/web/main?follow=true"
    async with served.http.get(url) as response:
        assert await response.content.readline() == b"before\n"
        await served.api.close_node("node-1")
        with pytest.raises(aiohttp.ClientError):
            await served.get("/healthz", port)
        more.set()
        assert await response.text() == "after\n", "what ran before goes on to its end"
    assert (await served.get("/healthz"))[0] == 200


async def test_a_session_hears_its_client_to_the_end_also_when_its_node_goes(
    served: Served,
) -> None:
    served.backend.add("web", node="node-1")
    port = await served.api.open_node("node-1")
    url = f"https://127.0.0.1:{port}/exec/default/web/main?command=cat&input=1&output=1"
    async with served.http.ws_connect(url, protocols=("v5.channel.k8s.io",)) as session:

        async def hears(what: bytes) -> None:
            async with asyncio.timeout(60):
                while what not in await session.receive_bytes():
                    pass

        await session.send_bytes(b"\x00before\n")
        await hears(b"\x01before\n")
        await served.api.close_node("node-1")
        await session.send_bytes(b"\x00after\n")
        await hears(b"\x01after\n")
        await session.send_bytes(b"\xff\x00")  # the end of the input
        await hears(b"Success")


async def test_an_old_connection_never_asks_the_ports_next_node(served: Served) -> None:
    served.backend.add("secret", node="node-2")
    port = await served.api.open_node("node-1")
    assert (await served.get("/pods", port))[0] == 200
    await served.api.close_node("node-1")
    served.api.claim_port("node-2", port)
    assert await served.api.open_node("node-2") == port
    # The client's pool may still hold the old connection: it is closed, and a new one is made.
    assert '"secret"' in (await served.get("/pods", port))[1]
    await served.api.close_node("unknown")


@asynccontextmanager
async def ranged(
    tmp_path: Path, authority: Authority, first: int, last: int
) -> AsyncIterator[KubeletApi]:
    settings = make_settings(authority, node_ports=PortRange(first, last))
    api = KubeletApi(LocalBackend(tmp_path), LocalNodes(), settings, Rules())
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


@contextmanager
def free_ports(count: int) -> Iterator[tuple[int, list[socket.socket]]]:
    """The first of so many free ports in a row, and sockets bound to all of them."""
    for first in range(20_000, 32_000, count):
        held: list[socket.socket] = []
        try:
            for port in range(first, first + count):
                held.append(socket.socket())
                held[-1].bind(("127.0.0.1", port))
        except OSError:
            for one in held:
                one.close()
            continue
        try:
            yield first, held
        finally:
            for one in held:
                one.close()
        return
    raise AssertionError("no free ports")


async def test_ports_that_others_use_are_passed_over_until_none_is_left(
    tmp_path: Path, authority: Authority
) -> None:
    with free_ports(3) as (first, held):
        held[0].listen()  # a stranger's
        held[1].close()
        held[2].close()
        async with ranged(tmp_path, authority, first, first + 2) as api:
            assert {await api.open_node("a"), await api.open_node("b")} == {first + 1, first + 2}
            with pytest.raises(KubeletApiError) as caught:
                await api.open_node("c")
            assert str(caught.value) == (
                f"kubelet.nodePorts: none of {first}-{first + 2} is free for node c "
                "(2 are other nodes'); give a wider range"
            )
            await api.close_node("a")
            assert await api.open_node("c") in (first + 1, first + 2), "a freed port is used again"


async def test_a_port_survives_a_restart(tmp_path: Path, authority: Authority) -> None:
    with free_ports(4) as (first, held):
        for one in held:
            one.close()
        async with ranged(tmp_path, authority, first, first + 3) as api:
            before = {node: await api.open_node(node) for node in ("a", "b", "c", "d")}
        async with ranged(tmp_path, authority, first, first + 3) as api:
            for node, port in before.items():
                api.claim_port(node, port)
            assert {n: await api.open_node(n) for n in ("d", "c", "b", "a")} == before


async def test_too_many_open_files_is_said_as_such(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("vknode.kubeletapi.node_listeners._listen", refuse)
        with pytest.raises(KubeletApiError, match="limit of open files"):
            await served.api.open_node("node-1")


async def test_a_thousand_nodes_cost_no_tasks(served: Served) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tasks = len(asyncio.all_tasks())
    ports = [await served.api.open_node(f"node-{number}") for number in range(1000)]
    assert len(set(ports)) == 1000
    assert len(asyncio.all_tasks()) == tasks
    assert (await served.get("/healthz", ports[500]))[0] == 200


async def test_no_port_before_the_start_and_after_the_stop(
    tmp_path: Path, authority: Authority
) -> None:
    api = KubeletApi(LocalBackend(tmp_path), LocalNodes(), make_settings(authority), Rules())
    with pytest.raises(KubeletApiError, match="not running"):
        await api.open_node("node-1")
    await api.start()
    await api.open_node("node-1")
    await api.stop()
    await api.close_node("node-1")
    with pytest.raises(KubeletApiError, match="not running"):
        await api.open_node("node-1")
