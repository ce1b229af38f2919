"""`SimRuntime`: pretends to run sandboxes, cheaply enough for 10,000 in one process.

Theory of operation: a running container is one object and, where it will end by
itself, one entry in the event loop's timer heap; no task, no stored log. Calls take
the time that the configuration draws for them and may fail as it says. What exits
becomes an event, as with a real runtime.

The state is written to a journal where one is given (`journal.py`): a restarted
pool then finds its sandboxes as a restarted one over containerd would. Without a
journal nothing survives the process.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence

import structlog

from vknode import __version__
from vknode.pool.runtimes.base import (
    ContainerExit,
    ContainerExited,
    ContainerRef,
    ExecStreams,
    Failure,
    FieldProblem,
    Image,
    LogOptions,
    ObservedSandbox,
    ProbeOutcome,
    ProbeResult,
    RunningSandbox,
    RuntimeEvent,
    RuntimeInfo,
    StartedContainer,
)
from vknode.pool.runtimes.sim import images, logs
from vknode.pool.runtimes.sim.behaviour import (
    Behaviour,
    BehaviourError,
    behaviour_of,
    check_behaviour,
)
from vknode.pool.runtimes.sim.config import SimConfig, zone_subnet
from vknode.pool.runtimes.sim.feed import Feed
from vknode.pool.runtimes.sim.journal import Journal
from vknode.pool.runtimes.sim.measures import observed, usage
from vknode.pool.runtimes.sim.model import (
    Addresses,
    SimContainer,
    SimSandbox,
    new_id,
    running,
    user_of,
)
from vknode.pool.runtimes.sim.probing import Probing
from vknode.pool.runtimes.sim.reading import follow_lines, read_log
from vknode.pool.runtimes.sim.shell import Program, World, command, find_trap
from vknode.pool.runtimes.sim.streams import SimAttach, SimConnection, SimExec
from vknode.pool.runtimes.sim.support import problems
from vknode.pool.v1 import cell_pb2, spec_pb2, stats_pb2, stream_pb2

log = structlog.get_logger()

_SIGKILL = 9
_SIGTERM = 15


class SimRuntime:
    """Implements `base.Runtime`."""

    best_width = 64

    def __init__(
        self, config: SimConfig | None = None, *, zone: str = "", journal: Journal | None = None
    ) -> None:
        self._config = config or SimConfig()
        self._rng = random.Random(self._config.seed)
        self._addresses = Addresses(self._config.subnet or zone_subnet(zone))
        self._journal = journal
        self._sandboxes: dict[str, SimSandbox] = {}
        self._images: set[str] = set()
        self._feed = Feed()
        self._probing = Probing(self._config, self._rng)
        self._sessions: dict[str, set[SimExec]] = {}  # by container ID

    # --- the process ------------------------------------------------------------

    async def connect(self) -> RuntimeInfo:
        self._feed.begin(self._config.outages)
        if self._journal is not None and not self._sandboxes:
            self._restore(self._journal)
        return RuntimeInfo(
            scheme="sim",
            version=__version__,
            handlers=self._config.runtime_handlers,
            node=cell_pb2.NodeInfo(
                operating_system="linux",
                architecture="amd64",
                container_runtime_version=f"sim://{__version__}",
                kernel_version="simulated",
                os_image="vknode simulation",
            ),
        )

    async def close(self) -> None:
        self._feed.close()
        for sandbox in self._sandboxes.values():
            for container in sandbox.containers:
                if container.timer is not None:
                    container.timer.cancel()
        for sessions in self._sessions.values():
            for session in sessions:
                session.kill()
        if self._journal is not None:
            self._journal.close()

    def events(self) -> AsyncIterator[RuntimeEvent]:
        return self._feed.events()

    async def _take_time(self, what: str, fixed: float | None) -> None:
        seconds = self._config.latency_of(what).draw(self._rng) if fixed is None else fixed
        if seconds > 0:
            await asyncio.sleep(seconds)
        self._feed.here()

    def _roll(self, what: str, reason: str) -> None:
        if self._rng.random() < self._config.failures.get(what, 0.0):
            raise Failure(reason, "a simulated failure by configuration")

    # --- sandboxes --------------------------------------------------------------

    def problems(self, spec: spec_pb2.SandboxSpec) -> list[FieldProblem]:
        return problems(spec, self._config.networks)

    async def inventory(self) -> list[ObservedSandbox]:
        self._feed.here()
        return [observed(sandbox) for sandbox in self._sandboxes.values()]

    async def ensure_image(
        self,
        reference: str,
        policy: spec_pb2.ImagePullPolicy.ValueType,
        credentials: Sequence[spec_pb2.RegistryCredential],
    ) -> Image:
        self._feed.here()
        full = images.normalise(reference)
        present = full in self._images
        if policy == spec_pb2.IMAGE_PULL_POLICY_NEVER and not present:
            raise Failure(
                "ErrImageNeverPull",
                f'Container image "{reference}" is not present with pull policy of Never',
            )
        if present and policy != spec_pb2.IMAGE_PULL_POLICY_ALWAYS:
            return Image(full, images.image_id(full))
        behaviour = self._image_behaviour(full)
        await self._take_time("image_pull", behaviour.pull_latency)
        if behaviour.image_pull_error:
            raise Failure("ErrImagePull", behaviour.image_pull_error)
        if full.startswith(images.BROKEN_REGISTRY + "/"):
            raise Failure("ErrImagePull", f'failed to pull image "{full}": simulated: not found')
        self._roll("image_pull", "ErrImagePull")
        self._images.add(full)
        return Image(full, images.image_id(full), pulled=True, size=4_000_000)

    def _image_behaviour(self, image: str) -> Behaviour:
        """A pull knows no Pod, so only scripts that ask for nothing but the image hold."""
        for script in self._config.scripts:
            if script.match.keys() == {"image"} and script.fits("", "", "", image):
                return check_behaviour(script.behaviour)
        return Behaviour()

    async def prepare(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container | None,
        attempt: int,
        ips: Sequence[str] = (),
    ) -> None:
        """A start here waits for nobody else."""

    async def run_sandbox(self, spec: spec_pb2.SandboxSpec, attempt: int) -> RunningSandbox:
        self._feed.here()
        existing = self._sandboxes.get(spec.uid)
        if existing is not None and existing.attempt == attempt and existing.ready:
            return running(existing)
        behaviour = self._behaviour(spec, "", "")
        await self._take_time("sandbox", behaviour.sandbox_latency)
        if behaviour.sandbox_error:
            raise Failure("FailedCreatePodSandBox", behaviour.sandbox_error)
        self._roll("sandbox", "FailedCreatePodSandBox")
        existing = self._sandboxes.get(spec.uid)
        if existing is not None:
            self._forget(existing)
        ips = tuple(spec.host_ips) if spec.network.host_network else (self._addresses.take(),)
        sandbox = SimSandbox(spec, new_id(), attempt, ips, time.time_ns())
        self._sandboxes[spec.uid] = sandbox
        if self._journal is not None:
            self._journal.sandbox(sandbox)
        return running(sandbox)

    async def update_sandbox(self, old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec) -> None:
        self._feed.here()
        sandbox = self._sandboxes.get(new.uid)
        if sandbox is not None and sandbox.spec != new:
            sandbox.spec = new
            if self._journal is not None:
                self._journal.sandbox(sandbox)

    async def resize_sandbox(self, spec: spec_pb2.SandboxSpec) -> None:
        """Nothing is limited here; what was asked for is in force."""

    async def resize_container(
        self, spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, ref: ContainerRef
    ) -> None:
        self._feed.here()
        there = self._find(ref)
        if there is None or there.exit is not None or there.asked == container:
            return
        there.take(container)
        if self._journal is not None:
            self._journal.container(there)

    async def stop_sandbox(self, uid: str) -> None:
        self._feed.here()
        sandbox = self._sandboxes.get(uid)
        if sandbox is None or not sandbox.ready:
            return
        for container in sandbox.containers:
            self._finish(container, 137, signal=_SIGKILL)
        self._give_back(sandbox)
        sandbox.ready = False
        if self._journal is not None:
            self._journal.stopped(uid)

    def _give_back(self, sandbox: SimSandbox) -> None:
        if sandbox.ready and not sandbox.spec.network.host_network:
            for address in sandbox.ips:
                self._addresses.give_back(address)

    async def remove_sandbox(self, uid: str) -> None:
        self._feed.here()
        sandbox = self._sandboxes.get(uid)
        if sandbox is not None:
            self._forget(sandbox)

    def _forget(self, sandbox: SimSandbox) -> None:
        for container in sandbox.containers:
            self._finish(container, 137, signal=_SIGKILL)
        self._give_back(sandbox)
        del self._sandboxes[sandbox.spec.uid]
        if self._journal is not None:
            self._journal.removed(sandbox.spec.uid)

    def _behaviour(self, spec: spec_pb2.SandboxSpec, container: str, image: str) -> Behaviour:
        try:
            return behaviour_of(spec, container, image, self._config.scripts)
        except BehaviourError as error:  # a sandbox of an older process with other words
            raise Failure("CreateContainerConfigError", f"{error.key}: {error}") from error

    # --- containers -------------------------------------------------------------

    async def start_container(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        sandbox: RunningSandbox,
        image: Image,
        attempt: int,
    ) -> StartedContainer:
        self._feed.here()
        behaviour = self._behaviour(spec, container.name, image.reference)
        await self._take_time("container", behaviour.start_latency)
        if behaviour.pull_latency:
            await asyncio.sleep(behaviour.pull_latency)
        if behaviour.image_pull_error:
            raise Failure("ErrImagePull", behaviour.image_pull_error)
        if behaviour.start_error:
            raise Failure("RunContainerError", behaviour.start_error)
        self._roll("container", "RunContainerError")
        there = self._sandboxes.get(spec.uid)
        if there is None or there.id != sandbox.id:
            raise Failure("CreateContainerError", "the sandbox is gone")
        there.spec = spec
        for other in there.containers:
            if (other.ref.name, other.ref.attempt) == (container.name, attempt):
                return StartedContainer(other.ref, other.started_at)
        started = SimContainer(
            ref=ContainerRef(spec.uid, container.name, attempt, new_id()),
            sandbox=there,
            spec=container,
            image=image,
            behaviour=behaviour,
            started_at=time.time_ns(),
            born_with=spec,
        )
        there.containers.append(started)
        if self._journal is not None:
            self._journal.container(started)
        self._plan_end(started)
        return StartedContainer(started.ref, started.started_at, user=user_of(spec, container))

    def _plan_end(self, container: SimContainer) -> None:
        """Set the timer for an end that is known already."""
        behaviour = container.behaviour
        if behaviour.exit_after is not None:
            offset, code = behaviour.exit_after, behaviour.exit_code or 0
        elif behaviour.log_every is not None:
            return
        else:
            world = container.world()
            end = logs.find_end(self._program(container, world), world, stdin=container.spec.stdin)
            if end is None:
                return
            code = end.exit_code if behaviour.exit_code is None else behaviour.exit_code
            offset = end.offset
        # Its finishing time is the planned one, also where a restart of the pool
        # comes to know of it late.
        finished_at = container.started_at + round(offset * 1e9)
        delay = (finished_at - time.time_ns()) / 1e9
        container.timer = asyncio.get_running_loop().call_later(
            max(delay, 0.0), self._finish, container, code, 0, behaviour.exit_reason, finished_at
        )

    def _program(self, container: SimContainer, world: World) -> Program:
        spec = container.sandbox.spec
        title = f"{spec.namespace}/{spec.name}/{container.ref.name}"
        return logs.container_program(container.argv(), world, container.behaviour, title)

    def _finish(
        self,
        container: SimContainer,
        code: int,
        signal: int = 0,
        reason: str = "",
        finished_at: int | None = None,
    ) -> None:
        if container.exit is not None:
            return
        if container.timer is not None:
            container.timer.cancel()
            container.timer = None
        container.exit = ContainerExit(
            exit_code=code,
            reason=reason or ("Completed" if code == 0 else "Error"),
            started_at=container.started_at,
            finished_at=time.time_ns() if finished_at is None else finished_at,
            signal=signal,
        )
        for waiter in container.waiters:
            if not waiter.done():
                waiter.set_result(None)
        container.waiters.clear()
        for session in self._sessions.pop(container.ref.id, ()):
            session.kill()
        if self._journal is not None:
            self._journal.exited(container)
        self._feed.emit(ContainerExited(container.ref, container.exit))

    async def _ended(self, container: SimContainer) -> None:
        if container.exit is None:
            waiter = asyncio.get_running_loop().create_future()
            container.waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in container.waiters:
                    container.waiters.remove(waiter)

    def _find(self, ref: ContainerRef) -> SimContainer | None:
        sandbox = self._sandboxes.get(ref.uid)
        for container in sandbox.containers if sandbox else ():
            if container.ref.id == ref.id:
                return container
        return None

    def _need(self, ref: ContainerRef) -> SimContainer:
        self._feed.here()
        container = self._find(ref)
        if container is None:
            raise Failure("NotFound", f"container {ref.name} is gone", retryable=False)
        return container

    def _need_running(self, ref: ContainerRef) -> SimContainer:
        container = self._need(ref)
        if container.exit is not None:
            raise Failure("NotRunning", f"container {ref.name} is not running", retryable=False)
        return container

    async def stop_container(self, ref: ContainerRef, grace_seconds: float) -> None:
        self._feed.here()
        container = self._find(ref)
        if container is None or container.exit is not None:
            return
        if grace_seconds <= 0:
            self._finish(container, 137, signal=_SIGKILL)
            return
        self._terminate(container)
        try:
            async with asyncio.timeout(grace_seconds):
                await self._ended(container)
        except TimeoutError:
            self._finish(container, 137, signal=_SIGKILL)

    def _terminate(self, container: SimContainer) -> None:
        """What SIGTERM does: as the command's trap says, else an end with 143."""
        trap = find_trap(container.argv())
        if container.behaviour.ignore_sigterm or (trap is not None and trap.exit_code is None):
            return
        latency = container.behaviour.stop_latency
        if latency is None:
            latency = self._config.latency_of("stop").draw(self._rng)
        if trap is not None and trap.exit_code is not None:
            code, signal = trap.exit_code, 0
        else:
            code, signal = 128 + _SIGTERM, _SIGTERM
        if container.timer is not None:
            if container.timer.when() <= asyncio.get_running_loop().time() + latency:
                return  # it ends by itself before that
            container.timer.cancel()
        container.timer = asyncio.get_running_loop().call_later(
            latency, self._finish, container, code, signal
        )

    async def remove_container(self, ref: ContainerRef, *, keep_log: bool) -> None:
        self._feed.here()
        container = self._find(ref)
        if container is None:
            return
        self._finish(container, 137, signal=_SIGKILL)
        if not keep_log:  # the log is computed from the instance itself
            container.sandbox.containers.remove(container)
            if self._journal is not None:
                self._journal.forgotten(container)

    # --- streams ----------------------------------------------------------------

    async def logs(
        self, ref: ContainerRef, options: LogOptions, ended: asyncio.Event
    ) -> AsyncIterator[bytes]:
        container = self._need(ref)

        def fresh() -> tuple[Program, World]:
            world = container.world()
            return self._program(container, world), world

        async for piece in read_log(container, fresh, options, ended):
            yield piece

    async def exec(self, ref: ContainerRef, start: stream_pb2.ExecRequest.Start) -> ExecStreams:
        return self._session(
            self._need_running(ref), list(start.command), stdin=start.stdin, tty=start.tty
        )

    def _session(
        self, container: SimContainer, argv: list[str], *, stdin: bool, tty: bool
    ) -> SimExec:
        world = container.world(tty=tty, start=time.time())
        sessions = self._sessions.setdefault(container.ref.id, set())

        def forget(session: SimExec) -> None:
            sessions.discard(session)
            if not sessions and self._sessions.get(container.ref.id) is sessions:
                del self._sessions[container.ref.id]

        session = SimExec(
            command(argv, world),
            world,
            stdin=stdin,
            tty=tty,
            forced_code=container.behaviour.exec_exit_code,
            on_close=forget,
        )
        sessions.add(session)
        return session

    async def probe(
        self,
        ref: ContainerRef,
        ips: Sequence[str],
        handler: spec_pb2.Handler,
        timeout_seconds: float,
    ) -> ProbeOutcome:
        self._feed.here()
        container = self._find(ref)
        if container is None or container.exit is not None:
            return ProbeOutcome(ProbeResult.ERROR, f"container {ref.name} is not running")
        return await self._probing.probe(container, handler, timeout_seconds)

    async def hook(
        self,
        ref: ContainerRef,
        ips: Sequence[str],
        handler: spec_pb2.Handler,
        timeout_seconds: float | None,
    ) -> None:
        await self._probing.hook(self._need_running(ref), handler, timeout_seconds)

    async def exec_sync(
        self, ref: ContainerRef, command: Sequence[str], timeout_seconds: float
    ) -> tuple[int, bytes]:
        session = self._session(self._need_running(ref), list(command), stdin=False, tty=False)
        output = bytearray()
        try:
            async with asyncio.timeout(timeout_seconds if timeout_seconds > 0 else None):
                async for _, data in session.receive():
                    output += data[: max(0, 10 * 1024 - len(output))]
            return await session.exit_code(), bytes(output)
        except TimeoutError as error:
            raise Failure(
                "DeadlineExceeded", f"command timed out after {timeout_seconds:g} s"
            ) from error
        finally:
            await session.close()

    async def attach(self, ref: ContainerRef, start: stream_pb2.AttachRequest.Start) -> ExecStreams:
        container = self._need_running(ref)
        argv = container.argv()

        def fresh() -> tuple[Program, World]:
            world = container.world()
            return self._program(container, world), world

        def input_ended() -> None:
            if container.spec.stdin_once:
                self._finish(container, 0)

        return SimAttach(
            follow_lines(container, fresh, lambda: self._ended(container)),
            echo=container.spec.stdin and argv[:1] == ["cat"],
            on_input_end=input_ended,
            ended=self._ended(container),
        )

    async def port_forward(self, sandbox: RunningSandbox, port: int) -> ExecStreams:
        self._feed.here()
        there = self._sandboxes.get(sandbox.uid)
        if there is None:
            raise Failure("NotFound", "the sandbox is gone", retryable=False)
        declared = {
            declared.container_port
            for container in there.spec.containers
            for declared in container.ports
        }
        if port not in declared:
            raise Failure(
                "ConnectionRefused",
                f"connect to port {port}: connection refused (no container declares it)",
            )
        name = there.spec.network.hostname or there.spec.name
        return SimConnection(name, there.ips[0] if there.ips else "", port)

    # --- usage ------------------------------------------------------------------

    async def stats(self, uids: Sequence[str], cell: str = "") -> list[stats_pb2.SandboxStats]:
        self._feed.here()
        wanted = uids or list(self._sandboxes)
        found = (self._sandboxes[uid] for uid in wanted if uid in self._sandboxes)
        return [usage(sandbox) for sandbox in found if cell in ("", sandbox.spec.cell)]

    # --- after a restart --------------------------------------------------------

    def _restore(self, journal: Journal) -> None:
        for sandbox in journal.load():
            self._sandboxes[sandbox.spec.uid] = sandbox
            if sandbox.ready and not sandbox.spec.network.host_network:
                for address in sandbox.ips:
                    self._addresses.claim(address)
            for container in sandbox.containers:
                self._images.add(container.image.reference)
                if container.exit is None:
                    container.behaviour = self._behaviour(
                        sandbox.spec, container.ref.name, container.image.reference
                    )
                    self._plan_end(container)
        if self._sandboxes:
            log.info("sim_restored", sandboxes=len(self._sandboxes))
