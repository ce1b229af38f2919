"""Each mistake in the configuration is one line with file, field, what is wrong and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vknode.agent.config import ConfigError, PoolConfig, load_config

POOL = {"name": "az1", "endpoint": "unix:/run/az1.sock"}


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
    assert config.tenant == "default"
    assert config.log_format == "json"


def test_everything_given(tmp_path: Path) -> None:
    for name in ("kubeconfig", "ca.pem", "crt.pem", "key.pem"):
        (tmp_path / name).write_text("x")
    config = load_config(
        write(
            tmp_path,
            kubeconfig="kubeconfig",
            pools=[
                POOL,
                {
                    "name": "az2",
                    "endpoint": "pool.example:7443",
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
                "allowedClientNames": ["kube-apiserver"],
                "clusterDNS": ["10.96.0.10", "fd00::a"],
                "clusterDomain": "k8s.example",
            },
            lease={"durationSeconds": 20, "renewSeconds": 5},
            pool={"unreachableAfterSeconds": 3},
            deletion={"brakeShare": 0.5, "brakeMinimum": 1},
            metrics={"listen": "[::1]:9090"},
            tenant="acme",
            logFormat="console",
        )
    )
    assert config.kubeconfig == tmp_path / "kubeconfig"
    assert config.pools[1].tls is not None
    assert config.pools[1].tls.server_name == "pool"
    assert config.taints[0].effect == "NoSchedule"
    assert config.kubelet.serving_cert == tmp_path / "crt.pem"
    assert config.kubelet.allowed_client_names == ("kube-apiserver",)
    assert config.kubelet.cluster_dns == ("10.96.0.10", "fd00::a")
    assert config.kubelet.cluster_domain == "k8s.example"
    assert config.pool_unreachable_after == 3.0
    assert config.metrics_listen == "[::1]:9090"


def test_metrics_can_be_switched_off(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, metrics={"listen": ""})).metrics_listen == ""


def test_who_may_use_the_kubelet_api_is_said(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    (problem,) = problems(tmp_path, kubelet={"clientCA": "ca.pem"})
    assert "kubelet.allowedClientNames: is missing" in problem
    assert "kube-apiserver-kubelet-client" in problem
    anybody = {"clientCA": "ca.pem", "allowedClientNames": ["*"]}
    assert load_config(write(tmp_path, kubelet=anybody)).kubelet.allowed_client_names == ()


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
