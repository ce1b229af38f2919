"""/logs/ where it is switched on: a folder of the agent's host, as a kubelet shows /var/log."""

import asyncio
import ctypes
import errno
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs
from yarl import URL

from tests.kubeletapi.conftest import client_context, make_settings
from tests.kubeletapi.local_backend import LocalBackend
from tests.kubeletapi.local_nodes import LocalNodes
from tests.kubeletapi.reviewers import API_SERVER, Rules
from vknode.devcluster.pki import Authority
from vknode.kubeletapi import Access, KubeletApi, file_answers, system_logs
from vknode.kubeletapi.file_answers import http_date
from vknode.kubeletapi.file_threads import FileThreads
from vknode.kubeletapi.log_folder import Folder, LogFolder, OpenedFile

NOT_FOUND = (404, "404 page not found\n")
TERABYTE = 1 << 40
NOON = 1_700_000_000


@dataclass
class Shown:
    api: KubeletApi
    folder: Path
    rules: Rules
    url: str
    http: aiohttp.ClientSession
    tls: ssl.SSLContext

    def ask(
        self, path: str, method: str = "GET", **headers: str
    ) -> "aiohttp.client._RequestContextManager":
        """The path goes out as it is written, and no redirect is followed."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = URL(self.url + path, encoded=True)
        return self.http.request(method, url, headers=named, allow_redirects=False)

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self.ask(path, **headers) as response:
            return response.status, await response.text()


@pytest.fixture
async def shown(tmp_path: Path, authority: Authority) -> AsyncIterator[Shown]:
    folder = tmp_path / "logs"
    (folder / "pods" / "web").mkdir(parents=True)
    (folder / "syslog").write_text("first\nsecond\n")
    os.utime(folder / "syslog", (NOON, NOON))
    (folder / "pods" / "web" / "0.log").write_text("of a Pod\n")
    (tmp_path / "secret").write_text("SECRET")
    rules = Rules()
    settings = make_settings(authority, system_logs=folder, stop_timeout=0.5)
    api = KubeletApi(LocalBackend(tmp_path), LocalNodes(), settings, rules)
    port = await api.start()
    context = client_context(authority, authority.issue("client", API_SERVER))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http:
        yield Shown(api, folder, rules, f"https://127.0.0.1:{port}", http, context)
    await api.stop()


async def test_the_folder_is_listed(shown: Shown) -> None:
    async with shown.ask("/logs/") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        modified = int(shown.folder.stat().st_mtime)
        assert response.headers["Last-Modified"] == http_date(modified)
        page = await response.text()
    assert page == (
        "<!doctype html>\n"
        '<meta name="viewport" content="width=device-width">\n'
        "<pre>\n"
        '<a href="pods/">pods/</a>\n'
        '<a href="syslog">syslog</a>\n'
        "</pre>\n"
    )
    assert '<a href="web/">web/</a>' in (await shown.get("/logs/pods/"))[1]
    later = http_date(modified + 5)
    assert (await shown.get("/logs/", If_Modified_Since=later))[0] == 304


async def test_a_file(shown: Shown) -> None:
    async with shown.ask("/logs/syslog") as response:
        assert (response.status, await response.text()) == (200, "first\nsecond\n")
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert response.headers["Content-Length"] == "13"
        assert response.headers["Last-Modified"] == http_date(NOON)
        assert response.headers["Accept-Ranges"] == "bytes"
    assert await shown.get("/logs/pods/web/0.log") == (200, "of a Pod\n")
    assert await shown.get("/logs//pods/./web//0.log") == (200, "of a Pod\n")
    (shown.folder / "empty").touch()
    assert await shown.get("/logs/empty") == (200, "")


async def test_a_part_of_a_file(shown: Shown) -> None:
    async with shown.ask("/logs/syslog", Range="bytes=-7") as response:
        assert (response.status, await response.text()) == (206, "second\n")
        assert response.headers["Content-Range"] == "bytes 6-12/13"
    async with shown.ask("/logs/syslog", Range="bytes=13-") as response:
        assert (response.status, await response.text()) == (
            416,
            "invalid range: failed to overlap\n",
        )
        assert response.headers["Content-Range"] == "bytes */13"
        assert "Last-Modified" not in response.headers
    assert await shown.get("/logs/syslog", If_Modified_Since=http_date(NOON)) == (304, "")
    assert (await shown.get("/logs/syslog", If_Unmodified_Since=http_date(NOON - 9)))[0] == 412


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/logs/pods", "pods/"),
        ("/logs/pods/web", "web/"),
        ("/logs/pods?x=1&y=%202", "pods/?x=1&y=%202"),
        ("/logs/syslog/", "../syslog"),
    ],
)
async def test_folders_have_a_slash_and_files_have_none(
    shown: Shown, path: str, place: str
) -> None:
    async with shown.ask(path) as response:
        assert (response.status, response.headers["Location"]) == (301, place)


@pytest.mark.parametrize(
    "path",
    [
        *("/logs/missing", "/logs/syslog/below", "/logs/missing/", "/logs/" + "x" * 300),
        *("/logs/..", "/logs/../secret", "/logs/pods/../../secret", "/logs/pods/../syslog"),
        *("/logs/%2e%2e/secret", "/logs/%2E%2E%2Fsecret", "/logs/..%2fsecret", "/logs/%00"),
        *("/logs/%252e%252e/secret", "/logs/..;/secret", "/logs/..\\secret", "/logs/.../secret"),
        *("/logs/out", "/logs/home/secret", "/logs/pipe", "/logs/loop", "/logs/../pods"),
    ],
)
async def test_there_is_nothing_else(shown: Shown, path: str) -> None:
    (shown.folder / "out").symlink_to("../secret")
    (shown.folder / "home").symlink_to(shown.folder.parent)
    (shown.folder / "loop").symlink_to("loop")
    os.mkfifo(shown.folder / "pipe")
    assert await shown.get(path) == NOT_FOUND


async def test_it_begins_with_a_slash(shown: Shown) -> None:
    for query in ("", "?query=a%20b&x=<y>"):
        async with shown.ask("/logs" + query) as response:
            assert (response.status, response.headers["Location"]) == (307, "/logs/" + query)
            assert "<y>" not in await response.text()


async def test_a_dot_is_the_folder_itself(shown: Shown) -> None:
    for path in ("/logs/", "/logs/pods/"):
        assert await shown.get(path + ".") == await shown.get(path)
    async with shown.ask("/logs/syslog/.") as response:
        assert (response.status, response.headers["Location"]) == (301, "../syslog")


async def test_files_of_no_time_and_of_a_strange_one(shown: Shown) -> None:
    for name, seconds in (("epoch", 0), ("before", -1000), ("late", 1 << 36)):
        (shown.folder / name).write_text(name)
        os.utime(shown.folder / name, (seconds, seconds))
        assert await shown.get("/logs/" + name) == (200, name)
        today = http_date(NOON)
        assert await shown.get("/logs/" + name, If_Modified_Since=today) == (200, name)


async def test_a_folder_that_becomes_a_file_shows_nothing(shown: Shown) -> None:
    shown.folder.rename(shown.folder.with_name("aside"))
    assert await shown.get("/logs/") == NOT_FOUND
    shown.folder.mkdir()
    assert (await shown.get("/logs/"))[0] == 200, "as soon as it is there"
    shown.folder.rmdir()
    shown.folder.write_text("SECRET")
    for path in ("/logs/", "/logs/.", "/logs/x"):
        assert await shown.get(path) == NOT_FOUND


def test_a_folder_that_is_missing_is_told_at_start(tmp_path: Path, authority: Authority) -> None:
    for folder, told in ((tmp_path / "absent", ["system_logs_missing"]), (tmp_path, [])):
        settings = make_settings(authority, system_logs=folder)
        with capture_logs() as log:
            KubeletApi(LocalBackend(tmp_path), LocalNodes(), settings, Rules())
        assert [line["event"] for line in log if line["log_level"] == "warning"] == told


async def test_what_was_begun_is_decoded_once(shown: Shown) -> None:
    for name in ("%41", "a b", "line\nbreak", "größe", "why?#;", "a:b"):
        (shown.folder / name).write_text(name)
    for path in ("%2541", "a%20b", "line%0abreak", "gr%C3%B6%C3%9Fe", "why%3F%23;", "a:b"):
        status, text = await shown.get("/logs/" + path)
        assert (status, text in os.listdir(shown.folder)) == (200, True)  # noqa: PTH208 - names are what is compared
    (shown.folder / "b\udcff").write_text("no UTF-8")
    assert await shown.get("/logs/b%ff") == (200, "no UTF-8")


async def test_it_is_read_only(shown: Shown) -> None:
    for method in ("POST", "PUT", "DELETE", "HEAD"):
        async with shown.ask("/logs/syslog", method) as response:
            assert (response.status, response.headers["Allow"]) == (405, "GET")
    assert (shown.folder / "syslog").read_text() == "first\nsecond\n"


async def test_a_query_for_a_service_is_not_looked_at(shown: Shown) -> None:
    """As by a kubelet without enableSystemLogQuery."""
    status, page = await shown.get("/logs/?query=kubelet&tailLines=1")
    assert (status, page) == await shown.get("/logs/")
    assert await shown.get("/logs/syslog?query=kubelet") == (200, "first\nsecond\n")


async def test_the_right_on_logs_suffices_and_is_needed(shown: Shown) -> None:
    shown.rules.allows = lambda access: access.subresource == "log" and access.verb == "get"
    assert (await shown.get("/logs/syslog"))[0] == 200
    assert (await shown.get("/pods"))[0] == 403
    asked = [(access.verb, access.subresource) for access in shown.rules.asked]
    assert asked == [("get", "log"), ("get", "pods"), ("get", "proxy")]


async def test_the_same_at_each_nodes_port_with_that_nodes_rights(shown: Shown) -> None:
    def allows(access: Access) -> bool:
        return access.node == "node-1"

    shown.rules.allows = allows
    ports = [await shown.api.open_node(node) for node in ("node-1", "node-2")]
    told = []
    for port in ports:
        shown.url = f"https://127.0.0.1:{port}"
        told.append(await shown.get("/logs/syslog"))
    assert told[0] == (200, "first\nsecond\n")
    assert told[1][0] == 403
    assert "verb=get, resource=nodes, subresource(s)=[log]" in told[1][1]


class Unprivileged(LogFolder):
    """Looks with the rights of nobody, in whose thread it is (to anybody but root: its own)."""

    def find(self, names: Sequence[bytes], *, listed: bool) -> OpenedFile | Folder:
        ctypes.CDLL(None).setfsuid(65534)
        return super().find(names, listed=listed)


async def test_what_the_agent_may_not_read_is_forbidden(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = shown.api._system_logs
    assert logs is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file in ("open", "closed", "cellar/file", "list/file"):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(file)
        (folder / "closed").chmod(0)
        (folder / "cellar").chmod(0)
        (folder / "list").chmod(0o111)
        monkeypatch.setattr(logs, "_folder", Unprivileged(folder))
        assert await shown.get("/logs/open") == (200, "open")
        assert await shown.get("/logs/list/file") == (200, "list/file")
        for path in ("closed", "cellar/file", "cellar/", "list/"):
            assert await shown.get("/logs/" + path) == (403, "403 Forbidden\n")
        for closed in ("cellar", "list"):
            (folder / closed).chmod(0o755)


async def huge(shown: Shown) -> Path:
    """A file without content that no memory and no patience could take whole."""
    path = shown.folder / "huge"
    path.touch()
    os.truncate(path, TERABYTE)
    return path


async def test_a_big_file_is_sent_piece_by_piece(shown: Shown) -> None:
    await huge(shown)
    async with shown.ask("/logs/huge") as response:
        assert response.headers["Content-Length"] == str(TERABYTE)
        assert await response.content.readexactly(1 << 20) == bytes(1 << 20)
        response.close()
    assert (await shown.get("/logs/huge", Range=f"bytes={TERABYTE - 2}-")) == (206, "\0\0")


async def test_a_file_that_is_made_shorter_meanwhile_is_cut(shown: Shown) -> None:
    """And not ended as if that were all of it."""
    path = await huge(shown)
    async with shown.ask("/logs/huge") as response:
        await response.content.readexactly(1 << 20)
        os.truncate(path, 0)
        with pytest.raises(aiohttp.ClientPayloadError):
            while await response.content.readany():
                pass


async def test_what_is_written_meanwhile_is_not_part_of_the_answer(shown: Shown) -> None:
    path = shown.folder / "growing"
    path.write_bytes(b"a" * (8 << 20))
    async with shown.ask("/logs/growing") as response:
        with path.open("ab") as file:
            file.write(b"b" * 100)
        assert await response.read() == b"a" * (8 << 20)


async def test_many_readers_leave_places_for_others(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    await huge(shown)
    readers = [await shown.ask("/logs/huge") for _ in range(system_logs.MOST_ANSWERS)]
    status, text = await shown.get("/logs/syslog")
    assert (status, text) == (429, "maximum number of in-flight requests exceeded")
    assert (await shown.get("/pods"))[0] == 200
    assert shown.api.running_streams == 0, "sessions have their own"
    readers[0].close()
    async with asyncio.timeout(60):
        while (await shown.get("/logs/syslog"))[0] != 200:
            await asyncio.sleep(0.02)
    for reader in readers:
        reader.close()


async def test_the_end_of_the_server_ends_what_is_sent(shown: Shown) -> None:
    await huge(shown)
    async with shown.ask("/logs/huge") as response:
        await response.content.readexactly(1 << 20)
        async with asyncio.timeout(60):
            await shown.api.stop()
        with pytest.raises(aiohttp.ClientPayloadError):
            while await response.content.readany():
                pass


def has_places(shown: Shown) -> bool:
    logs = shown.api._system_logs
    assert logs is not None
    return logs._streams.running == 0


def is_connected(shown: Shown) -> bool:
    assert shown.api._runner is not None and shown.api._runner.server is not None
    return bool(shown.api._runner.server.connections)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.02)


async def reader_of(shown: Shown, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that takes nothing but what it is told to read."""
    port = URL(shown.url).port
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=shown.tls, server_hostname="127.0.0.1", limit=1024
    )
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    return reader, writer


