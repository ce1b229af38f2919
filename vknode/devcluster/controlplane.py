"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler as child processes.

etcd and the API server are started at once (the one retries the other), the other
two when `/readyz` says so: they would look for the API server only once a second.
All is ready when the controller manager has done some work: the `default`
ServiceAccount, without which no Pod is admitted.

Where a real cluster is set differently, the comment beside the flag says why.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from vknode.devcluster.kubeconfig import write_kubeconfig
from vknode.devcluster.network import SERVICES
from vknode.devcluster.pki import Authority, KeyPair, key_pem, new_key, public_pem, write_private
from vknode.devcluster.ports import pick_port
from vknode.devcluster.process import Child, ChildFailed, Crash, State, log_tail
from vknode.devcluster.together import together

#: The name in the API server's client certificate; kubeadm's. There its group may do
#: everything; here it may use kubelet APIs and nothing else.
KUBELET_CLIENT = "kube-apiserver-kubelet-client"
#: The name in the certificate that the API server shows to aggregated API servers.
FRONT_PROXY = "front-proxy-client"
_KUBELET_CLIENT_BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": KUBELET_CLIENT},
    "roleRef": {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "system:kubelet-api-admin",
    },
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": KUBELET_CLIENT}],
}
#: Seconds until a control plane that is not ready counts as failed. It takes 4 s on
#: two idle cores; a busy machine may need many times that.
READY_WITHIN = 90.0


@dataclass(frozen=True)
class Settings:
    """What may differ between control planes."""

    apiserver_port: int = 0  # 0: any free port
    audit: bool = False  # log every request's metadata to logs/audit.log
    apiserver_features: Mapping[str, bool] = field(default_factory=dict)  # feature gates
    audit_users: tuple[str, ...] = ()  # only of these, also where they impersonate others


