"""GET /logs/…: the files of one folder of the agent's host, where it was asked for.

A kubelet shows its machine's /var/log (enableSystemLogHandler: ServeLogs in pkg/kubelet, Go's
http.FileServer). A virtual node has no machine: this is the folder that the agent's configuration
names (`kubelet.systemLogs`), the same at every node's port. `?query=` of the feature NodeLogQuery
is for journals and, as by a kubelet without enableSystemLogQuery, not looked at.
"""

from __future__ import annotations

import asyncio
import errno
import html
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote_to_bytes

import structlog
from aiohttp import web

from vknode.kubeletapi import file_answers
from vknode.kubeletapi.file_threads import FileThreads
from vknode.kubeletapi.log_folder import Folder, LogFolder, NotShown, OpenedFile, TooManyEntries
from vknode.kubeletapi.patient_writes import ClientGone, NothingTaken, PatientWriter
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.streams import STOPPING, ServerStopping, StreamLimitError, Streams

_log = structlog.get_logger()

#: Answers under way at one time; more get 429. They have no share in the places of sessions.
MOST_ANSWERS = 32
#: Threads that read. Those that a disk keeps waiting stay taken.
MOST_THREADS = 8
#: Bytes that are read, and held for one client, at once.
PIECE = 256 * 1024
#: Seconds for one look at the disk, its waiting for a thread included.
PATIENCE = 30.0
#: Seconds in which a client must take something of what it has asked for: it keeps a place.
WRITE_PATIENCE = 60.0
_PREFIX = b"/logs/"
_NO_SUCH_NAME = (errno.ELOOP, errno.ENAMETOOLONG)

T = TypeVar("T")


class _Look(Protocol):
    async def __call__(self, work: Callable[[], T]) -> T: ...


class _Piece(Protocol):
    """So many bytes from there on, or fewer; none: there are no more."""

    async def __call__(self, at: int, count: int) -> bytes: ...


class SystemLogs:
    """`folder` is absolute, and may be made later; `patience` and `write_patience` are as their
    defaults. `stop` ends what is under way."""

    def __init__(
        self, folder: Path, *, patience: float = PATIENCE, write_patience: float = WRITE_PATIENCE
    ) -> None:
        self._folder = LogFolder(folder)
        self._streams = Streams(MOST_ANSWERS)
        self._threads = FileThreads(MOST_THREADS)
        self._patience = patience
        self._write_patience = write_patience
        if not os.access(folder, os.R_OK | os.X_OK):
            _log.warning(
                "system_logs_missing",
                folder=str(folder),
                hint="kubelet.systemLogs: there is no such folder yet; until it is there, and can "
                "be read, /logs/ shows nothing",
            )

    def add_routes(self, router: web.UrlDispatcher) -> None:
        # A dot of a pattern is no newline, which names of files may have.
        router.add_get("/logs", _beginning, allow_head=False)
        router.add_get("/logs/{rest:(?s:.*)}", self._handle, allow_head=False)

    def stop(self) -> None:
        self._streams.stop()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        sending = _Sending(request, self._look, self._write_patience)
        try:
            with self._streams.slot():
                return await self._streams.run(self._answer(request, sending))
        except StreamLimitError as error:
            return error.response()
        except ServerStopping:
            return sending.cut(STOPPING) or plain_error(503, STOPPING)

    async def _answer(self, request: web.Request, sending: _Sending) -> web.StreamResponse:
        path = _decoded(request)
        if not path.startswith(_PREFIX):
            return _not_found()
        # As Go's path.Clean has it; names that lead up are refused instead.
        parts = path[len(_PREFIX) :].split(b"/")
        names = [name for name in parts if name not in (b"", b".")]
        slash = parts[-1] in (b"", b".")  # what relative links count from
        try:
            found, page = await self._look(lambda: _find(self._folder, names, listed=slash))
            if isinstance(found, Folder):
                if page is None:
                    return _redirect(request, file_answers.reference(names[-1]) + "/")
                return await sending.send_page(page, found.modified)
            if not names:
                return _not_found()  # the folder was replaced by a file
            if slash:
                return _redirect(request, "../" + file_answers.reference(names[-1]))
            return await sending.send_file(found)
        except (NotShown, FileNotFoundError, NotADirectoryError):
            return _not_found()
        except PermissionError:
            return plain_error(403, "403 Forbidden\n")
        except TooManyEntries:
            return plain_error(500, "Error reading directory: it has too many entries\n")
        except TimeoutError:
            _log.warning("system_logs_silent", seconds=self._patience)
            return plain_error(503, "the folder of system logs does not answer\n")
        except OSError as error:
            if error.errno in _NO_SUCH_NAME:
                return _not_found()
            _log.warning("system_logs_unreadable", reason=error.strerror)
            return plain_error(500, "500 Internal Server Error\n")

    async def _look(self, work: Callable[[], T]) -> T:
        """Raises TimeoutError beside what `work` does."""
        async with asyncio.timeout(self._patience):
            return await self._threads.run(work)


