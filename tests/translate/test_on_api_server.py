"""The translation against a real API server: what it defaults, stores and merges."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import ControlPlaneHandle
from tests.translate.builders import FACTS, NODE, Json, config_map
from tests.translate.openapi import fields
from tests.translate.test_status import ended, running, sandbox
from vknode.devcluster.kubectl import KubectlFailed
from vknode.pool.v1 import spec_pb2, status_pb2
from vknode.translate.facts import Resolved, rfc3339
from vknode.translate.fields import check, row_for
from vknode.translate.needs import needs
from vknode.translate.patch import STATUS_PATCH_TYPE, status_patch
from vknode.translate.spec import sandbox_spec
from vknode.translate.status import lost_status, pod_status, rejected_status, waiting_status

pytestmark = pytest.mark.cluster

_POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  readinessGates: [{conditionType: example.com/lb}]
  initContainers:
  - {name: setup, image: busybox}
  containers:
  - name: web
    image: busybox
    resources: {requests: {cpu: 0.1, memory: 64Mi}, limits: {memory: 64Mi}}
    readinessProbe: {httpGet: {port: 80}}
    env: [{name: X, valueFrom: {resourceFieldRef: {resource: requests.cpu}}}]
  - {name: aside, image: busybox}
"""


class Server:
    """kubectl's raw verbs in one namespace."""

    def __init__(self, handle: ControlPlaneHandle, namespace: str, tmp_path: Path) -> None:
        self._handle = handle
        self.namespace = namespace
        self._file = tmp_path / "object.json"

    def create(self, text: str) -> Json:
        self._file.write_text(json.dumps(yaml.safe_load(text)))
        return self._json("create", "-f", str(self._file), "-o", "json")

    def pod(self, name: str = "web") -> Json:
        return self._json("get", "pod", name, "-o", "json")

    def bind(self, name: str = "web") -> Json:
        """Names a node that does not exist: nobody but the test acts on the Pod."""
        self._file.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Binding",
                    "metadata": {"name": name},
                    "target": {"kind": "Node", "name": "az1-cell-1"},
                }
            )
        )
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}/binding"
        self._handle.kubectl("create", "--raw", path, "-f", str(self._file))
        return self.pod(name)

    def patch(self, body: bytes | None, name: str = "web") -> Json:
        assert body is not None
        return self._json(
            "patch", "pod", name, "--subresource=status", "--type=strategic",
            "-p", body.decode(), "-o", "json",
        )  # fmt: skip

    def _json(self, *args: str) -> Json:
        answer: Json = json.loads(self._handle.kubectl("-n", self.namespace, *args))
        return answer


@pytest.fixture
def server(control_plane: ControlPlaneHandle, namespace: str, tmp_path: Path) -> Server:
    return Server(control_plane, namespace, tmp_path)


def _now() -> str:
    return rfc3339(int(time.time()))


def _same(stored: Json, ours: Json) -> bool:
    return status_patch("u", stored, ours) is None and status_patch("u", ours, stored) is None


def test_the_type_is_the_one_kubectl_sends() -> None:
    assert STATUS_PATCH_TYPE == "application/strategic-merge-patch+json"


def test_a_whole_life_is_stored_as_it_was_meant(server: Server) -> None:
    server.create(_POD)
    one = server.bind()
    uid = one["metadata"]["uid"]

    def write(new: Json) -> Json:
        """Each step is a patch against what we last wrote, without reading."""
        stored: Json = server.patch(status_patch(uid, written["status"], new))["status"]
        assert _same(stored, new), (stored, new)
        written["status"] = new
        return stored

    written = {"status": one["status"]}
    write(waiting_status(one, FACTS))
    up = sandbox(
        "RUNNING",
        running("web"),
        running("aside"),
        init_containers=[ended("setup")],
        pod_ips=["10.0.0.1", "fd00::1"],
    )
    # Somebody else's conditions arrive between our writes; we have not seen them.
    # (The time is now, or the disruption controller would take it for stale.)
    theirs = [
        {"type": kind, "status": "True", "reason": "Theirs", "lastTransitionTime": _now()}
        for kind in ("example.com/lb", "DisruptionTarget")
    ]
    server.patch(json.dumps({"status": {"conditions": theirs}}).encode())
    server.patch(status_patch(uid, written["status"], pod_status(one, up, FACTS)))
    now = server.pod()
    kinds = {entry["type"]: entry.get("reason") for entry in now["status"]["conditions"]}
    assert kinds["example.com/lb"] == "Theirs"
    assert kinds["DisruptionTarget"] == "Theirs"
    assert kinds["PodScheduled"] is None
    assert kinds["Ready"] == "ReadinessGatesNotReady"
    # Once seen, they count, and stay.
    written["status"] = now["status"]
    seen = write(pod_status(now, up, FACTS))
    ready = next(entry for entry in seen["conditions"] if entry["type"] == "Ready")
    assert ready["status"] == "True"
    assert [entry["ip"] for entry in seen["podIPs"]] == ["10.0.0.1", "fd00::1"]
    over = sandbox(
        "FAILED", ended("web", 3), ended("aside"), init_containers=[ended("setup")], reason="Why"
    )
    last = write(pod_status(now, over, FACTS, old=written["status"]))
    assert (last["phase"], last["reason"]) == ("Failed", "Why")
    assert last["containerStatuses"][1]["state"]["terminated"]["exitCode"] == 3


