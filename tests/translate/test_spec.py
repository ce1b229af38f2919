"""The rest of a SandboxSpec: names, DNS, security, containers, credentials."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from tests.translate.builders import (
    NODE,
    UID,
    Json,
    absent,
    container_pod,
    env_of,
    pod,
    secret,
    spec_of,
)
from vknode.pool.v1 import spec_pb2
from vknode.translate.credentials import registry_credentials
from vknode.translate.dns import missing_cluster_dns
from vknode.translate.facts import NodeFacts, Resolved

_BARE = NodeFacts(cell="c", host_ips=("10.0.0.1",))


def test_identity_and_policy() -> None:
    spec = spec_of(
        pod(
            """
            restartPolicy: OnFailure
            terminationGracePeriodSeconds: 5
            activeDeadlineSeconds: 60
            priority: 1000
            shareProcessNamespace: true
            hostPID: true
            hostIPC: true
            overhead: {cpu: 10m}
            resources: {limits: {memory: 1Gi}, requests: {cpu: 1}}
            """,
            generation=3,
            labels={"app": "web"},
            annotations={"note": "x"},
        ),
        node=replace(NODE, runtime_handler="runsc", network="blue"),
    )
    assert (spec.uid, spec.namespace, spec.name) == (UID, "shop", "web-0")
    assert (spec.cell, spec.tenant, spec.runtime_handler) == ("az1-cell-1", "team-a", "runsc")
    assert spec.generation == 3
    assert dict(spec.labels) == {"app": "web"}
    assert dict(spec.annotations) == {"note": "x"}
    assert spec.service_account_name == "default"
    assert spec.network.name == "blue"
    assert spec.restart_policy == spec_pb2.RESTART_POLICY_ON_FAILURE
    assert spec.termination_grace_period_seconds == 5
    assert spec.active_deadline_seconds == 60
    assert (spec.share_process_namespace, spec.host_pid, spec.host_ipc) == (True, True, True)
    assert dict(spec.overhead) == {"cpu": "10m"}
    assert dict(spec.resources.limits) == {"memory": "1Gi"}
    assert dict(spec.resources.requests) == {"cpu": "1"}
    assert spec.priority == 1000
    assert list(spec.host_ips) == ["192.168.1.10", "fd00::10"]


def test_what_is_absent_stays_absent() -> None:
    spec = spec_of(pod("terminationGracePeriodSeconds: 0"))
    assert spec.termination_grace_period_seconds == 0
    assert not spec.HasField("active_deadline_seconds")
    assert not spec.HasField("resources")
    container = spec.containers[0]
    for name in ("readiness_probe", "post_start", "pre_stop"):
        assert not container.HasField(name)
    assert not container.security.HasField("run_as_user")
    assert not container.security.HasField("seccomp")
    assert not container.security.HasField("allow_privilege_escalation")
    assert not spec.security.HasField("fs_group")


def test_the_same_input_gives_the_same_bytes() -> None:
    one = container_pod(
        "env: [{name: A, value: x}]", labels={"b": "1", "a": "2"}, annotations={"z": "", "y": ""}
    )
    again = json.loads(json.dumps(one, sort_keys=True))
    first = spec_of(one).SerializeToString(deterministic=True)
    assert spec_of(again).SerializeToString(deterministic=True) == first


@pytest.mark.parametrize(
    ("spec", "name", "hostname", "domain"),
    [
        ("", "web-0", "web-0", ""),
        ("hostname: db\nsubdomain: peers", "web-0", "db", "peers.shop.svc.cluster.local"),
        ("subdomain: peers", "web-0", "web-0", "peers.shop.svc.cluster.local"),
        ("hostnameOverride: my.own.name\nsubdomain: peers", "web-0", "my.own.name", ""),
        ("", "x" * 62 + "-y", "x" * 62, ""),
        ("", "x" * 80, "x" * 63, ""),
    ],
)
def test_host_names(spec: str, name: str, hostname: str, domain: str) -> None:
    network = spec_of(pod(spec, name=name)).network
    assert (network.hostname, network.domainname) == (hostname, domain)
    assert not network.hostname_as_fqdn


def test_fqdn_aliases_and_host_network() -> None:
    network = spec_of(
        pod(
            """
            setHostnameAsFQDN: true
            subdomain: s
            hostNetwork: true
            hostAliases: [{ip: 10.1.1.1, hostnames: [a.example, b.example]}]
            """
        )
    ).network
    assert network.hostname_as_fqdn
    assert network.host_network
    assert (network.host_aliases[0].ip, list(network.host_aliases[0].hostnames)) == (
        "10.1.1.1",
        ["a.example", "b.example"],
    )


_CLUSTER_SEARCHES = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]


def _dns(a_pod: Json, node: NodeFacts) -> tuple[list[str], list[str], list[str]] | None:
    network = spec_of(a_pod, node=node).network
    if not network.HasField("dns"):
        return None
    return list(network.dns.servers), list(network.dns.searches), list(network.dns.options)


def test_cluster_first() -> None:
    assert _dns(pod(), NODE) == (["10.96.0.10"], _CLUSTER_SEARCHES, ["ndots:5"])
    extended = pod(
        """
        dnsConfig:
          nameservers: [1.1.1.1, 10.96.0.10]
          searches: [example.com, cluster.local]
          options: [{name: ndots, value: '2'}, {name: edns0}]
        """
    )
    assert _dns(extended, NODE) == (
        ["10.96.0.10", "1.1.1.1"],
        [*_CLUSTER_SEARCHES, "example.com"],
        ["ndots:2", "edns0"],
    )


def test_the_hosts_own_resolver() -> None:
    for one in (pod("dnsPolicy: Default"), pod("hostNetwork: true")):
        assert _dns(one, NODE) is None
        assert not missing_cluster_dns(one, NODE)
    # Without cluster DNS ClusterFirst falls back, as on a kubelet, which says so.
    assert _dns(pod(), _BARE) is None
    assert missing_cluster_dns(pod(), _BARE)
    known = replace(
        _BARE, host_dns=spec_pb2.DnsConfig(servers=["9.9.9.9"], searches=["corp"], options=["x:1"])
    )
    assert _dns(pod("dnsConfig: {searches: [a.example]}"), known) == (
        ["9.9.9.9"],
        ["corp", "a.example"],
        ["x:1"],
    )
    in_cluster = replace(known, cluster_dns=("10.96.0.10",))
    assert _dns(pod(), in_cluster) == (["10.96.0.10"], [*_CLUSTER_SEARCHES, "corp"], ["ndots:5"])


def test_dns_none_and_cluster_first_with_host_net() -> None:
    none = pod("dnsPolicy: None\ndnsConfig: {nameservers: [1.1.1.1]}")
    none["spec"]["dnsPolicy"] = "None"
    assert _dns(none, NODE) == (["1.1.1.1"], [], [])
    host = pod("dnsPolicy: ClusterFirstWithHostNet\nhostNetwork: true")
    assert _dns(host, NODE) == (["10.96.0.10"], _CLUSTER_SEARCHES, ["ndots:5"])


def test_a_resolver_gets_no_more_than_it_can_hold() -> None:
    long = [f"{'x' * 60}.{number}.example" for number in range(40)]
    one = pod({"dnsConfig": {"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3"], "searches": long}})
    servers, searches, _ = _dns(one, NODE) or ([], [], [])
    assert servers == ["10.96.0.10", "1.1.1.1", "2.2.2.2"]
    assert len(" ".join(searches)) <= 2048
    assert searches == [*_CLUSTER_SEARCHES, *long][: len(searches)]


def test_a_container_in_full() -> None:
    spec = spec_of(
        container_pod(
            """
            image: registry.example/web@sha256:abc
            imagePullPolicy: Always
            command: [/bin/sh, -c]
            args: ['echo $(GREETING) $(UNKNOWN) $$(GREETING)']
            workingDir: /srv
            env: [{name: GREETING, value: hello}]
            ports:
            - {name: http, containerPort: 8080, protocol: TCP}
            - {containerPort: 53, hostPort: 5353, hostIP: 127.0.0.1, protocol: UDP}
            resources: {requests: {cpu: 100m}, limits: {cpu: 1, memory: 64Mi}}
            tty: true
            stdin: true
            stdinOnce: true
            terminationMessagePath: /dev/termination-log
            terminationMessagePolicy: FallbackToLogsOnError
            restartPolicy: Never
            restartPolicyRules:
            - {action: Restart, exitCodes: {operator: In, values: [42, 43]}}
            - {action: RestartAllContainers, exitCodes: {operator: NotIn, values: [0]}}
            volumeMounts:
            - {name: a, mountPath: /a, readOnly: true, recursiveReadOnly: Enabled}
            - {name: a, mountPath: /b, readOnly: true, recursiveReadOnly: IfPossible}
            - name: a
              mountPath: /c
              subPathExpr: $(GREETING)/x
              mountPropagation: HostToContainer
            - {name: a, mountPath: /d, subPath: y, mountPropagation: None}
            lifecycle:
              stopSignal: SIGUSR1
              postStart: {exec: {command: [touch, /x]}}
              preStop: {httpGet: {path: /stop, port: http, httpHeaders: [{name: X, value: '1'}]}}
            readinessProbe:
              httpGet: {path: /ready, port: http, scheme: HTTPS}
              initialDelaySeconds: 1
              timeoutSeconds: 2
              periodSeconds: 3
              successThreshold: 4
              failureThreshold: 5
            livenessProbe: {tcpSocket: {port: '8080', host: h}, terminationGracePeriodSeconds: 9}
            startupProbe: {grpc: {port: 9000, service: s}}
            """
        )
    )
    one = spec.containers[0]
    assert one.config_error == ""
    assert (one.name, one.image) == ("web", "registry.example/web@sha256:abc")
    assert one.image_pull_policy == spec_pb2.IMAGE_PULL_POLICY_ALWAYS
    assert list(one.command) == ["/bin/sh", "-c"]
    assert list(one.args) == ["echo hello $(UNKNOWN) $(GREETING)"]
    assert one.working_dir == "/srv"
    assert [(p.name, p.container_port, p.host_port, p.host_ip, p.protocol) for p in one.ports] == [
        ("http", 8080, 0, "", "TCP"),
        ("", 53, 5353, "127.0.0.1", "UDP"),
    ]
    assert dict(one.resources.limits) == {"cpu": "1", "memory": "64Mi"}
    assert dict(one.resources.requests) == {"cpu": "100m"}
    assert (one.tty, one.stdin, one.stdin_once) == (True, True, True)
    assert one.termination_message_path == "/dev/termination-log"
    assert one.termination_message_fallback_to_logs
    assert one.restart_policy == spec_pb2.RESTART_POLICY_NEVER
    assert [(rule.action, list(rule.exit_codes), rule.not_in) for rule in one.restart_rules] == [
        (spec_pb2.RestartRule.ACTION_RESTART, [42, 43], False),
        (spec_pb2.RestartRule.ACTION_RESTART_ALL_CONTAINERS, [0], True),
    ]
    assert [(m.path, m.read_only, m.recursive_read_only, m.sub_path) for m in one.mounts] == [
        ("/a", True, True, ""),
        ("/b", True, False, ""),
        ("/c", False, False, "hello/x"),
        ("/d", False, False, "y"),
    ]
    assert [mount.propagation for mount in one.mounts] == [
        spec_pb2.PROPAGATION_UNSPECIFIED,
        spec_pb2.PROPAGATION_UNSPECIFIED,
        spec_pb2.PROPAGATION_HOST_TO_CONTAINER,
        spec_pb2.PROPAGATION_UNSPECIFIED,
    ]
    assert one.stop_signal == "SIGUSR1"
    assert list(one.post_start.exec.command) == ["touch", "/x"]
    stop = one.pre_stop.http_get
    assert (stop.path, stop.port, stop.scheme) == ("/stop", 8080, "HTTP")
    assert [(header.name, header.value) for header in stop.headers] == [("X", "1")]
    ready = one.readiness_probe
    assert (ready.handler.http_get.port, ready.handler.http_get.scheme) == (8080, "HTTPS")
    assert (
        ready.initial_delay_seconds,
        ready.timeout_seconds,
        ready.period_seconds,
        ready.success_threshold,
        ready.failure_threshold,
    ) == (1, 2, 3, 4, 5)
    assert not ready.HasField("termination_grace_period_seconds")
    alive = one.liveness_probe
    assert (alive.handler.tcp_socket.port, alive.handler.tcp_socket.host) == (8080, "h")
    assert alive.termination_grace_period_seconds == 9
    assert (one.startup_probe.handler.grpc.port, one.startup_probe.handler.grpc.service) == (
        9000,
        "s",
    )


def test_init_sidecar_and_debug_containers() -> None:
    spec = spec_of(
        pod(
            """
            initContainers:
            - {name: first, image: i}
            - {name: proxy, image: p, restartPolicy: Always}
            ephemeralContainers:
            - {name: debug, image: d, targetContainerName: web, imagePullPolicy: Never}
            """
        )
    )
    assert [(one.name, one.restart_policy) for one in spec.init_containers] == [
        ("first", spec_pb2.RESTART_POLICY_UNSPECIFIED),
        ("proxy", spec_pb2.RESTART_POLICY_ALWAYS),
    ]
    debug = spec.ephemeral_containers[0]
    assert (debug.name, debug.target_container) == ("debug", "web")
    assert debug.image_pull_policy == spec_pb2.IMAGE_PULL_POLICY_NEVER


@pytest.mark.parametrize(
    ("mount", "error"),
    [
        ("subPathExpr: $(A)/$(NO)/$(NAH)", "missing value for NAH, NO"),
        ("subPathExpr: $(EMPTY)", "missing value for EMPTY"),
        ("subPathExpr: $(ABS)", "error SubPath `/abs` must not be an absolute path"),
        ("subPathExpr: $(UP)/x", "unable to provision SubPath `../x`: must not contain '..'"),
    ],
)
def test_sub_paths_that_cannot_be_made(mount: str, error: str) -> None:
    spec = spec_of(
        container_pod(
            f"""
            env:
            - {{name: A, value: a}}
            - {{name: EMPTY, value: ''}}
            - {{name: ABS, value: /abs}}
            - {{name: UP, value: ..}}
            volumeMounts: [{{name: v, mountPath: /v, {mount}}}]
            """
        )
    )
    assert spec.containers[0].config_error == error


def test_a_sub_path_may_use_an_ip_that_the_pool_will_know() -> None:
    spec = spec_of(
        container_pod(
            """
            env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
            volumeMounts: [{name: v, mountPath: /v, subPathExpr: of/$(IP)}]
            """
        )
    )
    container = spec.containers[0]
    assert (container.config_error, container.mounts[0].sub_path) == (
        "",
        f"of/{spec.pod_ip_token}",
    )


def test_security_of_a_container_falls_back_to_the_pods() -> None:
    spec = spec_of(
        pod(
            """
            securityContext:
              runAsUser: 1000
              runAsGroup: 1001
              runAsNonRoot: true
              fsGroup: 2000
              fsGroupChangePolicy: OnRootMismatch
              supplementalGroups: [3000, 4000]
              supplementalGroupsPolicy: Strict
              sysctls: [{name: net.ipv4.ip_local_port_range, value: 1 2}]
              seccompProfile: {type: RuntimeDefault}
              appArmorProfile: {type: Localhost, localhostProfile: mine}
              seLinuxOptions: {level: 's0:c1'}
            containers:
            - {name: plain, image: i}
            - name: own
              image: i
              securityContext:
                runAsUser: 0
                runAsNonRoot: false
                privileged: true
                allowPrivilegeEscalation: false
                readOnlyRootFilesystem: true
                procMount: Unmasked
                capabilities: {add: [NET_ADMIN, CAP_SYS_TIME], drop: [all]}
                seccompProfile: {type: Unconfined}
                seLinuxOptions: {type: t}
            """
        )
    )
    outer = spec.security
    assert (outer.fs_group, outer.fs_group_on_root_mismatch) == (2000, True)
    assert (list(outer.supplemental_groups), outer.supplemental_groups_strict) == (
        [3000, 4000],
        True,
    )
    assert dict(outer.sysctls) == {"net.ipv4.ip_local_port_range": "1 2"}
    plain, own = spec.containers[0].security, spec.containers[1].security
    assert (plain.run_as_user, plain.run_as_group, plain.run_as_non_root) == (1000, 1001, True)
    assert plain.seccomp.type == spec_pb2.SecurityProfile.TYPE_RUNTIME_DEFAULT
    assert (plain.app_armor.type, plain.app_armor.localhost_profile) == (
        spec_pb2.SecurityProfile.TYPE_LOCALHOST,
        "mine",
    )
    assert plain.se_linux.level == "s0:c1"
    assert not plain.HasField("allow_privilege_escalation")
    assert (own.run_as_user, own.HasField("run_as_user")) == (0, True)
    assert (own.run_as_group, own.run_as_non_root, own.privileged) == (1001, False, True)
    assert own.HasField("allow_privilege_escalation")
    assert not own.allow_privilege_escalation
    assert own.read_only_root_filesystem
    assert own.proc_mount == "Unmasked"
    assert (list(own.capabilities_add), list(own.capabilities_drop)) == (
        ["NET_ADMIN", "SYS_TIME"],
        ["ALL"],
    )
    assert own.seccomp.type == spec_pb2.SecurityProfile.TYPE_UNCONFINED
    assert (own.se_linux.type, own.se_linux.level) == ("t", "")


def _docker(kind: str, key: str, content: Json) -> Json:
    return {"type": kind, "data": secret(**{key: json.dumps(content)})["data"]}


def test_registry_credentials() -> None:
    auth = base64.b64encode(b"joe:se:cret").decode()
    resolved = Resolved(
        secrets={
            "new": _docker(
                "kubernetes.io/dockerconfigjson",
                ".dockerconfigjson",
                {
                    "auths": {
                        "https://index.docker.io/v1/": {"username": "u", "password": "p"},
                        "registry.example/team": {"auth": auth},
                        "registry.example": {"identitytoken": "idt"},
                    }
                },
            ),
            "old": _docker("kubernetes.io/dockercfg", ".dockercfg", {"quay.example": {}}),
            "gone": absent("secret", "gone"),
            "broken": secret(x="y"),
            "worse": _docker("kubernetes.io/dockercfg", ".dockercfg", {"r": {"auth": "S3CRET!"}}),
        }
    )
    one = pod("imagePullSecrets: [{name: new}, {}, {name: old}, {name: gone}]")
    found, warnings = registry_credentials(one, resolved)
    assert [(one.registry, one.username, one.password, one.identity_token) for one in found] == [
        ("registry.example/team", "joe", "se:cret", ""),
        ("registry.example", "", "", "idt"),
        ("quay.example", "", "", ""),
        ("index.docker.io", "u", "p", ""),
    ]
    assert warnings == [
        "Unable to retrieve some image pull secrets (gone); attempting to pull the image may "
        "not succeed."
    ]
    assert list(spec_of(one, resolved).registry_credentials) == found
    _, warnings = registry_credentials(
        pod("imagePullSecrets: [{name: broken}, {name: worse}]"), resolved
    )
    assert [warning.split()[1] for warning in warnings] == ["broken", "worse"]
    assert "S3CRET" not in str(warnings)


def test_expansion_sees_variables_of_services() -> None:
    service = {
        "metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443}]},
    }
    resolved = Resolved(services=[service])
    one = container_pod("args: ['$(KUBERNETES_SERVICE_HOST)']")
    assert list(spec_of(one, resolved).containers[0].args) == ["10.96.0.1"]
    assert "KUBERNETES_SERVICE_HOST" in env_of(one, resolved)


def test_commands_of_probes_see_literal_variables_and_hooks_none() -> None:
    """A kubelet expands a probe's command with what env says literally: no references of
    references, nothing of other sources."""
    container = spec_of(
        container_pod(
            """
            env:
            - {name: A, value: x}
            - {name: B, value: $(A)}
            - {name: C, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            livenessProbe: {exec: {command: ['$(A)', '$(B)', '<$(C)>', '$(NONE)', '$$(A)']}}
            lifecycle: {preStop: {exec: {command: ['$(A)']}}}
            """
        )
    ).containers[0]
    assert list(container.liveness_probe.handler.exec.command) == [
        "x", "$(A)", "<>", "$(NONE)", "$(A)",
    ]  # fmt: skip
    assert list(container.pre_stop.exec.command) == ["$(A)"]


def test_which_resizes_restart_a_container() -> None:
    container = spec_of(
        container_pod(
            """
            resizePolicy:
            - {resourceName: cpu, restartPolicy: NotRequired}
            - {resourceName: memory, restartPolicy: RestartContainer}
            """
        )
    ).containers[0]
    assert list(container.resize_restarts) == ["memory"]


def test_sysctls_may_be_written_with_slashes() -> None:
    security = spec_of(
        pod(
            """
            securityContext:
              sysctls:
              - {name: kernel/shm_rmid_forced, value: '1'}
              - {name: net.ipv4.tcp_syncookies, value: '0'}
              - {name: net/ipv4/conf/eth0.1/forwarding, value: '1'}
            """
        )
    ).security
    assert dict(security.sysctls) == {
        "kernel.shm_rmid_forced": "1",
        "net.ipv4.tcp_syncookies": "0",
        "net.ipv4.conf.eth0/1.forwarding": "1",
    }
