"""Who reaches the Pods of a real cluster through the kubelet API, and who does not.

Each test is a row of the threat table in `docs/security.md`.
"""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from tests.security.callers import WEBSOCKET, NoHandshake, service_account_token
from tests.security.conftest import Guarded, account_of
from tests.support.until import until
from vknode.devcluster.pki import Authority

pytestmark = pytest.mark.cluster

HOUR = timedelta(hours=1)
FORBIDDEN = "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{}])\n"


def paths(guarded: Guarded) -> list[str]:
    names = ("/", "/healthz", "/pods", "/metrics", "/stats/summary", "/configz", "/nothing")
    return [*names, guarded.logs, guarded.exec, guarded.exec.replace("exec", "attach")]


def test_nobody_is_anonymous(guarded: Guarded) -> None:
    port = guarded.port()
    for path in paths(guarded):
        for method in ("GET", "POST", "DELETE"):
            answer = port.ask(path, method=method)
            assert (answer.status, answer.body) == (401, "Unauthorized"), (method, path)
    assert port.ask(guarded.exec, headers=WEBSOCKET).status == 401
    for header in ("Bearer nonsense", "Basic YWRtaW46YWRtaW4=", "Bearer", "nonsense"):
        assert port.ask("/pods", headers={"Authorization": header}).status == 401
    # Names in headers, as a front proxy gives them, are nobody's word here.
    forged = {"X-Remote-User": "vknode-admin", "X-Remote-Group": "system:masters"}
    assert port.ask("/pods", headers=forged).status == 401


@pytest.mark.parametrize(
    "valid", [(-2 * HOUR, -HOUR), (HOUR, 2 * HOUR)], ids=["expired", "not yet valid"]
)
def test_an_administrators_certificate_out_of_its_time(
    guarded: Guarded, valid: tuple[timedelta, timedelta]
) -> None:
    pair = guarded.authority.issue(
        "test-late", "vknode-admin", organizations=["system:masters"], valid=valid
    )
    with pytest.raises(NoHandshake):
        guarded.port().ask("/pods", pair=pair)


def test_a_certificate_of_another_authority(guarded: Guarded, tmp_path: Path) -> None:
    """Also of one that calls itself by the same name."""
    for name in ("vknode-dev-ca", "another-ca"):
        stranger = Authority(tmp_path / name, name)
        pair = stranger.issue("admin", "vknode-admin", organizations=["system:masters"])
        with pytest.raises(NoHandshake):
            guarded.port().ask("/pods", pair=pair)


def test_a_servers_certificate_is_no_clients(guarded: Guarded) -> None:
    """The agent's own, for example: it would be the same in every agent."""
    pair = guarded.authority.issue("test-server", "vknode-admin", ips=["127.0.0.1"])
    with pytest.raises(NoHandshake):
        guarded.port().ask("/pods", pair=pair)


def test_a_certificate_without_a_right(guarded: Guarded) -> None:
    user = guarded.somebody()
    pair = guarded.person(user, "some-group")
    port = guarded.port()
    for method, path, verb, subresources in (
        ("GET", "/pods", "get", "pods proxy"),
        ("GET", "/healthz", "get", "healthz proxy"),
        ("GET", "/configz", "get", "configz proxy"),
        ("GET", "/metrics/resource", "get", "metrics"),
        ("GET", "/stats/summary", "get", "stats"),
        ("GET", "/logs/", "get", "log"),
        ("GET", guarded.logs, "get", "proxy"),
        ("GET", guarded.exec, "create", "proxy"),
        ("POST", guarded.exec, "create", "proxy"),
        ("PUT", "/nothing", "update", "proxy"),
    ):
        answer = port.ask(path, pair=pair, method=method)
        assert (answer.status, answer.body) == (403, FORBIDDEN.format(user, verb, subresources))
    there, missing = guarded.logs, guarded.logs.replace("/web/", "/missing/")
    assert port.ask(there, pair=pair).body == port.ask(missing, pair=pair).body


