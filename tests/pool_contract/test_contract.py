"""Both runtimes of `vknode pool` keep the contract, as `vknode pool-check` sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cri.containerds import containerd
from tests.pool_contract.poolprocess import pool_process, vknode
from vknode.devcluster.programs.catalog import CONTAINERD, ProgramsMissing
from vknode.devcluster.programs.provide import require


def _judge(code: int, out: str) -> None:
    summary = json.loads(out)
    failed = [
        f"{check['name']}: {check['message']}"
        for check in summary["checks"]
        if check["outcome"] != "passed"
    ]
    assert not failed, "\n".join(failed)
    assert code == 0
    assert summary["passed"] == len(summary["checks"]) >= 50


async def test_sim_keeps_the_contract(tmp_path: Path) -> None:
    async with pool_process(tmp_path, "--runtime", "sim") as pool:
        await pool.event("pool_ready")
        code, out, _ = await vknode("pool-check", f"unix:{tmp_path}/pool.sock", "--json")
        _judge(code, out)
        assert [line for line in pool.log if line["level"] == "error"] == []
        assert await pool.end() == 0


@pytest.mark.containerd
@pytest.mark.timeout(900)
async def test_cri_keeps_the_contract(tmp_path: Path) -> None:
    try:
        programs = require(CONTAINERD)
    except ProgramsMissing as problem:
        pytest.skip(str(problem))
    with containerd(programs) as running:
        options = ("--runtime", "cri", "--runtime-endpoint", f"unix://{running.socket}")
        async with pool_process(tmp_path, *options) as pool:
            await pool.event("pool_ready")
            code, out, _ = await vknode(
                "pool-check", f"unix:{tmp_path}/pool.sock", "--json", "--parallel", "3", timeout=800
            )
            _judge(code, out)
            assert await pool.end() == 0


async def test_checks_fail_where_a_pool_breaks_the_contract(tmp_path: Path) -> None:
    """A pool that exits otherwise than asked, and starts nothing: the checks notice."""
    config = tmp_path / "sim.yaml"
    config.write_text("scripts: [{behaviour: {exec-exit-code: 9, log-lines: 1}}]")
    async with pool_process(tmp_path, "--runtime", "sim", "--sim-config", str(config)) as pool:
        await pool.event("pool_ready")
        code, out, _ = await vknode(
            *("pool-check", f"unix:{tmp_path}/pool.sock", "--json"),
            *("--check", "exec_output", "--check", "logs_abandoned", "--check", "unknown_cell"),
        )
        outcomes = {check["name"]: check["outcome"] for check in json.loads(out)["checks"]}
        assert code == 1
        assert outcomes == {
            "exec_output": "failed",
            "logs_abandoned": "failed",
            "unknown_cell": "passed",
            "watch_order": "passed",
        }


async def test_nothing_of_the_checks_stays(tmp_path: Path) -> None:
    async with pool_process(tmp_path, "--runtime", "sim") as pool:
        await pool.event("pool_ready")
        await vknode("pool-check", f"unix:{tmp_path}/pool.sock", "--check", "running_status")
        assert list((tmp_path / "state" / "specs").iterdir()) == []


async def test_a_table_for_people_and_a_list_of_checks(tmp_path: Path) -> None:
    async with pool_process(tmp_path, "--runtime", "sim") as pool:
        await pool.event("pool_ready")
        code, out, err = await vknode(
            "pool-check", f"unix:{tmp_path}/pool.sock", "--check", "host_name"
        )
        assert code == 0 and "host_name" in out and "2 of 2 checks did not fail" in out
        assert "passed  host_name" in err
    code, out, _ = await vknode("pool-check", "unix:/x", "--list")
    assert code == 0 and "grace_honoured: " in out


async def test_nobody_there(tmp_path: Path) -> None:
    code, _, err = await vknode("pool-check", f"unix:{tmp_path}/none.sock")
    assert code == 3 and "no pool answered" in err
    code, _, err = await vknode("pool-check", "127.0.0.1:1")
    assert code == 2 and "mutual TLS" in err
    code, _, err = await vknode("pool-check", "unix:/x", "--check", "nope")
    assert code == 2 and "no check is named 'nope'" in err
