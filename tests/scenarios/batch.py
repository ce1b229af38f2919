"""Plays many scenarios side by side on one target: each has a namespace and a result of its own."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import yaml

from tests.scenarios.api import Api
from tests.scenarios.format import Scenario
from tests.scenarios.history import History
from tests.scenarios.play import Play, ScenarioFailed
from tests.scenarios.registry import Registry
from tests.scenarios.stage import Act, Faults, Stage
from tests.support.kube import Kube
from vknode.devcluster.programs.provide import require

#: Scenarios at once on a machine of two cores; most of them only wait.
AT_ONCE = 8
#: Scenarios that have one fault together.
GROUP = 16


@dataclass(frozen=True)
class Outcome:
    """What became of a scenario. `problem` is empty where it passed."""

    scenario: Scenario
    seconds: float
    problem: str = ""


@dataclass(frozen=True)
class Target:
    """Where scenarios run. `levers` are the parts that can be killed and started again."""

    name: str  # kubelet or vknode
    kube: Kube
    levers: dict[str, tuple[Act, Act]]


async def play_all(
    target: Target,
    scenarios: Sequence[Scenario],
    done: Callable[[Outcome], None],
    *,
    at_once: int = AT_ONCE,
) -> None:
    """Play all of them and tell each outcome as it comes. The slow ones begin first; those
    with faults come last, together."""
    async with _stage(target) as stage:
        calm = sorted((s for s in scenarios if not s.has_fault), key=lambda s: -s.slow)
        gate = asyncio.Semaphore(at_once)
        await asyncio.gather(*(_play(stage, one, gate, done) for one in calm))
        for group in fault_groups(scenarios):
            for one in group:
                faults = sum(step.verb == "fault" for step in one.steps)
                stage.faults.expect(one.name, faults)
            gate = asyncio.Semaphore(GROUP)
            await asyncio.gather(*(_play(stage, one, gate, done) for one in group))


def fault_groups(scenarios: Sequence[Scenario]) -> list[list[Scenario]]:
    """Those with faults, in groups that have the same part killed."""
    by_part: dict[str, list[Scenario]] = {}
    for one in scenarios:
        parts = {step.about["kill"] for step in one.steps if step.verb == "fault"}
        if parts:
            by_part.setdefault("+".join(sorted(parts)), []).append(one)
    return [
        group[first : first + GROUP]
        for _, group in sorted(by_part.items())
        for first in range(0, len(group), GROUP)
    ]


async def _play(
    stage: Stage, scenario: Scenario, gate: asyncio.Semaphore, done: Callable[[Outcome], None]
) -> None:
    async with gate:
        begun, problem = time.monotonic(), ""
        stem = re.sub(r"[^a-z0-9]+", "-", scenario.name)[:50].strip("-")
        play = Play(scenario, stage, f"{stem}-{uuid.uuid4().hex[:5]}")
        try:
            await play.run()
        except ScenarioFailed as failure:
            problem = str(failure)
        except Exception as failure:  # one scenario's mishap is not the others'
            problem = f"{scenario.name}: {type(failure).__name__}: {failure}"
        finally:
            await stage.faults.leave(scenario.name)
        done(Outcome(scenario, time.monotonic() - begun, problem))


@asynccontextmanager
async def _stage(target: Target) -> AsyncIterator[Stage]:
    programs = require(("busybox",))
    listed = subprocess.run(
        [str(programs["busybox"]), "--list"], capture_output=True, text=True, check=True
    )
    applets = [one for one in listed.stdout.split() if one not in ("busybox", "wget")]
    registry = await asyncio.to_thread(Registry, programs["busybox"], applets)
    async with AsyncExitStack() as stack:
        await registry.start()
        stack.push_async_callback(registry.stop)
        session, url = session_of(target.kube.kubeconfig)
        api = Api(await stack.enter_async_context(session), url)
        history = await stack.enter_async_context(History(api))
        nodes = await api.call("GET", "api/v1/nodes")
        yield Stage(
            target=target.name,
            api=api,
            history=history,
            kube=target.kube,
            node=sorted(one["metadata"]["name"] for one in nodes["items"])[0],
            registry=registry.host,
            digest=registry.digest,
            faults=Faults(target.levers),
        )


def session_of(kubeconfig: Path) -> tuple[aiohttp.ClientSession, str]:
    """An HTTP session with the credentials of a kubeconfig of the development cluster, and the
    API server's URL. The caller closes it."""
    content = yaml.safe_load(kubeconfig.read_text())
    cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
    context = ssl.create_default_context(
        cadata=base64.b64decode(cluster["certificate-authority-data"]).decode()
    )
    with tempfile.NamedTemporaryFile() as pair:
        for key in ("client-certificate-data", "client-key-data"):
            pair.write(base64.b64decode(user[key]) + b"\n")
        pair.flush()
        context.load_cert_chain(pair.name)
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    return aiohttp.ClientSession(connector=connector), str(cluster["server"])
