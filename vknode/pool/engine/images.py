"""The images of containers: what looks and pulls have brought, and the next pull."""

from __future__ import annotations

from vknode.pool.engine import steps, wording
from vknode.pool.engine.backoff import SECOND
from vknode.pool.engine.container import ContainerRecord, ImageStage
from vknode.pool.engine.facts import SandboxFacts
from vknode.pool.v1 import spec_pb2

# ErrImagePull is shown this long before it reads ImagePullBackOff.
_PULL_ERROR_SHOWN = 2 * SECOND
_NEVER_PULL_RETRY = 10 * SECOND


def ready(facts: SandboxFacts, event: steps.ImageReady) -> None:
    record = _record(facts, event.op)
    if record is None:
        return
    work, image = record.work, event.image
    if work.stage is ImageStage.PULLING:
        began = event.began or work.asked_at
        text = wording.image_pulled(
            record.spec.image, facts.now - began, facts.now - work.asked_at, image.size
        )
    else:
        text = wording.image_present(record.spec.image)
    facts.event("Pulled", text, container=record.name)
    if work.reason:
        facts.touch()
    work.stage, work.op, work.image = ImageStage.READY, 0, image
    work.reason = work.message = ""
    work.retry_at = work.backs_off_at = None


def failed(facts: SandboxFacts, event: steps.Failed) -> None:
    """A look or a pull has failed."""
    record = _record(facts, event.op)
    if record is None:
        return
    work, name, now = record.work, record.name, facts.now
    if event.away:
        work.drop()
        facts.hold_still()
        return
    looking = work.stage is ImageStage.LOOKING
    policy = record.spec.image_pull_policy
    if looking and event.reason == wording.ERR_IMAGE_NEVER_PULL:
        if policy != spec_pb2.IMAGE_PULL_POLICY_NEVER:
            pull(facts, record)
            return
        quiet = work.reason == event.reason
        work.retry_at = now + _NEVER_PULL_RETRY
        if not quiet:
            facts.event(event.reason, event.message, warning=True, container=name)
    elif event.reason == "InvalidImageName":
        quiet, work.retry_at = False, None
        facts.event("InspectFailed", event.message, warning=True, container=name)
    else:
        quiet = False
        work.retry_at = work.backoff.failed(now)
        work.backs_off_at = min(now + _PULL_ERROR_SHOWN, work.retry_at)
        text = f"Failed to pull image {wording.quoted(record.spec.image)}: {event.message}"
        facts.event("Failed", text, warning=True, container=name)
    if not quiet:
        facts.event("Failed", f"Error: {event.reason}", warning=True, container=name)
    work.stage, work.op = ImageStage.FAILED, 0
    work.reason, work.message = event.reason, event.message
    facts.touch()


def pull(facts: SandboxFacts, record: ContainerRecord) -> None:
    """Ask for the image itself; with policy ALWAYS even where one is present."""
    work = record.work
    facts.event(
        "Pulling", f"Pulling image {wording.quoted(record.spec.image)}", container=record.name
    )
    work.stage = ImageStage.PULLING
    work.asked_at = facts.now
    work.op = facts.new_op("image", record.name)
    facts.act(
        steps.EnsureImage(work.op, record.name, record.spec.image, record.spec.image_pull_policy)
    )


def _record(facts: SandboxFacts, op: int) -> ContainerRecord | None:
    target = facts.ops.pop(op, None)
    if target is None or target.kind != "image":
        return None
    record = facts.containers[target.container]
    return record if record.work.op == op else None
