"""The agent's configuration: one YAML file, checked whole at start.

Every error is one line `file: field.path: what is wrong; fix` (`ConfigError.problems`).
Relative paths count from the file's folder.
"""

from __future__ import annotations

import ipaddress
import string
from dataclasses import dataclass, field
from pathlib import Path

from vknode.agent import names
from vknode.agent.config_logs import check_system_logs
from vknode.agent.config_privileges import read_patterns, read_privileges
from vknode.agent.config_reader import ConfigError, Reader, duplicates, load_yaml
from vknode.agent.patterns import EVERY
from vknode.agent.privileges import Grant
from vknode.kube.connection import SERVICE_ACCOUNT

__all__ = ["AgentConfig", "ConfigError", "load_config"]

TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
TEMPLATE_FIELDS = ("cell", "pool", "zone")
UNIX_PREFIX = "unix:"
# sockaddr_un has 108 bytes, the last one 0.
MAX_UNIX_PATH = 107
MAX_DNS_SERVERS = 3
# Of one pool, unless it is given another number: each is a Node, a Lease and a port.
MAX_CELLS = 1000
AUTHORIZATION_MODES = ("Webhook", "AlwaysAllow")
# Below the NodePorts of Services (30000 on) and the kernel's own choices (32768 on).
NODE_PORTS = (20250, 29999)


@dataclass(frozen=True)
class TLSFiles:
    """Mutual TLS towards a pool: its CA, our certificate and key, the name to expect."""

    ca: Path
    cert: Path
    key: Path
    server_name: str = ""


@dataclass(frozen=True)
class PoolConfig:
    """`endpoint` is `unix:/PATH` or `HOST:PORT`; the latter always has `tls`. `cells`: names, or
    prefixes with "*", of those that it may announce; all others are refused. `max_cells`: how
    many Nodes it may have."""

    name: str
    endpoint: str
    tls: TLSFiles | None = None
    cells: tuple[str, ...] = (EVERY,)
    max_cells: int = MAX_CELLS


@dataclass(frozen=True)
class Taint:
    key: str
    value: str
    effect: str


@dataclass(frozen=True)
class KubeletAuthentication:
    """Who uses the kubelet API, beside certificates of `client_ca`: bearer tokens, by
    TokenReview; a good one is remembered for `cache_seconds`."""

    token_review: bool = True
    cache_seconds: float = 120.0


@dataclass(frozen=True)
class KubeletAuthorization:
    """What they may do, by SubjectAccessReview; seconds for which its yes and no are remembered.
    `always_allow`: everything, for development."""

    always_allow: bool = False
    authorized_seconds: float = 300.0
    unauthorized_seconds: float = 30.0


@dataclass(frozen=True)
class KubeletConfig:
    """The kubelet API's listeners (`port`, shared by all nodes, 0: the kernel chooses;
    `node_ports`, first and last of those that nodes have as their own, None: the kernel chooses),
    who may use it, and the DNS of Pods, under the names of a kubelet's own configuration. Without
    `cluster_dns` Pods use their cell's resolver.
    """

    address: str = "127.0.0.1"
    port: int = 10250
    node_ports: tuple[int, int] | None = NODE_PORTS
    serving_cert: Path | None = None
    serving_key: Path | None = None
    # Instead of the two: asked for from the cluster (and kept in this folder), or self-signed.
    server_tls_bootstrap: bool = False
    cert_directory: Path | None = None
    self_signed: bool = False
    client_ca: Path | None = None
    # What /logs/ shows, of the agent's host; None: nothing.
    system_logs: Path | None = None
    authentication: KubeletAuthentication = field(default_factory=KubeletAuthentication)
    authorization: KubeletAuthorization = field(default_factory=KubeletAuthorization)
    cluster_dns: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"


@dataclass(frozen=True)
class LeaseConfig:
    """Seconds. The control plane calls a node lost `duration` after its last renewal."""

    duration: int = 40
    renew: float = 10.0


@dataclass(frozen=True)
class DeletionConfig:
    """The brake: more than `brake_minimum` deletions that are more than `brake_share` of a
    pool at once are not done."""

    brake_share: float = 0.3
    brake_minimum: int = 10