@pytest.mark.parametrize("path", ["/logs/huge", "/logs/many/"])
async def test_who_takes_nothing_loses_the_place(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    await huge(shown)
    # A page of more than the sockets of both sides hold.
    monkeypatch.setattr(file_answers, "listing", lambda _: " " * (64 << 20))
    (shown.folder / "many").mkdir()
    monkeypatch.setattr(shown.api._system_logs, "_write_patience", 0.3)
    with capture_logs() as log:
        readers = [await reader_of(shown, path) for _ in range(system_logs.MOST_ANSWERS)]
        await until(lambda: has_places(shown))
        assert (await shown.get("/logs/syslog"))[0] == 200
        await shown.http.close()
        await until(lambda: not is_connected(shown))
    reasons = {line["reason"] for line in log if line["event"] == "system_log_cut"}
    assert reasons == {"the client has taken nothing for 0.3 s"}
    for _, writer in readers:
        writer.transport.abort()


async def test_who_takes_little_keeps_the_place(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    await huge(shown)
    monkeypatch.setattr(shown.api._system_logs, "_write_patience", 3.0)

    def take() -> None:
        """No loop, which would take much at once."""
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
            raw.connect(("127.0.0.1", URL(shown.url).port))
            with shown.tls.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
                tls.sendall(b"GET /logs/huge HTTP/1.1\r\nHost: x\r\n\r\n")
                for _ in range(80):  # more than twice as long
                    assert tls.recv(8 << 10)
                    time.sleep(0.1)
                assert not has_places(shown)

    await asyncio.to_thread(take)
    await until(lambda: has_places(shown))


async def test_a_client_that_leaves_is_no_warning(shown: Shown) -> None:
    await huge(shown)
    with capture_logs() as log:
        for _ in range(5):
            reader, writer = await reader_of(shown, "/logs/huge")
            await reader.readexactly(1 << 20)
            await asyncio.sleep(0.2)  # until the server waits for it
            writer.transport.abort()
        await until(lambda: has_places(shown))
        await shown.http.close()
        await until(lambda: not is_connected(shown))
    assert [line for line in log if line["log_level"] != "debug"] == []


async def test_a_client_that_has_left_before_the_next_piece_is_no_warning(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the writing is told before the handler is."""

    async def write(*_: object) -> None:
        raise ConnectionError("Connection lost")

    monkeypatch.setattr(web.StreamResponse, "write", write)
    with capture_logs() as log, pytest.raises(aiohttp.ClientError):
        await shown.get("/logs/syslog")
    assert [line for line in log if line["log_level"] != "debug"] == []


class AbortedDisk(LogFolder):
    """Like FUSE without its program, whose error is that of a connection."""

    def find(self, names: Sequence[bytes], *, listed: bool) -> OpenedFile | Folder:
        raise ConnectionAbortedError(errno.ECONNABORTED, "Software caused connection abort")


async def test_a_disk_that_aborts_is_no_client_that_leaves(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown.api._system_logs, "_folder", AbortedDisk(shown.folder))
    with capture_logs() as log:
        assert (await shown.get("/logs/syslog"))[0] == 500
    assert [line["event"] for line in log] == ["system_logs_unreadable"]


async def test_the_page_of_a_folder_is_made_beside_the_loop(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers: list[int] = []
    listing = file_answers.listing

    def made(entries: Iterable[tuple[bytes, bool]]) -> str:
        makers.append(threading.get_ident())
        return listing(entries)

    monkeypatch.setattr(file_answers, "listing", made)
    assert (await shown.get("/logs/pods/"))[0] == 200
    assert len(makers) == 1 and threading.get_ident() not in makers


class HangingDisk(LogFolder):
    """Gives no answer until it is told to, like a network file system whose server is away."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.back = threading.Event()
        self._asked: list[int] = []

    def find(self, names: Sequence[bytes], *, listed: bool) -> OpenedFile | Folder:
        self._asked.append(threading.get_ident())
        self.back.wait()
        return super().find(names, listed=listed)

    @property
    def asked(self) -> int:
        return len(self._asked)


async def test_a_disk_that_hangs_holds_up_itself_only(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = shown.api._system_logs
    assert logs is not None
    disk = HangingDisk(shown.folder)
    monkeypatch.setattr(logs, "_folder", disk)
    monkeypatch.setattr(logs, "_patience", 0.2)
    try:
        told = await asyncio.gather(*(shown.get("/logs/syslog") for _ in range(20)))
        assert set(told) == {(503, "the folder of system logs does not answer\n")}
        await until(lambda: disk.asked >= system_logs.MOST_THREADS)
        assert disk.asked == system_logs.MOST_THREADS, "the others wait for their turn"
        assert await asyncio.to_thread(lambda: "served") == "served"
        assert (await shown.get("/pods"))[0] == 200
    finally:
        disk.back.set()
    async with asyncio.timeout(60):
        while (await shown.get("/logs/syslog"))[0] != 200:
            await asyncio.sleep(0.02)


async def test_a_thread_that_is_given_up_keeps_its_place() -> None:
    threads, back = FileThreads(1), threading.Event()
    hanging = asyncio.create_task(threads.run(back.wait))
    next_one = asyncio.create_task(threads.run(lambda: "done"))
    await asyncio.sleep(0)
    hanging.cancel()
    await asyncio.wait([hanging, next_one], timeout=0.1)
    assert (hanging.cancelled(), next_one.done()) == (True, False)
    back.set()
    assert await next_one == "done"


async def test_what_fails_in_a_thread_fails_for_who_asked() -> None:
    threads = FileThreads(1)
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert await threads.run(lambda: "and the place is free") == "and the place is free"
