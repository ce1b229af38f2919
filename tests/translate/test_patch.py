"""The patch: small, exact, and harmless to what others write."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.translate.builders import FACTS, UID, Json
from tests.translate.test_status import _POD, _SANDBOXES, running, sandbox
from vknode.pool.v1 import status_pb2
from vknode.translate.patch import status_patch
from vknode.translate.status import lost_status, pod_status, rejected_status, waiting_status


def apply(status: Json, patch: bytes | None) -> Json:
    """What the API server makes of it: strategic merge by the tags of PodStatus."""
    if patch is None:
        return status
    body = json.loads(patch)
    assert body["metadata"] == {"uid": UID}
    return _merge(copy.deepcopy(status), body["status"])


def _merge(target: Json, changes: Json) -> Json:
    for name, change in changes.items():
        if change is None:
            target.pop(name, None)
        elif name == "conditions":
            target[name] = _merge_list(target.get(name) or [], change, "type")
        elif name in ("podIPs", "hostIPs"):
            target[name] = _merge_list(target.get(name) or [], change, "ip")
        elif isinstance(change, dict):
            target[name] = _merge(dict(target.get(name) or {}), change)
        else:
            target[name] = change
    return target


def _merge_list(items: list[Json], changes: list[Json], key: str) -> list[Json]:
    if {"$patch": "replace"} in changes:
        return [one for one in changes if "$patch" not in one]
    by_key = {one[key]: one for one in items}
    for change in changes:
        if change.get("$patch") == "delete":
            by_key.pop(change[key], None)
        else:
            by_key[change[key]] = _merge(dict(by_key.get(change[key], {})), change)
    return list(by_key.values())


def meaning(value: Any) -> Any:
    """Without nulls and empty objects; conditions by type."""
    if isinstance(value, dict):
        kept = {name: meaning(one) for name, one in value.items()}
        kept = {name: one for name, one in kept.items() if one not in (None, {}, [])}
        if value.get("conditions"):
            kept["conditions"] = {one["type"]: meaning(one) for one in value["conditions"]}
        return kept
    return [meaning(one) for one in value] if isinstance(value, list) else value


_STATUSES = st.one_of(
    _SANDBOXES.map(lambda one: pod_status(_POD, one, FACTS)),
    st.just(waiting_status(_POD, FACTS)),
    st.just(rejected_status(_POD, "R", "m", FACTS)),
    st.just(lost_status(_POD, FACTS, old=pod_status(_POD, sandbox("RUNNING"), FACTS))),
    st.just({}),
    st.just({"phase": "Pending", "qosClass": "BestEffort"}),
)


@given(_STATUSES, _STATUSES)
def test_the_old_status_with_the_patch_is_the_new_one(old: Json, new: Json) -> None:
    patch = status_patch(UID, old, new)
    assert meaning(apply(old, patch)) == meaning(new)
    assert status_patch(UID, apply(old, patch), new) is None


@given(_SANDBOXES, _SANDBOXES)
def test_conditions_of_others_survive_even_if_we_never_saw_them(
    first: status_pb2.Sandbox, second: status_pb2.Sandbox
) -> None:
    old = pod_status(_POD, first, FACTS)
    new = pod_status(_POD, second, FACTS, old=old)
    on_server = copy.deepcopy(old)
    foreign = {"type": "example.com/lb", "status": "True"}
    on_server["conditions"].insert(0, foreign)
    after = apply(on_server, status_patch(UID, old, new))
    assert foreign in after["conditions"]


def test_only_the_change_is_sent() -> None:
    old = pod_status(_POD, sandbox("RUNNING", running("zeta"), running("alpha")), FACTS)
    new = copy.deepcopy(old)
    new["phase"] = "Succeeded"
    new["conditions"][2]["status"] = "Unknown"
    name = new["conditions"][2]["type"]
    assert json.loads(status_patch(UID, old, new) or b"") == {
        "metadata": {"uid": UID},
        "status": {"phase": "Succeeded", "conditions": [{"type": name, "status": "Unknown"}]},
    }


def test_no_change_no_patch() -> None:
    up = pod_status(_POD, sandbox("RUNNING"), FACTS)
    server = copy.deepcopy(up)
    # Spellings of nothing, and an order, that the API server may choose.
    for condition in server["conditions"]:
        del condition["lastProbeTime"]
    server["conditions"].reverse()
    server["resources"] = None
    assert status_patch(UID, server, up) is None
    assert status_patch(UID, None, {}) is None


def test_equal_changes_are_equal_bytes() -> None:
    up = pod_status(_POD, sandbox("RUNNING"), FACTS)
    shuffled = json.loads(json.dumps(up, sort_keys=True))
    assert status_patch(UID, {}, up) == status_patch(UID, {}, shuffled)


def test_the_first_ip_stays_the_first() -> None:
    old = {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}
    new = {"podIP": "fd00::1", "podIPs": [{"ip": "fd00::1"}, {"ip": "10.0.0.1"}]}
    assert apply(old, status_patch(UID, old, new)) == new
