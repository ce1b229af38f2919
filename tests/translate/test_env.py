"""A container's environment, as documented and as kubelet_pods.go makes it."""

from __future__ import annotations

import pytest

from tests.translate.builders import (
    NODE,
    UID,
    Json,
    absent,
    config_map,
    container_pod,
    env_of,
    pod,
    secret,
    spec_of,
)
from vknode.pool.runtimes.tokens import with_files
from vknode.translate.facts import Missing, Resolved
from vknode.translate.spec import sandbox_spec


def _service(name: str, namespace: str, ip: str, *ports: Json) -> Json:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ip, "ports": list(ports)},
    }


_KUBERNETES = _service("kubernetes", "default", "10.96.0.1", {"name": "https", "port": 443})


def test_variables_may_use_those_before_them() -> None:
    env = env_of(
        container_pod(
            """
            env:
            - {name: HOST, value: db}
            - {name: URL, value: 'postgres://$(HOST):$(PORT)/$(LATER)'}
            - {name: PORT, value: '5432'}
            - {name: PRICE, value: '$$(HOST)'}
            """
        )
    )
    assert env == {
        "HOST": "db",
        "URL": "postgres://db:$(PORT)/$(LATER)",
        "PORT": "5432",
        "PRICE": "$(HOST)",
    }


def test_env_from_comes_first_and_env_wins() -> None:
    env = env_of(
        container_pod(
            """
            envFrom:
            - {configMapRef: {name: settings}}
            - {prefix: SEC_, secretRef: {name: keys}}
            - {configMapRef: {name: gone, optional: true}}
            env:
            - {name: COLOR, value: '$(COLOR)-$(SEC_token)'}
            """
        ),
        Resolved(
            config_maps={
                "settings": config_map(COLOR="red", **{"not.a-shell.name": "kept"}),
                "gone": absent("configmap", "gone"),
            },
            secrets={"keys": secret(token="s3")},
        ),
    )
    # Names that no shell could use are passed on, as a kubelet of this version does.
    assert env == {"COLOR": "red-s3", "not.a-shell.name": "kept", "SEC_token": "s3"}


def test_single_keys() -> None:
    env = env_of(
        container_pod(
            """
            env:
            - {name: A, valueFrom: {configMapKeyRef: {name: settings, key: a}}}
            - {name: B, valueFrom: {secretKeyRef: {name: keys, key: b}}}
            - {name: C, valueFrom: {configMapKeyRef: {name: settings, key: nokey, optional: true}}}
            - {name: D, valueFrom: {secretKeyRef: {name: gone, key: d, optional: true}}}
            - {name: E, value: '$(A)$(C)'}
            """
        ),
        Resolved(
            config_maps={"settings": config_map(a="1")},
            secrets={"keys": secret(b="2"), "gone": absent("secret", "gone")},
        ),
    )
    assert env == {"A": "1", "B": "2", "E": "1$(C)"}


def test_fields_of_the_pod() -> None:
    env = env_of(
        container_pod(
            """
            env:
            - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
            - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
            - {name: ID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
            - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
            - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['none']"}}}
            - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
            - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
            - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
            - {name: HOST_IPS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
            """,
            labels={"app": "shop"},
        )
    )
    assert env == {
        "NAME": "web-0",
        "NAMESPACE": "shop",
        "ID": UID,
        "APP": "shop",
        "NOTE": "",
        "NODE": "az1-cell-1",
        "ACCOUNT": "default",
        "HOST_IP": "192.168.1.10",
        "HOST_IPS": "192.168.1.10,fd00::10",
    }


def test_the_pods_own_ip_comes_as_a_token_wherever_it_is_used() -> None:
    spec = spec_of(
        container_pod(
            """
            command: [serve, --listen=$(IP):80]
            env:
            - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
            - {name: ALL, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
            - {name: URL, value: 'http://$(IP)/'}
            """
        )
    )
    container = spec.containers[0]
    assert spec.pod_ip_token
    assert spec.pod_ips_token
    assert spec.pod_ip_token not in spec.pod_ips_token
    assert spec.pod_ips_token not in spec.pod_ip_token
    env = {one.name: one.value for one in container.env}
    assert env == {
        "IP": spec.pod_ip_token,
        "ALL": spec.pod_ips_token,
        "URL": f"http://{spec.pod_ip_token}/",
    }
    assert list(container.command) == ["serve", f"--listen={spec.pod_ip_token}:80"]