def test_a_scraper_may_scrape_and_nothing_else(guarded: Guarded) -> None:
    user = guarded.account("scraper")
    guarded.grant(user, "get nodes/metrics", "get nodes/pods")
    token = guarded.token(user)
    port = guarded.port()
    assert port.ask("/pods", token=token).status == 200
    answer = port.ask("/metrics/resource", token=token)
    assert answer.status == 200 and "container_cpu_usage_seconds_total" in answer.body
    for path in (guarded.logs, guarded.exec, "/stats/summary", "/configz"):
        assert port.ask(path, token=token).status == 403, path
        assert port.ask(path, token=token, headers=WEBSOCKET).status == 403, path
        assert port.ask(path, token=token, method="POST").status == 403, path


def test_reading_the_proxy_is_not_running_commands(guarded: Guarded) -> None:
    """A WebSocket begins with GET, and a kubelet takes that for reading."""
    user = guarded.somebody()
    pair = guarded.person(user)
    guarded.grant(user, "get nodes/proxy")
    port = guarded.port()
    answer = port.ask(guarded.logs, pair=pair)
    assert (answer.status, answer.body) == (200, "started\n")
    for what in ("exec", "attach", "portForward", "run"):
        path = guarded.exec.replace("exec", what)
        answer = port.ask(path, pair=pair, headers=WEBSOCKET)
        assert (answer.status, answer.body) == (403, FORBIDDEN.format(user, "create", "proxy"))


def test_who_may_create_may_run_commands(guarded: Guarded) -> None:
    user = guarded.somebody()
    guarded.grant(user, "create nodes/proxy")
    pair = guarded.person(user)
    assert guarded.port().ask(guarded.exec, pair=pair, headers=WEBSOCKET).status == 101
    assert guarded.port().ask(guarded.logs, pair=pair).status == 403


def test_groups_of_a_certificate_count(guarded: Guarded) -> None:
    group = guarded.somebody()
    name = guarded.grant("nobody-at-all", "get nodes/proxy")
    guarded.bind(name, "group", group)
    guarded.until_allowed("get nodes/proxy", "", "--as=jane", f"--as-group={group}")
    assert guarded.port().ask(guarded.logs, pair=guarded.person("jane", group)).status == 200
    assert guarded.port().ask(guarded.logs, pair=guarded.person("jane", "other")).status == 403


def test_a_right_on_one_node_is_none_on_another(guarded: Guarded) -> None:
    user = guarded.somebody()
    pair = guarded.person(user)
    (other,) = set(guarded.running.cluster.node_names) - {guarded.node}
    guarded.grant(user, "get nodes/proxy", node=other)
    assert guarded.port().ask(guarded.logs, pair=pair).status == 403
    guarded.grant(user, "get nodes/proxy", node=guarded.node)
    until(
        lambda: guarded.port().ask(guarded.logs, pair=pair).status == 200,
        "the new right counts",
        timeout=60,
    )
    # Asked on another node's port, the Pod is not there.
    assert guarded.port(other).ask(guarded.logs, pair=pair).status == 404


def test_a_nodes_own_certificate_asks_in_vain(guarded: Guarded) -> None:
    for node in guarded.running.cluster.node_names:
        user = f"system:node:{node}"
        pair = guarded.person(user, "system:nodes")
        for path, verb, subresources in (
            ("/pods", "get", "pods proxy"),
            (guarded.logs, "get", "proxy"),
            (guarded.exec, "create", "proxy"),
        ):
            answer = guarded.port().ask(path, pair=pair)
            assert (answer.status, answer.body) == (403, FORBIDDEN.format(user, verb, subresources))


def test_a_right_that_is_taken_back_ends_with_the_memory_of_it(guarded: Guarded) -> None:
    user = guarded.somebody()
    pair = guarded.person(user)
    binding = guarded.grant(user, "get nodes/proxy")
    assert guarded.port().ask(guarded.logs, pair=pair).status == 200
    guarded.kube.out("delete", "clusterrolebinding", binding)
    until(
        lambda: guarded.port().ask(guarded.logs, pair=pair).status == 403,
        "the right has ended",
        timeout=60,
    )


def test_tokens_of_service_accounts(guarded: Guarded) -> None:
    user = guarded.account("reader")
    stranger = guarded.account("stranger")
    guarded.grant(user, "get nodes/proxy")
    assert guarded.port().ask(guarded.logs, token=guarded.token(user)).status == 200
    answer = guarded.port().ask(guarded.logs, token=guarded.token(stranger))
    assert (answer.status, answer.body) == (403, FORBIDDEN.format(stranger, "get", "proxy"))
    # Meant for somebody else, who could pass it on to us.
    elsewhere = guarded.token(user, "--audience=vault")
    assert guarded.port().ask(guarded.logs, token=elsewhere).status == 401