class ControlPlane:
    """A control plane that keeps its data in `folder`, its logs in `logs` and the
    administrator's kubeconfig at `kubeconfig`. `programs` maps names to paths."""

    def __init__(
        self,
        folder: Path,
        programs: Mapping[str, Path],
        *,
        logs: Path,
        kubeconfig: Path,
        settings: Settings | None = None,
        on_crash: Callable[[Crash], None] | None = None,
        on_start: Callable[[Child], None] | None = None,
    ) -> None:
        self.folder = folder
        self._programs = programs
        self._settings = settings or Settings()
        self._on_crash = on_crash
        self._on_start = on_start
        self.logs = logs
        self.kubeconfig = kubeconfig
        self.children: dict[str, Child] = {}
        self.port = 0

    # -- paths and credentials, valid from `prepare` on

    authority: Authority
    admin: KeyPair

    @property
    def url(self) -> str:
        """The API server's own address (a fault proxy may stand before it for the agent)."""
        return f"https://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        """Make certificates, kubeconfigs and command lines; starts nothing.

        Raises PortTaken if the wanted port is in use."""
        self.port = pick_port(self._settings.apiserver_port, what="kube-apiserver")
        pki = self.folder / "pki"
        self.authority = authority = Authority(pki)
        serving = authority.issue(
            "apiserver",
            "kube-apiserver",
            dns=[
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
            ],
            ips=["127.0.0.1", str(SERVICES[1])],  # the second is the `kubernetes` Service
        )
        kubelet_client = authority.issue("apiserver-kubelet-client", KUBELET_CLIENT)
        # Of its own: who holds a certificate of it may name any user (front proxy).
        front = Authority(pki / "front-proxy", "vknode-dev-front-proxy-ca")
        front_client = front.issue("client", FRONT_PROXY)
        signer = new_key()
        signing = write_private(pki / "sa.key", key_pem(signer))
        verifying = pki / "sa.pub"
        verifying.write_bytes(public_pem(signer))
        self.admin = authority.issue("admin", "vknode-admin", organizations=["system:masters"])
        self._config(self.kubeconfig, "vknode-admin", self.admin)
        manager = self._user("controller-manager", "system:kube-controller-manager")
        scheduler = self._user("scheduler", "system:kube-scheduler")

        etcd_socket = f"unix://{self.folder}/etcd.sock"
        self._child(
            "etcd",
            f"--data-dir={self.folder}/etcd",
            # A Unix socket in a 0700 folder: no other user reads the cluster's Secrets,
            # and no port to find.
            f"--listen-client-urls={etcd_socket}",
            f"--listen-peer-urls=unix://{self.folder}/etcd-peer.sock",
            # These want URLs with a port (a socket will do from 3.7 on); nobody asks a single
            # member for its addresses, and it never dials its peers.
            "--advertise-client-urls=http://localhost:1",
            "--initial-advertise-peer-urls=http://localhost:1",
            "--initial-cluster=default=http://localhost:1",
            # The cluster is thrown away when it ends: no need to survive a power cut.
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        self._child(
            "kube-apiserver",
            f"--etcd-servers={etcd_socket}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={serving.cert}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={authority.cert}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-signing-key-file={signing}",
            f"--service-account-key-file={verifying}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--kubelet-certificate-authority={authority.cert}",
            f"--kubelet-client-certificate={kubelet_client.cert}",
            f"--kubelet-client-key={kubelet_client.key}",
            # The default asks for the node's host name first, which only a DNS knows.
            "--kubelet-preferred-address-types=InternalIP",
            # 127.0.0.1 is not an address that Endpoints may carry.
            "--endpoint-reconciler-type=none",
            "--allow-privileged=true",
            "--profiling=false",
            # The aggregation layer: APIs of other servers, such as metrics-server's.
            f"--requestheader-client-ca-file={front.cert}",
            f"--requestheader-allowed-names={FRONT_PROXY}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={front_client.cert}",
            f"--proxy-client-key-file={front_client.key}",
            *self._audit_flags(),
            *self._feature_flags(),
        )
        self._child(
            "kube-controller-manager",
            f"--kubeconfig={manager}",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={signing}",
            f"--root-ca-file={authority.cert}",
            f"--cluster-signing-cert-file={authority.cert}",
            f"--cluster-signing-key-file={authority.key}",
            # One of each here: electing a leader would only cost its time.
            "--leader-elect=false",
            # No metrics server of its own: one port less that may be taken.
            "--secure-port=0",
            # The default of 20 requests a second makes its start take 5 s (it makes an
            # account for each of its controllers) and a Deployment of 200 Pods 10 s.
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            # How often node conditions are turned into taints that evict. The default of
            # 5 s is for thousands of nodes; here it is time one watches a zone fail.
            "--node-monitor-period=1s",
            # Nodes per second that may be evicted; by default one in ten seconds, which
            # on a handful of nodes is nothing but waiting for the second one.
            "--node-eviction-rate=10",
            # How often an autoscaler looks, and how long it does not trust the CPU usage of a
            # new Pod: 15 s and 5 min by default.
            "--horizontal-pod-autoscaler-sync-period=2s",
            "--horizontal-pod-autoscaler-cpu-initialization-period=10s",
        )
        self._child(
            "kube-scheduler", f"--kubeconfig={scheduler}", "--leader-elect=false", "--secure-port=0"
        )

    async def start(self) -> None:
        """Start all four and wait until they serve.

        Raises ChildFailed, with the log's end, if one dies or the time runs out."""
        first = ("etcd", "kube-apiserver")
        await together(*(self.children[name].start() for name in first))
        await self.ready()
        await self._admit_kubelet_client()
        rest = [child for name, child in self.children.items() if name not in first]
        await together(*(child.start() for child in rest))
        await self._until_ok("/api/v1/namespaces/default/serviceaccounts/default", READY_WITHIN)

    async def ready(self, within: float = READY_WITHIN) -> None:
        """Wait until the API server is ready. Raises ChildFailed as `start` does."""
        await self._until_ok("/readyz", within)

    async def _admit_kubelet_client(self) -> None:
        """Let the API server use kubelet APIs, which ask it about itself, too."""
        url = f"{self.url}/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
        async with (
            self._session() as session,
            session.post(url, json=_KUBELET_CLIENT_BINDING) as answer,
        ):
            if answer.status != 201:
                raise ChildFailed(
                    f"kube-apiserver refused the rights of its own {KUBELET_CLIENT} "
                    f"({answer.status}): {(await answer.text())[:300]}"
                )

    def _session(self) -> aiohttp.ClientSession:
        """As the administrator."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=client_context(self.authority.cert, self.admin)),
            timeout=aiohttp.ClientTimeout(total=5),
        )

    async def _until_ok(self, path: str, within: float) -> None:
        deadline = time.monotonic() + within
        async with self._session() as session:
            while not await _ok(session, self.url + path):
                self._check_alive()
                if time.monotonic() > deadline:
                    tail = "".join(
                        f"\n    {one}" for one in log_tail(self.children["kube-apiserver"].log)
                    )
                    raise ChildFailed(
                        f"the control plane was not ready within {within:.0f} s "
                        f"({path} does not answer 200); kube-apiserver's log ends:{tail}"
                    )
                await asyncio.sleep(0.05)

    def _check_alive(self) -> None:
        for child in self.children.values():
            if child.state is State.DEAD:
                tail = "".join(f"\n    {line}" for line in log_tail(child.log))
                raise ChildFailed(f"{child.name} ended at its start; its log {child.log}:{tail}")

    async def stop(self) -> None:
        """End all four: clients before their server, so that no log fills with errors."""
        order = (("kube-scheduler", "kube-controller-manager"), ("kube-apiserver",), ("etcd",))
        for names in order:
            # Nothing here outlives us, so nothing needs a soft landing: the API server
            # would take seconds to drain its watches.
            await together(*(self.children[name].kill() for name in names if name in self.children))

    def _child(self, name: str, *flags: str) -> None:
        self.children[name] = Child(
            name,
            [self._programs[name], *flags],
            log=self.logs / f"{name}.log",
            folder=self.folder,
            on_crash=self._on_crash,
            on_start=self._on_start,
        )

    def _config(self, path: Path, user: str, client: KeyPair) -> Path:
        return write_kubeconfig(
            path,
            server=self.url,
            ca_pem=self.authority.pem,
            user=user,
            client=client,
        )

    def _user(self, file_name: str, user: str) -> Path:
        pair = self.authority.issue(file_name, user)
        return self._config(self.folder / f"{file_name}.kubeconfig", user, pair)

    def _feature_flags(self) -> list[str]:
        gates = self._settings.apiserver_features.items()
        wanted = ",".join(f"{name}={str(on).lower()}" for name, on in gates)
        return [f"--feature-gates={wanted}"] if wanted else []

    def _audit_flags(self) -> list[str]:
        users = list(self._settings.audit_users)
        if not (self._settings.audit or users):
            return []
        rules: list[dict[str, Any]] = [{"level": "Metadata"}]
        if users and not self._settings.audit:
            # The policy is asked about who is authenticated, before any impersonation.
            rules = [{"level": "Metadata", "users": users}, {"level": "None"}]
        policy = self.folder / "audit-policy.yaml"
        policy.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "audit.k8s.io/v1",
                    "kind": "Policy",
                    "omitStages": ["RequestReceived"],
                    "rules": rules,
                }
            )
        )
        return [f"--audit-policy-file={policy}", f"--audit-log-path={self.logs}/audit.log"]


def client_context(ca: Path, client: KeyPair | None = None) -> ssl.SSLContext:
    """TLS towards the API server: its CA only, and our certificate."""
    context = ssl.create_default_context(cafile=str(ca))
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    return context


async def _ok(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
