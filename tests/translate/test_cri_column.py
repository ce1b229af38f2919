"""The table's `cri` column is what the pool's engine and runtime really say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.translate.builders import NODE, pod, spec_of
from vknode.pool.engine.support import problems as engine_problems
from vknode.pool.runtimes.cri.features import Features
from vknode.pool.runtimes.cri.options import CriOptions
from vknode.pool.runtimes.cri.support import problems as cri_problems
from vknode.translate.facts import NodeFacts
from vknode.translate.fields import check, expand_row, pool_path_to_pod_path, row_for
from vknode.translate.support import TABLE

# A current containerd, and a pool started without further permissions.
_FEATURES = Features(
    name="containerd",
    version=(2, 4, 2),
    handlers=frozenset({"", "runc"}),
    recursive_read_only=frozenset({"", "runc"}),
    strict_groups=True,
    app_armor=True,
    se_linux=True,
    port_mappings=True,
)

_OPTIONS = CriOptions(endpoint="unix:none", state_dir=Path("none"), pool="test")

_C = "containers: [{name: web, image: i, %s}]"


def _refused(spec: str, node: NodeFacts = NODE) -> set[str]:
    """Pod paths that the engine or `cri` refuses."""
    one = pod(spec)
    assert check(one, node) == []
    sandbox = spec_of(one, node=node)
    found = [*engine_problems(sandbox), *cri_problems(sandbox, _OPTIONS, _FEATURES)]
    return {pool_path_to_pod_path(one, problem.path) for problem in found}


@pytest.mark.parametrize(
    "spec",
    [
        "volumes: [{name: v, hostPath: {path: /etc}}]",
        "hostNetwork: true\ndnsPolicy: Default",
        "hostPID: true",
        "hostIPC: true",
        "securityContext: {seLinuxOptions: {type: spc_t}}",
        "securityContext: {seLinuxOptions: {user: root}}",
        _C % "securityContext: {seLinuxOptions: {role: root}}",
        "securityContext: {seccompProfile: {type: Localhost, localhostProfile: p}}",
        "securityContext: {sysctls: [{name: kernel.msgmax, value: '1'}]}",
        _C % "securityContext: {privileged: true}",
        _C % "securityContext: {procMount: Unmasked}",
        _C % "resources: {limits: {example.com/gpu: '1'}}",
        "resources: {limits: {hugepages-2Mi: 4Mi}}",
    ],
)
def test_what_cri_refuses_has_a_word_in_the_column(spec: str) -> None:
    refused = _refused(spec)
    assert refused, "cri does this now: bring the column in support.py up to date"
    for path in refused:
        plain = re.sub(r"\[[^\]]*\]", "", path)
        # A path may stop above the table's rows ("…readinessProbe"): some row below counts.
        below = [
            row
            for row in TABLE
            if any(f"{one.replace('[]', '')}.".startswith(f"{plain}.") for one in expand_row(row))
        ]
        above = row_for(plain)
        assert any(row.cri for row in below or ([above] if above else [])), path


@pytest.mark.parametrize(
    "spec",
    [
        "",
        _C % "readinessProbe: {exec: {command: [x]}}",
        _C % "livenessProbe: {httpGet: {port: 80}}",
        _C % "startupProbe: {tcpSocket: {port: 80}}",
        _C % "lifecycle: {postStart: {exec: {command: [x]}}}",
        _C % "lifecycle: {preStop: {sleep: {seconds: 1}}}",
        _C % "restartPolicy: Never, restartPolicyRules: "
        "[{action: Restart, exitCodes: {operator: In, values: [1]}}]",
        "initContainers: [{name: s, image: i, restartPolicy: Always}]",
        "ephemeralContainers: [{name: e, image: i, targetContainerName: web}]",
        "volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]",
        "volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]",
        _C % "resources: {limits: {ephemeral-storage: 1Gi}}",
        "shareProcessNamespace: true",
        _C % "ports: [{containerPort: 80, hostPort: 80}]",
        "securityContext: {appArmorProfile: {type: Localhost, localhostProfile: p}}",
        "resources: {limits: {memory: 1Gi}}",
        "securityContext: {fsGroup: 1, supplementalGroupsPolicy: Strict}",
        "securityContext: {seccompProfile: {type: RuntimeDefault}}",
        "securityContext: {sysctls: [{name: net.ipv4.tcp_syncookies, value: '1'}]}",
        _C % "resources: {limits: {cpu: 1, memory: 1Mi}, requests: {ephemeral-storage: 1Mi}}",
        _C % "lifecycle: {stopSignal: SIGUSR1}",
        _C % "securityContext: {capabilities: {add: [NET_ADMIN]}, readOnlyRootFilesystem: true}",
    ],
)
def test_what_has_no_word_there_works(spec: str) -> None:
    assert _refused(spec) == set()
