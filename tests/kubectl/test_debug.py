"""kubectl debug gives what each of its profiles promises, as far as the namespace may have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fixtures import OPENED_CELL, Running, own_namespace
from tests.support.kube import Kube, Object, simple_pod
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

# Bits of the capability sets in /proc (capabilities(7)).
NET_ADMIN, NET_RAW, SYS_PTRACE, SYS_ADMIN = 1 << 12, 1 << 13, 1 << 19, 1 << 21
LOOK = "sed -n 's/^CapEff:.//p; s/^Uid:.//p' /proc/self/status; exec sleep 600"


def web(**spec: Any) -> Object:
    return simple_pod("web", nodeName=OPENED_CELL, **spec)


@pytest.fixture
def opened(cri: Running) -> Iterator[Kube]:
    """kubectl in a namespace that the agent's configuration opens on `OPENED_CELL`."""
    with own_namespace(cri.kube, "opened-debug") as inside:
        yield inside


def debug(kube: Kube, profile: str) -> None:
    kube.out(
        *("debug", "web", "--image=busybox:1.36", "--container=tool", "--attach=false"),
        *(f"--profile={profile}", "--", "sh", "-c", LOOK),
    )


def seen(kube: Kube) -> tuple[int, int]:
    """The user and the effective capabilities of what was started."""

    def told() -> list[str]:
        lines = kube.run("logs", "web", "--container=tool", check=False).stdout.split()
        return lines if len(lines) == 5 else []

    lines = until(told, "what the tool says", show=lambda: kube.describe("web"))
    return int(lines[0]), int(lines[4], 16)


@pytest.mark.parametrize(
    ("profile", "has", "has_not"),
    [
        ("general", SYS_PTRACE, SYS_ADMIN | NET_ADMIN),
        ("baseline", NET_RAW, SYS_PTRACE | SYS_ADMIN | NET_ADMIN),
        ("sysadmin", SYS_ADMIN | SYS_PTRACE | NET_ADMIN, 0),
    ],
)
def test_a_profile_gives_what_it_promises(
    opened: Kube, profile: str, has: int, has_not: int
) -> None:
    opened.apply(web())
    opened.wait_phase("web", "Running")
    debug(opened, profile)
    user, capabilities = seen(opened)
    assert user == 0
    assert capabilities & has == has and not capabilities & has_not, f"{capabilities:x}"


def test_netadmin_may_change_the_network(cri: Running) -> None:
    with own_namespace(cri.kube, "security-debug") as kube:  # which may have NET_ADMIN
        kube.apply(web())
        kube.wait_phase("web", "Running")
        debug(kube, "netadmin")
        wanted = NET_ADMIN | NET_RAW
        assert seen(kube)[1] & wanted == wanted


def test_restricted_needs_a_user_and_has_no_rights(kube: Kube) -> None:
    kube.apply(web(securityContext={"runAsUser": 1000}))
    kube.wait_phase("web", "Running")
    debug(kube, "restricted")
    assert seen(kube) == (1000, 0)


@pytest.mark.parametrize(
    ("profile", "opens"), [("netadmin", "capabilities"), ("sysadmin", "privileged")]
)
def test_what_the_namespace_may_not_have_is_refused_and_the_pod_goes_on(
    kube: Kube, profile: str, opens: str
) -> None:
    kube.apply(web())
    before = kube.wait_phase("web", "Running")["status"]["containerStatuses"]
    debug(kube, profile)

    def told() -> list[str]:
        return [
            event["message"]
            for event in kube.events("web")
            if event["message"].startswith("it is not started: ")
        ]

    (message, *_) = until(told, "an event", show=lambda: kube.describe("web"))
    assert opens in message
    status = kube.pod("web")["status"]
    assert status["phase"] == "Running" and status["containerStatuses"] == before
    tool: Object = next(iter(status.get("ephemeralContainerStatuses", ())), {})
    assert "running" not in tool.get("state", {})


def test_a_copy_can_be_looked_into(kube: Kube) -> None:
    kube.apply(web())
    kube.wait_phase("web", "Running")
    kube.out(
        *("debug", "web", "--copy-to=copy", "--image=busybox:1.36", "--container=tool"),
        *(
            "--share-processes",
            "--attach=false",
            "--",
            "sh",
            "-c",
            "ps | grep -c 'sleep'; sleep 600",
        ),
    )
    kube.wait_phase("copy", "Running")
    until(
        lambda: kube.run("logs", "copy", "--container=tool", check=False).stdout.strip() >= "1",
        "the other container's process",
        show=lambda: kube.describe("copy"),
    )


def test_a_nodes_host_is_not_given_to_who_asks(kube: Kube) -> None:
    """The Pod that it makes wants the host's namespaces and its root."""
    kube.out("debug", f"node/{OPENED_CELL}", "--image=busybox:1.36", "--attach=false", "--", "id")
    (name,) = (pod["metadata"]["name"] for pod in kube.items("pods"))
    pod = kube.wait_phase(name, "Failed")
    assert pod["status"]["reason"] == "PrivilegeNotAllowed"
    assert pod["spec"]["nodeName"] == OPENED_CELL
