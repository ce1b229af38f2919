"""Volumes: content, modes, owners, and what a kubelet says when something is missing."""

from __future__ import annotations

import base64

import pytest

from tests.translate.builders import (
    NODE,
    UID,
    Json,
    absent,
    config_map,
    pod,
    secret,
    spec_of,
)
from vknode.pool.v1 import spec_pb2
from vknode.translate.facts import Missing, Resolved, TokenNeed
from vknode.translate.spec import VolumeNotReady, sandbox_spec

_TOKEN = TokenNeed("default", "", 3607, "web-0", UID)


def _files(a_pod: Json, resolved: Resolved | None = None) -> dict[str, tuple[bytes, int]]:
    volume = spec_of(a_pod, resolved).volumes[0]
    return {one.path: (one.content, one.mode) for one in volume.files.files}


def test_a_config_map_becomes_files_binary_data_too() -> None:
    settings = {
        "data": {"b.txt": "text", "a.txt": "ä"},
        "binaryData": {"c.bin": base64.b64encode(b"\xff\x00").decode()},
    }
    one = pod("volumes: [{name: v, configMap: {name: settings, defaultMode: 420}}]")
    spec = spec_of(one, Resolved(config_maps={"settings": settings}))
    files = spec.volumes[0].files
    assert [(file.path, file.content, oct(file.mode)) for file in files.files] == [
        ("a.txt", "ä".encode(), "0o644"),
        ("b.txt", b"text", "0o644"),
        ("c.bin", b"\xff\x00", "0o644"),
    ]
    assert not files.sensitive
    assert not files.files[0].HasField("user")


def test_items_choose_keys_paths_and_modes() -> None:
    one = pod(
        """
        volumes:
        - name: v
          secret:
            secretName: keys
            defaultMode: 256
            items:
            - {key: tls.key, path: private/key.pem}
            - {key: tls.crt, path: cert.pem, mode: 292}
        """
    )
    keys = secret(**{"tls.key": "K", "tls.crt": "C", "unused": "U"})
    assert _files(one, Resolved(secrets={"keys": keys})) == {
        "private/key.pem": (b"K", 0o400),
        "cert.pem": (b"C", 0o444),
    }
    assert spec_of(one, Resolved(secrets={"keys": keys})).volumes[0].files.sensitive


def test_with_an_fs_group_files_are_readable_for_the_group() -> None:
    one = pod(
        """
        securityContext: {fsGroup: 2000}
        volumes: [{name: v, secret: {secretName: keys, defaultMode: 256}}]
        """
    )
    assert _files(one, Resolved(secrets={"keys": secret(a="1")})) == {"a": (b"1", 0o440)}


def test_downward_api() -> None:
    one = pod(
        """
        volumes:
        - name: v
          downwardAPI:
            defaultMode: 420
            items:
            - {path: labels, fieldRef: {fieldPath: metadata.labels}}
            - {path: notes, fieldRef: {fieldPath: metadata.annotations}}
            - {path: one, fieldRef: {fieldPath: "metadata.labels['app']"}}
            - {path: name, fieldRef: {fieldPath: metadata.name}, mode: 256}
            - {path: cpu, resourceFieldRef: {containerName: web, resource: limits.cpu, divisor: 1m}}
        """,
        labels={"tier": "front", "app": "shop"},
        annotations={"text": 'say "hi"\n\ttab \\ ä \u200b'},
    )
    assert _files(one) == {
        "labels": (b'app="shop"\ntier="front"', 0o644),
        "notes": (b'text="say \\"hi\\"\\n\\ttab \\\\ \xc3\xa4 \\u200b"', 0o644),
        "one": (b"shop", 0o644),
        "name": (b"web-0", 0o400),
        "cpu": (b"8000", 0o644),
    }


# What the ServiceAccount admission plugin of the API server adds to a Pod.
_ACCESS = """
volumes:
- name: kube-api-access-abcde
  projected:
    defaultMode: 420
    sources:
    - serviceAccountToken: {expirationSeconds: 3607, path: token}
    - configMap: {items: [{key: ca.crt, path: ca.crt}], name: kube-root-ca.crt}
    - downwardAPI:
        items: [{fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}, path: namespace}]
"""
_ACCESS_RESOLVED = Resolved(
    config_maps={"kube-root-ca.crt": config_map(**{"ca.crt": "CA"})}, tokens={_TOKEN: "jwt"}
)


def test_the_service_account_volume() -> None:
    assert _files(pod(_ACCESS), _ACCESS_RESOLVED) == {
        "token": (b"jwt", 0o644),
        "ca.crt": (b"CA", 0o644),
        "namespace": (b"shop", 0o644),
    }
    assert spec_of(pod(_ACCESS), _ACCESS_RESOLVED).volumes[0].files.sensitive