@dataclass(frozen=True)
class AgentConfig:
    file: Path
    pools: tuple[PoolConfig, ...]
    # Tells agents of one cluster apart; the value of the label vknode.dev/managed-by.
    name: str = "vknode"
    kubeconfig: Path | None = None
    node_name_template: str = "{cell}"
    node_labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    kubelet: KubeletConfig = field(default_factory=KubeletConfig)
    lease: LeaseConfig = field(default_factory=LeaseConfig)
    # Seconds a pool may be silent before its nodes are called NotReady.
    pool_unreachable_after: float = 10.0
    # Seconds a cell must be missing from its pool's list before its Node is deleted.
    cell_gone_after: float = 300.0
    deletion: DeletionConfig = field(default_factory=DeletionConfig)
    # Kubernetes' name of an extended resource -> the pools' name of it.
    extended_resources: dict[str, str] = field(default_factory=dict)
    # What of their cells' hosts Pods may have. Nothing by default.
    privileges: tuple[Grant, ...] = ()
    # ConfigMaps and Secrets that are watched at once for running Pods.
    max_reference_watches: int = 500
    # HOST:PORT of the metrics listener; empty switches it off.
    metrics_listen: str = "127.0.0.1:0"
    tenant: str = "default"
    log_format: str = "json"


def load_config(file: Path) -> AgentConfig:
    """Reads and checks the file. Raises `ConfigError` with every problem found."""
    root = Reader(file, load_yaml(file))
    pools = _pools(root)
    config = AgentConfig(
        file=file,
        name=root.text(
            "name", "vknode", check=names.is_dns_label, expected="a name of a-z, 0-9 and '-'"
        ),
        kubeconfig=root.path_to("kubeconfig", "a kubeconfig file, or leave the key out in-cluster"),
        pools=pools,
        node_name_template=_template(root),
        node_labels=_labels(root),
        taints=tuple(_taint(reader) for reader in root.sections("taints")),
        kubelet=_kubelet(root.section("kubelet")),
        lease=_lease(root.section("lease")),
        **_pool_times(root.section("pool")),
        deletion=_deletion(root.section("deletion")),
        extended_resources=_extended_resources(root),
        privileges=read_privileges(root, [pool.name for pool in pools]),
        max_reference_watches=_references(root.section("references")),
        metrics_listen=_metrics(root.section("metrics")),
        tenant=root.text("tenant", "default", check=names.is_dns_label, expected="a DNS label"),
        log_format=root.choice("logFormat", "json", ("json", "console")),
    )
    _keep_secrets_out_of_logs(root, config)
    root.finish()
    root.raise_problems()
    return config


def render_node_name(template: str, *, cell: str, pool: str, zone: str) -> str:
    """The Node's name for a cell. The caller checks it (`names.is_node_name`)."""
    return template.format(cell=cell, pool=pool, zone=zone)


def _pools(root: Reader) -> tuple[PoolConfig, ...]:
    readers = root.sections("pools")
    pools = tuple(_pool(reader) for reader in readers)
    if not readers and not any(": pools: " in problem for problem in root.problems):
        root.problem("pools", "is empty", "name at least one pool: {name: az1, endpoint: unix:…}")
    for twice in duplicates(pool.name for pool in pools if pool.name):
        root.problem("pools", f"the name {twice!r} is given to two pools", "rename one of them")
    for twice in duplicates(pool.endpoint for pool in pools if pool.endpoint):
        root.problem(
            "pools",
            f"the endpoint {twice!r} is given to two pools",
            "one pool would be shown twice; remove one of them",
        )
    return pools


def _pool(reader: Reader) -> PoolConfig:
    name = reader.text(
        "name",
        required=True,
        check=names.is_dns_label,
        expected="a name of a-z, 0-9 and '-' (at most 63)",
    )
    endpoint = reader.text("endpoint", required=True, expected="unix:/PATH or HOST:PORT")
    is_unix = endpoint.startswith(UNIX_PREFIX)
    if endpoint:
        problem = _unix_problem(endpoint) if is_unix else host_port_problem(endpoint)
        if problem:
            reader.problem("endpoint", f"{endpoint!r} {problem}", "write unix:/PATH or HOST:PORT")
    tls = None
    if reader.has("tls"):
        tls = _tls(reader.section("tls"))
        if is_unix:
            reader.problem("tls", "is given for a Unix socket", "remove it; its file mode protects")
    else:
        reader.section("tls")  # known, though not given
        if endpoint and not is_unix:
            reader.problem(
                "tls",
                "is missing, and a pool over TCP needs mutual TLS",
                "add tls: {ca: FILE, cert: FILE, key: FILE}",
            )
    cells = read_patterns(reader, "cells", names.is_dns_name, "a cell")
    max_cells = reader.integer("maxCells", MAX_CELLS, 1, 100_000)
    reader.finish()
    return PoolConfig(name, endpoint, tls, cells or (EVERY,), max_cells)


def _tls(reader: Reader) -> TLSFiles | None:
    ca = reader.path_to("ca", "the CA certificate of the pool (PEM)", required=True)
    cert = reader.path_to("cert", "the agent's certificate (PEM)", required=True)
    key = reader.path_to("key", "the agent's key (PEM)", required=True)
    server_name = reader.text("serverName")
    reader.finish()
    if ca is None or cert is None or key is None:
        return None
    return TLSFiles(ca, cert, key, server_name)


