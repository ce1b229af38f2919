"""Checks of WatchSandboxes: snapshot, replay, epochs."""

from __future__ import annotations

import asyncio
from typing import Any

from vknode.pool.check.suite import Bench, CheckFailed, check, expect, expect_equal
from vknode.pool.v1 import pool_pb2, spec_pb2


class _Watch:
    def __init__(self, bench: Bench, epoch: str = "", revision: int = 0) -> None:
        self._call = bench.stub.WatchSandboxes(
            pool_pb2.WatchSandboxesRequest(epoch=epoch, revision=revision)
        )

    async def next(self) -> pool_pb2.WatchSandboxesResponse:
        try:
            response: Any = await asyncio.wait_for(self._call.read(), 60)
        except TimeoutError:
            raise CheckFailed("no response to WatchSandboxes within 60 s") from None
        expect(isinstance(response, pool_pb2.WatchSandboxesResponse), "the watch ended by itself")
        assert isinstance(response, pool_pb2.WatchSandboxesResponse)
        return response

    async def snapshot(self) -> tuple[set[str], pool_pb2.WatchSandboxesResponse]:
        """The UIDs of a whole snapshot, and its last response."""
        uids: set[str] = set()
        while True:
            response = await self.next()
            expect(response.snapshot, "expected a snapshot, got changes")
            expect(response.epoch, "a response has no epoch")
            uids |= {sandbox.uid for sandbox in response.sandboxes}
            if response.snapshot_end:
                return uids, response

    def close(self) -> None:
        self._call.cancel()


@check("a watch from nowhere begins with a whole snapshot")
async def watch_snapshot(bench: Bench) -> None:
    spec = bench.spec()
    await bench.running(spec)
    watch = _Watch(bench)
    try:
        uids, _ = await watch.snapshot()
        expect(spec.uid in uids, "the snapshot lacks a running sandbox")
    finally:
        watch.close()


@check("a watch that goes on from a revision misses nothing")
async def watch_replay(bench: Bench) -> None:
    watch = _Watch(bench)
    _, last = await watch.snapshot()
    watch.close()
    spec = bench.spec()
    await bench.running(spec)
    watch = _Watch(bench, last.epoch, last.revision)
    try:
        response = await watch.next()
        uids: set[str] = set()
        if response.snapshot:  # allowed: the pool need not remember
            while not response.snapshot_end:
                uids |= {sandbox.uid for sandbox in response.sandboxes}
                response = await watch.next()
            uids |= {sandbox.uid for sandbox in response.sandboxes}
        else:
            revision = last.revision
            while True:
                expect_equal(response.epoch, last.epoch, "epoch of a replay")
                expect(response.revision >= revision, "the revision fell")
                revision = response.revision
                uids |= {sandbox.uid for sandbox in response.sandboxes}
                if spec.uid in uids:
                    break
                response = await watch.next()
        expect(spec.uid in uids, "a sandbox made in between is missing")
    finally:
        watch.close()


@check("a sandbox that went in between is told as gone, or is absent from a snapshot")
async def watch_replay_gone(bench: Bench) -> None:
    spec = bench.spec(grace=1)
    await bench.running(spec)
    watch = _Watch(bench)
    uids, last = await watch.snapshot()
    watch.close()
    expect(spec.uid in uids, "the snapshot lacks a running sandbox")
    await bench.client.delete(spec.uid, 0)
    await bench.gone(spec, bench.settings.timeout)
    watch = _Watch(bench, last.epoch, last.revision)
    try:
        response = await watch.next()
        if response.snapshot:
            seen = {sandbox.uid for sandbox in response.sandboxes}
            while not response.snapshot_end:
                response = await watch.next()
                seen |= {sandbox.uid for sandbox in response.sandboxes}
            expect(spec.uid not in seen, "the snapshot has a sandbox that is gone")
        else:
            while spec.uid not in {sandbox.uid for sandbox in response.gone}:
                response = await watch.next()
    finally:
        watch.close()


@check("an unknown epoch, or a revision from the future, gives a snapshot")
async def watch_unknown_epoch(bench: Bench) -> None:
    spec = bench.spec(policy=spec_pb2.RESTART_POLICY_NEVER)
    await bench.running(spec)
    current = bench.observer
    for epoch, revision in (("no-such-epoch", 1), (current.epoch, current.revision + 10**9)):
        watch = _Watch(bench, epoch, revision)
        try:
            uids, _ = await watch.snapshot()
            expect(spec.uid in uids, "the snapshot lacks a running sandbox")
        finally:
            watch.close()


@check("two watches see the same changes")
async def watch_twice(bench: Bench) -> None:
    watches = [_Watch(bench), _Watch(bench)]
    try:
        for watch in watches:
            await watch.snapshot()
        spec = bench.spec()
        await bench.create(spec)
        for watch in watches:
            response = await watch.next()
            while spec.uid not in {sandbox.uid for sandbox in response.sandboxes}:
                expect(not response.snapshot, "a second snapshot in one stream")
                response = await watch.next()
    finally:
        for watch in watches:
            watch.close()
