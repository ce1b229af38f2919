"""A wrong kubeconfig is said with file, field and fix; credentials that rotate are followed."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube.scripted import ScriptedServer, body, failure
from vknode.devcluster.pki import Authority
from vknode.kube.client import KubeClient
from vknode.kube.connection import connect
from vknode.kube.errors import ConnectionConfigError, Unauthorized


def kubeconfig(folder: Path, server: str = "https://127.0.0.1:1", **user: Any) -> Path:
    file = folder / "kubeconfig"
    document = {
        "current-context": "main",
        "contexts": [{"name": "main", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
    }
    file.write_text(yaml.safe_dump(document))
    return file


def edit(file: Path, change: dict[str, Any]) -> Path:
    document = yaml.safe_load(file.read_text())
    document.update(change)
    file.write_text(yaml.safe_dump(document))
    return file


async def problem(file: Path, context: str | None = None) -> str:
    with pytest.raises(ConnectionConfigError) as caught:
        await connect(file, context)
    assert str(file) in str(caught.value)
    return str(caught.value)


async def test_missing_file(tmp_path: Path) -> None:
    assert "no such kubeconfig" in await problem(tmp_path / "absent")


async def test_not_yaml_tells_the_line_not_the_content(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text("users:\n- token: s3cret: x: [\n")
    text = await problem(file)
    assert "line 2" in text
    assert "s3cret" not in text


async def test_not_a_kubeconfig(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text("- 1\n")
    assert "is not a kubeconfig" in await problem(file)


async def test_missing_context_lists_those_that_are_there(tmp_path: Path) -> None:
    text = await problem(kubeconfig(tmp_path), "other")
    assert "'other'" in text and "main" in text


async def test_no_current_context(tmp_path: Path) -> None:
    file = edit(kubeconfig(tmp_path), {"current-context": ""})
    assert "current-context" in await problem(file)


@pytest.mark.parametrize("section", ["clusters", "users"])
async def test_context_that_names_what_is_not_there(tmp_path: Path, section: str) -> None:
    file = edit(kubeconfig(tmp_path), {section: []})
    text = await problem(file)
    assert section in text and "contexts[main].context" in text


async def test_server_without_scheme(tmp_path: Path) -> None:
    assert "cluster.server" in await problem(kubeconfig(tmp_path, "10.0.0.1:6443"))


async def test_certificate_file_that_does_not_exist(tmp_path: Path) -> None:
    file = kubeconfig(tmp_path, **{"client-certificate": "no.crt", "client-key": "no.key"})
    text = await problem(file)
    assert "users[u].user.client-certificate" in text
    assert str(tmp_path / "no.crt") in text


async def test_certificate_without_key(tmp_path: Path) -> None:
    (tmp_path / "c.crt").write_text("x")
    assert "client-key" in await problem(kubeconfig(tmp_path, **{"client-certificate": "c.crt"}))


async def test_certificate_that_is_not_one(tmp_path: Path) -> None:
    for name in ("c.crt", "c.key"):
        (tmp_path / name).write_text("not pem")
    file = kubeconfig(tmp_path, **{"client-certificate": "c.crt", "client-key": "c.key"})
    assert "cannot be loaded" in await problem(file)


async def test_authority_that_is_not_one(tmp_path: Path) -> None:
    file = kubeconfig(tmp_path)
    junk = base64.b64encode(b"not pem").decode()
    cluster = {"server": "https://127.0.0.1:1", "certificate-authority-data": junk}
    edit(file, {"clusters": [{"name": "c", "cluster": cluster}]})
    assert "certificate-authority" in await problem(file)


async def test_impersonation_in_the_kubeconfig_is_refused_not_ignored(tmp_path: Path) -> None:
    assert "user.as" in await problem(kubeconfig(tmp_path, **{"as": "someone"}))


async def test_in_cluster_outside_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(ConnectionConfigError, match="KUBERNETES_SERVICE_HOST"):
        await connect(None, environ={}, service_account=tmp_path)


async def test_in_cluster_without_a_token(tmp_path: Path) -> None:
    where = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(ConnectionConfigError, match="mount the Pod's service account token"):
        await connect(None, environ=where, service_account=tmp_path)


async def test_rotated_token_file_is_read_again_when_the_old_one_is_refused(
    tmp_path: Path,
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    async with ScriptedServer() as server:
        server.script = [body(200, {}), failure(401, "Unauthorized"), body(200, {})]
        connection = await connect(kubeconfig(tmp_path, server.url, tokenFile="token"))
        try:
            client = KubeClient(connection)
            await client.get("/a")
            token.write_text("second\n")
            await client.get("/b")
        finally:
            await connection.close()
        assert [s.headers["Authorization"] for s in server.seen] == [
            "Bearer first",
            "Bearer first",
            "Bearer second",
        ]


async def test_a_static_token_that_is_refused_is_not_tried_twice(tmp_path: Path) -> None:
    async with ScriptedServer() as server:
        server.script = [failure(401, "Unauthorized")]
        file = kubeconfig(tmp_path, server.url, token="s3cret")
        connection = await connect(file)
        try:
            with pytest.raises(Unauthorized) as caught:
                await KubeClient(connection).get("/a")
        finally:
            await connection.close()
        assert str(file) in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert len(server.seen) == 1


async def test_exec_plugin_runs_again_after_a_refusal(tmp_path: Path) -> None:
    counter = tmp_path / "count"
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "import json, pathlib\n"
        f"p = pathlib.Path({str(counter)!r})\n"
        "n = int(p.read_text()) + 1 if p.exists() else 1\n"
        "p.write_text(str(n))\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1',\n"
        "  'kind': 'ExecCredential', 'status': {'token': f't{n}'}}))\n"
    )
    spec = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": sys.executable,
        "args": [str(plugin)],
    }
    async with ScriptedServer() as server:
        server.script = [body(200, {}), failure(401, "Unauthorized"), body(200, {})]
        connection = await connect(kubeconfig(tmp_path, server.url, exec=spec))
        try:
            client = KubeClient(connection)
            assert json.loads(await client.get("/a")) == {}
            await client.get("/b")
        finally:
            await connection.close()
        sent = [s.headers["Authorization"] for s in server.seen]
        assert sent == ["Bearer t1", "Bearer t1", "Bearer t2"]


async def test_exec_plugin_that_is_not_installed(tmp_path: Path) -> None:
    spec = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin-x"}
    assert "no-such-plugin-x" in await problem(kubeconfig(tmp_path, exec=spec))


async def test_inline_credentials_are_not_left_on_the_disk_by_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "pki")
    client = authority.issue("someone", "someone")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def inline(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    file = kubeconfig(
        tmp_path,
        **{"client-certificate-data": inline(client.cert), "client-key-data": inline(client.key)},
    )
    cluster = {
        "server": "https://127.0.0.1:1",
        "certificate-authority-data": inline(authority.cert),
    }
    edit(file, {"clusters": [{"name": "c", "cluster": cluster}]})
    for _ in range(2):  # the second time the loader must not count on files of the first
        connection = await connect(file)
        try:
            assert list(temporary.iterdir()) == []
        finally:
            await connection.close()