def test_no_tokens_where_no_ip_is_used() -> None:
    spec = spec_of(pod())
    assert (spec.pod_ip_token, spec.pod_ips_token) == ("", "")


@pytest.mark.parametrize(
    ("selector", "value"),
    [
        ("{resource: requests.cpu}", "1"),
        ("{resource: requests.cpu, divisor: 1m}", "250"),
        ("{resource: limits.cpu}", "2"),
        ("{resource: limits.cpu, divisor: 1m}", "1500"),
        ("{resource: limits.memory, divisor: 1Mi}", "64"),
        ("{resource: limits.memory, divisor: '0'}", "67108864"),
        ("{resource: requests.memory, divisor: 1Gi}", "1"),
        ("{resource: requests.ephemeral-storage}", "0"),
        # Without a limit: what the node can allocate.
        ("{resource: limits.ephemeral-storage, divisor: 1Gi}", "100"),
        ("{containerName: other, resource: limits.cpu}", "8"),
        ("{containerName: other, resource: requests.cpu}", "0"),
    ],
)
def test_resources(selector: str, value: str) -> None:
    one = pod(
        f"""
        containers:
        - name: web
          image: i
          resources:
            requests: {{cpu: 250m, memory: 64Mi}}
            limits: {{cpu: 1500m, memory: 64Mi}}
          env: [{{name: X, valueFrom: {{resourceFieldRef: {selector}}}}}]
        - {{name: other, image: i}}
        """
    )
    assert env_of(one) == {"X": value}


def test_a_missing_limit_is_the_pods_before_the_nodes() -> None:
    one = pod(
        """
        resources: {limits: {cpu: 3}}
        containers:
        - name: web
          image: i
          env: [{name: X, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]
        """
    )
    assert env_of(one) == {"X": "3"}


@pytest.mark.parametrize(
    ("env", "error"),
    [
        (
            "env: [{name: A, valueFrom: {configMapKeyRef: {name: gone, key: a}}}]",
            'configmap "gone" not found',
        ),
        (
            "env: [{name: A, valueFrom: {configMapKeyRef: {name: here, key: nokey}}}]",
            "couldn't find key nokey in ConfigMap shop/here",
        ),
        (
            "env: [{name: A, valueFrom: {secretKeyRef: {name: gone, key: a}}}]",
            'secret "gone" not found',
        ),
        (
            "env: [{name: A, valueFrom: {secretKeyRef: {name: here, key: nokey}}}]",
            "couldn't find key nokey in Secret shop/here",
        ),
        ("envFrom: [{configMapRef: {name: gone}}]", 'configmap "gone" not found'),
        ("envFrom: [{secretRef: {name: gone}}]", 'secret "gone" not found'),
        # Optional forgives only what does not exist.
        ("envFrom: [{secretRef: {name: denied, optional: true}}]", "secrets is forbidden"),
        (
            "env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.phase}}}]",
            "unsupported fieldPath: status.phase",
        ),
    ],
)
def test_what_cannot_be_resolved_holds_only_its_container(env: str, error: str) -> None:
    one = container_pod(env)
    one["spec"]["containers"].append({"name": "other", "image": "i"})
    spec = spec_of(
        one,
        Resolved(
            config_maps={"here": config_map(a="1"), "gone": absent("configmap", "gone")},
            secrets={
                "here": secret(a="1"),
                "gone": absent("secret", "gone"),
                "denied": Missing("secrets is forbidden", not_found=False),
            },
        ),
    )
    assert [container.config_error for container in spec.containers] == [error, ""]
    assert not spec.containers[0].env


def test_an_object_that_nobody_looked_up_is_a_mistake_of_ours() -> None:
    one = container_pod("envFrom: [{secretRef: {name: keys}}]")
    with pytest.raises(LookupError, match="'keys' is needed but was not looked up"):
        sandbox_spec(one, Resolved(), NODE)


