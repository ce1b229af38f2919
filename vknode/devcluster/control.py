"""How `vknode dev fault|status|stop` talk to a running `vknode dev`: lines of JSON over
a Unix socket in the state directory (mode 0700, so only its owner gets there).

One request a connection, `{"op": …}`; answers are `{"say": TEXT}` as things happen
and at last `{"done": RESULT}` or `{"error": TEXT}`. A fault belongs to the cluster,
not to the connection: who stops watching does not stop the healing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from vknode.devcluster.cluster import DevCluster

log = structlog.get_logger()

Say = Callable[[str], None]
LONGEST_FAULT = 24 * 3600.0


class ControlError(Exception):
    """The running cluster refused a request; the text says why."""


class Faults:
    """Breaks parts of a cluster for a time and heals them again. One fault per part."""

    def __init__(self, cluster: DevCluster) -> None:
        self._cluster = cluster
        self._active: dict[str, asyncio.Task[None]] = {}

    @property
    def active(self) -> list[str]:
        """The parts that are broken now, like `zone az2`."""
        return sorted(self._active)

    def begin(
        self, what: str, zone: str | None, seconds: float, how: str, say: Say
    ) -> asyncio.Task[None]:
        """Start a fault; the task ends when the part is healed.

        Raises ControlError for a part that is not there or is broken already."""
        if not 0 < seconds <= LONGEST_FAULT:
            raise ControlError(f"a fault lasts more than 0 s and at most a day, not {seconds:g} s")
        part, break_it, heal = self._steps(what, zone, how)
        if part in self._active:
            raise ControlError(f"{part} is broken already")
        task = asyncio.create_task(
            self._run(part, break_it, heal, seconds, say), name=f"fault {part}"
        )
        self._active[part] = task
        task.add_done_callback(lambda _: self._active.pop(part, None))
        return task

    async def stop(self) -> None:
        """Give up on all faults; the cluster is ending."""
        tasks = list(self._active.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _steps(
        self, what: str, zone: str | None, how: str
    ) -> tuple[str, Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]:
        cluster = self._cluster
        if what in ("zone", "pool"):
            if zone not in cluster.zones:
                raise ControlError(f"no zone {zone!r}: there are {', '.join(cluster.zones)}")
            name = zone
            if what == "pool":
                if f"zone {name}" in self._active:
                    raise ControlError(f"zone {name} is dark, its pool with it")
                return (
                    f"pool {name}",
                    lambda: cluster.kill_pool(name),
                    lambda: cluster.start_pool(name),
                )
            if f"pool {name}" in self._active:
                raise ControlError(f"the pool of {name} is broken: wait until it is back")
            return (
                f"zone {name}",
                lambda: cluster.kill_zone(name),
                lambda: cluster.restore_zone(name),
            )
        if what == "agent":
            return "agent", cluster.kill_agent, cluster.start_agent
        if what == "apiserver":
            if how == "kill":
                return "apiserver", cluster.kill_apiserver, cluster.start_apiserver
            return "apiserver", _later(cluster.pause_apiserver), _later(cluster.resume_apiserver)
        raise ControlError(f"no fault {what!r}: there are zone, pool, agent, apiserver")

    async def _run(
        self,
        part: str,
        break_it: Callable[[], Awaitable[None]],
        heal: Callable[[], Awaitable[None]],
        seconds: float,
        say: Say,
    ) -> None:
        await break_it()
        log.info("fault_begun", part=part, seconds=seconds)
        say(f"{part} is gone, for {seconds:g} s")
        await asyncio.sleep(seconds)
        await heal()
        log.info("fault_healed", part=part)
        say(f"{part} is back")


def _later(act: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        act()

    return run


class ControlServer:
    """Serves the socket; `stop_asked` is set by a `stop` request."""

    def __init__(self, cluster: DevCluster) -> None:
        self._cluster = cluster
        self.faults = Faults(cluster)
        self.stop_asked = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Listen."""
        path = self._cluster.state.control_socket
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def stop(self) -> None:
        """Stop listening, and end all faults and connections."""
        if self._server is not None:
            self._server.close()
        await self.faults.stop()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)

        def send(message: dict[str, Any]) -> None:
            if not writer.is_closing():
                writer.write(json.dumps(message).encode() + b"\n")

        try:
            request = json.loads(await reader.readline())
            result = await self._answer(request, lambda text: send({"say": text}))
            send({"done": result})
            await writer.drain()
        except (ControlError, ValueError, KeyError, TypeError) as problem:
            send({"error": str(problem) or type(problem).__name__})
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the asker went away
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, request: dict[str, Any], say: Say) -> Any:
        operation = request["op"]
        if operation == "status":
            return status(self._cluster, self.faults)
        if operation == "stop":
            self.stop_asked.set()
            return None
        if operation == "fault":
            task = self.faults.begin(
                str(request["what"]),
                request.get("zone"),
                float(request["seconds"]),
                str(request.get("how", "hang")),
                say,
            )
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise ControlError("the cluster is ending") from None
                raise
            except Exception as problem:  # whatever healing met, the asker must hear of it
                raise ControlError(f"{type(problem).__name__}: {problem}") from problem
            return None
        raise ControlError(f"unknown operation {operation!r}")


def status(cluster: DevCluster, faults: Faults) -> dict[str, Any]:
    """What `vknode dev status` shows; all of it plain JSON."""
    children = [*cluster.control_plane.children.values()]
    for zone in cluster.zones.values():
        children += [one for one in (zone.containerd, zone.pool) if one is not None]
    if cluster.agent is not None:
        children.append(cluster.agent)
    return {
        "runtime": cluster.runtime,
        "kubeconfig": str(cluster.kubeconfig),
        "server": cluster.control_plane.url,
        "zones": {
            zone.name: {
                "cells": zone.cells,
                "dark": zone.dark,
                "subnet": str(zone.network.subnet) if zone.network else None,
            }
            for zone in cluster.zones.values()
        },
        "children": {one.name: one.state.value for one in children},
        "faults": faults.active,
        "crashes": [str(one) for one in cluster.crashes],
    }


async def ask(socket: Path, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Send one request and yield the answers as they come.

    Raises ConnectionError or FileNotFoundError if nobody listens."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(json.dumps(request).encode() + b"\n")
        await writer.drain()
        while line := await reader.readline():
            yield json.loads(line)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
