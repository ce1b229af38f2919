"""Bringing containers up: image, sandbox, start, post-start hook.

One container is started at a time, the first that can, as a kubelet goes through them; the
next one waits for the post-start hook of the one before, too.
"""

from __future__ import annotations

from vknode.pool.engine import steps, wording
from vknode.pool.engine.absorb import has_come_up
from vknode.pool.engine.container import ContainerRecord, HookStage, ImageStage, Stage
from vknode.pool.engine.facts import SandboxFacts, SandboxStage
from vknode.pool.engine.images import pull
from vknode.pool.engine.stopping import take_hook_on
from vknode.pool.v1 import spec_pb2


def prepare_image(facts: SandboxFacts, record: ContainerRecord) -> None:
    work = record.work
    if work.stage is ImageStage.FAILED:
        if work.retry_at is None:
            return
        if facts.now < work.retry_at:
            facts.wake_by(work.retry_at)
            _show_back_off(facts, record)
            return
    elif work.stage is not ImageStage.NONE or record.spec.config_error:
        return
    # What was said stays said until there is something better to say.
    if record.spec.image_pull_policy == spec_pb2.IMAGE_PULL_POLICY_ALWAYS:
        pull(facts, record)
        return
    work.stage = ImageStage.LOOKING
    work.asked_at = facts.now
    work.op = facts.new_op("image", record.name)
    facts.act(
        steps.EnsureImage(work.op, record.name, record.spec.image, spec_pb2.IMAGE_PULL_POLICY_NEVER)
    )


def _show_back_off(facts: SandboxFacts, record: ContainerRecord) -> None:
    work = record.work
    if work.backs_off_at is None:
        return
    if facts.now < work.backs_off_at:
        facts.wake_by(work.backs_off_at)
        return
    work.backs_off_at = None
    text = f"Back-off pulling image {wording.quoted(record.spec.image)}"
    work.message = f"{text}: {work.reason}: {work.message}"
    work.reason = wording.IMAGE_BACK_OFF
    facts.event("BackOff", text, container=record.name)
    facts.event("Failed", f"Error: {work.reason}", warning=True, container=record.name)
    facts.touch()


def create_sandbox(facts: SandboxFacts) -> None:
    if facts.sandbox_retry_at is not None and facts.now < facts.sandbox_retry_at:
        facts.wake_by(facts.sandbox_retry_at)
        return
    facts.stage = SandboxStage.CREATING
    facts.sandbox_op = facts.new_op("run")
    facts.update_from = None
    facts.in_force = facts.spec.resources
    facts.act(steps.RunSandbox(facts.sandbox_op, facts.attempt))


def start_one(facts: SandboxFacts, turn: list[ContainerRecord]) -> None:
    """At most one start at a time, the first that can, as a kubelet goes through them."""
    if any(
        c.stage in (Stage.STARTING, Stage.UNSURE, Stage.CLEARING)
        or c.post_start.stage is not HookStage.NONE
        for c in facts.containers.values()
    ):
        return
    assert facts.sandbox is not None
    for record in turn:
        work = record.work
        if record.stage is not Stage.IDLE or work.stage is not ImageStage.READY:
            continue
        if record.held or record.spec.config_error:
            continue
        if record.retry_at is not None and facts.now < record.retry_at:
            facts.wake_by(record.retry_at)
            continue
        assert work.image is not None
        problem = wording.not_root_problem(
            facts.spec, record.spec, work.image.uid, work.image.username
        )
        if problem:
            record.held = True
            record.wait(wording.CONFIG_ERROR, problem)
            facts.event("Failed", f"Error: {problem}", warning=True, container=record.name)
            facts.touch()
            continue
        record.stage = Stage.STARTING
        # Specs are never written to, only replaced.
        record.in_force, record.in_force_pod = record.spec.resources, facts.spec.resources
        record.starting, record.starting_reference = work.image, record.spec.image
        record.op = facts.new_op("start", record.name)
        facts.act(
            steps.StartContainer(record.op, record.spec, facts.sandbox, work.image, record.attempt)
        )
        return


def run_post_start(facts: SandboxFacts, record: ContainerRecord) -> None:
    """Takes the post-start hook of a running instance on; then it counts as running."""
    if record.stage is not Stage.RUNNING or record.post_start.stage is HookStage.NONE:
        return
    handler = record.spec.post_start
    if take_hook_on(facts, record, record.post_start, handler, "post_start", None):
        has_come_up(facts, record)
