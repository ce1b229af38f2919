"""Follows a container's log, so that it can be read after the Pod is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress

import aiohttp

from tests.scenarios.api import Api, ApiRefused, place


class Follower:
    """The lines of one container's log, with the moment at which each arrived."""

    def __init__(self, api: Api, namespace: str, pod: str, container: str) -> None:
        self._api = api
        self._path = f"{place('Pod', namespace, pod, 'log')}?container={container}&follow=true"
        self._lines: list[tuple[float, str]] = []
        self._begun = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once the log is being read: at its first line, or a moment later."""
        self._task = asyncio.create_task(self._read())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), 1.0)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for _, line in self._lines)

    def growing(self) -> Iterator[tuple[float, str]]:
        """The text after each line, with the moment at which it was so."""
        text = ""
        for at, line in self._lines:
            text += f"{line}\n"
            yield at, text

    async def _read(self) -> None:
        while True:
            try:
                async for line in self._api.lines(self._path):
                    self._lines.append((time.monotonic(), line.decode(errors="replace")))
                    self._begun.set()
                return
            except ApiRefused:  # it has not started yet, or is gone
                await asyncio.sleep(0.1)
            except aiohttp.ClientError:
                return
