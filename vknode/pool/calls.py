"""One action of a machine as one call on a Runtime, its outcome as one event."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from vknode.pool.engine import steps
from vknode.pool.engine.machine import SandboxMachine
from vknode.pool.runtimes.base import Failure, Runtime, RuntimeAway

log = structlog.get_logger()

Call = (
    steps.EnsureImage
    | steps.RunSandbox
    | steps.StartContainer
    | steps.StopContainer
    | steps.RemoveContainer
    | steps.UpdateSandbox
    | steps.StopSandbox
    | steps.RemoveSandbox
)


async def carry_out(
    runtime: Runtime, machine: SandboxMachine, action: Call, clock: Callable[[], int]
) -> steps.Event:
    """The answer to `action`, failures included. Raises only CancelledError."""
    uid = machine.uid
    try:
        return await _ask(runtime, machine, action, clock)
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
    elif isinstance(action, steps.UpdateSandbox):
        await runtime.update_sandbox(action.old, action.new)
    elif isinstance(action, steps.StopSandbox):
        await runtime.stop_sandbox(machine.uid)
    else:
        await runtime.remove_sandbox(machine.uid)
    return steps.Done(op)