def test_services_give_variables() -> None:
    redis = _service(
        "redis-primary",
        "shop",
        "10.0.0.11",
        {"port": 6379},
        {"name": "tls-port", "port": 6380, "protocol": "UDP"},
    )
    elsewhere = _service("db", "other", "10.0.0.12", {"port": 1})
    headless = _service("peers", "shop", "None", {"port": 1})
    env = env_of(
        container_pod("env: [{name: REDIS_PRIMARY_PORT, value: mine}]"),
        Resolved(services=[_KUBERNETES, redis, elsewhere, headless]),
    )
    assert env == {
        "REDIS_PRIMARY_PORT": "mine",
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
        "KUBERNETES_SERVICE_PORT_HTTPS": "443",
        "KUBERNETES_PORT": "tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
        "KUBERNETES_PORT_443_TCP_PORT": "443",
        "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
        "REDIS_PRIMARY_SERVICE_HOST": "10.0.0.11",
        "REDIS_PRIMARY_SERVICE_PORT": "6379",
        "REDIS_PRIMARY_SERVICE_PORT_TLS_PORT": "6380",
        "REDIS_PRIMARY_PORT_6379_TCP": "tcp://10.0.0.11:6379",
        "REDIS_PRIMARY_PORT_6379_TCP_PROTO": "tcp",
        "REDIS_PRIMARY_PORT_6379_TCP_PORT": "6379",
        "REDIS_PRIMARY_PORT_6379_TCP_ADDR": "10.0.0.11",
        "REDIS_PRIMARY_PORT_6380_UDP": "udp://10.0.0.11:6380",
        "REDIS_PRIMARY_PORT_6380_UDP_PROTO": "udp",
        "REDIS_PRIMARY_PORT_6380_UDP_PORT": "6380",
        "REDIS_PRIMARY_PORT_6380_UDP_ADDR": "10.0.0.11",
    }


def test_without_service_links_only_the_api_server_is_there() -> None:
    mine = _service("redis", "shop", "fd00::1", {"port": 6379})
    one = pod("enableServiceLinks: false")
    names = env_of(one, Resolved(services=[_KUBERNETES, mine]))
    assert "KUBERNETES_SERVICE_HOST" in names
    assert not [name for name in names if name.startswith("REDIS")]
    linked = env_of(pod(), Resolved(services=[mine]))
    assert linked["REDIS_PORT"] == "tcp://[fd00::1]:6379"


def test_variables_may_use_services() -> None:
    env = env_of(
        container_pod("env: [{name: API, value: 'https://$(KUBERNETES_SERVICE_HOST)'}]"),
        Resolved(services=[_KUBERNETES]),
    )
    assert env["API"] == "https://10.96.0.1"


def test_variables_from_files_are_left_to_the_pool() -> None:
    spec = """
    volumes: [{name: shared, emptyDir: {}}]
    containers:
    - name: web
      image: i
      env:
      - {name: A, value: before}
      - name: A
        valueFrom: {fileKeyRef: {volumeName: shared, path: d/env, key: K, optional: true}}
      - {name: B, valueFrom: {fileKeyRef: {volumeName: shared, path: env, key: B}}}
      - {name: B, value: after}
      - {name: C, value: $(B)}
    """
    env = spec_of(pod(spec)).containers[0].env
    assert [(variable.name, variable.value, variable.HasField("file")) for variable in env] == [
        ("A", "before", False),
        ("A", "", True),
        ("B", "", True),
        ("B", "after", False),
        ("C", "after", False),
    ]
    file = env[1].file
    assert (file.volume, file.path, file.key, file.optional) == ("shared", "d/env", "K", True)


