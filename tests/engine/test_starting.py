"""How a sandbox comes up, in a kubelet's words."""

from __future__ import annotations

import pytest

from tests.engine.world import SECOND, START, World, make_spec
from vknode.pool.engine import steps
from vknode.pool.engine.newer import newer as taken
from vknode.pool.engine.support import problems
from vknode.pool.engine.wording import go_duration
from vknode.pool.v1 import spec_pb2, status_pb2


def test_image_is_looked_up_while_the_sandbox_is_made() -> None:
    world = World(make_spec())
    kinds = [type(a) for a in world.pending.values()]
    assert kinds == [steps.EnsureImage, steps.RunSandbox]
    assert world.main().state.waiting.reason == "ContainerCreating"
    world.settle()
    status = world.status()
    assert status.state == status_pb2.SANDBOX_STATE_RUNNING
    assert world.main().ready and world.main().started
    assert world.main().container_id == "test://k2"
    assert world.main().image_id == "app:0@sha256:1"
    assert list(status.pod_ips) == ["10.0.0.1"] and status.network_ready
    assert world.said() == ["Pulled", "Created", "Started"]
    assert world.emitted[0].message == (
        'Container image "app:0" already present on machine and can be accessed by the pod'
    )
    assert world.emitted[0].field_path == "spec.containers{c0}"
    phases = status.phases
    for name in ("asked", "images_ready", "sandbox_ready", "containers_started"):
        assert phases.HasField(name)


def test_one_start_at_a_time_but_a_slow_pull_delays_only_its_own_container() -> None:
    world = World(make_spec(mains=3), present={"app:1", "app:2"})
    for op, action in list(world.pending.items()):
        if not (isinstance(action, steps.EnsureImage) and action.container == "c0"):
            world.answer(op)
    starts = [a for a in world.pending.values() if isinstance(a, steps.StartContainer)]
    assert [a.container.name for a in starts] == ["c1"]
    world.answer(starts[0].op)
    starts = [a for a in world.pending.values() if isinstance(a, steps.StartContainer)]
    assert [a.container.name for a in starts] == ["c2"]
    world.settle()
    assert world.starts == ["c1", "c2", "c0"]


def test_a_missing_image_is_pulled_with_a_kubelets_events() -> None:
    world = World(make_spec(), present=set())
    world.answer(1)
    assert world.said() == ["Pulling"]
    world.now += 1_234_000_000
    world.settle()
    assert world.emitted[1].message == (
        'Successfully pulled image "app:0" in 1.234s (1.234s including waiting). '
        "Image size: 0 bytes."
    )


