"""Each mistake in the configuration is one line with file, field, what is wrong and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vknode.agent.config import (
    ConfigError,
    KubeletAuthentication,
    KubeletAuthorization,
    PoolConfig,
    load_config,
)
from vknode.translate.privileges import Allowed

POOL = {"name": "az1", "endpoint": "unix:/run/az1.sock"}
TLS = {"ca": "crt", "cert": "crt", "key": "crt"}


def write(folder: Path, **keys: Any) -> Path:
    file = folder / "agent.yaml"
    file.write_text(yaml.safe_dump({"pools": [POOL], **keys}))
    return file


def problems(folder: Path, **keys: Any) -> tuple[str, ...]:
    file = write(folder, **keys)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    for problem in caught.value.problems:
        assert problem.startswith(f"{file}")
        assert "; " in problem, "every problem carries its fix"
    return caught.value.problems


def test_smallest_file_and_its_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert config.pools == (PoolConfig("az1", "unix:/run/az1.sock"),)
    assert config.kubeconfig is None
    assert config.node_name_template == "{cell}"
    assert (config.lease.duration, config.lease.renew) == (40, 10.0)
    assert config.pool_unreachable_after == 10.0
    assert (config.deletion.brake_share, config.deletion.brake_minimum) == (0.3, 10)
    assert config.kubelet.system_logs is None
    assert config.max_reference_watches == 500
    assert config.extended_resources == {}
    assert config.privileges == ()
    assert config.tenant == "default"
    assert config.log_format == "json"


def test_everything_given(tmp_path: Path) -> None:
    for name in ("kubeconfig", "ca.pem", "crt.pem", "key.pem"):
        (tmp_path / name).write_text("x")
    (tmp_path / "logs").mkdir()
    config = load_config(
        write(
            tmp_path,
            kubeconfig="kubeconfig",
            pools=[
                POOL,
                {
                    "name": "az2",
                    "endpoint": "pool.example:7443",
                    "cells": ["rack-*"],
                    "maxCells": 20,
                    "tls": {
                        "ca": "ca.pem",
                        "cert": "crt.pem",
                        "key": "key.pem",
                        "serverName": "pool",
                    },
                },
            ],
            nodeNameTemplate="{pool}-{cell}",
            nodeLabels={"team": "a"},
            taints=[{"key": "vknode.dev/virtual", "value": "yes", "effect": "NoSchedule"}],
            kubelet={
                "address": "10.0.0.1",
                "port": 0,
                "servingCert": "crt.pem",
                "servingKey": "key.pem",
                "clientCA": "ca.pem",
                "systemLogs": str(tmp_path / "logs"),
                "authentication": {"webhook": {"enabled": False, "cacheTTLSeconds": 5}},
                "authorization": {
                    "mode": "Webhook",
                    "webhook": {"cacheAuthorizedTTLSeconds": 60, "cacheUnauthorizedTTLSeconds": 0},
                },
                "clusterDNS": ["10.96.0.10", "fd00::a"],
                "clusterDomain": "k8s.example",
            },
            lease={"durationSeconds": 20, "renewSeconds": 5},
            pool={"unreachableAfterSeconds": 3},
            deletion={"brakeShare": 0.5, "brakeMinimum": 1},
            references={"maxWatches": 20},
            extendedResources={"example.com/gpu": "a100"},
            privileges=[
                {
                    "namespaces": ["kube-system", "log-*"],
                    "cells": ["az1-*"],
                    "pools": ["az1"],
                    "allow": {
                        "hostPath": ["/var/log"],
                        "hostNetwork": True,
                        "hostPID": True,
                        "hostIPC": True,
                        "privileged": True,
                        "capabilities": ["NET_ADMIN"],
                        "unsafeSysctls": ["net.core.somaxconn"],
                        "unconfined": True,
                        "unconfinedByDefault": True,
                    },
                },
                {"namespaces": ["*"], "allow": {"hostIPC": True}},
            ],
            metrics={"listen": "[::1]:9090"},
            tenant="acme",
            logFormat="console",
        )
    )
    assert config.kubeconfig == tmp_path / "kubeconfig"
    assert config.pools[1].tls is not None
    assert config.pools[1].tls.server_name == "pool"
    assert [pool.cells for pool in config.pools] == [("*",), ("rack-*",)]
    assert [pool.max_cells for pool in config.pools] == [1000, 20]
    assert config.taints[0].effect == "NoSchedule"
    assert config.kubelet.serving_cert == tmp_path / "crt.pem"
    assert config.kubelet.system_logs == tmp_path / "logs"
    assert config.kubelet.authentication == KubeletAuthentication(False, 5.0)
    assert config.kubelet.authorization == KubeletAuthorization(False, 60.0, 0.0)
    assert config.kubelet.cluster_dns == ("10.96.0.10", "fd00::a")
    assert config.kubelet.cluster_domain == "k8s.example"
    assert config.pool_unreachable_after == 3.0
    assert config.metrics_listen == "[::1]:9090"
    assert config.max_reference_watches == 20
    assert config.extended_resources == {"example.com/gpu": "a100"}
    first, second = config.privileges
    assert first.allow == Allowed(
        ("/var/log",),
        True,
        True,
        True,
        True,
        frozenset({"NET_ADMIN"}),
        ("net.core.somaxconn",),
        True,
        True,
    )
    assert (first.cells, first.pools) == (("az1-*",), ("az1",))
    assert (second.cells, second.pools) == (("*",), ("*",))


def test_metrics_can_be_switched_off(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, metrics={"listen": ""})).metrics_listen == ""


def test_who_may_use_the_kubelet_api_is_asked_of_the_cluster(tmp_path: Path) -> None:
    kubelet = load_config(write(tmp_path)).kubelet
    assert kubelet.authentication == KubeletAuthentication(True, 120.0)
    assert kubelet.authorization == KubeletAuthorization(False, 300.0, 30.0)
    anybody = load_config(write(tmp_path, kubelet={"authorization": {"mode": "AlwaysAllow"}}))
    assert anybody.kubelet.authorization.always_allow


@pytest.mark.parametrize(
    ("kubelet", "words"),
    [
        (
            {"allowedClientNames": ["kube-apiserver-kubelet-client"]},
            ("kubelet.allowedClientNames: was removed", "system:kubelet-api-admin"),
        ),
        (
            {"authorization": {"mode": "alwaysallow"}},
            ("kubelet.authorization.mode", "Webhook, AlwaysAllow"),
        ),
        (
            {"serverTLSBootstrap": True, "selfSigned": True},
            ("kubelet.selfSigned: is given beside serverTLSBootstrap", "keep one"),
        ),
        (
            {"certDirectory": "kept"},
            ("kubelet.certDirectory: is given without serverTLSBootstrap", "remove it"),
        ),
        (
            {"serverTLSBootstrap": True, "certDirectory": "agent.yaml"},
            ("kubelet.certDirectory", "is not a folder"),
        ),
        (
            {"authentication": {"anonymous": {"enabled": True}}},
            ("kubelet.authentication.anonymous: is not a known key", "webhook"),
        ),
        (
            {"authentication": {"webhook": {"enabled": "yes"}}},
            ("kubelet.authentication.webhook.enabled: is a text", "true or false"),
        ),
        (
            {"authorization": {"webhook": {"cacheAuthorizedTTLSeconds": -1}}},
            ("cacheAuthorizedTTLSeconds: -1 is out of range", "0 to 3600"),
        ),
    ],
)
def test_what_is_wrong_with_the_kubelet_apis_rules_is_said(
    tmp_path: Path, kubelet: dict[str, Any], words: tuple[str, str]
) -> None:
    (problem,) = problems(tmp_path, kubelet=kubelet)
    for one in words:
        assert one in problem


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("logs", "'logs' is not an absolute path; name a folder of logs"),
        ("{}/file", "/file is not a folder; name a folder of logs"),
        ("{}/file/below", "/file/below cannot be looked at"),
        ("{}/loop", "/loop cannot be looked at"),
        ("/proc", "/proc is in /proc, where the kernel tells of this host; name a folder"),
        ("/proc/self", "/proc/self is in /proc, where the kernel"),
        ("/sys/kernel", "/sys/kernel is in /sys, where the kernel"),
        ("/dev", "/dev is in /dev, where the kernel"),
        ("{}/devices", "/devices is in /dev, where the kernel"),
        (5, "is a number, not a path"),
    ],
)
def test_a_folder_of_logs_that_cannot_be_shown(tmp_path: Path, given: Any, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "devices").symlink_to("/dev")
    path = given.format(tmp_path) if isinstance(given, str) else given
    (problem,) = problems(tmp_path, kubelet={"systemLogs": path})
    assert "kubelet.systemLogs: " in problem
    assert words in problem


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"kubeconfig": "shown/secret"}, "kubeconfig"),
        ({"kubeconfig": "link"}, "kubeconfig"),
        ({"kubelet": {"servingCert": "crt", "servingKey": "shown/secret"}}, "kubelet.servingKey"),
        (
            {"kubelet": {"serverTLSBootstrap": True, "certDirectory": "shown/new"}},
            "kubelet.certDirectory",
        ),
        (
            {"pools": [{**POOL, "endpoint": "h:80", "tls": {**TLS, "key": "shown/secret"}}]},
            "pools[0].tls.key",
        ),
    ],
)
def test_no_key_is_shown_among_the_logs(tmp_path: Path, keys: dict[str, Any], field: str) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "secret").write_text("x")
    (tmp_path / "crt").write_text("x")
    (tmp_path / "link").symlink_to("shown/secret")
    kubelet = {**keys.get("kubelet", {}), "systemLogs": str(tmp_path / "shown")}
    (problem,) = problems(tmp_path, **{**keys, "kubelet": kubelet})
    assert f"kubelet.systemLogs: {tmp_path / 'shown'} would show " in problem
    assert f"({field}) to whoever may read logs; name a folder" in problem


@pytest.mark.parametrize("named", ["shown/secret", "link", "{}/shown/secret"])
@pytest.mark.parametrize("key", ["client-key", "tokenFile"])
def test_what_the_kubeconfig_names_is_not_shown_among_the_logs(
    tmp_path: Path, key: str, named: str
) -> None:
    (tmp_path / "shown").mkdir()
    for file in ("shown/secret", "crt"):
        (tmp_path / file).write_text("x")
    (tmp_path / "link").symlink_to("shown/secret")
    user = {key: named.format(tmp_path)}
    if key == "client-key":
        user["client-certificate"] = "crt"
    cluster = {"server": "https://127.0.0.1:1"}
    kubeconfig = {
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    keys = {"kubeconfig": "kubeconfig", "kubelet": {"systemLogs": str(tmp_path / "shown")}}
    (problem,) = problems(tmp_path, **keys)
    assert f"kubelet.systemLogs: {tmp_path / 'shown'} would show " in problem
    assert f"(users[u].user.{key} of {tmp_path / 'kubeconfig'}) to whoever may read" in problem
    (tmp_path / "elsewhere").mkdir()
    keys["kubelet"] = {"systemLogs": str(tmp_path / "elsewhere")}
    assert load_config(write(tmp_path, **keys)).kubelet.system_logs == tmp_path / "elsewhere"


def test_a_folder_of_logs_may_come_later(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    config = load_config(write(tmp_path, kubelet={"systemLogs": str(absent)}))
    assert config.kubelet.system_logs == absent


def test_the_whole_host_is_not_a_folder_of_logs(tmp_path: Path) -> None:
    """In a Pod the agent's token is there, too."""
    (problem,) = problems(tmp_path, kubelet={"systemLogs": "/"})
    assert "serviceaccount (kubeconfig)" in problem