def test_what_refers_to_a_variable_from_a_file_gets_its_token() -> None:
    file = "{fileKeyRef: {volumeName: shared, path: env, key: K, optional: true}}"
    spec = f"""
    volumes: [{{name: shared, emptyDir: {{}}}}]
    containers:
    - name: web
      image: i
      command: [run, "$(A)", "$$(A)", "$(UNUSED"]
      args: ["--b=$(B)"]
      env:
      - {{name: A, value: before}}
      - {{name: A, valueFrom: {file}}}
      - {{name: B, valueFrom: {file}}}
      - {{name: UNUSED, valueFrom: {file}}}
      - {{name: C, value: "<$(A)>"}}
      volumeMounts: [{{name: shared, mountPath: /d, subPathExpr: logs/$(B)}}]
    """
    container = spec_of(pod(spec)).containers[0]
    files = {entry.name: entry.file for entry in container.env if entry.HasField("file")}
    a, b = files["A"], files["B"]
    assert len({a.token, b.token, ""}) == 3
    assert list(container.command) == ["run", a.token, "$(A)", "$(UNUSED"]
    assert list(container.args) == [f"--b={b.token}"]
    assert env_of(pod(spec))["C"] == f"<{a.token}>"
    assert container.mounts[0].sub_path == f"logs/{b.token}"
    assert a.otherwise == "before"
    assert not b.HasField("otherwise")
    assert not files["UNUSED"].token


def test_a_variable_from_a_file_that_is_set_again_stands_where_it_was_used_before() -> None:
    spec = """
    volumes: [{name: shared, emptyDir: {}}]
    containers:
    - name: web
      image: i
      env:
      - {name: A, valueFrom: {fileKeyRef: {volumeName: shared, path: env, key: K}}}
      - {name: B, value: $(A)}
      - {name: A, value: later}
      - {name: C, value: $(A)}
    """
    container = spec_of(pod(spec)).containers[0]
    found = with_files(container, {0: b"of the file"})
    in_force = {one.name: one.value for one in found.env}
    assert in_force == {"A": "later", "B": "of the file", "C": "later"}


@pytest.mark.parametrize(("value", "found"), [(b"file", "file"), (None, "10.96.0.1")])
def test_a_variable_of_a_service_stands_where_the_files_is_left_out(
    value: bytes | None, found: str
) -> None:
    name = "KUBERNETES_SERVICE_HOST"
    spec = f"""
    volumes: [{{name: shared, emptyDir: {{}}}}]
    containers:
    - name: web
      image: i
      env:
      - name: {name}
        valueFrom: {{fileKeyRef: {{volumeName: shared, path: e, key: K, optional: true}}}}
      - {{name: USED, value: $({name})}}
    """
    container = spec_of(pod(spec), Resolved(services=[_KUBERNETES])).containers[0]
    (index,) = (i for i, one in enumerate(container.env) if one.HasField("file"))
    env = with_files(container, {index: value}).env
    in_force = {one.name: one.value for one in env if not one.HasField("file")}
    assert in_force["USED"] == found
    assert in_force[name] == "10.96.0.1"
    before = [one.name for one in env].index(name)
    assert before < index, "the file's value, where it is there, is the later one"


def test_a_file_in_a_volume_that_nobody_mounts_cannot_be_read() -> None:
    one = pod(
        """
        volumes: [{name: shared, emptyDir: {}}]
        containers:
        - name: web
          image: i
          env: [{name: B, valueFrom: {fileKeyRef: {volumeName: shared, path: env, key: B}}}]
        """,
        mount_all=False,
    )
    assert spec_of(one).containers[0].config_error == (
        'cannot find the volume "shared" referenced by FileKeyRef'
    )


def test_an_init_container_that_is_named_gets_no_default_limit() -> None:
    """As a kubelet does it: only main containers get the node's where they have none."""
    named = "{containerName: init, resource: limits.memory}"
    env = env_of(
        pod(
            f"""
            initContainers: [{{name: init, image: i}}]
            containers:
            - name: web
              image: i
              env:
              - {{name: INIT, valueFrom: {{resourceFieldRef: {named}}}}}
              - {{name: WEB, valueFrom: {{resourceFieldRef: {{resource: limits.cpu}}}}}}
              - {{name: HUGE, valueFrom: {{resourceFieldRef: {{resource: limits.hugepages-2Mi}}}}}}
            """
        )
    )
    assert env == {"INIT": "0", "WEB": "8", "HUGE": "0"}


def test_a_service_called_kubernetes_of_the_pods_own_namespace_wins() -> None:
    own = _service("kubernetes", "shop", "10.96.7.7", {"port": 1})
    for services in ([_KUBERNETES, own], [own, _KUBERNETES]):
        env = env_of(pod(), Resolved(services=services))
        assert env["KUBERNETES_SERVICE_HOST"] == "10.96.7.7"
