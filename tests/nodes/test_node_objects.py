"""The Node says what the cell says, and a patch is made only when something differs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from tests.nodes.cells import cell
from vknode.agent.config import Taint
from vknode.agent.node_objects import (
    DECLARED_FEATURES,
    DesiredNode,
    NodeSettings,
    ObservedNode,
    Readiness,
    cell_problems,
    cell_readiness,
    create_body,
    decode_node,
    desired_node,
    metadata_patch,
    refused_labels,
    status_patch,
)
from vknode.pool.v1 import cell_pb2

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
SETTINGS = NodeSettings(
    "vknode", "10.0.0.9", 10250, {"team": "a"}, (Taint("k", "v", "NoSchedule"),)
)


def desired(c: cell_pb2.Cell | None = None, readiness: Readiness | None = None) -> DesiredNode:
    c = c or cell("c1")
    return desired_node(c.name, "az1", c, SETTINGS, readiness or cell_readiness(c))


def stored(node: DesiredNode, **changes: Any) -> ObservedNode:
    """The Node as the API server would have it after POST."""
    document = json.loads(create_body(node, NOW))
    document["metadata"] |= {"uid": "u1", "resourceVersion": "5"}
    for path, value in changes.items():
        place, key = document, path.split("__")
        for part in key[:-1]:
            place = place[part]
        place[key[-1]] = value
    return decode_node(msgspec.Raw(json.dumps(document).encode()))


def test_registration_carries_everything_a_kubelet_would() -> None:
    node = json.loads(create_body(desired(), NOW))
    labels = node["metadata"]["labels"]
    assert labels["kubernetes.io/hostname"] == "c1"
    assert labels["topology.kubernetes.io/zone"] == "az1"
    assert labels["topology.kubernetes.io/region"] == "here"
    assert labels["kubernetes.io/os"] == "linux" and labels["kubernetes.io/arch"] == "amd64"
    assert labels["type"] == "virtual-kubelet"
    assert labels["vknode.dev/managed-by"] == "vknode" and labels["team"] == "a"
    assert node["spec"]["providerID"] == "vknode://az1/c1"
    assert node["spec"]["taints"] == [{"key": "k", "value": "v", "effect": "NoSchedule"}]
    status = node["status"]
    assert {"type": "InternalIP", "address": "10.0.0.9"} in status["addresses"]
    assert status["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 10250
    assert status["declaredFeatures"] == list(DECLARED_FEATURES)
    assert status["nodeInfo"]["kubeletVersion"].startswith("v1.37.2+vknode")
    assert [c["type"] for c in status["conditions"]][-1] == "Ready"
    assert {c["status"] for c in status["conditions"][:-1]} == {"False"}
    assert status["conditions"][-1]["status"] == "True"


@pytest.mark.parametrize(
    ("runtime", "features"),
    [
        ("containerd://1.6.20~ds1", {"supplementalGroupsPolicy": False}),
        ("containerd://2.4.2", {"supplementalGroupsPolicy": True}),
        ("containerd://v2.0.0-rc.1", {"supplementalGroupsPolicy": True}),
        ("cri-o://1.30.4", {"supplementalGroupsPolicy": False}),
        ("cri-o://1.31.0", {"supplementalGroupsPolicy": True}),
        ("vendor://9.1.0", {}),
        ("", {}),
    ],
)
def test_features_are_told_of_runtimes_that_are_known(
    runtime: str, features: dict[str, bool]
) -> None:
    one = cell("c1", info=cell_pb2.NodeInfo(container_runtime_version=runtime))
    node = desired(one)
    assert json.loads(create_body(node, NOW))["status"]["features"] == features
    assert status_patch(node, stored(node), LATER) is None


def test_a_runtime_that_was_replaced_changes_the_features() -> None:
    newer = cell("c1", info=cell_pb2.NodeInfo(container_runtime_version="containerd://2.4.2"))
    body = status_patch(desired(newer), stored(desired()), LATER)
    assert body is not None
    assert json.loads(body)["status"]["features"] == {"supplementalGroupsPolicy": True}
    other = cell("c1", info=cell_pb2.NodeInfo(container_runtime_version="vendor://1.0"))
    body = status_patch(desired(other), stored(desired()), LATER)
    assert body is not None
    assert json.loads(body)["status"]["features"] is None


def test_nothing_to_do_when_it_is_as_it_should_be() -> None:
    node = desired()
    assert metadata_patch(node, stored(node)) is None
    assert status_patch(node, stored(node), LATER) is None


def test_the_servers_spelling_of_an_amount_is_no_difference() -> None:
    node = desired(cell("c1", capacity={"cpu": "1000m", "memory": "1024Mi", "pods": "1e1"}))
    there = stored(node, status__capacity={"cpu": "1", "memory": "1Gi", "pods": "10"})
    assert status_patch(node, there, LATER) is None


def test_a_resource_that_went_is_taken_away() -> None:
    before = desired(cell("c1", capacity={"cpu": "1", "memory": "1Gi", "pods": "1", "x/gpu": "2"}))
    after = desired(cell("c1", capacity={"cpu": "1", "memory": "1Gi", "pods": "1"}))
    body = status_patch(after, stored(before), LATER)
    assert body is not None
    assert json.loads(body)["status"]["capacity"] == {"x/gpu": None}


def test_not_ready_moves_the_transition_time_of_ready_alone() -> None:
    there = stored(desired())
    sick = cell("c1", health=cell_pb2.HEALTH_UNHEALTHY, health_reason="RackPower")
    body = status_patch(desired(sick), there, LATER)
    assert body is not None
    patch = json.loads(body)
    assert patch["metadata"] == {"uid": "u1"}
    assert set(patch["status"]) == {"conditions"}
    *others, ready = patch["status"]["conditions"]
    assert (ready["status"], ready["reason"]) == ("False", "RackPower")
    assert ready["lastTransitionTime"] == "2026-01-02T03:05:05Z"
    assert {c["lastTransitionTime"] for c in others} == {"2026-01-02T03:04:05Z"}
    assert {c["lastHeartbeatTime"] for c in others} == {"2026-01-02T03:05:05Z"}


def test_unknown_set_by_the_node_lifecycle_controller_is_put_right() -> None:
    node = desired()
    there = stored(node)
    ready = there.condition("Ready")
    assert ready is not None
    ready.status, ready.reason = "Unknown", "NodeStatusUnknown"
    body = status_patch(node, there, LATER)
    assert body is not None
    assert json.loads(body)["status"]["conditions"][-1]["status"] == "True"


def test_an_unknown_cells_node_gets_its_conditions_only() -> None:
    unreachable = Readiness(False, "PoolUnreachable", "m")
    node = DesiredNode("c1", "az1", unreachable)
    assert metadata_patch(node, stored(desired())) is None
    body = status_patch(node, stored(desired()), LATER)
    assert body is not None
    assert set(json.loads(body)["status"]) == {"conditions"}
    with pytest.raises(ValueError, match="not known"):
        create_body(node, NOW)


def test_labels_that_left_are_taken_back_and_others_stay() -> None:
    before = desired(cell("c1", labels={"example.com/rack": "7"}))
    labels = json.loads(create_body(before, NOW))["metadata"]["labels"]
    there = stored(before, metadata__labels={**labels, "somebody": "else", "type": "changed"})
    body = metadata_patch(desired(), there)
    assert body is not None
    assert json.loads(body)["metadata"]["labels"] == {
        "example.com/rack": None,
        "type": "virtual-kubelet",
    }


def test_draining_cordons_and_lifts_only_its_own_cordon() -> None:
    draining, normal = desired(cell("c1", draining=True)), desired()
    body = metadata_patch(draining, stored(normal))
    assert body is not None and json.loads(body)["spec"] == {"unschedulable": True}
    body = metadata_patch(normal, stored(draining))
    assert body is not None and json.loads(body)["spec"] == {"unschedulable": None}
    assert metadata_patch(normal, stored(normal, spec__unschedulable=True)) is None


def test_addresses_are_replaced_whole() -> None:
    there = stored(desired(), status__addresses=[{"type": "InternalIP", "address": "10.0.0.1"}])
    body = status_patch(desired(), there, LATER)
    assert body is not None
    assert json.loads(body)["status"]["addresses"][0] == {"$patch": "replace"}


def test_a_pool_may_not_set_what_is_kubernetes_or_ours() -> None:
    c = cell(
        "c1",
        labels={
            "topology.kubernetes.io/zone": "lie",
            "node-role.kubernetes.io/master": "",
            "vknode.dev/pool": "lie",
            "vknode.dev/simulated": "true",
            "bad key": "x",
            "node.kubernetes.io/instance-type": "big",
        },
    )
    assert len(refused_labels(c)) == 4
    labels = desired(c).labels
    assert labels["topology.kubernetes.io/zone"] == "az1"
    assert labels["node.kubernetes.io/instance-type"] == "big"
    assert "bad key" not in labels
    # The pool server's own word about its runtime: neither Kubernetes' nor the agent's.
    assert labels["vknode.dev/simulated"] == "true" and labels["vknode.dev/pool"] == "az1"


def test_a_cell_that_cannot_be_a_node_says_why() -> None:
    assert cell_problems(cell("c1")) == []
    broken = cell("c1", zone="", capacity={"cpu": "lots"}, health=0)
    text = "; ".join(cell_problems(broken))
    for part in ("zone is empty", "'memory'", "'pods'", "'lots'", "health"):
        assert part in text
