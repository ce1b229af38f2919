"""Cluster trust bundles in projected volumes: chosen, put together and worded as by a kubelet."""

from __future__ import annotations

import pytest

from tests.support.certificates import root_certificate
from tests.translate.builders import NODE, pod, spec_of
from vknode.translate.facts import Missing, Resolved, TrustNeed
from vknode.translate.needs import needs
from vknode.translate.spec import VolumeNotReady, sandbox_spec
from vknode.translate.trust import Bundle, certificates, concerns, resolve

A, B, C = (root_certificate(name) for name in "abc")
SIGNER = "example.com/signer"


def bundle(name: str, text: str, signer: str = "", **labels: str) -> Bundle:
    return Bundle(name, signer, labels, certificates(text))


BUNDLES = {
    one.name: one
    for one in (
        bundle("plain", f"# of ours\n{A}\n\n{B}{A}"),
        bundle("s:live", A, SIGNER, env="live"),
        bundle("s:test", B + A, SIGNER, env="test"),
        bundle("t:live", C, "example.com/other", env="live"),
    )
}


def by_signer(selector: str | None, optional: bool = False) -> TrustNeed:
    return TrustNeed("", SIGNER, selector, optional)


def test_a_named_bundle_is_given_once_each_and_without_remarks() -> None:
    text = resolve(TrustNeed("plain", "", None, False), BUNDLES)
    assert isinstance(text, str)
    assert certificates(text) == certificates(A + B)
    assert text.count("BEGIN CERTIFICATE") == 2
    assert "ours" not in text
    assert text.endswith("-----END CERTIFICATE-----\n")
    assert A in text


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("{}", A + B),
        ('{"matchLabels": {"env": "live"}}', A),
        ('{"matchExpressions": [{"key": "env", "operator": "In", "values": ["test"]}]}', A + B),
        ('{"matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["test"]}]}', A),
        ('{"matchExpressions": [{"key": "env", "operator": "Exists"}]}', A + B),
        ('{"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}]}', A + B),
    ],
)
def test_bundles_of_a_signer_are_joined(selector: str, expected: str) -> None:
    text = resolve(by_signer(selector), BUNDLES)
    assert isinstance(text, str)
    assert certificates(text) == certificates(expected)
    assert text.count("BEGIN") == len(certificates(expected))
    assert resolve(by_signer(selector), dict(reversed(BUNDLES.items()))) == text


@pytest.mark.parametrize(
    "selector",
    [
        None,
        '{"matchLabels": {"env": "nowhere"}}',
        '{"matchExpressions": [{"key": "env", "operator": "DoesNotExist"}]}',
    ],
)
def test_a_selection_of_nothing(selector: str | None) -> None:
    answer = resolve(by_signer(selector), BUNDLES)
    assert answer == Missing(
        "combination of signerName and labelSelector matched zero ClusterTrustBundles"
    )
    assert resolve(by_signer(selector, optional=True), BUNDLES) == ""


def test_a_name_that_is_not_there() -> None:
    assert resolve(TrustNeed("none", "", None, False), BUNDLES) == Missing(
        'while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io "none" not found'
    )
    assert resolve(TrustNeed("none", "", None, True), BUNDLES) == ""


def test_which_changes_matter() -> None:
    live = BUNDLES["s:live"]
    assert concerns(by_signer('{"matchLabels": {"env": "test"}}'), live)
    assert concerns(TrustNeed("s:live", "", None, False), live)
    assert not concerns(TrustNeed("plain", "", None, False), live)
    assert not concerns(TrustNeed("", "example.com/other", "{}", False), live)


_POD = pod(
    """
    securityContext: {runAsUser: 7}
    volumes:
    - name: t
      projected:
        defaultMode: 0644
        sources:
        - clusterTrustBundle: {name: plain, path: ca.pem}
        - clusterTrustBundle: {signerName: example.com/s, labelSelector: {}, path: s.pem, user: 9}
    containers:
    - name: web
      image: i
      volumeMounts: [{name: t, mountPath: /t}]
    """
)


def test_the_files_of_a_volume() -> None:
    by_name, by_its_signer = needs(_POD).trust
    resolved = Resolved(trust={by_name: "PEM", by_its_signer: ""})
    spec = spec_of(_POD, resolved)
    first, second = spec.volumes[0].files.files
    assert (first.path, first.content, first.mode, first.user) == ("ca.pem", b"PEM", 0o600, 7)
    assert (second.path, second.content, second.user) == ("s.pem", b"", 9)
    assert not spec.volumes[0].files.sensitive


def test_a_missing_bundle_holds_the_pod_back() -> None:
    by_name, by_its_signer = needs(_POD).trust
    resolved = Resolved(trust={by_name: Missing("not there"), by_its_signer: ""})
    answer = sandbox_spec(_POD, resolved, NODE)
    assert isinstance(answer, VolumeNotReady)
    assert answer.message == 'MountVolume.SetUp failed for volume "t" : not there'
