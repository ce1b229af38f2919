"""What reaches beyond a sandbox, on real containers: closed for everybody, open for one namespace
on one zone's cells (`fixtures.CRI`), although the pools allow it all over."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fixtures import OPENED_CELL, OPENED_FOLDER, Running, own_namespace
from tests.support.kube import Kube, Object, simple_pod
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

CLOSED_CELL = "az2-a"


@pytest.fixture
def opened(cri: Running) -> Iterator[Kube]:
    """kubectl in a namespace that the agent's configuration opens on `OPENED_CELL`."""
    with own_namespace(cri.kube, "opened") as inside:
        yield inside


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the host below the opened one."""
    OPENED_FOLDER.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=OPENED_FOLDER))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)
    with contextlib.suppress(OSError):
        OPENED_FOLDER.rmdir()


def once(name: str, command: str, cell: str, **spec: Any) -> Object:
    spec = {"nodeName": cell, **spec}
    return simple_pod(name, ("sh", "-c", command), restart="Never", **spec)


def said(kube: Kube, name: str) -> str:
    kube.wait_phase(name, "Succeeded")
    return kube.out("logs", name).strip()


def refused(kube: Kube, name: str, path: str, opens: str, reason: str) -> None:
    """Failed at once, with an event that says where and what would open it."""
    pod = kube.wait_phase(name, "Failed")
    assert pod["status"]["reason"] == reason
    assert path in pod["status"]["message"] and opens in pod["status"]["message"]

    def told() -> list[Object]:
        return [e for e in kube.events(name) if e["reason"] == reason]

    (event,) = until(told, "its event", show=lambda: kube.describe(name))
    for word in (f"{path}: ", "privileges[].allow", opens, kube.namespace):
        assert word in event["message"]


SYSCTL = {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "65537"}]}}
PRIVILEGED = {"container": {"securityContext": {"privileged": True}}}
ADMIN = {"container": {"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}}
UNCONFINED = {"securityContext": {"seccompProfile": {"type": "Unconfined"}}}
WANTED = [
    ({"hostNetwork": True}, "spec.hostNetwork", "hostNetwork: true"),
    ({"hostPID": True}, "spec.hostPID", "hostPID: true"),
    ({"hostIPC": True}, "spec.hostIPC", "hostIPC: true"),
    (PRIVILEGED, "spec.containers[0].securityContext.privileged", "privileged: true"),
    (
        ADMIN,
        "spec.containers[0].securityContext.capabilities.add[0]",
        "capabilities: [SYS_ADMIN]",
    ),
    (UNCONFINED, "spec.securityContext.seccompProfile", "unconfined: true"),
    (SYSCTL, "spec.securityContext.sysctls[0]", "unsafeSysctls: [kernel.msgmax]"),
    (
        {"volumes": [{"name": "v", "hostPath": {"path": "/etc"}}]},
        "spec.volumes[0].hostPath",
        "hostPath: [/etc]",
    ),
]


@pytest.mark.parametrize(("spec", "path", "opens"), WANTED)
def test_it_is_closed_to_an_ordinary_namespace_and_on_other_cells(
    kube: Kube, opened: Kube, spec: dict[str, Any], path: str, opens: str
) -> None:
    reason = "SysctlForbidden" if spec is SYSCTL else "PrivilegeNotAllowed"
    kube.apply(once("ordinary", "true", OPENED_CELL, **spec))
    opened.apply(once("elsewhere", "true", CLOSED_CELL, **spec))
    refused(kube, "ordinary", path, opens, reason)
    refused(opened, "elsewhere", path, opens, reason)


def test_namespaces_of_the_host_where_they_are_open(opened: Kube) -> None:
    opened.apply(once("network", "readlink /proc/self/ns/net", OPENED_CELL, hostNetwork=True))
    opened.apply(once("processes", "readlink /proc/self/ns/pid", OPENED_CELL, hostPID=True))
    opened.apply(once("ipc", "readlink /proc/self/ns/ipc", OPENED_CELL, hostIPC=True))
    for name, kind in (("network", "net"), ("processes", "pid"), ("ipc", "ipc")):
        assert said(opened, name) == str(Path(f"/proc/self/ns/{kind}").readlink())


def test_rights_filters_and_kernel_parameters_where_they_are_open(opened: Kube) -> None:
    status = "grep -e CapEff: -e Seccomp: /proc/self/status"
    opened.apply(once("privileged", status, OPENED_CELL, **PRIVILEGED))
    opened.apply(once("admin", status, OPENED_CELL, **ADMIN))
    opened.apply(once("open", status, OPENED_CELL, **UNCONFINED))
    opened.apply(once("tuned", "cat /proc/sys/kernel/msgmax", OPENED_CELL, **SYSCTL))
    opened.apply(once("usual", status, OPENED_CELL))
    usual, admin = (_rights(said(opened, name)) for name in ("usual", "admin"))
    assert usual == (0xA80425FB, 2)
    assert admin == (0xA80425FB | 1 << 21, 2)
    assert _rights(said(opened, "open")) == (0xA80425FB, 0)
    assert _rights(said(opened, "privileged"))[1] == 0
    assert _rights(said(opened, "privileged"))[0] & 1 << 21
    assert said(opened, "tuned") == "65537"


def _rights(text: str) -> tuple[int, int]:
    """Effective capabilities, and the mode of the filter (2: there is one)."""
    values = dict(line.split(":\t") for line in text.splitlines())
    return int(values["CapEff"], 16), int(values["Seccomp"])


def test_a_link_below_an_opened_path_leads_nowhere_else(opened: Kube, folder: Path) -> None:
    """The pools allow all of /tmp: only the agent's word keeps the namespace to its folder."""
    (folder / "file").write_text("of the host\n")
    outside = Path(tempfile.mkdtemp(prefix="vkn-secret-"))
    (outside / "file").write_text("secret\n")
    (folder / "way-out").symlink_to(outside)
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}

    def mounting(path: Path) -> dict[str, Any]:
        return {"volumes": [{"name": "v", "hostPath": {"path": str(path)}}], "container": mount}

    try:
        opened.apply(once("inside", "cat /v/file", OPENED_CELL, **mounting(folder)))
        opened.apply(once("outside", "cat /v/file", OPENED_CELL, **mounting(folder / "way-out")))
        assert said(opened, "inside") == "of the host"

        opened.wait_phase("outside", "Failed")

        def told() -> bool:
            why = "leads to where the Pod's namespace may not mount"
            return any(why in event["message"] for event in opened.events("outside"))

        until(told, "an event that says so", show=lambda: opened.describe("outside"))
    finally:
        shutil.rmtree(outside)
