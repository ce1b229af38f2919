"""Which objects are looked up for a Pod."""

from __future__ import annotations

from typing import Any

import pytest

from tests.translate.builders import UID, pod, spec_of
from vknode.translate.facts import TokenNeed
from vknode.translate.needs import Reference, may_start_again, needs

_POD = pod(
    """
    serviceAccountName: builder
    imagePullSecrets: [{name: registry}, {}]
    volumes:
    - {name: a, configMap: {name: settings, optional: true}}
    - {name: b, secret: {secretName: keys}}
    - name: c
      projected:
        sources:
        - configMap: {name: kube-root-ca.crt}
        - secret: {name: more-keys, optional: true}
        - serviceAccountToken: {path: token, expirationSeconds: 3607}
        - serviceAccountToken: {path: vault, audience: vault, expirationSeconds: 600}
        - serviceAccountToken: {path: again, audience: vault, expirationSeconds: 600}
    - {name: d, emptyDir: {}}
    initContainers:
    - name: init
      image: i
      envFrom: [{secretRef: {name: registry}}]
    containers:
    - name: web
      image: i
      envFrom: [{prefix: P_, configMapRef: {name: settings, optional: true}}]
      env:
      - {name: A, value: plain}
      - {name: B, valueFrom: {configMapKeyRef: {name: settings, key: b}}}
      - {name: C, valueFrom: {secretKeyRef: {name: keys, key: c, optional: true}}}
      - {name: D, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    """
)


def test_every_reference_is_found_with_its_uses() -> None:
    found = needs(_POD)
    assert found.config_maps == {
        # One use of three insists: the object is required.
        "settings": Reference(
            "settings",
            False,
            ("spec.containers[0].envFrom[0]", "spec.containers[0].env[1]", "spec.volumes[0]"),
            mounted=True,
            env=True,
        ),
        "kube-root-ca.crt": Reference(
            "kube-root-ca.crt", False, ("spec.volumes[2].projected.sources[0]",), mounted=True
        ),
    }
    assert found.secrets == {
        "registry": Reference(
            "registry",
            False,
            ("spec.initContainers[0].envFrom[0]", "spec.imagePullSecrets[0]"),
            env=True,
            pull=True,
        ),
        "keys": Reference(
            "keys", False, ("spec.containers[0].env[2]", "spec.volumes[1]"), mounted=True, env=True
        ),
        "more-keys": Reference(
            "more-keys", True, ("spec.volumes[2].projected.sources[1]",), mounted=True
        ),
    }


def test_tokens_are_bound_to_the_pod_and_asked_for_once() -> None:
    assert needs(_POD).tokens == (
        TokenNeed("builder", "", 3607, "web-0", UID),
        TokenNeed("builder", "vault", 600, "web-0", UID),
    )


def test_a_pull_secret_alone_may_be_missing() -> None:
    assert needs(pod("imagePullSecrets: [{name: r}]")).secrets["r"].optional


def test_a_plain_pod_needs_only_services() -> None:
    found = needs(pod())
    assert (found.config_maps, found.secrets, found.tokens) == ({}, {}, ())
    assert found.services


def test_what_nobody_mounts_is_not_waited_for() -> None:
    """As seen with kubelet 1.37.2: such a Pod runs although the ConfigMap does not exist."""
    one = pod("volumes: [{name: v, configMap: {name: gone}}]", mount_all=False)
    assert needs(one).config_maps == {}
    assert list(spec_of(one).volumes) == []


@pytest.mark.parametrize(
    ("spec", "again"),
    [
        ({"restartPolicy": "Never"}, False),
        ({"restartPolicy": "OnFailure"}, True),
        ({"restartPolicy": "Never", "initContainers": [{"name": "first"}]}, True),
        ({"restartPolicy": "Never", "containers": [{"restartPolicy": "Always"}]}, True),
    ],
)
def test_what_never_starts_again_needs_no_later_look(spec: dict[str, Any], again: bool) -> None:
    assert may_start_again({"spec": {"containers": [{"name": "main"}], **spec}}) is again
