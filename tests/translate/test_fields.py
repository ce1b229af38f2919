"""The table of fields: complete, printed, and obeyed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.translate.builders import NODE, container_pod, pod
from vknode.pool.v1 import spec_pb2
from vknode.translate.facts import NodeFacts
from vknode.translate.fields import check, document, expand_row, pool_path_to_pod_path, row_for
from vknode.translate.support import TABLE, Verdict

# As the API server of 1.37 describes PodSpec; test_on_api_server.py compares.
_KNOWN = (Path(__file__).parent / "podspec-fields-v0.37.txt").read_text().split()
_DOCUMENT = Path(__file__).parents[2] / "docs" / "pod-fields.md"


def test_every_field_of_kubernetes_has_a_row_and_every_row_a_field() -> None:
    rows = {path: row_for(path) for path in _KNOWN}
    assert [path for path, row in rows.items() if row is None] == []
    used = {row.path for row in rows.values() if row is not None}
    assert [row.path for row in TABLE if row.path not in used] == []


def test_no_field_has_two_rows() -> None:
    paths = [path for row in TABLE for path in expand_row(row)]
    assert len(paths) == len(set(paths))


def test_refusals_say_why() -> None:
    assert [row.path for row in TABLE if row.verdict is Verdict.REFUSED and not row.note] == []


def test_the_document_is_fresh() -> None:
    assert _DOCUMENT.read_text() == document(), "run python -m vknode.translate.fields"


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (
            "volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]",
            "spec.volumes[0].persistentVolumeClaim",
        ),
        (
            "volumes: [{name: a, emptyDir: {}}, {name: v, nfs: {server: s, path: /}}]",
            "spec.volumes[1].nfs",
        ),
        (
            "volumes: [{name: v, emptyDir: {medium: HugePages-2Mi}}]",
            "spec.volumes[0].emptyDir.medium",
        ),
        ("hostUsers: false", "spec.hostUsers"),
        ("os: {name: windows}", "spec.os.name"),
        ("resourceClaims: [{name: gpu}]", "spec.resourceClaims"),
    ],
)
def test_refused_pod_fields_are_named(spec: str, path: str) -> None:
    refusals = check(pod(spec), NODE)
    assert [refusal.path for refusal in refusals] == [path]
    assert refusals[0].reason
    assert str(refusals[0]).startswith(f"{path}: ")


def test_what_only_kubelets_on_windows_read_is_ignored() -> None:
    one = pod("securityContext: {windowsOptions: {runAsUserName: u}}")
    one["spec"]["containers"][0]["securityContext"] = {"windowsOptions": {"hostProcess": False}}
    assert check(one, NODE) == []


@pytest.mark.parametrize(
    ("container", "path"),
    [
        ("volumeDevices: [{name: d, devicePath: /dev/x}]", "volumeDevices"),
        ("resources: {claims: [{name: gpu}]}", "resources.claims"),
        ("lifecycle: {preStop: {tcpSocket: {port: 80}}}", "lifecycle.preStop.tcpSocket"),
        ("readinessProbe: {httpGet: {port: web}}", "readinessProbe.httpGet.port"),
        ("livenessProbe: {grpc: {port: 1, mode: TLS}}", "livenessProbe.grpc.mode"),
        (
            "volumeMounts: [{name: v, mountPath: /v, bindMountOptions: [noexec]}]",
            "volumeMounts[0].bindMountOptions",
        ),
        ("fieldOfTomorrow: 1", "fieldOfTomorrow"),
    ],
)
def test_refused_container_fields_are_named(container: str, path: str) -> None:
    refusals = check(container_pod(container), NODE)
    assert [refusal.path for refusal in refusals] == [f"spec.containers[0].{path}"]


def test_what_asks_for_nothing_is_no_reason_to_refuse() -> None:
    spec = """
    hostUsers: true
    os: {name: linux}
    resourceClaims: []
    affinity: {nodeAffinity: {}}
    tolerations: [{operator: Exists}]
    topologySpreadConstraints: [{maxSkew: 1}]
    securityContext: {}
    volumes:
    - {name: a, emptyDir: {}}
    - {name: b, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
    containers:
    - name: web
      image: i
      ports: [{name: http, containerPort: 80}]
      readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
      lifecycle: {preStop: {sleep: {seconds: 1}}}
    """
    assert check(pod(spec), NODE) == []


def test_every_refusal_is_told_at_once() -> None:
    spec = """
    hostUsers: false
    volumes: [{name: v, csi: {driver: d}}]
    initContainers: [{name: i, volumeDevices: [{name: v, devicePath: /d}]}]
    """
    assert [refusal.path for refusal in check(pod(spec))] == [
        "spec.hostUsers",
        "spec.volumes[0].csi",
        "spec.initContainers[0].volumeDevices",
    ]


def test_what_only_this_node_cannot_do() -> None:
    bare = NodeFacts(cell="c", host_ips=("10.0.0.1",))
    with_options = pod("dnsConfig: {options: [{name: ndots, value: '2'}]}")
    assert [refusal.path for refusal in check(with_options, bare)] == ["spec.dnsConfig"]
    assert check(with_options, NODE) == []
    long = pod(
        "setHostnameAsFQDN: true\nsubdomain: a-rather-long-subdomain-for-a-pod", name="x" * 20
    )
    refusal = check(long, NODE)[0]
    assert refusal.path == "spec.setHostnameAsFQDN"
    assert "64 characters is the max" in refusal.reason


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("containers[0].readiness_probe", "spec.containers[0].readinessProbe"),
        (
            "containers[0].readiness_probe.handler.http_get.port",
            "spec.containers[0].readinessProbe.httpGet.port",
        ),
        ("init_containers[2].restart_policy", "spec.initContainers[2].restartPolicy"),
        (
            "ephemeral_containers[0].target_container",
            "spec.ephemeralContainers[0].targetContainerName",
        ),
        ("ephemeral_containers", "spec.ephemeralContainers"),
        ("containers[1].pre_stop", "spec.containers[1].lifecycle.preStop"),
        ("containers[1].stop_signal", "spec.containers[1].lifecycle.stopSignal"),
        (
            "containers[1].security.capabilities_add",
            "spec.containers[1].securityContext.capabilities.add",
        ),
        ("containers[1].security.se_linux", "spec.containers[1].securityContext.seLinuxOptions"),
        ("containers[0].mounts[0].sub_path", "spec.containers[0].volumeMounts[0].subPath"),
        ("containers[0].mounts[1].sub_path", "spec.containers[0].volumeMounts[1].subPathExpr"),
        ("containers[0].env[7]", "spec.containers[0].env"),
        ("containers[0].restart_rules[0]", "spec.containers[0].restartPolicyRules[0]"),
        (
            'containers[0].resources.limits["example.com/gpu"]',
            'spec.containers[0].resources.limits["example.com/gpu"]',
        ),
        (
            'security.sysctls["net.core.somaxconn"]',
            'spec.securityContext.sysctls["net.core.somaxconn"]',
        ),
        ("security.fs_group", "spec.securityContext.fsGroup"),
        ("network.host_network", "spec.hostNetwork"),
        ("network.dns.servers", "spec.dnsConfig.nameservers"),
        ("network.host_aliases[0]", "spec.hostAliases[0]"),
        ("runtime_handler", "spec.runtimeClassName"),
        ("host_pid", "spec.hostPID"),
        ("volumes[0].files.files[3].path", "spec.volumes[0].secret"),
        ("volumes[1].host_path", "spec.volumes[1].hostPath"),
        ("registry_credentials[0]", "spec.imagePullSecrets"),
        ("termination_grace_period_seconds", "spec.terminationGracePeriodSeconds"),
        ("something_new", "spec.somethingNew"),
        ("", "spec"),
    ],
)
def test_a_pools_path_is_shown_as_the_pods(field: str, path: str) -> None:
    spec = """
    volumes: [{name: s, secret: {secretName: x}}, {name: h, hostPath: {path: /h}}]
    containers:
    - name: web
      image: i
      volumeMounts:
      - {name: h, mountPath: /a, subPath: x}
      - {name: h, mountPath: /b, subPathExpr: $(X)}
    """
    assert pool_path_to_pod_path(pod(spec), field) == path


def test_volumes_have_other_numbers_where_some_are_not_mounted() -> None:
    spec = """
    volumes: [{name: unused, emptyDir: {}}, {name: h, hostPath: {path: /h}}]
    containers: [{name: web, image: i, volumeMounts: [{name: h, mountPath: /h}]}]
    """
    one = pod(spec, mount_all=False)
    assert pool_path_to_pod_path(one, "volumes[0].host_path") == "spec.volumes[1].hostPath"
    assert pool_path_to_pod_path(one, "volumes[7].host_path") == "spec.volumes"


def test_every_field_of_the_contract_maps_to_one_that_kubernetes_has() -> None:
    """Top-level and container fields: a pool may refuse any of them."""
    known = {path.replace("[]", "") for path in _KNOWN}
    known |= {path.rsplit(".", depth)[0] for path in known for depth in range(1, path.count("."))}
    known |= {"status.hostIPs", "spec", "metadata"}
    of_agent = {"uid", "namespace", "name", "generation", "labels", "annotations", "tenant"}
    for name in spec_pb2.SandboxSpec.DESCRIPTOR.fields_by_name:
        if name not in of_agent:
            assert pool_path_to_pod_path(pod(), name) in known, name
    for name in spec_pb2.Container.DESCRIPTOR.fields_by_name:
        path = pool_path_to_pod_path(pod(), f"ephemeral_containers[0].{name}")
        assert path.replace("[0]", "") in known
