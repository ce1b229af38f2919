"""`CriRuntime`: the pool's `Runtime` over a CRI socket. What the parts do, together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Coroutine, Sequence

import structlog

from vknode.pool.inotify import Inotify
from vknode.pool.probes import gowords
from vknode.pool.probes.network import Network
from vknode.pool.runtimes.base import ExecStreams, LogOptions, RuntimeInfo
from vknode.pool.runtimes.cri import features as features_
from vknode.pool.runtimes.cri import hostports, layout, support
from vknode.pool.runtimes.cri.client import CriClient
from vknode.pool.runtimes.cri.commands import Commands
from vknode.pool.runtimes.cri.containerconfig import container_config
from vknode.pool.runtimes.cri.containers import Containers, ref_of
from vknode.pool.runtimes.cri.events import Ended, EventWatch
from vknode.pool.runtimes.cri.features import Features
from vknode.pool.runtimes.cri.hostports import HostPorts
from vknode.pool.runtimes.cri.images import Images
from vknode.pool.runtimes.cri.known import Known
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.logfile import read_log
from vknode.pool.runtimes.cri.options import CriOptions
from vknode.pool.runtimes.cri.podcgroup import PodCgroups
from vknode.pool.runtimes.cri.preparing import Preparer
from vknode.pool.runtimes.cri.pullrecords import PullRecords
from vknode.pool.runtimes.cri.resizing import Resizer
from vknode.pool.runtimes.cri.resources import pod_limits
from vknode.pool.runtimes.cri.rotation import LogRotation, rotated
from vknode.pool.runtimes.cri.sandboxconfig import sandbox_config
from vknode.pool.runtimes.cri.sandboxes import Sandboxes
from vknode.pool.runtimes.cri.sessions import Sessions
from vknode.pool.runtimes.cri.storage import StorageLimits, StorageWatch, limits_of
from vknode.pool.runtimes.cri.usage import Usage
from vknode.pool.runtimes.cri.volumes import Volumes
from vknode.pool.runtimes.cri.volumeusage import VolumeUsage
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import (
    ContainerExited,
    ContainerRef,
    EventsLost,
    Failure,
    FieldProblem,
    HealthChanged,
    Image,
    ObservedSandbox,
    ProbeOutcome,
    RunningSandbox,
    RuntimeAway,
    RuntimeEvent,
    SandboxDied,
    StartedContainer,
)
from vknode.pool.v1 import spec_pb2, stats_pb2, stream_pb2

log = structlog.get_logger()

_CONNECT = 10.0
# Ends looked into at once; more wait in the stream.
_EXIT_WIDTH = 16
_MAX_QUEUE = 1024


# Turns of the event loop until a call made in a task of its own is on the wire.
_TURNS_TO_LEAVE = 4
# Seconds before each try to remove a Pod's control group: the kernel takes a moment to reap.
_UNTIL_REAPED = (0.0, 0.02, 0.1, 0.3, 1.0)


class CriRuntime:
    """One runtime for all cells of a pool. See `Runtime` for every method's contract."""

    best_width = 4

    def __init__(self, options: CriOptions) -> None:
        self._options = options
        # The runtime has another working folder than we, and the kernel tells mounts by
        # their real path: one that was missed would be emptied with the folder it is in.
        state_dir = options.state_dir.resolve()
        self._paths = Layout(state_dir, (options.memory_dir or state_dir / "memory").resolve())
        self._client = CriClient(options.endpoint)
        self._known = Known()
        self._features = Features()
        self._images = Images(self._client, PullRecords(self._paths.pulls))
        self._volumes = Volumes(self._paths, options.host_path_prefixes)
        self._preparer = Preparer(self._images, self._volumes, options.host_path_timeout)
        self._containers = Containers(self._client, self._paths, options.pool)
        self._sandboxes = Sandboxes(self._client, self._containers, self._known, options.pool)
        self._sessions = Sessions(self._client)
        self._commands = Commands(self._client)
        self._network = Network()
        self._volume_usage = VolumeUsage(self._paths, options.volume_age)
        self._usage = Usage(
            self._client, self._known, self._paths, options.pool, self._volume_usage
        )
        self._storage = StorageWatch(
            self._paths, self._usage.layers, self._volume_usage, options.storage_interval
        )
        self._rotation = LogRotation(self._client, self._known, self._paths, options.logs)
        self._resizer = Resizer(self._client, self._known)
        self._cgroups: PodCgroups | None = None
        self._inotify = Inotify()
        self._host_ports = HostPorts()
        # Of each inventory under way: what has let go since it was begun, and whether
        # nothing is left of it.
        self._inventories: list[dict[str, bool]] = []

    # --- the connection ---

    async def connect(self) -> RuntimeInfo:
        version = await self._client.call(
            "RuntimeUnavailable",
            self._client.runtime.Version(
                cri_pb2.VersionRequest(version="v1"), timeout=_CONNECT, wait_for_ready=True
            ),
        )
        status = await self._client.call(
            "RuntimeUnavailable",
            self._client.runtime.Status(cri_pb2.StatusRequest(verbose=True), timeout=_CONNECT),
        )
        problem = features_.not_ready(status)
        if problem is not None:
            raise RuntimeAway(f"{problem[0]}: {problem[1]}")
        self._features = features_.learn(version, status)
        if self._options.cell_memory:
            self._features = dataclasses.replace(
                self._features, memory_capacity=self._options.cell_memory
            )
        if self._options.pod_cgroups and self._features.cgroupfs:
            parent = self._options.cgroup_parent or f"/vknode/{self._options.pool}"
            self._cgroups = PodCgroups.find(parent)
            self._features = dataclasses.replace(
                self._features, pod_cgroups=self._cgroups is not None
            )
        self._paths.state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        await self._images.open()
        return RuntimeInfo(
            scheme=version.runtime_name,
            version=version.runtime_version,
            handlers=tuple(sorted(h for h in self._features.handlers if h)),
            node=features_.node_info(version, self._options.resolv_conf),
        )

    async def close(self) -> None:
        await self._volume_usage.close()
        await self._sandboxes.close()
        await self._client.close()
        self._network.close()
        self._volumes.close()
        if self._cgroups is not None:
            self._cgroups.close()

    # --- what is there ---

    def problems(self, spec: spec_pb2.SandboxSpec) -> list[FieldProblem]:
        return support.problems(spec, self._options, self._features)

    async def inventory(self) -> list[ObservedSandbox]:
        ended: dict[str, bool] = {}
        self._inventories.append(ended)
        try:
            found = await self._sandboxes.inventory()
        finally:
            self._inventories = [other for other in self._inventories if other is not ended]
        for uid, gone in ended.items():
            if gone:
                self._known.forget_uid(uid)
        for sandbox in found:
            if sandbox.uid in ended:
                continue  # it had what was listed, and has let go of it meanwhile
            text = self._known.storage_limits.get(sandbox.uid, "")
            self._storage.add(sandbox.uid, StorageLimits.load(text) if sandbox.ready else None)
            if sandbox.ready:
                ports = hostports.load(self._known.host_ports.get(sandbox.uid, ""))
                self._host_ports.claim(sandbox.uid, ports)
        return found

    async def events(self) -> AsyncIterator[RuntimeEvent]:
        queue: asyncio.Queue[RuntimeEvent] = asyncio.Queue(_MAX_QUEUE)
        width = asyncio.Semaphore(_EXIT_WIDTH)
        broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tasks: set[asyncio.Task[None]] = set()

        def finished(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None and not broken.done():
                broken.set_exception(error)

        def begin(work: Coroutine[None, None, None]) -> None:
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(finished)

        async def emit(event: Ended | EventsLost | HealthChanged) -> None:
            if isinstance(event, Ended):
                await width.acquire()
                begin(look_into(event))
            else:
                await queue.put(event)

        async def look_into(ended: Ended) -> None:
            try:
                event = await self._ended(ended)
                if event is not None:
                    await queue.put(event)
            except Failure as error:
                log.warning("cri_exit_unclear", id=ended.id, reason=error.reason)
                await queue.put(EventsLost())
            finally:
                width.release()

        watch = EventWatch(
            self._client,
            lambda: self._features,
            emit,
            self._ended_unseen,
            status_interval=self._options.status_interval,
            list_interval=self._options.list_interval,
        )
        begin(watch.run())
        begin(self._storage.run(queue.put))
        begin(self._rotation.run())
        begin(self._containers.run())
        getting: asyncio.Task[RuntimeEvent] | None = None
        try:
            while True:
                getting = asyncio.create_task(queue.get())
                await asyncio.wait((getting, broken), return_when=asyncio.FIRST_COMPLETED)
                if broken.done():
                    await broken  # a defect of ours: the owner must learn of it
                yield await getting
        finally:
            left = [*tasks, *([getting] if getting is not None else [])]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            if not broken.done():
                broken.cancel()

    async def _ended(self, ended: Ended) -> RuntimeEvent | None:
        uid = self._known.sandboxes.get(ended.id)
        if uid is not None:
            if ended.id in self._known.stopping:
                return None
            self._known.stopping.add(ended.id)  # told once, however often a list shows it
            return SandboxDied(uid, ended.id)
        found = await self._containers.wait_exit(
            ended.id, exit_code=ended.exit_code, finished_at=ended.finished_at
        )
        if found is None:
            return None
        status, exit_ = found
        if not layout.ours(status.labels, self._options.pool):
            return None
        ref = ref_of(status)
        self._known.containers[ref.id] = ref
        self._known.ended.add(ref.id)
        return ContainerExited(ref, exit_)

    async def _ended_unseen(self) -> list[str]:
        """For runtimes without events: what a list shows as ended and nobody has told."""
        containers = await self._containers.find({})
        sandboxes = await self._sandboxes.find({})
        ended = [
            item.id
            for item in containers
            if item.state == cri_pb2.CONTAINER_EXITED and item.id not in self._known.ended
        ]
        died = [
            item.id
            for item in sandboxes
            if item.state != cri_pb2.SANDBOX_READY and item.id not in self._known.stopping
        ]
        return ended + died

    # --- images, sandboxes, containers ---

    async def ensure_image(
        self,
        reference: str,
        policy: spec_pb2.ImagePullPolicy.ValueType,
        credentials: Sequence[spec_pb2.RegistryCredential],
    ) -> Image:
        return await self._images.ensure(reference, policy, credentials)

    async def prepare(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container | None,
        attempt: int,
        ips: Sequence[str] = (),
    ) -> None:
        if container is None:
            await self._preparer.sandbox(spec)
        else:
            await self._preparer.container(spec, container, attempt, ips)

    async def run_sandbox(self, spec: spec_pb2.SandboxSpec, attempt: int) -> RunningSandbox:
        await self._preparer.sandbox_ready(spec)
        taken = self._host_ports.claim(spec.uid, hostports.ports_of(spec))
        if taken is not None:
            protocol, address, port = taken
            raise Failure(
                "FailedCreatePodSandBox",
                f"host port {gowords.host_port(address, port) if address else port}/{protocol} "
                "is taken by another Pod on this host",
            )
        try:
            return await self._run_in_group(spec, attempt)
        except RuntimeAway:
            raise  # it may be there all the same
        except Failure:
            self._host_ports.release(spec.uid)
            raise

    async def _run_in_group(self, spec: spec_pb2.SandboxSpec, attempt: int) -> RunningSandbox:
        if self._cgroups is None:
            return await self._run_sandbox(spec, attempt)
        try:
            self._cgroups.prepare(spec.uid, pod_limits(spec))
            return await self._run_sandbox(spec, attempt)
        except OSError as error:
            self._cgroups.remove(spec.uid)
            raise Failure(
                "FailedCreatePodSandBox", f"cannot make the Pod's cgroup: {error.strerror}"
            ) from None
        except Failure:
            self._cgroups.remove(spec.uid)
            raise

    async def _run_sandbox(self, spec: spec_pb2.SandboxSpec, attempt: int) -> RunningSandbox:
        config = self._sandbox_config(spec, attempt)
        running = asyncio.ensure_future(self._sandboxes.run(config, spec.runtime_handler))
        try:
            # The request leaves first (through a task here and two of grpc's); volumes are
            # made while the runtime works on it.
            for _ in range(_TURNS_TO_LEAVE):
                await asyncio.sleep(0)
            self._volumes.prepare(spec, self._features.memory_capacity)
        except BaseException:
            with contextlib.suppress(Failure):
                await self._sandboxes.remove((await running).id)
            raise
        sandbox = await running
        self._storage.add(spec.uid, limits_of(spec))
        try:
            self._volumes.write_hosts(spec, sandbox.ips)
        except OSError as error:
            await self._sandboxes.remove(sandbox.id)
            raise Failure("FailedCreatePodSandBox", f"cannot write: {error}") from None
        return sandbox

    async def start_container(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        sandbox: RunningSandbox,
        image: Image,
        attempt: int,
    ) -> StartedContainer:
        target = ""
        if container.target_container:
            found = self._known.newest(spec.uid, container.target_container)
            if found is None:
                raise Failure(
                    "CreateContainerConfigError",
                    f"unable to find target container {container.target_container}",
                )
            target = found.id
        ready = await self._preparer.take(spec, container, attempt, sandbox.ips)
        try:
            config = container_config(
                spec,
                ready.container,
                image,
                attempt,
                paths=self._paths,
                pool=self._options.pool,
                mounts=ready.mounts,
                memory_capacity=self._features.memory_capacity,
                target_id=target,
                seccomp_dir=self._options.seccomp_dir,
                from_files=ready.environment,
            )
            # Where they were resized since the sandbox was made.
            self._resizer.make_room(spec, self._cgroups)
            container_id = await self._containers.create(
                sandbox.id, config, self._sandbox_config(spec, sandbox.attempt)
            )
            ref = ContainerRef(spec.uid, container.name, attempt, container_id)
            self._known.containers[container_id] = ref
            self._known.memory_limits[container_id] = config.linux.resources.memory_limit_in_bytes
            started = await self._containers.start(ref)
            self._known.started[container_id] = started.started_at
            self._resizer.settle(spec, self._cgroups)
            return started
        except Failure:
            self._volumes.forget_container(spec.uid, container.name, attempt)
            raise

    async def stop_container(self, ref: ContainerRef, grace_seconds: float) -> None:
        await self._containers.stop(ref, grace_seconds)

    async def remove_container(self, ref: ContainerRef, *, keep_log: bool) -> None:
        await self._containers.remove(ref)
        self._known.forget_container(ref.id)
        self._volumes.forget_container(ref.uid, ref.name, ref.attempt)
        if not keep_log:
            path = self._paths.log_file(ref.uid, ref.name, ref.attempt)
            for file in (path, *rotated(path)):
                file.unlink(missing_ok=True)

    async def update_sandbox(self, old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec) -> None:
        self._volumes.refresh(new)

    async def resize_container(
        self, spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, ref: ContainerRef
    ) -> None:
        if ref.id not in self._known.ended:
            await self._resizer.resize(
                spec, container, ref, self._features.memory_capacity, self._cgroups
            )

    async def resize_sandbox(self, spec: spec_pb2.SandboxSpec) -> None:
        self._resizer.resize_pod(spec, self._cgroups)

    async def stop_sandbox(self, uid: str) -> None:
        self._storage.forget(uid)
        await self._sandboxes.stop_all(uid)
        self._let_go(uid, gone=False)

    async def remove_sandbox(self, uid: str) -> None:
        self._storage.forget(uid)
        self._volume_usage.forget(uid)
        self._preparer.forget(uid)
        await self._sandboxes.remove_all(uid)
        self._let_go(uid, gone=True)
        if self._cgroups is not None:
            for pause in _UNTIL_REAPED:
                await asyncio.sleep(pause)
                if self._cgroups.remove(uid):
                    break
        try:
            # A volume may hold very many files.
            await asyncio.to_thread(self._volumes.remove, uid)
        except OSError as error:
            raise Failure("FailedRemove", f"cannot remove the sandbox's files: {error}") from None

    def _let_go(self, uid: str, *, gone: bool) -> None:
        self._storage.forget(uid)
        self._volume_usage.forget(uid)
        self._host_ports.release(uid)
        for ended in self._inventories:
            ended[uid] = ended.get(uid, False) or gone

    def _sandbox_config(self, spec: spec_pb2.SandboxSpec, attempt: int) -> cri_pb2.PodSandboxConfig:
        parent = self._options.cgroup_parent
        if self._cgroups is not None:
            parent = self._cgroups.path(spec.uid)
        return sandbox_config(spec, attempt, self._paths, self._options.pool, parent)

    # --- probes and hooks ---

    async def probe(
        self,
        ref: ContainerRef,
        ips: Sequence[str],
        handler: spec_pb2.Handler,
        timeout_seconds: float,
    ) -> ProbeOutcome:
        if handler.HasField("exec"):
            return await self._commands.probe(ref, handler.exec.command, timeout_seconds)
        return await self._network.probe(handler, ips, timeout_seconds)

    async def hook(
        self,
        ref: ContainerRef,
        ips: Sequence[str],
        handler: spec_pb2.Handler,
        timeout_seconds: float | None,
    ) -> None:
        pod = self._known.pods.get(ref.uid, ref.uid)
        try:
            async with asyncio.timeout(timeout_seconds):
                if handler.HasField("exec"):
                    await self._commands.hook(ref, handler.exec.command, pod)
                else:
                    await self._network.hook(handler.http_get, ips, ref.name, pod)
        except TimeoutError:
            raise Failure(
                "DeadlineExceeded",
                f"the hook did not end within {gowords.duration(timeout_seconds or 0)}",
            ) from None

    # --- streams ---

    def logs(
        self, ref: ContainerRef, options: LogOptions, ended: asyncio.Event
    ) -> AsyncIterator[bytes]:
        path = self._paths.log_file(ref.uid, ref.name, ref.attempt)
        return read_log(path, options, ended, self._inotify)

    async def exec(self, ref: ContainerRef, start: stream_pb2.ExecRequest.Start) -> ExecStreams:
        return await self._sessions.exec(ref, start)

    async def exec_sync(
        self, ref: ContainerRef, command: Sequence[str], timeout_seconds: float
    ) -> tuple[int, bytes]:
        return await self._commands.exec_sync(ref, command, timeout_seconds)

    async def attach(self, ref: ContainerRef, start: stream_pb2.AttachRequest.Start) -> ExecStreams:
        return await self._sessions.attach(ref, start)

    async def port_forward(self, sandbox: RunningSandbox, port: int) -> ExecStreams:
        return await self._sessions.port_forward(sandbox, port)

    # --- usage ---

    async def stats(self, uids: Sequence[str], cell: str = "") -> list[stats_pb2.SandboxStats]:
        return await self._usage.stats(uids, cell)