def _token_file(context: str, *containers: str) -> spec_pb2.File:
    listed = "".join(
        f"\n- {{name: c{number}, image: i, securityContext: {{{text}}}}}"
        for number, text in enumerate(containers or ("",))
    )
    one = pod(f"{_ACCESS}\nsecurityContext: {{{context}}}\ncontainers:{listed}")
    files = spec_of(one, _ACCESS_RESOLVED).volumes[0].files.files
    return next(file for file in files if file.path == "token")


def test_a_token_belongs_to_the_one_user_of_all_containers() -> None:
    mine = _token_file("runAsUser: 1000")
    assert (oct(mine.mode), mine.user) == ("0o600", 1000)
    same = _token_file("", "runAsUser: 7", "runAsUser: 7")
    assert (oct(same.mode), same.user) == ("0o600", 7)
    root = _token_file("runAsUser: 0")
    assert (oct(root.mode), root.HasField("user"), root.user) == ("0o600", True, 0)
    for different in (
        _token_file("", "runAsUser: 7", "runAsUser: 8"),
        _token_file("", "runAsUser: 7", ""),
    ):
        assert (oct(different.mode), different.HasField("user")) == ("0o644", False)


def test_with_an_fs_group_a_token_is_for_owner_and_group() -> None:
    shared = _token_file("fsGroup: 2000")
    assert (oct(shared.mode), shared.HasField("user")) == ("0o640", False)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ("configMap: {name: gone}", 'configmap "gone" not found'),
        ("secret: {secretName: gone}", 'secret "gone" not found'),
        (
            "configMap: {name: here, items: [{key: nokey, path: p}]}",
            "configmap references non-existent config key: nokey",
        ),
        (
            "secret: {secretName: here, items: [{key: nokey, path: p}]}",
            "references non-existent secret key: nokey",
        ),
        ("secret: {secretName: denied, optional: true}", "secrets is forbidden"),
        ("projected: {sources: [{configMap: {name: gone}}]}", 'configmap "gone" not found'),
        (
            "projected: {sources: [{configMap: {name: gone}}, {secret: {name: gone}}]}",
            '[configmap "gone" not found, secret "gone" not found]',
        ),
        (
            "projected: {sources: [{serviceAccountToken: {path: t, expirationSeconds: 3607}}]}",
            'serviceaccounts "default" not found',
        ),
    ],
)
def test_missing_content_holds_the_pod_back(volume: str, message: str) -> None:
    resolved = Resolved(
        config_maps={"here": config_map(a="1"), "gone": absent("configmap", "gone")},
        secrets={
            "here": secret(a="1"),
            "gone": absent("secret", "gone"),
            "denied": Missing("secrets is forbidden", not_found=False),
        },
        tokens={_TOKEN: Missing('serviceaccounts "default" not found')},
    )
    result = sandbox_spec(pod(f"volumes: [{{name: v, {volume}}}]"), resolved, NODE)
    assert result == VolumeNotReady("v", f'MountVolume.SetUp failed for volume "v" : {message}')


def test_optional_content_may_be_missing() -> None:
    resolved = Resolved(
        config_maps={"gone": absent("configmap", "gone"), "here": config_map(a="1")},
        secrets={"gone": absent("secret", "gone")},
    )
    one = pod(
        """
        volumes:
        - name: v
          projected:
            sources:
            - configMap: {name: gone, optional: true, items: [{key: x, path: x}]}
            - secret: {name: gone, optional: true}
            - configMap: {name: here, optional: true, items: [{key: x, path: x}, {key: a, path: a}]}
        """
    )
    assert _files(one, resolved) == {"a": (b"1", 0o644)}
    alone = pod("volumes: [{name: v, configMap: {name: gone, optional: true}}]")
    volume = spec_of(alone, resolved).volumes[0]
    assert volume.WhichOneof("source") == "files"
    assert not volume.files.files


def test_other_volumes() -> None:
    spec = spec_of(
        pod(
            """
            volumes:
            - {name: a, emptyDir: {}}
            - {name: b, emptyDir: {medium: Memory, sizeLimit: 64Mi}}
            - {name: c, hostPath: {path: /var/log, type: Directory}}
            - {name: d, image: {reference: 'data:1', pullPolicy: Always}}
            """
        )
    )
    assert [volume.WhichOneof("source") for volume in spec.volumes] == [
        "empty_dir",
        "empty_dir",
        "host_path",
        "image",
    ]
    assert (spec.volumes[1].empty_dir.memory, spec.volumes[1].empty_dir.size_limit) == (
        True,
        "64Mi",
    )
    assert (spec.volumes[2].host_path.path, spec.volumes[2].host_path.type) == (
        "/var/log",
        "Directory",
    )
    assert spec.volumes[3].image.pull_policy == spec_pb2.IMAGE_PULL_POLICY_ALWAYS
