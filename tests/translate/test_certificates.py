"""Pod certificates in projected volumes: which files they make, and what holds the Pod back."""

from __future__ import annotations

from tests.translate.builders import NODE, UID, pod, spec_of
from vknode.translate.facts import Credential, Missing, Resolved
from vknode.translate.needs import needs
from vknode.translate.spec import VolumeNotReady, sandbox_spec

_POD = pod(
    """
    serviceAccountName: builder
    volumes:
    - name: t
      projected:
        sources:
        - configMap: {name: c, optional: true}
        - podCertificate:
            signerName: example.com/s
            keyType: ECDSAP256
            maxExpirationSeconds: 3600
            userAnnotations: {example.com/b: '2', example.com/a: '1'}
            credentialBundlePath: all.pem
            user: 7
        - podCertificate:
            {signerName: example.com/s, keyType: ED25519, keyPath: d/k, certificateChainPath: c}
    """
)
_CONFIG_MAPS = {"c": Missing("gone")}


def test_each_projection_is_a_need_of_its_own() -> None:
    first, second = needs(_POD).certificates
    assert (first.volume, first.index, second.index) == ("t", 1, 2)
    assert (first.signer, first.key_type) == ("example.com/s", "ECDSAP256")
    assert first.max_expiration_seconds == 3600
    assert first.annotations == (("example.com/a", "1"), ("example.com/b", "2"))
    assert (first.service_account, first.pod_name, first.pod_uid) == ("builder", "web-0", UID)
    assert second.max_expiration_seconds is None


def test_the_files() -> None:
    first, second = needs(_POD).certificates
    spec = spec_of(
        _POD,
        Resolved(
            config_maps=_CONFIG_MAPS,
            certificates={
                first: Credential("KEY1", "CHAIN1"),
                second: Credential("KEY2", "CHAIN2"),
            },
        ),
    )
    files = {file.path: file for file in spec.volumes[0].files.files}
    assert {path: file.content for path, file in files.items()} == {
        "all.pem": b"KEY1CHAIN1",
        "d/k": b"KEY2",
        "c": b"CHAIN2",
    }
    assert (files["all.pem"].mode, files["all.pem"].user) == (0o600, 7)
    assert files["d/k"].mode == 0o644
    assert spec.volumes[0].files.sensitive


def test_without_its_certificate_the_pod_waits() -> None:
    first, second = needs(_POD).certificates
    missing = Missing("credential bundle is not issued yet", not_found=False)
    resolved = Resolved(
        config_maps=_CONFIG_MAPS, certificates={first: missing, second: Credential("K", "C")}
    )
    answer = sandbox_spec(_POD, resolved, NODE)
    assert isinstance(answer, VolumeNotReady)
    assert answer.message.endswith(": credential bundle is not issued yet")


def test_no_key_is_shown() -> None:
    assert "S3CRET" not in repr(Credential("S3CRET", "CHAIN"))
