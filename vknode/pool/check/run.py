"""Runs the checks against one endpoint."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc.aio

from vknode.pool.check import basics, content, health, life, streams, watching
from vknode.pool.check.observer import Observer
from vknode.pool.check.suite import CHECKS, Bench, Check, CheckFailed, CheckSkipped, Settings
from vknode.pool.client import PoolClient
from vknode.pool.endpoint import TlsFiles
from vknode.pool.errors import PoolFailure, from_rpc_error
from vknode.pool.v1 import cell_pb2

# Importing a module registers its checks, in this order.
_MODULES = (basics, watching, life, health, content, streams)

_ANSWER_SECONDS = 10.0


class Unreachable(Exception):
    """Nothing answers at the endpoint as a pool does."""


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    proves: str
    outcome: str  # "passed", "failed" or "skipped"
    seconds: float
    message: str = ""


def all_checks() -> list[Check]:
    assert _MODULES
    return list(CHECKS)


async def run_checks(
    endpoint: str,
    tls: TlsFiles | None = None,
    settings: Settings | None = None,
    *,
    names: Sequence[str] = (),
    parallel: int = 4,
    on_result: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Every check (or those named), in the order of the list. Raises Unreachable, and
    EndpointError for an unusable endpoint."""
    settings = settings or Settings()
    chosen = [one for one in all_checks() if not names or one.name in names]
    client = PoolClient("pool-check", endpoint, tls)
    try:
        cells = await _cells(client)
        observer = Observer(client)
        following = asyncio.create_task(observer.run())
        width = asyncio.Semaphore(parallel)

        async def one(check: Check) -> Result:
            async with width:
                result = await _run(check, client, observer, cells, settings)
            on_result(result)
            return result

        try:
            results = list(await asyncio.gather(*(one(check) for check in chosen)))
            if following.done():
                await following
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        faults = Result(
            "watch_order",
            "revisions rise and states only move forward, over all checks",
            "failed" if observer.faults else "passed",
            0.0,
            "; ".join(observer.faults[:3]),
        )
        on_result(faults)
        return [*results, faults]
    finally:
        await client.close()


async def _cells(client: PoolClient) -> dict[str, cell_pb2.Cell]:
    watch = client.cells()
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            async for update in watch:
                return {cell.name: cell for cell in update.cells}
        raise Unreachable(f"{client.endpoint}: the watch of cells ended")
    except TimeoutError:
        raise Unreachable(
            f"{client.endpoint}: no pool answered WatchCells within {_ANSWER_SECONDS:g} s"
            + (f" ({client.last_error})" if client.last_error else "")
        ) from None
    finally:
        await watch.aclose()


async def _run(
    check: Check,
    client: PoolClient,
    observer: Observer,
    cells: dict[str, cell_pb2.Cell],
    settings: Settings,
) -> Result:
    bench = Bench(check.name, client, client.channel, observer, cells, settings)
    begin = time.monotonic()
    outcome, message = "passed", ""
    try:
        await check.run(bench)
    except CheckSkipped as skipped:
        outcome, message = "skipped", str(skipped)
    except CheckFailed as failed:
        outcome, message = "failed", str(failed)
    except PoolFailure as failure:
        outcome, message = "failed", f"a call failed: {failure}"
    except grpc.aio.AioRpcError as error:
        outcome, message = "failed", f"a call failed: {from_rpc_error(error)}"
    except Exception as error:  # a check that breaks is a failed check, the others go on
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome = "failed"
        message = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
    left = await bench.clean_up()
    if left:
        outcome = "failed"
        message = "; ".join(filter(None, [message, f"could not be removed: {', '.join(left)}"]))
    return Result(check.name, check.proves, outcome, time.monotonic() - begin, message)
