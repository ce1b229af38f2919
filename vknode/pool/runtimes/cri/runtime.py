"""`CriRuntime`: the pool's `Runtime` over a CRI socket. What the parts do, together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence

import structlog

from vknode.pool.runtimes.base import ExecStreams, LogOptions, RuntimeInfo
from vknode.pool.runtimes.cri import features as features_
from vknode.pool.runtimes.cri import layout, support
from vknode.pool.runtimes.cri import stats as stats_
from vknode.pool.runtimes.cri.client import CriClient, NotFound
from vknode.pool.runtimes.cri.containerconfig import container_config
from vknode.pool.runtimes.cri.containers import CALL, Containers, ref_of
from vknode.pool.runtimes.cri.events import Ended, EventWatch
from vknode.pool.runtimes.cri.features import Features
from vknode.pool.runtimes.cri.images import Images
from vknode.pool.runtimes.cri.inotify import Inotify
from vknode.pool.runtimes.cri.known import Known
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.logfile import read_log
from vknode.pool.runtimes.cri.options import CriOptions
from vknode.pool.runtimes.cri.resources import linux_resources
from vknode.pool.runtimes.cri.sandboxconfig import sandbox_config
from vknode.pool.runtimes.cri.sandboxes import Sandboxes
from vknode.pool.runtimes.cri.sessions import Sessions
from vknode.pool.runtimes.cri.volumes import Volumes
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


class CriRuntime:
    """One runtime for all cells of a pool. See `Runtime` for every method's contract."""

    best_width = 4

    def __init__(self, options: CriOptions) -> None:
        self._options = options
        # The runtime has another working folder than we.
        state_dir = options.state_dir.absolute()
        self._paths = Layout(state_dir, (options.memory_dir or state_dir / "memory").absolute())
        self._client = CriClient(options.endpoint)
        self._known = Known()
        self._features = Features()
        self._images = Images(self._client)
        self._volumes = Volumes(self._paths, options.host_path_prefixes)
        self._containers = Containers(self._client, self._paths, options.pool)
        self._sandboxes = Sandboxes(self._client, self._containers, self._known, options.pool)
        self._sessions = Sessions(self._client)
        self._inotify = Inotify()

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
        self._paths.state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
        return RuntimeInfo(
            scheme=version.runtime_name,
            version=version.runtime_version,
            handlers=tuple(sorted(h for h in self._features.handlers if h)),
            node=features_.node_info(version),
        )

    async def close(self) -> None:
        await self._sandboxes.close()
        await self._client.close()
        self._volumes.close()

    # --- what is there ---

    def problems(self, spec: spec_pb2.SandboxSpec) -> list[FieldProblem]:
        return support.problems(spec, self._options, self._features)

    async def inventory(self) -> list[ObservedSandbox]:
        return await self._sandboxes.inventory()

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

    async def run_sandbox(self, spec: spec_pb2.SandboxSpec, attempt: int) -> RunningSandbox:
        config = self._sandbox_config(spec, attempt)
        running = asyncio.ensure_future(self._sandboxes.run(config, spec.runtime_handler))
        try:
            # The request leaves first (through a task here and two of grpc's); volumes are
            # made while the runtime works on it.
            for _ in range(_TURNS_TO_LEAVE):
                await asyncio.sleep(0)
            self._volumes.prepare(spec)
        except BaseException:
            with contextlib.suppress(Failure):
                await self._sandboxes.remove((await running).id)
            raise
        sandbox = await running
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
                    f'unable to find target container "{container.target_container}"',
                )
            target = found.id
        try:
            config = container_config(
                spec,
                container,
                image,
                attempt,
                paths=self._paths,
                pool=self._options.pool,
                ips=sandbox.ips,
                mounts=self._volumes.container_mounts(spec, container, attempt),
                memory_capacity=self._features.memory_capacity,
                target_id=target,
            )
            container_id = await self._containers.create(
                sandbox.id, config, self._sandbox_config(spec, sandbox.attempt)
            )
            ref = ContainerRef(spec.uid, container.name, attempt, container_id)
            self._known.containers[container_id] = ref
            started = await self._containers.start(ref)
            self._known.started[container_id] = started.started_at
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
            self._paths.log_file(ref.uid, ref.name, ref.attempt).unlink(missing_ok=True)

    async def update_sandbox(self, old: spec_pb2.SandboxSpec, new: spec_pb2.SandboxSpec) -> None:
        self._volumes.refresh(new)
        before = {c.name: c.resources for c in (*old.init_containers, *old.containers)}
        for container in (*new.init_containers, *new.containers):
            ref = self._known.newest(new.uid, container.name)
            if ref is None or ref.id in self._known.ended:
                continue
            if container.name in before and before[container.name] != container.resources:
                request = cri_pb2.UpdateContainerResourcesRequest(
                    container_id=ref.id,
                    linux=linux_resources(new, container, self._features.memory_capacity),
                )
                with contextlib.suppress(NotFound):
                    await self._client.call(
                        "ResizeFailed",
                        self._client.runtime.UpdateContainerResources(request, timeout=CALL),
                    )

    async def stop_sandbox(self, uid: str) -> None:
        await self._sandboxes.stop_all(uid)

    async def remove_sandbox(self, uid: str) -> None:
        await self._sandboxes.remove_all(uid)
        try:
            # A volume may hold very many files.
            await asyncio.to_thread(self._volumes.remove, uid)
        except OSError as error:
            raise Failure("FailedRemove", f"cannot remove the sandbox's files: {error}") from None

    def _sandbox_config(self, spec: spec_pb2.SandboxSpec, attempt: int) -> cri_pb2.PodSandboxConfig:
        options = self._options
        return sandbox_config(spec, attempt, self._paths, options.pool, options.cgroup_parent)

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
        return await self._sessions.exec_sync(ref, command, timeout_seconds)

    async def attach(self, ref: ContainerRef, start: stream_pb2.AttachRequest.Start) -> ExecStreams:
        return await self._sessions.attach(ref, start)

    async def port_forward(self, sandbox: RunningSandbox, port: int) -> ExecStreams:
        return await self._sessions.port_forward(sandbox, port)

    # --- usage ---

    async def stats(self, uids: Sequence[str]) -> list[stats_pb2.SandboxStats]:
        selector = {layout.POOL: self._options.pool}
        if len(uids) == 1:
            selector[layout.POD_UID] = uids[0]
        request = cri_pb2.ListContainerStatsRequest(
            filter=cri_pb2.ContainerStatsFilter(label_selector=selector)
        )
        answer = await self._client.call(
            "StatsFailed", self._client.runtime.ListContainerStats(request, timeout=60)
        )
        wanted = set(uids)
        items = [
            item
            for item in answer.stats
            if not wanted or item.attributes.labels.get(layout.POD_UID) in wanted
        ]
        sizes = {}
        for item in items:
            ref = self._known.containers.get(item.attributes.id)
            if ref is not None:
                with contextlib.suppress(OSError):
                    path = self._paths.log_file(ref.uid, ref.name, ref.attempt)
                    sizes[ref.id] = path.stat().st_size
        return stats_.sandbox_stats(
            items, await self._sandbox_stats(selector), self._known.started, sizes
        )

    async def _sandbox_stats(self, selector: dict[str, str]) -> dict[str, cri_pb2.PodSandboxStats]:
        request = cri_pb2.ListPodSandboxStatsRequest(
            filter=cri_pb2.PodSandboxStatsFilter(label_selector=selector)
        )
        try:
            answer = await self._client.call(
                "StatsFailed", self._client.runtime.ListPodSandboxStats(request, timeout=60)
            )
        except (Failure, NotFound):
            # containerd 1.6 has none without a cgroup of the Pod's own: unknown, not wrong.
            return {}
        return {item.attributes.metadata.uid: item for item in answer.stats}
