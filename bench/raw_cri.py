"""The floor: the three CRI calls that any agent must make for a Pod, and nothing else.

No volumes, no status, no API server: sandbox with the CNI network, one container with
the runtime's seccomp filter, its start. Whatever starts Pods on this containerd cannot
be quicker than this.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

from vknode.pool.runtimes.cri.client import CriClient
from vknode.pool.runtimes.cri.wire import cri_pb2


class RawCri:
    """Starts and removes bare sandboxes on one containerd; `logs` holds their logs."""

    def __init__(self, endpoint: str, image: str, logs: Path) -> None:
        self._client = CriClient(endpoint)
        self._image = image
        self._logs = logs
        self._ids: list[str] = []

    async def start_one(self) -> tuple[float, float, float]:
        """Seconds that each of the three calls took, one after another."""
        runtime = self._client.runtime
        uid = str(uuid.uuid4())
        directory = self._logs / uid
        directory.mkdir(parents=True)
        sandbox = cri_pb2.PodSandboxConfig(
            metadata=cri_pb2.PodSandboxMetadata(name=f"raw-{uid[:8]}", uid=uid, namespace="bench"),
            hostname=f"raw-{uid[:8]}",
            log_directory=str(directory),
            labels={"bench": "raw"},
            linux=cri_pb2.LinuxPodSandboxConfig(),
        )
        container = cri_pb2.ContainerConfig(
            metadata=cri_pb2.ContainerMetadata(name="main"),
            image=cri_pb2.ImageSpec(image=self._image),
            command=["sleep", "3600"],
            log_path="main.log",
            linux=cri_pb2.LinuxContainerConfig(
                # The filter of system calls that our containers have too: it is part of
                # what is started, not of who starts it.
                security_context=cri_pb2.LinuxContainerSecurityContext(
                    seccomp=cri_pb2.SecurityProfile(
                        profile_type=cri_pb2.SecurityProfile.RuntimeDefault
                    )
                )
            ),
        )
        started = time.perf_counter()
        run = await runtime.RunPodSandbox(cri_pb2.RunPodSandboxRequest(config=sandbox))
        ran = time.perf_counter()
        self._ids.append(run.pod_sandbox_id)
        created = await runtime.CreateContainer(
            cri_pb2.CreateContainerRequest(
                pod_sandbox_id=run.pod_sandbox_id, config=container, sandbox_config=sandbox
            )
        )
        made = time.perf_counter()
        await runtime.StartContainer(
            cri_pb2.StartContainerRequest(container_id=created.container_id)
        )
        return ran - started, made - ran, time.perf_counter() - made

    async def burst(self, count: int, width: int) -> float:
        """Sandboxes a second for `count` of them with `width` in flight."""
        gate = asyncio.Semaphore(width)

        async def one() -> None:
            async with gate:
                await self.start_one()

        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(count)))
        return count / (time.perf_counter() - started)

    async def clear(self) -> None:
        """Remove everything started so far."""
        gate = asyncio.Semaphore(4)

        async def one(sandbox: str) -> None:
            async with gate:
                await self._client.runtime.StopPodSandbox(
                    cri_pb2.StopPodSandboxRequest(pod_sandbox_id=sandbox)
                )
                await self._client.runtime.RemovePodSandbox(
                    cri_pb2.RemovePodSandboxRequest(pod_sandbox_id=sandbox)
                )

        ids, self._ids = self._ids, []
        await asyncio.gather(*map(one, ids))

    async def until_empty(self) -> None:
        """Wait until the runtime has no sandbox of anybody: a Pod's object that is deleted
        with no grace goes at once, its sandbox only after the two seconds that every
        container gets. Raises TimeoutError after 60 s."""
        async with asyncio.timeout(60):
            everything = cri_pb2.ListPodSandboxRequest()
            # containerd 1.6 tells nobody when a sandbox is gone.
            while (await self._client.runtime.ListPodSandbox(everything)).items:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self.clear()
        await self._client.close()