def test_a_token_over_its_time_or_with_another_signature(guarded: Guarded) -> None:
    user = guarded.account("reader")
    guarded.grant(user, "get nodes/proxy")
    account = account_of(user)
    uid = guarded.kube.json("get", "serviceaccount", account)["metadata"]["uid"]
    signer = guarded.running.cluster.control_plane.folder / "pki" / "sa.key"

    def status(key: Path, ends_in: float, uid: str) -> int:
        token = service_account_token(
            key, namespace=guarded.kube.namespace, account=account, uid=uid, ends_in=ends_in
        )
        guarded.secrets.append(token)
        return guarded.port().ask(guarded.logs, token=token).status

    assert status(signer, 3600, uid) == 200
    assert status(signer, -60, uid) == 401
    assert status(signer, 3600, "11111111-1111-1111-1111-111111111111") == 401
    assert status(guarded.person("jane").key, 3600, uid) == 401


def test_the_token_of_an_account_that_is_deleted(guarded: Guarded) -> None:
    user = guarded.account("leaver")
    guarded.grant(user, "get nodes/proxy")
    token = guarded.token(user)
    assert guarded.port().ask(guarded.logs, token=token).status == 200
    guarded.kube.out("delete", "serviceaccount", account_of(user))
    until(
        lambda: guarded.port().ask(guarded.logs, token=token).status == 401,
        "the token has ended",
        timeout=60,
    )


def test_the_api_server_still_reaches_pods(guarded: Guarded) -> None:
    assert guarded.kube.out("logs", "web") == "started\n"
    assert guarded.kube.out("exec", "web", "--", "echo", "hello") == "hello\n"
    # Its own credentials open nothing for who goes through it without a right.
    user = guarded.somebody()
    done = guarded.kube.run("exec", "web", f"--as={user}", "--", "echo", "hello", check=False)
    assert done.returncode != 0 and "forbidden" in done.stderr
    done = guarded.kube.run("logs", "web", f"--as={user}", check=False)
    assert done.returncode != 0 and "forbidden" in done.stderr


def test_without_the_api_server_nothing_is_allowed(guarded: Guarded) -> None:
    """To who was never seen; the log has one line about it and no secret."""
    user = guarded.account("reader")
    guarded.grant(user, "get nodes/proxy")
    token, pair = guarded.token(user), guarded.person(guarded.somebody())
    port = guarded.port()
    cluster, thread = guarded.running.cluster, guarded.running.thread
    thread.run(cluster.kill_apiserver())
    try:
        assert port.ask(guarded.logs, token=token).status == 401
        answer = port.ask(guarded.logs, pair=pair)
        assert answer.status == 500
        assert answer.body.startswith("Authorization error (user=user-")
        assert answer.body.endswith("verb=get, resource=nodes, subresource=proxy)")
    finally:
        thread.run(cluster.start_apiserver())
    log = guarded.running.agent_log()
    assert "kubelet_api_token_review_failed" in log
    assert "kubelet_api_access_review_failed" in log
    until(
        lambda: port.ask(guarded.logs, token=token).status == 200,
        "the reader reads again",
        timeout=60,
    )


def test_refusals_are_in_the_log_by_name(guarded: Guarded) -> None:
    user = guarded.somebody()
    guarded.port().ask(guarded.exec, pair=guarded.person(user))
    lines = [line for line in guarded.running.agent_log().splitlines() if user in line]
    assert len(lines) == 1
    for word in ("kubelet_api_forbidden", "create", guarded.node, guarded.kube.namespace):
        assert word in lines[0]
    assert "command=true" not in lines[0]


def test_a_client_that_does_not_speak_tls(guarded: Guarded) -> None:
    port = guarded.port()
    done = subprocess.run(
        ["bash", "-c", f"exec 3<>/dev/tcp/{port.host}/{port.number}; "
         "printf 'GET /pods HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' >&3; cat <&3"],
        capture_output=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert b"HTTP/1.1" not in done.stdout
