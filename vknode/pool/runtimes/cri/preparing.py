"""What the start of a sandbox or an instance may have to wait for, done before its turn.

A registry may hang, or the file system behind a path of the host; such a start must hold no
place that others need, and not the event loop. What was made ready for an instance waits here
for the start itself, which makes it where nobody has before.

| what                                  | where                                            |
|---------------------------------------|--------------------------------------------------|
| images of volumes                     | the registry: `_PULLS` at once, looks besides    |
| paths of the host, checked and bound  | threads that may hang: `_HOST`, one for a Pod    |
| sub paths, environment from files     | the same for volumes of our own: `_LOCAL`        |
| any other mount                       | the event loop, within the start                 |
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vknode.pool.probes import gowords
from vknode.pool.runtimes.cri.images import Images
from vknode.pool.runtimes.cri.patience import Patience
from vknode.pool.runtimes.cri.volumes import Volumes
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import Failure
from vknode.pool.runtimes.tokens import with_files, with_ips
from vknode.pool.v1 import spec_pb2

# Pulls for volumes at once; more wait. Those of containers' images are bounded elsewhere.
_PULLS = 4
# Threads. As many Pods as this may have a dead path of the host before others suffer.
_HOST = 64
_LOCAL = 4

_Key = tuple[str, str, int]  # UID, container, attempt


@dataclass(frozen=True, slots=True)
class Ready:
    """What an instance needs: its mounts, itself with values in the place of tokens, and the
    values of variables from files by their index."""

    mounts: list[cri_pb2.Mount]
    container: spec_pb2.Container
    environment: Mapping[int, bytes | None]


class Preparer:
    def __init__(self, images: Images, volumes: Volumes, seconds: float) -> None:
        """No host path or file is waited for longer than `seconds`."""
        self._images = images
        self._volumes = volumes
        self._pulls = asyncio.Semaphore(_PULLS)
        self._host = Patience(_HOST, seconds)
        self._local = Patience(_LOCAL, seconds)
        self._checked: set[str] = set()
        self._ready: dict[_Key, Ready] = {}

    # --- sandboxes ---

    async def sandbox(self, spec: spec_pb2.SandboxSpec) -> None:
        """As `Runtime.prepare`: its paths of the host are allowed, and of their types."""
        self._checked.discard(spec.uid)
        volumes = [volume for volume in spec.volumes if volume.HasField("host_path")]
        for volume in volumes:
            await self._check(spec.uid, volume)
        if volumes:
            self._checked.add(spec.uid)

    async def sandbox_ready(self, spec: spec_pb2.SandboxSpec) -> None:
        """For the start. Raises Failure."""
        if spec.uid not in self._checked:
            await self.sandbox(spec)
        self._checked.discard(spec.uid)

    async def _check(self, uid: str, volume: spec_pb2.Volume) -> None:
        try:
            await self._host.run(uid, lambda: self._volumes.check_host_path(volume))
        except TimeoutError:
            raise Failure(
                "FailedMount",
                f'MountVolume.SetUp failed for volume "{volume.name}" : '
                f"hostPath {volume.host_path.path} {_silent(self._host)}",
            ) from None

    # --- instances ---

    async def container(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        attempt: int,
        ips: Sequence[str],
    ) -> None:
        """As `Runtime.prepare`. What waits for nobody is left to the start."""
        key = (spec.uid, container.name, attempt)
        self._ready.pop(key, None)
        volumes = _mounted(spec, container)
        slow = any(v.WhichOneof("source") in ("image", "host_path") for v in volumes)
        if slow or _reads_volumes(container):
            self._ready[key] = await self._make(spec, container, attempt, ips)

    async def take(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        attempt: int,
        ips: Sequence[str],
    ) -> Ready:
        """For the start. Raises Failure."""
        ready = self._ready.pop((spec.uid, container.name, attempt), None)
        return ready if ready is not None else await self._make(spec, container, attempt, ips)

    def forget(self, uid: str) -> None:
        self._checked.discard(uid)
        for key in [key for key in self._ready if key[0] == uid]:
            del self._ready[key]

    async def _make(
        self,
        spec: spec_pb2.SandboxSpec,
        container: spec_pb2.Container,
        attempt: int,
        ips: Sequence[str],
    ) -> Ready:
        volumes = _mounted(spec, container)
        images = {v.name: await self._image(v.image, spec) for v in volumes if v.HasField("image")}

        def make() -> Ready:
            values = self._volumes.environment(spec, container)
            resolved = with_ips(spec, with_files(container, values), ips)
            mounts = self._volumes.container_mounts(spec, resolved, attempt, images)
            return Ready(mounts, resolved, values)

        def undo() -> None:
            self._volumes.forget_container(spec.uid, container.name, attempt)

        paths = [v.host_path.path for v in volumes if v.HasField("host_path")]
        if paths:
            what = "hostPath " + ", ".join(paths)
            return await self._in_thread(self._host, spec.uid, make, undo, what)
        if _reads_volumes(container):
            return await self._in_thread(self._local, spec.uid, make, undo, "a volume")
        return make()

    async def _in_thread(
        self,
        threads: Patience,
        uid: str,
        make: Callable[[], Ready],
        undo: Callable[[], None],
        what: str,
    ) -> Ready:
        try:
            return await threads.run(uid, make, undo)
        except TimeoutError:
            raise Failure("CreateContainerConfigError", f"{what} {_silent(threads)}") from None

    async def _image(self, source: spec_pb2.ImageVolume, spec: spec_pb2.SandboxSpec) -> str:
        """The runtime's ID. Raises Failure as `Runtime.ensure_image`."""
        never, policy = spec_pb2.IMAGE_PULL_POLICY_NEVER, source.pull_policy
        reference, credentials = source.reference, spec.registry_credentials
        if policy != spec_pb2.IMAGE_PULL_POLICY_ALWAYS:
            # A look need not wait for the pulls of others.
            try:
                return (await self._images.ensure(reference, never, credentials)).id
            except Failure as failure:
                if failure.reason != "ErrImageNeverPull" or policy == never:
                    raise
        async with self._pulls:
            return (await self._images.ensure(reference, policy, credentials)).id


def _silent(threads: Patience) -> str:
    return f"did not answer within {gowords.duration(threads.seconds)}"


def _mounted(spec: spec_pb2.SandboxSpec, container: spec_pb2.Container) -> list[spec_pb2.Volume]:
    names = {mount.volume for mount in container.mounts}
    return [volume for volume in spec.volumes if volume.name in names]


def _reads_volumes(container: spec_pb2.Container) -> bool:
    """What other containers may have made anything of."""
    return any(mount.sub_path for mount in container.mounts) or any(
        entry.HasField("file") for entry in container.env
    )
