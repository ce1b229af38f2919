"""One action of a machine as one call on a Runtime, its outcome as one event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from vknode.pool.engine import steps
from vknode.pool.engine.machine import SandboxMachine
from vknode.pool.runtimes.base import Failure, ProbeOutcome, ProbeResult, Runtime, RuntimeAway

log = structlog.get_logger()

Call = (
    steps.EnsureImage
    | steps.RunSandbox
    | steps.StartContainer
    | steps.StopContainer
    | steps.RemoveContainer
    | steps.Probe
    | steps.RunHook
    | steps.ResizeContainer
    | steps.ResizeSandbox
    | steps.UpdateSandbox
    | steps.StopSandbox
    | steps.RemoveSandbox
)


Answer = TypeVar("Answer")
# How often a probe is asked that could not be asked, as a kubelet does (maxProbeRetries).
_PROBE_TRIES = 3


async def prepare(runtime: Runtime, machine: SandboxMachine, action: Call) -> steps.Failed | None:
    """What a start must wait for before its turn; None: it may begin. Raises only
    CancelledError."""
    if isinstance(action, steps.StartContainer):
        pending = runtime.prepare(
            machine.spec, action.container, action.attempt, action.sandbox.ips
        )
    elif isinstance(action, steps.RunSandbox):
        pending = runtime.prepare(machine.spec, None, action.attempt)
    else:
        return None
    return await _told(machine.uid, action, pending)


async def carry_out(
    runtime: Runtime, machine: SandboxMachine, action: Call, clock: Callable[[], int]
) -> steps.Event:
    """The answer to `action`, failures included. Raises only CancelledError."""
    return await _told(machine.uid, action, _ask(runtime, machine, action, clock))


async def _told(uid: str, action: Call, pending: Awaitable[Answer]) -> Answer | steps.Failed:
    try:
        return await pending
    except RuntimeAway as error:
        return steps.Failed(action.op, error.reason, error.message, away=True)
    except Failure as error:
        # A quick look that finds no image is no trouble.
        if not (isinstance(action, steps.EnsureImage) and error.reason == "ErrImageNeverPull"):
            log.info(
                "runtime_call_failed",
                uid=uid,
                call=type(action).__name__,
                reason=error.reason,
                retryable=error.retryable,
            )
        return steps.Failed(action.op, error.reason, error.message, error.retryable)
    except Exception as error:  # a defect in a runtime must not stop this sandbox for ever
        log.error("runtime_defect", uid=uid, call=type(action).__name__, exc_info=error)
        text = f"the runtime has a defect ({type(error).__name__})"
        return steps.Failed(action.op, "RuntimeError", text)


async def _ask(
    runtime: Runtime, machine: SandboxMachine, action: Call, clock: Callable[[], int]
) -> steps.Event:
    spec, op = machine.spec, action.op
    if isinstance(action, steps.StartContainer):
        started = await runtime.start_container(
            spec, action.container, action.sandbox, action.image, action.attempt
        )
        return steps.Started(op, started)
    if isinstance(action, steps.Probe):
        return steps.Probed(op, await _probe(runtime, action))
    if isinstance(action, steps.RunSandbox):
        return steps.SandboxReady(op, await runtime.run_sandbox(spec, action.attempt))
    if isinstance(action, steps.EnsureImage):
        began = clock()
        image = await runtime.ensure_image(
            action.reference, action.policy, list(spec.registry_credentials)
        )
        return steps.ImageReady(op, image, began)
    if isinstance(action, steps.StopContainer):
        await runtime.stop_container(action.ref, action.grace_seconds)
    elif isinstance(action, steps.RemoveContainer):
        await runtime.remove_container(action.ref, keep_log=action.keep_log)
    elif isinstance(action, steps.RunHook):
        await runtime.hook(action.ref, action.ips, action.handler, action.timeout_seconds)
    elif isinstance(action, steps.ResizeContainer):
        await runtime.resize_container(spec, action.container, action.ref)
    elif isinstance(action, steps.ResizeSandbox):
        await runtime.resize_sandbox(action.spec)
    elif isinstance(action, steps.UpdateSandbox):
        await runtime.update_sandbox(action.old, action.new)
    elif isinstance(action, steps.StopSandbox):
        await runtime.stop_sandbox(machine.uid)
    else:
        await runtime.remove_sandbox(machine.uid)
    return steps.Done(op)


async def _probe(runtime: Runtime, action: steps.Probe) -> ProbeOutcome:
    """One answer; at once another try where the question could not be asked."""
    for left in reversed(range(_PROBE_TRIES)):
        outcome = await runtime.probe(
            action.ref, action.ips, action.handler, action.timeout_seconds
        )
        if outcome.result is not ProbeResult.ERROR or not left:
            return outcome
    raise AssertionError("unreachable")