def _unix_problem(endpoint: str) -> str:
    path = endpoint.removeprefix(UNIX_PREFIX).removeprefix("//")
    if not path.startswith("/"):
        return "is not an absolute path"
    if len(path.encode()) > MAX_UNIX_PATH:
        return f"is longer than the {MAX_UNIX_PATH} bytes of a socket's path"
    return ""


def host_port_problem(text: str) -> str:
    """What is wrong with `HOST:PORT` (IPv6 in brackets), or ''. Port 0 is allowed."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        return "is not HOST:PORT"
    if "://" in text or "/" in text:
        return "has a scheme or a path"
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return "has an IPv6 address without brackets"
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        return "has no port between 0 and 65535"
    return ""


def _template(root: Reader) -> str:
    template = root.text("nodeNameTemplate", "{cell}")
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError:
        root.problem("nodeNameTemplate", "has unbalanced braces", 'write such as "{pool}-{cell}"')
        return "{cell}"
    for name in fields:
        if name not in TEMPLATE_FIELDS:
            root.problem(
                "nodeNameTemplate",
                f"has the unknown field {{{name}}}",
                "use {cell}, {pool} and {zone}",
            )
            return "{cell}"
    if "cell" not in fields:
        root.problem(
            "nodeNameTemplate", "gives every cell the same name", "{cell} must be part of it"
        )
        return "{cell}"
    sample = render_node_name(template, cell="c", pool="p", zone="z")
    if not names.is_node_name(sample):
        root.problem(
            "nodeNameTemplate",
            f"would make names such as {sample!r}",
            "Node names are a-z, 0-9, '-' and '.'",
        )
    return template


def _labels(root: Reader) -> dict[str, str]:
    labels = root.text_mapping("nodeLabels")
    for key, value in labels.items():
        where = f"nodeLabels[{key}]"
        if not names.is_label_key(key):
            root.problem(where, "is not a label key", "write [prefix/]name")
        elif not names.is_label_value(value):
            root.problem(where, f"{value!r} is not a label value", "at most 63 of A-Za-z0-9-_.")
        elif key in names.AGENT_LABELS or key.startswith("vknode.dev/"):
            root.problem(where, "is set by the agent itself", "remove it")
    return labels


def _taint(reader: Reader) -> Taint:
    key = reader.text("key", required=True, check=names.is_label_key, expected="[prefix/]name")
    value = reader.text("value", check=names.is_label_value, expected="a label value")
    effect = reader.choice("effect", "", TAINT_EFFECTS)
    if not reader.has("effect"):
        reader.problem("effect", "is missing", f"write {', '.join(TAINT_EFFECTS)}")
    reader.finish()
    return Taint(key, value, effect)


def _kubelet(reader: Reader) -> KubeletConfig:
    address = reader.text("address", "127.0.0.1", check=_is_address, expected="an IP address")
    reader.removed(
        "allowedClientNames",
        "the cluster's RBAC says who may use the kubelet API",
        "remove it, and bind the ClusterRole system:kubelet-api-admin to the name in the API "
        "server's --kubelet-client-certificate unless its group may do everything already",
    )
    kubelet = KubeletConfig(
        address=address,
        port=reader.integer("port", 10250, 0, 65535),
        node_ports=reader.port_range("nodePorts", NODE_PORTS),
        serving_cert=reader.path_to("servingCert", "the server's certificate (PEM)"),
        serving_key=reader.path_to("servingKey", "the server's key (PEM)"),
        server_tls_bootstrap=reader.flag("serverTLSBootstrap", False),
        cert_directory=reader.folder("certDirectory"),
        self_signed=reader.flag("selfSigned", False),
        client_ca=reader.path_to("clientCA", "the CA of the API server's client certificate"),
        system_logs=reader.shown_folder("systemLogs", "a folder of logs, such as /var/log/vknode"),
        authentication=_authentication(reader.section("authentication")),
        authorization=_authorization(reader.section("authorization")),
        cluster_dns=reader.texts("clusterDNS"),
        cluster_domain=reader.text(
            "clusterDomain", "cluster.local", check=names.is_dns_name, expected="a DNS name"
        ),
    )
    if kubelet.node_ports is not None and kubelet.port:
        first, last = kubelet.node_ports
        if first <= kubelet.port <= last:
            reader.problem(
                "nodePorts",
                f"{first}-{last} contains {reader.field('port')} ({kubelet.port}), which all "
                "nodes share",
                "move one of them",
            )
    for index, server in enumerate(kubelet.cluster_dns):
        if not _is_address(server):
            where = f"clusterDNS[{index}]"
            reader.problem(where, f"{server!r} is not an IP address", "write the Service's IP")
    if len(kubelet.cluster_dns) > MAX_DNS_SERVERS:
        given = len(kubelet.cluster_dns)
        reader.problem(
            "clusterDNS", f"has {given} servers, a resolver takes {MAX_DNS_SERVERS}", "remove some"
        )
    if (kubelet.serving_cert is None) != (kubelet.serving_key is None):
        missing = "servingKey" if kubelet.serving_key is None else "servingCert"
        reader.problem(missing, "is missing beside its counterpart", "give both or neither")
    sources = {
        "servingCert": kubelet.serving_cert is not None,
        "serverTLSBootstrap": kubelet.server_tls_bootstrap,
        "selfSigned": kubelet.self_signed,
    }
    chosen = [key for key, is_given in sources.items() if is_given]
    if len(chosen) > 1:
        reader.problem(
            chosen[1], f"is given beside {chosen[0]}", "the server has one certificate: keep one"
        )
    if kubelet.cert_directory is not None and not kubelet.server_tls_bootstrap:
        reader.problem(
            "certDirectory", "is given without serverTLSBootstrap", "set that, or remove it"
        )
    reader.finish()
    return kubelet


def _keep_secrets_out_of_logs(root: Reader, config: AgentConfig) -> None:
    folder = config.kubelet.system_logs
    if folder is None:
        return
    secrets = {
        "kubeconfig": config.kubeconfig or SERVICE_ACCOUNT,
        "kubelet.servingKey": config.kubelet.serving_key,
        "kubelet.certDirectory": config.kubelet.cert_directory,
    }
    for index, pool in enumerate(config.pools):
        secrets[f"pools[{index}].tls.key"] = pool.tls.key if pool.tls is not None else None
    check_system_logs(root, folder, secrets)


def _authentication(reader: Reader) -> KubeletAuthentication:
    webhook = reader.section("webhook")
    found = KubeletAuthentication(
        token_review=webhook.flag("enabled", True),
        cache_seconds=webhook.number("cacheTTLSeconds", 120.0, 0, 3600),
    )
    webhook.finish()
    reader.finish()
    return found


def _authorization(reader: Reader) -> KubeletAuthorization:
    mode = reader.choice("mode", "Webhook", AUTHORIZATION_MODES)
    webhook = reader.section("webhook")
    found = KubeletAuthorization(
        always_allow=mode == "AlwaysAllow",
        authorized_seconds=webhook.number("cacheAuthorizedTTLSeconds", 300.0, 0, 3600),
        unauthorized_seconds=webhook.number("cacheUnauthorizedTTLSeconds", 30.0, 0, 3600),
    )
    webhook.finish()
    reader.finish()
    return found


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    # The API server must be able to dial it.
    return not address.is_unspecified


def _lease(reader: Reader) -> LeaseConfig:
    lease = LeaseConfig(
        duration=reader.integer("durationSeconds", 40, 2, 3600),
        renew=reader.number("renewSeconds", 10.0, 0.2, 1800),
    )
    # Two renewals may fail before the node is called lost.
    if lease.renew * 3 > lease.duration:
        reader.problem(
            "renewSeconds",
            f"{lease.renew:g} is more than a third of durationSeconds ({lease.duration})",
            "one lost renewal would make nodes NotReady; renew more often",
        )
    reader.finish()
    return lease


def _pool_times(reader: Reader) -> dict[str, float]:
    times = {
        "pool_unreachable_after": reader.number("unreachableAfterSeconds", 10.0, 0.5, 3600),
        "cell_gone_after": reader.number("cellGoneAfterSeconds", 300.0, 1, 86_400),
    }
    reader.finish()
    return times


def _deletion(reader: Reader) -> DeletionConfig:
    deletion = DeletionConfig(
        brake_share=reader.number("brakeShare", 0.3, 0.0, 1.0),
        brake_minimum=reader.integer("brakeMinimum", 10, 0, 1_000_000),
    )
    reader.finish()
    return deletion


def _extended_resources(root: Reader) -> dict[str, str]:
    mapping = root.text_mapping("extendedResources")
    for name, of_pools in mapping.items():
        where = f"extendedResources[{name}]"
        if "/" not in name or not names.is_label_key(name) or names.is_kubernetes_label(name):
            root.problem(where, "is no extended resource", "write a name such as example.com/gpu")
        if not of_pools:
            root.problem(where, "names no resource of a pool", "write the name that cells announce")
    for twice in duplicates(mapping.values()):
        root.problem("extendedResources", f"{twice!r} has two names", "remove one of them")
    return mapping


def _references(reader: Reader) -> int:
    limit = reader.integer("maxWatches", 500, 0, 100_000)
    reader.finish()
    return limit


def _metrics(reader: Reader) -> str:
    listen = reader.text("listen", "127.0.0.1:0")
    if reader.is_empty("listen"):
        listen = ""
    elif problem := host_port_problem(listen):
        reader.problem("listen", f"{listen!r} {problem}", "write HOST:PORT")
    reader.finish()
    return listen