def _find(
    folder: LogFolder, names: list[bytes], *, listed: bool
) -> tuple[OpenedFile | Folder, bytes | None]:
    """In a thread: also the page of a large folder takes its time."""
    found = folder.find(names, listed=listed)
    if isinstance(found, Folder) and found.entries is not None:
        return found, file_answers.listing(found.entries).encode()
    return found, None


class _Sending:
    """An answer on its way to a client. Its methods raise OSError and TimeoutError only before
    anything was sent."""

    def __init__(self, request: web.Request, look: _Look, write_patience: float) -> None:
        self._request = request
        self._look = look
        self._write_patience = write_patience
        self._response: web.StreamResponse | None = None

    async def send_page(self, page: bytes, modified: int) -> web.StreamResponse:
        if file_answers.is_unchanged(self._request.headers, modified):
            return web.Response(status=304)
        headers = file_answers.dated(modified)
        headers["Content-Type"] = "text/html; charset=utf-8"

        async def piece(at: int, count: int) -> bytes:
            return page[at : at + count]

        return await self._send(200, headers, piece, 0, len(page))

    async def send_file(self, file: OpenedFile) -> web.StreamResponse:
        headers = file_answers.dated(file.modified)
        found = file_answers.answer(self._request.headers, file.modified, file.size)
        if (part := file_answers.content_range(found, file.size)) is not None:
            headers["Content-Range"] = part
        if found.error:
            headers.pop("Last-Modified", None)
            return plain_error(found.status, found.error + "\n", headers)
        if found.status in (304, 412):
            return web.Response(status=found.status, headers=headers)
        beginning = await self._look(lambda: file.read(0, file_answers.SNIFFED))
        headers["Content-Type"] = file_answers.content_type(beginning)
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Accept-Ranges"] = "bytes"

        async def piece(at: int, count: int) -> bytes:
            return await self._look(partial(file.read, at, count))

        # Sent as long as it is now; what is written to it meanwhile is not part of the answer.
        return await self._send(found.status, headers, piece, found.start, found.length)

    async def _send(
        self, status: int, headers: Mapping[str, str], piece: _Piece, at: int, length: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=status, headers={**headers, "Content-Length": str(length)}
        )
        client = PatientWriter(self._request, response, self._write_patience)
        try:
            await client.prepare()
            self._response = response
            left = length
            while left:
                data = await piece(at, min(left, PIECE))
                if not data:
                    self.cut("the file was made shorter")
                    return response
                await client.write(data)
                at += len(data)
                left -= len(data)
            await client.write_eof()
        except ClientGone:
            self._abort()
        except NothingTaken:
            self.cut(f"the client has taken nothing for {self._write_patience:g} s")
        except (OSError, TimeoutError) as error:
            self.cut(type(error).__name__)
        return response

    def cut(self, reason: str) -> web.StreamResponse | None:
        """Breaks the connection: a clean end would say that this was the whole file. None if
        nothing was sent yet."""
        if self._response is not None:
            _log.warning("system_log_cut", reason=reason)
            self._abort()
        return self._response

    def _abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()


async def _beginning(request: web.Request) -> web.Response:
    """Without its slash: as Go's ServeMux sends clients on."""
    place = _with_query(request, "/logs/")
    return web.Response(
        status=307,
        text=f'<a href="{html.escape(place)}">Temporary Redirect</a>.\n\n',
        content_type="text/html",
        charset="utf-8",
        headers={"Location": place},
    )


def _redirect(request: web.Request, place: str) -> web.Response:
    """Relative: an API server has this path below its own."""
    return web.Response(status=301, headers={"Location": _with_query(request, place)})


def _with_query(request: web.Request, place: str) -> str:
    query = request.rel_url.raw_query_string
    return f"{place}?{query}" if query else place


def _not_found() -> web.Response:
    return plain_error(404, "404 page not found\n")


def _decoded(request: web.Request) -> bytes:
    """The path byte for byte: names of files need not be UTF-8."""
    return unquote_to_bytes(request.rel_url.raw_path.encode(errors="surrogateescape"))
