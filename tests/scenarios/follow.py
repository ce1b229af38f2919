"""Follows a container's log, so that it can be read after the Pod is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

import aiohttp

from tests.scenarios.api import Api, ApiRefused, place

#: Seconds for the first line: a signal that comes before a shell has set its trap is lost.
_FIRST_LINE = 30.0
#: The time of day at 0 of the monotonic clock.
EPOCH = time.time() - time.monotonic()


def moment(stamp: str) -> float:
    """A time of Kubernetes (RFC 3339), by the monotonic clock. Raises ValueError."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() - EPOCH


class Follower:
    """The lines of one container's log, with the moment at which the runtime got each."""

    def __init__(self, api: Api, namespace: str, pod: str, container: str) -> None:
        self._api = api
        self._path = (
            f"{place('Pod', namespace, pod, 'log')}"
            f"?container={container}&follow=true&timestamps=true"
        )
        self._lines: list[tuple[float, str]] = []
        self._begun = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns once the log is being read: at its first line, or after half a minute."""
        self._task = asyncio.create_task(self._read())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), _FIRST_LINE)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for _, line in self._lines)

    def growing(self) -> Iterator[tuple[float, str]]:
        """The text after each line, with that line's moment."""
        text = ""
        for at, line in self._lines:
            text += f"{line}\n"
            yield at, text

    async def _read(self) -> None:
        while True:
            try:
                async for line in self._api.lines(self._path):
                    stamp, _, text = line.decode(errors="replace").partition(" ")
                    self._lines.append((moment(stamp), text))
                    self._begun.set()
                return
            except ApiRefused:  # it has not started yet, or is gone
                await asyncio.sleep(0.1)
            except aiohttp.ClientError:
                return