def opening(**keys: Any) -> list[dict[str, Any]]:
    return [{"namespaces": ["a"], "allow": {"hostIPC": True}, **keys}]


def pool(**keys: Any) -> list[dict[str, Any]]:
    return [{**POOL, **keys}]


@pytest.mark.parametrize(
    ("keys", "field", "hint"),
    [
        ({"poools": []}, "poools", "did you mean 'pools'"),
        ({"kubelet": {"servingcert": "x"}}, "kubelet.servingcert", "'servingCert'"),
        ({"node_labels": {}}, "node_labels", "'nodeLabels'"),
        ({"pools": []}, "pools", "at least one pool"),
        ({"pools": "az1"}, "pools", "is a text, not a list"),
        ({"pools": [POOL, {**POOL, "endpoint": "unix:/b"}]}, "pools", "'az1' is given to two"),
        ({"pools": [POOL, {**POOL, "name": "b"}]}, "pools", "endpoint 'unix:/run/az1.sock'"),
        ({"pools": pool(name="")}, "pools[0].name", "is missing"),
        ({"pools": pool(name="A_1")}, "pools[0].name", "a-z, 0-9"),
        ({"pools": pool(cells=["A*"])}, "pools[0].cells[0]", "name of a cell"),
        ({"pools": pool(cells="az1-a")}, "pools[0].cells", "a list of texts"),
        ({"pools": pool(maxCells=0)}, "pools[0].maxCells", "write 1 to 100000"),
        ({"pools": pool(maxCells="all")}, "pools[0].maxCells", "a whole number"),
        ({"pools": pool(endpoint="unix:rel.sock")}, "pools[0].endpoint", "absolute"),
        ({"pools": pool(endpoint="unix:/" + "x" * 120)}, "pools[0].endpoint", "107 bytes"),
        ({"pools": pool(endpoint="http://h:1")}, "pools[0].endpoint", "scheme"),
        ({"pools": pool(endpoint="host")}, "pools[0].endpoint", "HOST:PORT"),
        ({"pools": pool(endpoint="::1:80")}, "pools[0].endpoint", "brackets"),
        ({"pools": pool(endpoint="h:99999")}, "pools[0].endpoint", "65535"),
        ({"pools": pool(endpoint="h:80")}, "pools[0].tls", "mutual TLS"),
        ({"pools": pool(endpoint="h:80", tls={"ca": "no.pem"})}, "pools[0].tls.ca", "not exist"),
        ({"pools": pool(endpoint="h:80", tls={"ca": "no.pem"})}, "pools[0].tls.key", "missing"),
        ({"kubeconfig": "absent"}, "kubeconfig", "does not exist"),
        ({"nodeNameTemplate": "{pool}"}, "nodeNameTemplate", "{cell} must be part"),
        ({"nodeNameTemplate": "{cel}"}, "nodeNameTemplate", "{cell}, {pool} and {zone}"),
        ({"nodeNameTemplate": "{cell"}, "nodeNameTemplate", "braces"),
        ({"nodeNameTemplate": "N_{cell}"}, "nodeNameTemplate", "would make names"),
        ({"nodeLabels": {"a": 1}}, "nodeLabels[a]", "in quotes"),
        ({"nodeLabels": {"-x": "1"}}, "nodeLabels[-x]", "label key"),
        ({"nodeLabels": {"type": "x"}}, "nodeLabels[type]", "agent itself"),
        ({"taints": [{"key": "a", "effect": "NoExec"}]}, "taints[0].effect", "'NoExecute'"),
        ({"taints": [{"key": "a"}]}, "taints[0].effect", "missing"),
        ({"kubelet": {"address": "localhost"}}, "kubelet.address", "IP address"),
        ({"kubelet": {"address": "0.0.0.0"}}, "kubelet.address", "IP address"),
        ({"kubelet": {"port": "10250"}}, "kubelet.port", "is a text, not a whole number"),
        ({"kubelet": {"port": True}}, "kubelet.port", "true or false"),
        ({"kubelet": {"port": 70000}}, "kubelet.port", "0 to 65535"),
        ({"kubelet": {"servingCert": "no"}}, "kubelet.servingKey", "give both"),
        ({"kubelet": {"clusterDNS": ["kube-dns"]}}, "kubelet.clusterDNS[0]", "IP address"),
        ({"kubelet": {"clusterDNS": ["10.0.0.1"] * 4}}, "kubelet.clusterDNS", "takes 3"),
        ({"kubelet": {"clusterDomain": "no_name"}}, "kubelet.clusterDomain", "a DNS name"),
        ({"lease": {"durationSeconds": 10}}, "lease.renewSeconds", "renew more often"),
        ({"pool": {"unreachableAfterSeconds": -1}}, "pool.unreachableAfterSeconds", "out of range"),
        ({"deletion": {"brakeShare": 30}}, "deletion.brakeShare", "0 to 1"),
        ({"references": {"maxWatches": -1}}, "references.maxWatches", "0 to 100000"),
        ({"extendedResources": {"gpu": "a"}}, "extendedResources[gpu]", "example.com/gpu"),
        ({"extendedResources": {"a.b/c": ""}}, "extendedResources[a.b/c]", "that cells announce"),
        ({"extendedResources": {"a.b/c": "x", "a.b/d": "x"}}, "extendedResources", "remove one"),
        ({"privileges": {}}, "privileges", "a list"),
        ({"privileges": [{"allow": {"hostIPC": True}}]}, "privileges[0].namespaces", "[kube-s"),
        ({"privileges": opening(namespaces="a")}, "privileges[0].namespaces", "a list of texts"),
        ({"privileges": opening(namespaces=["*-a"])}, "privileges[0].namespaces[0]", "its end"),
        ({"privileges": opening(namespaces=["a", "A"])}, "privileges[0].namespaces[1]", "web-*"),
        ({"privileges": opening(cells=["a*b"])}, "privileges[0].cells[0]", "name of a cell"),
        ({"privileges": opening(pools=["b*"])}, "privileges[0].pools[0]", "known are az1"),
        ({"privileges": opening(allow={})}, "privileges[0].allow", "opens nothing"),
        ({"privileges": [{"namespaces": ["a"]}]}, "privileges[0].allow", "opens nothing"),
        (
            {"privileges": opening(allow={"hostNetwrok": True})},
            "privileges[0].allow.hostNetwrok",
            "did you mean 'hostNetwork'",
        ),
        (
            {"privileges": opening(allow={"hostPID": "yes"})},
            "privileges[0].allow.hostPID",
            "true or false",
        ),
        (
            {"privileges": opening(allow={"hostPath": ["var"]})},
            "privileges[0].allow.hostPath[0]",
            "not an absolute path",
        ),
        (
            {"privileges": opening(allow={"hostPath": ["/a/../b"]})},
            "privileges[0].allow.hostPath[0]",
            "not an absolute path",
        ),
        (
            {"privileges": opening(allow={"capabilities": ["CAP_SYS_ADMIN"]})},
            "privileges[0].allow.capabilities[0]",
            "did you mean SYS_ADMIN",
        ),
        (
            {"privileges": opening(allow={"capabilities": ["ROOT"]})},
            "privileges[0].allow.capabilities[0]",
            "write such as NET_ADMIN",
        ),
        (
            {"privileges": opening(allow={"unsafeSysctls": ["vm.swappiness"]})},
            "privileges[0].allow.unsafeSysctls[0]",
            "not known to be namespaced",
        ),
        ({"privileges": opening(cell=["a"])}, "privileges[0].cell", "did you mean 'cells'"),
        ({"metrics": {"listen": "9090"}}, "metrics.listen", "HOST:PORT"),
        ({"logFormat": "jsonn"}, "logFormat", "did you mean 'json'"),
        ({"kubelet": 7}, "kubelet", "not a mapping"),
    ],
)
def test_a_mistake_names_its_field_and_the_fix(
    tmp_path: Path, keys: dict[str, Any], field: str, hint: str
) -> None:
    found = problems(tmp_path, **keys)
    file = tmp_path / "agent.yaml"
    assert any(p.startswith(f"{file}: {field}: ") and hint in p for p in found), found


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    assert len(problems(tmp_path, tenant="A B", logFormat="x", extra=1)) == 3


