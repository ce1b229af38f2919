"""A cluster whose agent remembers reviews for a second only, so that a test sees them end."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.security.callers import Port
from tests.support.fixtures import Running, have, own_namespace, started
from tests.support.kube import Kube, simple_pod
from tests.support.until import until
from vknode.devcluster.pki import Authority, KeyPair
from vknode.devcluster.programs.catalog import CONTROL_PLANE

#: Seconds for which a yes or a no is remembered here.
REMEMBERED = 1
KUBELET = {
    "authentication": {"webhook": {"cacheTTLSeconds": REMEMBERED}},
    "authorization": {
        "webhook": {
            "cacheAuthorizedTTLSeconds": REMEMBERED,
            "cacheUnauthorizedTTLSeconds": REMEMBERED,
        }
    },
}


@dataclass
class Guarded:
    """A running Pod `web` on a node, and ways to become somebody. `secrets` are all tokens that
    were shown to the agent: none may be in its log."""

    running: Running
    kube: Kube
    node: str
    secrets: list[str] = field(default_factory=list)

    @property
    def authority(self) -> Authority:
        return self.running.cluster.control_plane.authority

    @property
    def logs(self) -> str:
        """The path of the log of `web`."""
        return f"/containerLogs/{self.kube.namespace}/web/main"

    @property
    def exec(self) -> str:
        return f"/exec/{self.kube.namespace}/web/main?command=true&output=1"

    def port(self, node: str | None = None) -> Port:
        """The listener that a Node object names."""
        status = self.kube.json("get", "node", node or self.node)["status"]
        (address,) = [one for one in status["addresses"] if one["type"] == "InternalIP"]
        number = status["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        return Port(address["address"], number, self.authority.cert)

    def person(self, name: str, *groups: str) -> KeyPair:
        """A client certificate of the cluster's CA."""
        return self.authority.issue(f"test-{uuid.uuid4().hex[:8]}", name, organizations=groups)

    def somebody(self) -> str:
        """A user's name of the test's own: whatever is remembered is of others."""
        return f"user-{uuid.uuid4().hex[:8]}"

    def grant(self, user: str, *rules: str, node: str = "") -> str:
        """Lets a user do `VERB RESOURCE`, of one node or of all. Returns the binding's name."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": [
                {
                    "apiGroups": [""],
                    "verbs": [rule.split()[0]],
                    "resources": [rule.split()[1]],
                    **({"resourceNames": [node]} if node else {}),
                }
                for rule in rules
            ],
        }
        self.kube.apply(role)
        self.bind(name, "user", user)
        for rule in rules:
            self.until_allowed(rule, node, f"--as={user}")
        return name

    def bind(self, role: str, kind: str, who: str) -> str:
        """`kind` is user or group. Returns the binding's name."""
        name = f"{role}-{kind}" if kind == "group" else role
        binding = ("clusterrolebinding", name, f"--clusterrole={role}", f"--{kind}={who}")
        self.kube.out("create", *binding)
        return name

    def until_allowed(self, rule: str, node: str, *who: str) -> None:
        """The API server's authorizer learns of roles through watches of its own."""
        verb, what = rule.split()
        resource, subresource = what.split("/")
        target = f"{resource}/{node}" if node else resource
        question = ("auth", "can-i", verb, target, f"--subresource={subresource}", *who)
        until(
            lambda: self.kube.run(*question, check=False).stdout.startswith("yes"),
            f"{rule} is allowed",
            timeout=60,
        )

    def account(self, stem: str) -> str:
        """A new service account; returns its user's name."""
        name = f"{stem}-{uuid.uuid4().hex[:8]}"
        self.kube.out("create", "serviceaccount", name)
        return f"system:serviceaccount:{self.kube.namespace}:{name}"

    def token(self, user: str, *options: str) -> str:
        token = self.kube.out("create", "token", account_of(user), *options).strip()
        self.secrets.append(token)
        return token


def account_of(user: str) -> str:
    """The name of a service account, of its user's."""
    return user.rpartition(":")[2]


@pytest.fixture(scope="module")
def short_memory() -> Iterator[Running]:
    have(CONTROL_PLANE)
    with started(
        runtime="sim", zones=1, cells_per_zone=2, agent_config={"kubelet": KUBELET}
    ) as running:
        yield running


@pytest.fixture(scope="module")
def web(short_memory: Running) -> Iterator[Kube]:
    """A namespace with a running Pod `web`."""
    with own_namespace(short_memory.kube, "guarded") as kube:
        kube.apply(simple_pod("web", ["sh", "-c", "echo started; sleep 3600"]))
        kube.wait_phase("web", "Running")
        yield kube


@pytest.fixture
def guarded(short_memory: Running, web: Kube) -> Iterator[Guarded]:
    made = Guarded(short_memory, web, web.json("get", "pod", "web")["spec"]["nodeName"])
    yield made
    log = short_memory.agent_log()
    assert "agent_ready" in log
    for secret in made.secrets:
        # The signature: what makes a token one.
        assert secret.rsplit(".", 1)[-1] not in log
    for word in ("Bearer", "bearer ", "Authorization:"):
        assert word not in log
