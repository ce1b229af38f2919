"""Environment and volumes are there when the container starts."""

from __future__ import annotations

import base64
import json

import pytest

from tests.support.kube import Kube, simple_pod
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


def configuration() -> tuple[dict[str, object], dict[str, object]]:
    return (
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "settings"},
            "data": {"colour": "blue", "nested.conf": "a=1\n"},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "keys"},
            "data": {"token": base64.b64encode(b"s3cret").decode()},
        },
    )


def test_environment_from_everywhere(kube: Kube) -> None:
    kube.apply(*map(json.dumps, configuration()))
    kube.apply(
        simple_pod(
            "env",
            container={
                "resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "64Mi"}},
                "envFrom": [{"prefix": "CM_", "configMapRef": {"name": "settings"}}],
                "env": [
                    {"name": "PLAIN", "value": "one"},
                    {"name": "JOINED", "value": "$(PLAIN)-two-$$(PLAIN)-$(MISSING)"},
                    {
                        "name": "TOKEN",
                        "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}},
                    },
                    {
                        "name": "MAYBE",
                        "valueFrom": {
                            "configMapKeyRef": {"name": "none", "key": "x", "optional": True}
                        },
                    },
                    {"name": "MY_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "MY_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
                    {
                        "name": "MEMORY",
                        "valueFrom": {
                            "resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}
                        },
                    },
                    {
                        "name": "MILLI",
                        "valueFrom": {
                            "resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}
                        },
                    },
                ],
            },
        )
    )
    pod = kube.wait_phase("env", "Running")
    lines = kube.out("exec", "env", "--", "env").splitlines()
    got = dict(line.split("=", 1) for line in lines if "=" in line)
    assert got["PLAIN"] == "one"
    assert got["JOINED"] == "one-two-$(PLAIN)-$(MISSING)"
    assert got["TOKEN"] == "s3cret"
    assert "MAYBE" not in got
    assert got["CM_colour"] == "blue"
    assert got["MY_NAME"] == "env"
    assert got["MY_IP"] == pod["status"]["podIP"]
    assert got["HOST_IP"] == pod["status"]["hostIP"]
    assert got["MEMORY"] == "64"
    assert got["MILLI"] == "250"
    assert got["KUBERNETES_SERVICE_PORT"] == "443"
    assert got["HOSTNAME"] == "env"


def test_volumes_of_every_kind(kube: Kube) -> None:
    kube.apply(*map(json.dumps, configuration()))
    volumes = [
        {"name": "scratch", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "config", "configMap": {"name": "settings", "defaultMode": 0o400}},
        {
            "name": "secret",
            "secret": {"secretName": "keys", "items": [{"key": "token", "path": "deep/er/t"}]},
        },
        {
            "name": "facts",
            "downwardAPI": {
                "items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
            },
        },
        {
            "name": "all",
            "projected": {
                "sources": [
                    {"configMap": {"name": "settings", "items": [{"key": "colour", "path": "c"}]}},
                    {"secret": {"name": "keys"}},
                    {"serviceAccountToken": {"path": "sa", "audience": "vault"}},
                ]
            },
        },
    ]
    kube.apply(
        simple_pod(
            "vol",
            volumes=volumes,
            container={
                "volumeMounts": [
                    {"name": str(v["name"]), "mountPath": f"/v/{v['name']}"} for v in volumes
                ]
            },
        )
    )
    kube.wait_phase("vol", "Running")

    def shell(script: str) -> str:
        return kube.out("exec", "vol", "--", "sh", "-c", script)

    assert shell("cat /v/config/colour; cat /v/config/nested.conf") == "bluea=1\n"
    assert shell("stat -L -c %a /v/config/colour") == "400\n"
    assert shell("cat /v/secret/deep/er/t") == "s3cret"
    assert 'app="vol"' in shell("cat /v/facts/labels")
    assert shell("cat /v/all/c /v/all/token") == "blues3cret"
    claims = json.loads(base64.urlsafe_b64decode(shell("cut -d. -f2 /v/all/sa").strip() + "==="))
    assert claims["aud"] == ["vault"]
    assert claims["kubernetes.io"]["pod"]["name"] == "vol"
    assert shell("echo hi > /v/scratch/x && cat /v/scratch/x") == "hi\n"
    assert "tmpfs" in shell("grep ' /v/memory ' /proc/mounts")
    assert "tmpfs" in shell("grep ' /v/secret ' /proc/mounts")
    # What every in-cluster client looks for.
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert shell(f"cat {account}/namespace") == kube.namespace
    assert "BEGIN CERTIFICATE" in shell(f"cat {account}/ca.crt")
    assert shell(f"cat {account}/token").count(".") == 2


def test_two_containers_share_an_empty_dir(kube: Kube) -> None:
    mount = [{"name": "shared", "mountPath": "/shared"}]
    pod = simple_pod(
        "pair",
        ["sh", "-c", "echo message > /shared/x; sleep 3600"],
        volumes=[{"name": "shared", "emptyDir": {}}],
        container={"volumeMounts": mount},
    )
    pod["spec"]["containers"].append(
        {
            "name": "reader",
            "image": "busybox:1.36",
            "volumeMounts": mount,
            "command": ["sh", "-c", "until cat /shared/x; do sleep 0.1; done; sleep 3600"],
        }
    )
    kube.apply(pod)
    kube.wait_phase("pair", "Running")
    until(lambda: "message\n" in kube.out("logs", "pair", "-c", "reader"), "the message")


def test_missing_config_map_holds_the_start_until_it_appears(kube: Kube) -> None:
    kube.apply(
        simple_pod(
            "early",
            container={
                "env": [
                    {
                        "name": "COLOUR",
                        "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}},
                    }
                ]
            },
        )
    )
    until(
        lambda: "CreateContainerConfigError" in kube.out("get", "pod", "early"),
        "CreateContainerConfigError",
        show=lambda: kube.describe("early"),
    )
    until(
        lambda: 'configmap "settings" not found' in kube.describe("early"),
        "the reason in an event",
        show=lambda: kube.describe("early"),
    )
    kube.apply(*map(json.dumps, configuration()))
    kube.wait_phase("early", "Running")
    assert kube.out("exec", "early", "--", "sh", "-c", "echo $COLOUR") == "blue\n"
