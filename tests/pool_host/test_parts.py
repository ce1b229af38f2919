"""Gate, cells, store and alarms, each by itself."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.world import make_spec
from vknode.pool.alarms import Alarms
from vknode.pool.cells import CellBook, requests
from vknode.pool.engine.steps import Persisted
from vknode.pool.errors import NO_CAPACITY, PoolFailure
from vknode.pool.gate import Gate
from vknode.pool.runtimes.base import RuntimeInfo
from vknode.pool.store import FileStore, MemoryStore
from vknode.pool.v1 import cell_pb2, status_pb2


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 4),
    priorities=st.lists(st.integers(0, 2), max_size=15),
    cancelled=st.sets(st.integers(0, 14)),
)
def test_a_gate_keeps_its_width_and_order_whoever_gives_up(
    width: int, priorities: list[int], cancelled: set[int]
) -> None:
    async def run() -> None:
        gate = Gate(width)
        inside, most, order = 0, 0, []
        release = asyncio.Event()

        async def one(number: int, priority: int) -> None:
            nonlocal inside, most
            async with gate.enter(priority):
                inside += 1
                most = max(most, inside)
                order.append((priority, number))
                try:
                    await release.wait()
                finally:
                    inside -= 1

        tasks = [asyncio.create_task(one(n, p)) for n, p in enumerate(priorities)]
        for _ in range(3):
            await asyncio.sleep(0)
        assert inside == min(width, len(tasks))
        for number in cancelled:
            if number < len(tasks):
                tasks[number].cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        entered = len(order)
        release.set()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert gate.held == 0 and gate.waiting == 0 and most <= width
        alive = [t for t in tasks if not t.cancelled()]
        assert all(t.exception() is None for t in alive)
        assert order[entered:] == sorted(order[entered:])

    asyncio.run(run())


def test_requests_are_counted_as_a_scheduler_does() -> None:
    spec = make_spec(inits=1, mains=2)
    spec.containers[0].resources.requests.update({"cpu": "250m", "memory": "1Gi"})
    spec.containers[1].resources.requests.update({"cpu": "0.5"})
    spec.init_containers[0].resources.requests.update({"cpu": "2"})
    spec.overhead.update({"memory": "24Mi"})
    assert requests(spec) == {"cpu": 2000, "memory": (1024 + 24) * 2**20 * 1000}
    spec.resources.requests["cpu"] = "1"
    assert requests(spec)["cpu"] == 1000


def test_cells_are_named_counted_and_told() -> None:
    book = CellBook.of_zone("az1", 28, {"cpu": "2", "pods": "10"}, region="r1")
    assert book.names[0] == "az1-a" and book.names[-2:] == ["az1-aa", "az1-ab"]
    assert {c.health for c in book.cells()} == {cell_pb2.HEALTH_UNHEALTHY}
    node = cell_pb2.NodeInfo(operating_system="linux", architecture="arm64")
    book.describe(RuntimeInfo("containerd", "2.0", ("", "kata"), node))
    version = book.version
    book.set_health(True)
    assert len(book.cells(version)) == 28
    version = book.version
    book.set_health(True)
    assert book.version == version and not book.cells(version)
    book.set_health(False, "Maintenance", "by hand", names=["az1-b"])
    (cell,) = book.cells(version)
    assert (cell.name, cell.health_reason) == ("az1-b", "Maintenance")
    assert cell.info.container_runtime_version == "containerd://2.0"
    assert list(cell.runtime_handlers) == ["kata"]


def test_an_unknown_resource_does_not_fit_but_an_uncounted_one_does() -> None:
    book = CellBook.of_zone("az1", 1, {"cpu": "2", "example.com/gpu": "1"})
    spec = make_spec()
    spec.cell = "az1-a"
    spec.containers[0].resources.requests.update({"memory": "1Ti", "example.com/gpu": "1"})
    book.admit(spec)
    book.admit(spec)  # the same one again takes nothing more
    other = make_spec(uid="u2")
    other.containers[0].resources.requests["example.com/gpu"] = "1"
    with pytest.raises(PoolFailure, match="asked for 1, free 0") as failure:
        book.admit(other)
    assert failure.value.kind == NO_CAPACITY
    book.release("u1")
    book.release("u1")
    book.admit(other)
    third = make_spec(uid="u3")
    third.containers[0].resources.requests["example.com/fpga"] = "1"
    with pytest.raises(PoolFailure, match="not enough example"):
        book.admit(third)


def test_wrong_cells_are_said() -> None:
    with pytest.raises(ValueError, match="used twice"):
        CellBook([cell_pb2.Cell(name="a"), cell_pb2.Cell(name="a")])
    with pytest.raises(ValueError, match="quantity"):
        CellBook.of_zone("az1", 1, {"cpu": "many"})
    with pytest.raises(ValueError, match="at least one"):
        CellBook([])


def test_specs_survive_with_their_state_and_for_the_owner_only(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "specs")
    spec = make_spec()
    spec.containers[0].env.add(name="TOKEN", value="secret")
    first = Persisted("agent", 5)
    store.save(spec, first)
    path = tmp_path / "specs" / "u1" / "spec.pb"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    (stored,) = FileStore(tmp_path / "specs").load()
    assert stored.spec == spec and stored.state == first
    later = Persisted(
        "agent", 5, deletion_deadline=9, ended=status_pb2.SANDBOX_STATE_FAILED, ended_reason="X"
    )
    store.save_state("u1", later)
    (stored,) = FileStore(tmp_path / "specs").load()
    assert stored.state == later
    store.remove("u1")
    store.remove("u1")
    assert FileStore(tmp_path / "specs").load() == []


def test_a_torn_or_foreign_file_is_never_taken_for_a_spec(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.save(make_spec(), Persisted("agent", 5))
    path = tmp_path / "u1" / "spec.pb"
    whole = path.read_bytes()
    for broken in (b"", whole[:-1], whole + b"x", b"x" + whole[1:], whole[:30] + b"~" + whole[31:]):
        path.write_bytes(broken)
        assert FileStore(tmp_path).load() == []
        assert path.with_suffix(".pb.broken").exists()
        path.with_suffix(".pb.broken").unlink()
    path.write_bytes(whole)
    assert len(FileStore(tmp_path).load()) == 1


def test_a_torn_or_later_state_does_not_cost_the_sandbox(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.save(make_spec(), Persisted("agent", 5))
    for torn in (b"", b"[1]", b'{"owner": "agent"}'):
        (tmp_path / "u1" / "state.json").write_bytes(torn)
        assert [s.state for s in FileStore(tmp_path).load()] == [Persisted("agent", 5)]
    later = b'{"owner": "agent", "created_at": 5, "ran": true, "of_a_later_version": 1}'
    (tmp_path / "u1" / "state.json").write_bytes(later)
    assert [s.state for s in FileStore(tmp_path).load()] == [Persisted("agent", 5, ran=True)]


def test_a_full_disk_leaves_no_piece_and_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path)
    real = os.fdopen

    def full(descriptor: int, *args: object, **options: object) -> object:
        os.close(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match=r"No space left on device.*u1/spec.pb"):
        store.save(make_spec(), Persisted("agent", 5))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "fdopen", real)
    store.save(make_spec(), Persisted("agent", 5))
    assert len(store.load()) == 1


def test_the_memory_store_keeps_the_same() -> None:
    store = MemoryStore()
    store.save(make_spec(), Persisted("agent", 5))
    store.save_state("u1", Persisted("agent", 5, ran=True))
    store.save_state("unknown", Persisted("agent", 5))
    assert [s.state.ran for s in store.load()] == [True]
    store.remove("u1")
    assert store.load() == []


async def test_alarms_ring_once_in_order_and_only_as_set_last() -> None:
    now = 0
    rung: list[str] = []
    alarms = Alarms(lambda: now, rung.append)
    alarms.set("late", 3_000_000_000)
    alarms.set("moved", 1_000_000)
    alarms.set("moved", 2_000_000)
    alarms.set("dropped", 1_000_000)
    alarms.set("dropped", None)
    alarms.set("soon", 1_000_000)
    now = 1_500_000
    async with asyncio.timeout(30):
        while rung != ["soon"]:
            await asyncio.sleep(0.001)
        now = 4_000_000
        while rung != ["soon", "moved"]:
            await asyncio.sleep(0.001)
    alarms.close()


async def test_alarms_that_were_replaced_do_not_pile_up() -> None:
    """A Pod with a deadline in a year that crashes every few minutes, for instance."""
    rung: list[str] = []
    alarms = Alarms(lambda: 0, rung.append)
    alarms.set("other", 0)
    for turn in range(1000):
        alarms.set("crashing", 10**18)
        alarms.set("crashing", 10**15 + turn)
    assert len(alarms._heap) < 100
    async with asyncio.timeout(30):
        while rung != ["other"]:
            await asyncio.sleep(0.001)
    alarms.close()
