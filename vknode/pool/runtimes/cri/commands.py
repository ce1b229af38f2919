"""Commands run to their end in a container: exec probes, exec hooks.

The words are those of a kubelet over CRI (k8s.io/cri-client's ExecSync, pkg/probe/exec,
pkg/kubelet/lifecycle/handlers.go).
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio

from vknode.pool.probes import gowords
from vknode.pool.probes.turnstile import Turnstile
from vknode.pool.runtimes.cri.client import CriClient
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import (
    ContainerRef,
    Failure,
    ProbeOutcome,
    ProbeResult,
    RuntimeAway,
)

_MAX_OUTPUT = 10 * 1024
# Asked of ExecSync beyond the command's own limit, for the runtime to kill it.
_SLACK = 10.0
# Each begins a process in the container, some 50 ms of CPU.
_WIDTH = 8


class CommandFailed(Exception):
    """It could not be run, or not to its end; the text is the CRI client's."""

    def __init__(self, text: str, *, late: bool = False, missing: bool = False) -> None:
        super().__init__(text)
        self.late = late
        self.missing = missing


class Commands:
    def __init__(self, client: CriClient) -> None:
        self._client = client
        self._turnstile = Turnstile(_WIDTH)

    async def exec_sync(
        self, ref: ContainerRef, command: Sequence[str], timeout_seconds: float
    ) -> tuple[int, bytes]:
        """As `Runtime.exec_sync`."""
        try:
            answer = await self._run(ref, command, timeout_seconds)
        except CommandFailed as failed:
            if failed.late:
                raise Failure("DeadlineExceeded", str(failed)) from None
            reason = "NotFound" if failed.missing else "ExecFailed"
            raise Failure(reason, str(failed), retryable=not failed.missing) from None
        return answer.exit_code, _output(answer)

    async def probe(
        self, ref: ContainerRef, command: Sequence[str], timeout_seconds: float
    ) -> ProbeOutcome:
        async with self._turnstile.entry():
            try:
                answer = await self._run(ref, command, timeout_seconds)
            except CommandFailed as failed:
                result = ProbeResult.FAILURE if failed.late else ProbeResult.ERROR
                return ProbeOutcome(result, str(failed))
        result = ProbeResult.SUCCESS if answer.exit_code == 0 else ProbeResult.FAILURE
        return ProbeOutcome(result, _output(answer).decode(errors="replace"))

    async def hook(self, ref: ContainerRef, command: Sequence[str], pod: str) -> None:
        """To its end, however long it takes. `pod` is for the text. Raises Failure."""
        async with self._turnstile.entry():
            output = b""
            try:
                answer = await self._run(ref, command, 0)
            except CommandFailed as failed:
                error = str(failed)
            else:
                if answer.exit_code == 0:
                    return
                said = answer.stderr[:_MAX_OUTPUT].decode(errors="replace")
                error = f"command '{' '.join(command)}' exited with {answer.exit_code}: {said}"
                output = _output(answer)
        raise Failure(
            "HookFailed",
            f"Exec lifecycle hook ([{' '.join(command)}]) for Container "
            f"{gowords.quote(ref.name)} in Pod {gowords.quote(pod)} failed - error: {error}, "
            f"message: {gowords.quote(output.decode(errors='surrogateescape'))}",
        )

    async def _run(
        self, ref: ContainerRef, command: Sequence[str], timeout_seconds: float
    ) -> cri_pb2.ExecSyncResponse:
        """`timeout_seconds` 0: none. Raises CommandFailed, RuntimeAway; a cancelled call
        ends the command."""
        # CRI counts whole seconds.
        seconds = max(1, round(timeout_seconds)) if timeout_seconds > 0 else 0
        request = cri_pb2.ExecSyncRequest(container_id=ref.id, cmd=command, timeout=seconds)
        try:
            return await self._client.runtime.ExecSync(
                request, timeout=seconds + _SLACK if seconds else None
            )
        except grpc.aio.AioRpcError as error:
            text, code = error.details() or "", error.code()
            if code == grpc.StatusCode.UNAVAILABLE:
                raise RuntimeAway(
                    f"the container runtime at {self._client.endpoint} cannot be reached"
                ) from None
            # Older runtimes say it in words only.
            if code == grpc.StatusCode.DEADLINE_EXCEEDED or (
                "timeout" in text and "exceeded" in text
            ):
                raise CommandFailed(
                    f"command timed out: {gowords.quote(' '.join(command))} timed out after "
                    f"{gowords.duration(seconds)}",
                    late=True,
                ) from None
            raise CommandFailed(
                f"rpc error: code = {_go_name(code)} desc = {text}",
                missing=code == grpc.StatusCode.NOT_FOUND,
            ) from None


def _output(answer: cri_pb2.ExecSyncResponse) -> bytes:
    return (answer.stdout[:_MAX_OUTPUT] + answer.stderr[:_MAX_OUTPUT])[:_MAX_OUTPUT]


def _go_name(code: grpc.StatusCode) -> str:
    if code == grpc.StatusCode.CANCELLED:
        return "Canceled"
    return code.name.title().replace("_", "")