def test_files_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.yaml")
    file = tmp_path / "agent.yaml"
    file.write_text("pools: [\n")
    with pytest.raises(ConfigError, match=r"not valid YAML at line 2"):
        load_config(file)
    file.write_text("tenant: a\ntenant: b\n")
    with pytest.raises(ConfigError, match="'tenant' is given twice"):
        load_config(file)
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match="not a mapping"):
        load_config(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(file)
    file.write_text("")
    with pytest.raises(ConfigError, match="pools: is empty"):
        load_config(file)


@pytest.mark.parametrize(
    ("given", "ports"),
    [
        ({}, (20250, 29999)),
        ({"nodePorts": 0}, None),
        ({"nodePorts": "0"}, None),
        ({"nodePorts": "21000-21999"}, (21000, 21999)),
        ({"nodePorts": " 21000 - 21000 "}, (21000, 21000)),
        ({"nodePorts": "1-10249"}, (1, 10249)),
        ({"nodePorts": "10000-11000", "port": 0}, (10000, 11000)),
    ],
)
def test_ports_of_nodes(
    tmp_path: Path, given: dict[str, Any], ports: tuple[int, int] | None
) -> None:
    assert load_config(write(tmp_path, kubelet=given)).kubelet.node_ports == ports


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("29999-20250", "'29999-20250' ends before it begins; write 20250-29999"),
        ("10000-11000", "10000-11000 contains kubelet.port (10250), which all nodes share"),
        ("0-100", "'0-100' is not within 1 to 65535; write FIRST-LAST, such as 20250-29999"),
        ("60000-70000", "'60000-70000' is not within 1 to 65535"),
        ("20250", "'20250' is not a range of ports; write FIRST-LAST, such as 20250-29999, or 0"),
        (20250, "20250 is not a range of ports"),
        ("-5-7", "'-5-7' is not a range of ports"),
        ("a-b", "'a-b' is not a range of ports"),
        (True, "is true or false, not a range of ports"),
        ([1, 2], "is a list, not a range of ports"),
    ],
)
def test_wrong_ports_of_nodes(tmp_path: Path, given: Any, text: str) -> None:
    (problem,) = problems(tmp_path, kubelet={"nodePorts": given})
    assert f"kubelet.nodePorts: {text}" in problem
