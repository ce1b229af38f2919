"""What a node refuses, with a kubelet's reasons and words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.translate.builders import Json, pod
from vknode.agent.node_loads import NodeLoads
from vknode.translate.admission import Load, Refused, admit, load_of
from vknode.translate.nodeaffinity import NodeView

ROOM = {
    "cpu": "4",
    "memory": "8Gi",
    "ephemeral-storage": "10Gi",
    "pods": "3",
    "example.com/gpu": "1",
}
NODE = NodeView("n1", {"kubernetes.io/os": "linux", "disk": "ssd", "gen": "7"}, (), ROOM)


def refused(one: Json, *others: Load, node: NodeView = NODE) -> Refused | None:
    loads = NodeLoads()
    loads.begin("n1", ((f"u{number}", load) for number, load in enumerate(others)))
    return admit(one, load_of(one), loads.used("n1"), node)


def asking(**requests: str) -> Json:
    named = {name.replace("_", "-"): amount for name, amount in requests.items()}
    return pod({"containers": [{"name": "w", "image": "i", "resources": {"requests": named}}]})


def test_what_fits_is_taken() -> None:
    half = load_of(asking(cpu="2", memory="4Gi"))
    assert refused(asking(cpu="2", memory="4Gi", ephemeral_storage="10Gi"), half) is None
    assert refused(pod(), half, half) is None


@pytest.mark.parametrize(
    ("requests", "reason", "numbers"),
    [
        ({"cpu": "2001m"}, "OutOfcpu", "cpu, requested: 2001, used: 2000, capacity: 4000"),
        (
            {"memory": "7Gi", "cpu": "1"},
            "OutOfmemory",
            "memory, requested: 7516192768, used: 2147483648, capacity: 8589934592",
        ),
        (
            {"ephemeral_storage": "11Gi"},
            "OutOfephemeral-storage",
            "ephemeral-storage, requested: 11811160064, used: 0, capacity: 10737418240",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_numbers(
    requests: dict[str, str], reason: str, numbers: str
) -> None:
    there = load_of(asking(cpu="2", memory="2Gi"))
    assert refused(asking(**requests), there) == Refused(
        reason, f"Node didn't have enough resource: {numbers}"
    )


def test_places_for_pods_come_first() -> None:
    one = load_of(pod())
    assert refused(asking(cpu="9"), one, one, one) == Refused(
        "OutOfpods", "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"
    )


def test_resources_of_other_names() -> None:
    def gpus(count: str, name: str = "example.com/gpu") -> Json:
        resources = {"requests": {name: count}, "limits": {name: count}}
        return pod({"containers": [{"name": "w", "image": "i", "resources": resources}]})

    assert refused(gpus("1")) is None
    answer = refused(gpus("1"), load_of(gpus("1")))
    assert answer is not None
    assert answer.reason == "OutOfexample.com/gpu"
    answer = refused(gpus("2", "example.com/none"))
    assert answer is not None
    assert answer.message.endswith("example.com/none, requested: 2, used: 0, capacity: 0")


def test_init_containers_overhead_and_pod_level_count() -> None:
    assert load_of(
        pod(
            """
            overhead: {cpu: 10m}
            initContainers:
            - {name: side, image: i, restartPolicy: Always, resources: {requests: {cpu: 100m}}}
            - {name: setup, image: i, resources: {requests: {cpu: '1', memory: 1Gi}}}
            containers: [{name: w, image: i, resources: {requests: {cpu: 500m, memory: 1Mi}}}]
            """
        )
    ) == Load(1110, 1 << 30, 0)
    whole = pod("resources: {requests: {cpu: '3'}}\ncontainers: [{name: w, image: i}]")
    assert load_of(whole).milli_cpu == 3000


def ports(*entries: str) -> Json:
    return pod(f"containers: [{{name: w, image: i, ports: [{', '.join(entries)}]}}]")


@pytest.mark.parametrize(
    ("wanted", "there", "free"),
    [
        ("{containerPort: 80, hostPort: 80}", "{containerPort: 80, hostPort: 80}", False),
        ("{containerPort: 80, hostPort: 81}", "{containerPort: 80, hostPort: 80}", True),
        (
            "{containerPort: 80, hostPort: 80, protocol: UDP}",
            "{containerPort: 80, hostPort: 80}",
            True,
        ),
        (
            "{containerPort: 80, hostPort: 80, hostIP: 10.0.0.1}",
            "{containerPort: 80, hostPort: 80}",
            False,
        ),
        (
            "{containerPort: 80, hostPort: 80, hostIP: 10.0.0.1}",
            "{containerPort: 80, hostPort: 80, hostIP: 10.0.0.2}",
            True,
        ),
    ],
)
def test_ports_of_the_host(wanted: str, there: str, free: bool) -> None:
    answer = refused(ports(wanted), load_of(ports(there)))
    if free:
        assert answer is None
    else:
        words = "node(s) didn't have free ports for the requested pod ports"
        assert answer == Refused("NodePorts", f"Predicate NodePorts failed: {words}")


def affinity(*terms: str) -> str:
    return (
        "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: "
        f"{{nodeSelectorTerms: [{', '.join(terms)}]}}}}}}"
    )


@pytest.mark.parametrize(
    ("spec", "matches"),
    [
        ("nodeSelector: {disk: ssd}", True),
        ("nodeSelector: {disk: ssd, rack: a}", False),
        (affinity("{matchExpressions: [{key: disk, operator: In, values: [hdd, ssd]}]}"), True),
        (affinity("{matchExpressions: [{key: disk, operator: NotIn, values: [ssd]}]}"), False),
        (affinity("{matchExpressions: [{key: rack, operator: NotIn, values: [a]}]}"), True),
        (affinity("{matchExpressions: [{key: gen, operator: Gt, values: ['6']}]}"), True),
        (affinity("{matchExpressions: [{key: gen, operator: Lt, values: ['7']}]}"), False),
        (affinity("{matchExpressions: [{key: disk, operator: Lt, values: ['7']}]}"), False),
        (affinity("{matchExpressions: [{key: rack, operator: DoesNotExist}]}"), True),
        (affinity("{matchFields: [{key: metadata.name, operator: In, values: [n1]}]}"), True),
        (affinity("{matchFields: [{key: metadata.name, operator: NotIn, values: [n1]}]}"), False),
        (affinity("{}"), False),
        (
            affinity(
                "{matchExpressions: [{key: rack, operator: Exists}]}",
                "{matchExpressions: [{key: disk, operator: Exists}]}",
            ),
            True,
        ),
    ],
)
def test_selectors_and_affinity(spec: str, matches: bool) -> None:
    answer = refused(pod(spec))
    if matches:
        assert answer is None
    else:
        assert answer == Refused(
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
            by_labels=True,
        )


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ("", False),
        ("{operator: Exists}", True),
        ("{key: k, operator: Exists, effect: NoExecute}", True),
        ("{key: k, value: v}", True),
        ("{key: k, value: w}", False),
        ("{key: k, operator: Exists, effect: NoSchedule}", False),
        ("{key: k, operator: Gt, value: '1'}", False),
    ],
)
def test_taints_that_evict(toleration: str, tolerated: bool) -> None:
    taints: Any = [
        {"key": "k", "value": "v", "effect": "NoExecute"},
        {"key": "other", "effect": "NoSchedule"},  # the scheduler's matter
    ]
    node = NodeView("n1", NODE.labels, taints, ROOM)
    answer = refused(pod(f"tolerations: [{toleration}]"), node=node)
    if tolerated:
        assert answer is None
    else:
        assert answer == Refused(
            "TaintToleration",
            "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
        )


def test_other_operating_systems() -> None:
    assert refused(pod("os: {name: linux}")) is None
    assert refused(pod("os: {name: windows}")) == Refused(
        "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"
    )
    answer = refused(pod(labels={"kubernetes.io/os": "windows"}))
    assert answer is not None
    assert answer.reason == "PodOSSelectorNodeLabelDoesNotMatch"


@pytest.mark.parametrize(("keeps", "taken"), [(True, True), (None, True), (False, False)])
def test_a_strict_policy_for_groups(keeps: bool | None, taken: bool) -> None:
    node = NodeView("n1", NODE.labels, (), ROOM, keeps)
    assert refused(pod("securityContext: {supplementalGroupsPolicy: Merge}"), node=node) is None
    answer = refused(pod("securityContext: {supplementalGroupsPolicy: Strict}"), node=node)
    assert (answer is None) is taken
    if answer is not None:
        assert answer.reason == "SupplementalGroupsPolicyNotSupported"
        assert answer.message == "SupplementalGroupsPolicy=Strict is not supported in this node"


@pytest.mark.parametrize(
    ("spec", "name", "namespace"),
    [
        ("hostNetwork: true", "net.ipv4.tcp_syncookies", "net"),
        ("hostIPC: true", "kernel.shm_rmid_forced", "ipc"),
    ],
)
def test_sysctls_of_a_namespace_that_is_the_hosts(spec: str, name: str, namespace: str) -> None:
    sysctls = f"securityContext: {{sysctls: [{{name: {name}, value: '1'}}]}}"
    assert refused(pod(sysctls)) is None
    assert refused(pod(f"{spec}\n{sysctls}")) == Refused(
        "SysctlForbidden",
        f'forbidden sysctl: "{name}" not allowed with host {namespace} enabled',
    )


def test_a_cell_that_is_not_known_yet_refuses_nobody() -> None:
    assert refused(asking(cpu="99"), node=NodeView("n1")) is None


def test_what_leaves_makes_room_and_ports_free() -> None:
    loads = NodeLoads()
    one = ports("{containerPort: 80, hostPort: 80}")
    loads.begin("n1", [("a", load_of(one))])
    loads.set("n1", "b", load_of(asking(cpu="1")))
    loads.set("n1", "b", load_of(asking(cpu="3")))
    assert (loads.used("n1").pods, loads.used("n1").milli_cpu) == (2, 3000)
    loads.drop("n1", "a")
    loads.drop("n1", "b")
    loads.drop("n1", "b")
    used = loads.used("n1")
    assert (used.pods, used.milli_cpu, dict(used.ports)) == (0, 0, {})
    loads.set("n2", "c", load_of(one))  # nobody asked for that node
    assert not loads.is_begun("n2")