def test_a_failing_pull_backs_off_from_10_s_to_5_min() -> None:
    world = World(make_spec(pull=spec_pb2.IMAGE_PULL_POLICY_ALWAYS))
    gaps = []
    for _ in range(7):
        (pull,) = [a for a in world.pending.values() if isinstance(a, steps.EnsureImage)]
        world.fail(pull.op, "ErrImagePull", "no such host")
        assert world.main().state.waiting.reason == "ErrImagePull"
        assert world.main().state.waiting.message == "no such host"
        began = world.now
        world.pass_time(3 * SECOND)
        waiting = world.main().state.waiting
        assert waiting.reason == "ImagePullBackOff"
        assert waiting.message == ('Back-off pulling image "app:0": ErrImagePull: no such host')
        while not any(isinstance(a, steps.EnsureImage) for a in world.pending.values()):
            assert world.machine.wake_at is not None
            world.pass_time(world.machine.wake_at - world.now)
        gaps.append((world.now - began) // SECOND)
    assert gaps == [10, 20, 40, 80, 160, 300, 300]
    assert world.said()[:5] == ["Pulling", "Failed", "Failed", "BackOff", "Failed"]
    assert [e.message for e in world.emitted[1:5]] == [
        'Failed to pull image "app:0": no such host',
        "Error: ErrImagePull",
        'Back-off pulling image "app:0"',
        "Error: ImagePullBackOff",
    ]


def test_policy_never_waits_for_the_image_to_appear() -> None:
    world = World(make_spec(pull=spec_pb2.IMAGE_PULL_POLICY_NEVER), present=set())
    world.settle()
    assert world.main().state.waiting.reason == "ErrImageNeverPull"
    world.pass_time(60 * SECOND)
    world.settle()
    assert world.said() == ["ErrImageNeverPull", "Failed"]
    world.present.add("app:0")
    world.pass_time(10 * SECOND)
    world.settle()
    assert world.main().state.HasField("running")


def test_an_invalid_image_name_is_said_and_not_tried_again() -> None:
    world = World(make_spec())
    world.fail(1, "InvalidImageName", 'couldn\'t parse image name "A:B:C"', retryable=False)
    world.settle()
    world.pass_time(3600 * SECOND)
    assert world.main().state.waiting.reason == "InvalidImageName"
    assert not world.pending


def test_sandbox_creation_is_tried_again_until_it_works() -> None:
    world = World(make_spec())
    for _ in range(6):
        (op,) = [o for o, a in world.pending.items() if isinstance(a, steps.RunSandbox)]
        world.fail(op, "FailedCreatePodSandBox", "no IP left")
        world.settle()
        assert world.status().state == status_pb2.SANDBOX_STATE_CREATING
        assert world.machine.wake_at is not None
        assert world.machine.wake_at - world.now <= 10 * SECOND
        world.pass_time(world.machine.wake_at - world.now)
    assert world.said().count("FailedCreatePodSandBox") == 6
    assert "Failed to create pod sandbox: no IP left" in [e.message for e in world.emitted]
    world.settle()
    assert world.status().state == status_pb2.SANDBOX_STATE_RUNNING
    assert world.status().reason == ""


def test_a_sandbox_that_can_never_be_made_fails() -> None:
    world = World(make_spec())
    (op,) = [o for o, a in world.pending.items() if isinstance(a, steps.RunSandbox)]
    world.fail(op, "FailedCreatePodSandBox", "no such handler", retryable=False)
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED
    assert world.status().message == "no such handler"


def test_init_containers_run_in_order_and_each_to_its_end() -> None:
    world = World(make_spec(inits=2, mains=2))
    assert world.main().state.waiting.reason == "PodInitializing"
    world.settle()
    assert world.starts == ["i0"]
    assert world.status().state == status_pb2.SANDBOX_STATE_STARTING
    world.crash("i0", 0)
    assert world.starts == ["i0", "i1"] and not world.status().initialized
    world.crash("i1", 0)
    assert world.starts == ["i0", "i1", "c0", "c1"]
    status = world.status()
    assert status.initialized
    assert [c.state.terminated.reason for c in status.init_containers] == ["Completed"] * 2
    assert all(c.ready for c in status.init_containers)
    paths = {e.field_path for e in world.emitted}
    assert "spec.initContainers{i0}" in paths


@pytest.mark.parametrize(
    "policy", [spec_pb2.RESTART_POLICY_ALWAYS, spec_pb2.RESTART_POLICY_ON_FAILURE]
)
def test_a_failing_init_container_is_run_again_with_back_off(
    policy: spec_pb2.RestartPolicy.ValueType,
) -> None:
    world = World(make_spec(inits=1, policy=policy))
    world.settle()
    world.crash("i0", 1)  # the first restart is immediate
    world.crash("i0", 1)
    init = world.status().init_containers[0]
    assert init.state.waiting.reason == "CrashLoopBackOff"
    world.pass_time(10 * SECOND)
    world.settle()
    world.crash("i0", 0)
    assert world.starts == ["i0", "i0", "i0", "c0"]
    assert world.status().init_containers[0].restart_count == 2


def test_a_failing_init_container_ends_a_pod_that_never_restarts() -> None:
    world = World(make_spec(inits=1, policy=spec_pb2.RESTART_POLICY_NEVER))
    world.settle()
    world.crash("i0", 3)
    assert world.status().state == status_pb2.SANDBOX_STATE_FAILED
    assert world.status().init_containers[0].state.terminated.exit_code == 3
    assert world.starts == ["i0"]
    assert not world.sandbox_alive  # its network is given back
    assert world.status().containers[0].state.waiting.reason == "PodInitializing"


def test_root_is_refused_where_the_pod_forbids_it() -> None:
    spec = make_spec()
    spec.containers[0].security.run_as_non_root = True
    spec.containers[0].security.run_as_user = 0
    world = World(spec)
    world.settle()
    waiting = world.main().state.waiting
    assert waiting.reason == "CreateContainerConfigError"
    assert waiting.message == (
        'container\'s runAsUser breaks non-root policy (pod: "web_default(u1)", container: c0)'
    )
    assert world.starts == []


def test_a_container_without_its_environment_waits_and_the_others_run() -> None:
    spec = make_spec(mains=2)
    spec.containers[0].config_error = 'configmap "x" not found'
    world = World(spec)
    world.settle()
    assert world.starts == ["c1"]
    assert world.main().state.waiting.reason == "CreateContainerConfigError"
    assert world.main().state.waiting.message == 'configmap "x" not found'
    newer = spec_pb2.SandboxSpec()
    newer.CopyFrom(spec)
    newer.containers[0].config_error = ""
    newer.containers[0].env.add(name="A", value="b")
    assert taken(spec, newer) == (newer, [])
    world.spec = newer
    world.feed(steps.Update(newer))
    world.settle()
    assert world.starts == ["c1", "c0"]


def test_a_new_image_replaces_the_running_container() -> None:
    spec = make_spec()
    world = World(spec)
    world.settle()
    newer = spec_pb2.SandboxSpec()
    newer.CopyFrom(spec)
    newer.containers[0].image = "app:1"
    newer.generation = 2
    assert taken(spec, newer) == (newer, [])
    world.spec = newer
    world.feed(steps.Update(newer))
    (stop,) = [a for a in world.pending.values() if isinstance(a, steps.StopContainer)]
    assert stop.grace_seconds == 30
    world.settle()
    assert world.main().image == "app:1" and world.main().restart_count == 1
    assert world.status().observed_generation == 2
    assert "Container c0 definition changed, will be restarted" in [
        e.message for e in world.emitted
    ]


def test_changed_volume_content_reaches_the_runtime_once() -> None:
    spec = make_spec()
    spec.volumes.add(name="v").files.files.add(path="a", content=b"1")
    world = World(spec)
    world.settle()
    newer = spec_pb2.SandboxSpec()
    newer.CopyFrom(spec)
    newer.volumes[0].files.files[0].content = b"2"
    assert taken(spec, newer) == (newer, [])
    world.spec = newer
    world.feed(steps.Update(newer))
    (update,) = world.pending.values()
    assert isinstance(update, steps.UpdateSandbox)
    assert update.old is spec and update.new is newer
    world.settle()
    world.pass_time(100 * SECOND)
    assert not world.pending


def test_what_no_pool_can_do_is_named() -> None:
    spec = make_spec(inits=1, mains=2)
    spec.init_containers[0].liveness_probe.handler.sleep.seconds = 1
    spec.containers[0].readiness_probe.period_seconds = 1
    spec.containers[1].pre_stop.tcp_socket.port = 1
    spec.containers[1].post_start.sleep.seconds = 0
    assert [p.path for p in problems(spec)] == [
        "init_containers[0].liveness_probe.handler",
        "containers[0].readiness_probe.handler",
        "containers[1].pre_stop",
    ]
    assert problems(make_spec(inits=2, sidecars=1, mains=2)) == []


def test_the_runtime_being_away_costs_no_failure() -> None:
    world = World(make_spec())
    world.settle()
    world.crash("c0", 1)
    world.feed(steps.RuntimeLost())
    world.end(world.running("c0")[0], 1)
    world.queue.clear()  # the runtime restarted: the exit was never told
    world.pass_time(3600 * SECOND)
    assert not world.pending and world.main().state.HasField("running")
    world.now += 1
    world.observe()
    world.settle()
    assert world.main().restart_count == 2
    assert world.machine._facts.now > START


def test_a_lost_start_that_worked_is_adopted() -> None:
    world = World(make_spec())
    world.answer(1)
    world.answer(2)
    (op,) = world.pending
    world.lose(op, carried_out=True)
    assert world.observe_wanted
    world.settle()
    assert world.main().state.HasField("running") and world.main().restart_count == 0
    assert world.starts == ["c0"]


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0s"),
        (350, "350ms"),
        (10_000, "10s"),
        (1_200, "1.2s"),
        (80_000, "1m20s"),
        (300_000, "5m0s"),
        (3_723_004, "1h2m3.004s"),
    ],
)
def test_durations_read_as_gos(milliseconds: int, text: str) -> None:
    assert go_duration(milliseconds * 1_000_000) == text