def test_what_the_api_server_stores_is_a_fixpoint(server: Server) -> None:
    server.create(_POD)
    one = server.bind()
    up = sandbox("RUNNING", running("web"), running("aside"), init_containers=[ended("setup")])
    new = pod_status(one, up, FACTS)
    stored = server.patch(status_patch(one["metadata"]["uid"], one["status"], new))
    again = pod_status(stored, up, FACTS)
    assert status_patch("u", stored["status"], again) is None


@pytest.mark.parametrize("kind", ["rejected", "lost"])
def test_failures_are_accepted(server: Server, kind: str) -> None:
    server.create(_POD)
    one = server.bind()
    uid = one["metadata"]["uid"]
    up = sandbox("RUNNING", running("web"), running("aside"), init_containers=[ended("setup")])
    old = pod_status(one, up, FACTS)
    if kind == "lost":
        one["status"] = server.patch(status_patch(uid, one["status"], old))["status"]
        new = lost_status(one, FACTS)
    else:
        new = rejected_status(one, "UnsupportedField", "spec.volumes[0].nfs: no", FACTS)
    stored = server.patch(status_patch(uid, one["status"], new))["status"]
    assert stored["phase"] == "Failed"
    assert _same(stored, new), (stored, new)
    assert any(entry["type"] == "PodScheduled" for entry in stored["conditions"])


def test_every_field_of_the_api_server_has_a_row(control_plane: ControlPlaneHandle) -> None:
    """A field that the table does not know fails here first, and must be decided upon."""
    document = json.loads(control_plane.kubectl("get", "--raw", "/openapi/v3/api/v1"))
    found = list(fields(document, "io.k8s.api.core.v1.PodSpec", "spec"))
    assert [path for path in found if row_for(path) is None] == []
    known = Path(__file__).parent / "podspec-fields-v0.37.txt"
    assert found == known.read_text().split(), f"write the new list into {known.name}"


def test_a_resize_is_stored_and_taken_back(server: Server) -> None:
    server.create(_POD)
    one = server.bind()
    uid = one["metadata"]["uid"]
    init = [ended("setup")]
    resize = status_pb2.Resize(
        pending_reason="Deferred",
        pending_message="no room",
        pending_generation=1,
        in_progress=True,
        error="why",
        in_progress_generation=1,
    )
    aside = spec_pb2.Resources(requests={"cpu": "50m", "memory": "64Mi"}, limits={"memory": "64Mi"})
    web = running("web", allocated=aside, resources=aside)
    busy = sandbox("RUNNING", web, running("aside"), init_containers=init, resize=resize)
    new = pod_status(one, busy, FACTS)
    stored = server.patch(status_patch(uid, one["status"], new))
    assert _same(stored["status"], new), (stored["status"], new)
    assert stored["status"]["containerStatuses"][1]["allocatedResources"]["cpu"] == "50m"
    done = pod_status(
        stored, sandbox("RUNNING", running("web"), running("aside"), init_containers=init), FACTS
    )
    after = server.patch(status_patch(uid, stored["status"], done))["status"]
    assert _same(after, done), (after, done)
    assert not [entry for entry in after["conditions"] if "Resize" in entry["type"]]


def test_another_pod_of_the_same_name_is_not_touched(server: Server) -> None:
    one = server.create(_POD)
    new = waiting_status(one, FACTS)
    body = status_patch("00000000-0000-0000-0000-000000000000", one["status"], new)
    with pytest.raises(KubectlFailed, match=r"metadata\.uid: .*field is immutable"):
        server.patch(body)
    assert server.pod()["status"].get("observedGeneration") is None


def test_a_defaulted_pod_translates(server: Server) -> None:
    """What admission and defaulting add is understood: nothing is refused."""
    server.create(_POD)
    one = server.bind()
    assert check(one, NODE) == []
    wanted = needs(one)
    assert list(wanted.config_maps) == ["kube-root-ca.crt"]
    (token,) = wanted.tokens
    assert token.pod_uid == one["metadata"]["uid"]
    resolved = Resolved(
        config_maps={"kube-root-ca.crt": config_map(**{"ca.crt": "CA"})}, tokens={token: "jwt"}
    )
    spec = sandbox_spec(one, resolved, NODE)
    assert isinstance(spec, spec_pb2.SandboxSpec)
    web = spec.containers[0]
    assert {variable.name: variable.value for variable in web.env} == {"X": "1"}
    assert web.readiness_probe.handler.http_get.port == 80
    assert web.readiness_probe.period_seconds == 10
    assert spec.volumes[0].files.sensitive
    assert [file.path for file in spec.volumes[0].files.files] == ["ca.crt", "namespace", "token"]
    assert [mount.path for mount in web.mounts] == ["/var/run/secrets/kubernetes.io/serviceaccount"]
