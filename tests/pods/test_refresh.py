"""A running container sees what changes in the objects that it mounts, without a restart."""

from __future__ import annotations

import base64
import json

import pytest

from tests.support.kube import Kube, simple_pod
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


def shows(kube: Kube, file: str, text: str) -> None:
    until(
        lambda: text in kube.run("exec", "web", "--", "cat", file, check=False).stdout,
        f"{file} with {text!r}",
        timeout=90,
        show=lambda: kube.out("exec", "web", "--", "sh", "-c", f"ls -laR /v; cat {file}"),
    )


def test_files_follow_their_objects_and_sub_paths_do_not(kube: Kube) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    kube.apply(
        {**config, "data": {"k": "one"}},
        {**secret, "data": {"k": base64.b64encode(b"one").decode()}},
    )
    label = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}
    kube.apply(
        simple_pod(
            "web",
            volumes=[
                {"name": "c", "configMap": {"name": "c"}},
                {"name": "s", "secret": {"secretName": "s"}},
                {"name": "d", "downwardAPI": {"items": [label]}},
            ],
            container={
                "volumeMounts": [
                    {"name": "c", "mountPath": "/v/c"},
                    {"name": "c", "mountPath": "/v/sub", "subPath": "k"},
                    {"name": "s", "mountPath": "/v/s"},
                    {"name": "d", "mountPath": "/v/d"},
                ]
            },
        )
    )
    kube.wait_phase("web", "Running")
    shows(kube, "/v/c/k", "one")
    kube.apply(
        {**config, "data": {"k": "two", "new": "file"}},
        {**secret, "data": {"k": base64.b64encode(b"two").decode()}},
    )
    kube.out("label", "pod", "web", "colour=red")
    shows(kube, "/v/c/k", "two")
    shows(kube, "/v/c/new", "file")
    shows(kube, "/v/s/k", "two")
    shows(kube, "/v/d/labels", 'colour="red"')
    assert kube.out("exec", "web", "--", "cat", "/v/sub") == "one"
    pod = kube.pod("web")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    assert not [e for e in kube.events("web") if e["type"] == "Warning"], json.dumps(pod)


def test_what_was_deleted_under_a_running_pod_holds_nothing_else_up(kube: Kube) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    kube.apply({**config, "data": {"k": "one"}}, {**secret, "stringData": {"k": "one"}})
    kube.apply(
        simple_pod(
            "web",
            volumes=[
                {"name": "c", "configMap": {"name": "c"}},
                {"name": "s", "secret": {"secretName": "s"}},
            ],
            container={
                "volumeMounts": [
                    {"name": "c", "mountPath": "/v/c"},
                    {"name": "s", "mountPath": "/v/s"},
                ]
            },
        )
    )
    kube.wait_phase("web", "Running")
    kube.out("delete", "secret", "s")
    kube.apply({**config, "data": {"k": "two"}})
    shows(kube, "/v/c/k", "two")
    shows(kube, "/v/s/k", "one")
    until(
        lambda: [
            event
            for event in kube.events("web")
            if event["reason"] == "FailedMount" and 'secret "s" not found' in event["message"]
        ],
        "an event that tells of the missing Secret",
        timeout=60,
    )
    kube.apply({**secret, "stringData": {"k": "three"}})
    shows(kube, "/v/s/k", "three")
