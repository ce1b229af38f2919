"""What makes each alert fire, played on an agent's real parts, and what a person then reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.monitoring.documents import Rule, named
from tests.monitoring.promtool import TARGET
from tests.monitoring.scene import DAY, Scene
from vknode.agent.health import PoolState
from vknode.pool.errors import RETRYABLE

Happens = Callable[[Scene], None]


@dataclass(frozen=True)
class Case:
    """`happens` every minute from some minute on, and the alert fires so many minutes later, with
    these labels of its series. `value`: how its value is shown to people."""

    alert: str
    after: int
    happens: Happens
    value: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    # Which of several rules of this alert.
    held: str | None = None

    @property
    def rule(self) -> Rule:
        (rule,) = (one for one in named(self.alert) if one["labels"].get("held") == self.held)
        return rule

    def expected(self) -> dict[str, Any]:
        """As promtool wants it: the labels, and what a person reads."""
        labels = TARGET | dict(self.labels)
        return {
            "exp_labels": labels | self.rule["labels"],
            "exp_annotations": {
                name: filled(text, labels, self.value)
                for name, text in self.rule["annotations"].items()
            },
        }


def filled(text: str, labels: Mapping[str, str], value: str) -> str:
    """An annotation with its places filled in, as far as our rules use templates."""
    text = re.sub(
        r"\{\{ with \$labels\.(\w+) \}\}(.*?)\{\{ \. \}\}\{\{ end \}\}",
        lambda found: found[2] + labels[found[1]] if found[1] in labels else "",
        text,
    )
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
    return re.sub(r"\{\{ \$value[^}]* \}\}", lambda _: value, text)


# -- what happens --------------------------------------------------------------------------


def not_ready(scene: Scene) -> None:
    scene.agent.ready = False


def leases_late(scene: Scene) -> None:
    for held in scene.leases._leases.values():
        held.renewed = scene.clock.monotonic() - 25


def leases_contended(scene: Scene) -> None:
    scene.leases.stats.conflicts += 2


def api_fails(scene: Scene) -> None:
    scene.client.stats.requests["GET"] += 10
    for status in (0, 429, 503):
        scene.client.stats.errors[status] = scene.client.stats.errors.get(status, 0) + 10


def watch_breaks(scene: Scene) -> None:
    scene.watches["pods"].restarts += 3


def watch_is_silent(scene: Scene) -> None:
    scene.watches["services"].last_heard = scene.clock.monotonic() - 400


def pool_dies(scene: Scene) -> None:
    scene.pool_dies("az2")


def pool_hangs(scene: Scene) -> None:
    scene.calls["az1"].watch_states["sandboxes"].up = False


def pool_flaps(scene: Scene) -> None:
    scene.calls["az1"].watch_states["cells"].breaks += 1


def cell_is_sick(scene: Scene) -> None:
    scene.pool_state("az1", PoolState.REACHABLE)
    scene.node("az1", "a", "False", "DiskBroken")


def name_is_taken(scene: Scene) -> None:
    scene.nodes.stats.refused = 2


def sandboxes_are_braked(scene: Scene) -> None:
    scene.metrics.brake.labels("az1").set(40)


def nodes_are_braked(scene: Scene) -> None:
    scene.lose_cells("az1", 12)


def starts_are_slow(scene: Scene) -> None:
    for _ in range(5):
        scene.a_start(50)


def pods_are_refused(scene: Scene) -> None:
    for _ in range(2):
        scene.metrics.refused("UnsupportedField")


def sandboxes_are_lost(scene: Scene) -> None:
    scene.metrics.refused("SandboxLost")


def pool_fails_calls(scene: Scene) -> None:
    for _ in range(5):
        scene.metrics.pool_error("az1", RETRYABLE)


def pool_lies(scene: Scene) -> None:
    scene.metrics.claims_refused.labels("az1", "other_pool").inc()


def statuses_fail(scene: Scene) -> None:
    scene.writer.retries += 10
    scene.writer.failures += 10


def statuses_wait(scene: Scene) -> None:
    for number in range(150):
        scene.writer.mark(f"uid-{number}", delay=1e6)


def references_are_polled(scene: Scene) -> None:
    scene.refresher.watches._polled = {object()}  # type: ignore[arg-type]  # any one will do


def events_are_dropped(scene: Scene) -> None:
    scene.events.stats.dropped_full += 1


def kubelet_api_fails(scene: Scene) -> None:
    scene.api.counts.done["exec", "500"] += 3


def kubelet_api_refuses(scene: Scene) -> None:
    scene.api.counts.done["pods", "401"] += 2
    scene.api.counts.done["exec", "403"] += 3


def serving_expires(scene: Scene) -> None:
    scene.certify("serving", 6 * DAY)


def pool_ca_expires(scene: Scene) -> None:
    scene.certify("pool-ca-az1", 6 * 3600)


def file_is_gone(scene: Scene) -> None:
    scene.files["ca"].unlink(missing_ok=True)


CASES = [
    Case("VknodeAgentNotReady", 6, not_ready),
    Case("VknodeLeasesLate", 1, leases_late, "25s"),
    Case("VknodeLeasesContended", 5, leases_contended, "12"),
    Case("VknodeApiErrors", 8, api_fails, "63.75%"),
    Case("VknodeWatchRestarts", 5, watch_breaks, "18", {"watch": "pods"}),
    Case("VknodeWatchSilent", 1, watch_is_silent, "6m 40s", {"watch": "services"}),
    Case("VknodePoolUnreachable", 2, pool_dies, "", {"pool": "az2", "state": "unreachable"}),
    Case("VknodePoolStreamDown", 3, pool_hangs, "", {"pool": "az1", "stream": "sandboxes"}),
    Case("VknodePoolStreamRestarts", 8, pool_flaps, "9", {"pool": "az1", "stream": "cells"}),
    Case(
        "VknodeNodesNotReadyWithPool",
        2,
        pool_dies,
        "2",
        {"pool": "az2", "readiness": "pool_unreachable"},
    ),
    Case(
        "VknodeNodesNotReady",
        6,
        cell_is_sick,
        "1",
        {"pool": "az1", "readiness": "cell_unhealthy"},
    ),
    Case("VknodeNodeNameTaken", 6, name_is_taken, "2"),
    Case("VknodeDeletionBrake", 1, sandboxes_are_braked, "40", {"pool": "az1"}, "sandboxes"),
    Case("VknodeDeletionBrake", 1, nodes_are_braked, "14", {"pool": "az1"}, "nodes"),
    Case("VknodeStartsSlow", 12, starts_are_slow, "57.53s"),
    Case("VknodePodsRefused", 8, pods_are_refused, "18", {"reason": "UnsupportedField"}),
    Case("VknodeSandboxesLost", 2, sandboxes_are_lost, "3", {"reason": "SandboxLost"}),
    Case("VknodePoolCallsFailing", 6, pool_fails_calls, "35", {"pool": "az1", "kind": "retryable"}),
    Case("VknodePoolClaimsRefused", 2, pool_lies, "3", {"pool": "az1", "why": "other_pool"}),
    Case("VknodeStatusWritesFailing", 8, statuses_fail, "47.37%"),
    Case("VknodeStatusesWait", 6, statuses_wait, "150"),
    Case("VknodeReferencesPolled", 31, references_are_polled, "1", {"how": "polled"}),
    Case("VknodeEventsDropped", 2, events_are_dropped, "3", {"cause": "queue_full"}),
    Case("VknodeKubeletApiErrors", 8, kubelet_api_fails, "25.5", {"endpoint": "exec"}),
    Case("VknodeKubeletApiRefusals", 8, kubelet_api_refuses, "42.5"),
    Case(
        "VknodeCertificateExpiresInAWeek",
        6,
        serving_expires,
        "5d 23h 44m 0s",
        {"certificate": "kubelet_serving"},
    ),
    Case(
        "VknodeCertificateExpiresInADay",
        6,
        pool_ca_expires,
        "5h 44m 0s",
        {"certificate": "pool_ca", "pool": "az1"},
    ),
    Case(
        "VknodeCertificateExpiresInADay",
        6,
        file_is_gone,
        "-16m 0s",
        {"certificate": "kubelet_client_ca"},
    ),
]
