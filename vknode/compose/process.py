"""One agent process: the agent, the kubelet API beside it, and signals.

Errors that a person must mend carry the exit status of the process (`ExitCode`).
"""

from __future__ import annotations

import asyncio
import enum
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import structlog

from vknode.agent.app import Agent
from vknode.agent.config import AgentConfig, ConfigError
from vknode.agent.metric_families import CERTIFICATE_EXPIRY, KUBELET_REQUESTS, KUBELET_STREAMS
from vknode.agent.metrics import AgentMetrics, MetricsError
from vknode.agent.node_ports import NodePortError
from vknode.agent.serving_certificate import self_signed
from vknode.compose.backend import AgentBackend
from vknode.compose.node_backend import AgentNodes
from vknode.compose.reviewer import ApiReviewer
from vknode.kube.errors import (
    ApiError,
    ConnectionConfigError,
    Forbidden,
    KubeError,
    Unauthorized,
    Unreachable,
)
from vknode.kubeletapi import (
    AuthenticationSettings,
    AuthorizationSettings,
    KubeletApi,
    KubeletApiError,
    KubeletApiSettings,
    PortRange,
)
from vknode.pool.client import PoolClient
from vknode.pool.endpoint import EndpointError

log = structlog.get_logger()


class ExitCode(enum.IntEnum):
    """Exit statuses of `vknode agent`; documented in its help."""

    FAILED = 1  # a defect, or the agent was ended by something unforeseen
    CONFIG = 2  # the configuration, a file it names, or a port
    REFUSED = 3  # the API server refuses the credentials or the rights are missing
    UNREACHABLE = 4  # the API server did not answer at the start


class AgentFailed(Exception):
    """The agent cannot start or go on; the text says why and what to do."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


async def run_agent(config: AgentConfig, stop: asyncio.Event | None = None) -> None:
    """Runs until SIGTERM or SIGINT (or `stop`). Raises `AgentFailed`."""
    stopping = stop or asyncio.Event()
    _allow_many_files()
    with _signals(stopping.set), _told():
        agent = Agent(config)
        try:
            await agent.open()
            api = _kubelet_api(agent)
            if api is None:
                await agent.run(None, stopping)
                return
            publish_kubelet_api(agent.metrics, api)
            port = await api.start()
            _certify(agent, api)
            # Streams say good-bye while the last statuses are written, not after.
            ending = asyncio.create_task(_stop_with(api, stopping))
            try:
                await agent.run(port, stopping, _Ports(api))
            finally:
                stopping.set()
                await ending
        finally:
            await agent.close()


def publish_kubelet_api(metrics: AgentMetrics, api: KubeletApi) -> None:
    """What the kubelet API counts, among the agent's metrics."""
    metrics.pull(KUBELET_REQUESTS, api.counts.requests)
    metrics.pull(KUBELET_STREAMS, api.counts.streams)

    def expiry() -> dict[tuple[str, str], float]:
        """Of a certificate that is in no file: those of files are told by the agent. One that
        was never issued has long expired."""
        when = 0.0 if api.waits_for_certificate else api.certificate_expiry
        return {} if when is None else {("kubelet_serving", ""): when}

    metrics.pull(CERTIFICATE_EXPIRY, expiry)


class _Ports:
    """The kubelet API's ports as the agent asks for them."""

    def __init__(self, api: KubeletApi) -> None:
        self._api = api

    def claim(self, node: str, port: int) -> None:
        self._api.claim_port(node, port)

    async def open(self, node: str) -> int:
        try:
            return await self._api.open_node(node)
        except KubeletApiError as error:
            raise NodePortError(str(error)) from error

    async def close(self, node: str) -> None:
        await self._api.close_node(node)


def _allow_many_files() -> None:
    """Each node has a listening socket: what the system allows is taken, as Go programs do."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _stop_with(api: KubeletApi, stopping: asyncio.Event) -> None:
    await stopping.wait()
    await api.stop()


def _certify(agent: Agent, api: KubeletApi) -> None:
    """Gives the server its certificate where no files have it."""
    kubelet = agent.config.kubelet
    if kubelet.server_tls_bootstrap:
        agent.ask_for_certificate(lambda pair: api.use_certificate(pair.pem))
    elif kubelet.self_signed:
        api.use_certificate(self_signed([kubelet.address], datetime.now(UTC)).pem)
        log.warning(
            "kubelet_api_self_signed",
            hint="kubelet.selfSigned is for development: nobody can tell this agent from another "
            "server; write serverTLSBootstrap, or servingCert and servingKey",
        )


def _kubelet_api(agent: Agent) -> KubeletApi | None:
    kubelet = agent.config.kubelet
    has_certificate = (
        kubelet.serving_cert is not None or kubelet.server_tls_bootstrap or kubelet.self_signed
    )
    if not has_certificate or kubelet.client_ca is None:
        log.warning(
            "kubelet_api_off",
            hint="kubectl logs and exec need kubelet.clientCA and a certificate: servingCert and "
            "servingKey, or serverTLSBootstrap",
        )
        return None
    streams = {
        link.name: link.client for link in agent.links if isinstance(link.client, PoolClient)
    }
    return KubeletApi(
        AgentBackend(agent.store, agent.records, streams),
        AgentNodes(agent.config, agent, agent.store, agent.records, streams),
        KubeletApiSettings(
            serving_cert=kubelet.serving_cert,
            serving_key=kubelet.serving_key,
            client_ca=kubelet.client_ca,
            authentication=AuthenticationSettings(
                token_review=kubelet.authentication.token_review,
                token_ttl=kubelet.authentication.cache_seconds,
            ),
            authorization=AuthorizationSettings(
                always_allow=kubelet.authorization.always_allow,
                allowed_ttl=kubelet.authorization.authorized_seconds,
                denied_ttl=kubelet.authorization.unauthorized_seconds,
            ),
            address=kubelet.address,
            port=kubelet.port,
            node_ports=PortRange(*kubelet.node_ports) if kubelet.node_ports else None,
            system_logs=kubelet.system_logs,
        ),
        ApiReviewer(agent.client),
    )


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


@contextmanager
def _told() -> Iterator[None]:
    """Turns what a person must mend into `AgentFailed`."""
    try:
        yield
    except (
        ConfigError,
        ConnectionConfigError,
        EndpointError,
        MetricsError,
        KubeletApiError,
    ) as error:
        raise AgentFailed(ExitCode.CONFIG, str(error)) from error
    except (Unauthorized, Forbidden) as error:
        raise AgentFailed(ExitCode.REFUSED, str(error)) from error
    except Unreachable as error:
        raise AgentFailed(ExitCode.UNREACHABLE, str(error)) from error
    except ApiError as error:
        code = ExitCode.UNREACHABLE if error.is_transient else ExitCode.REFUSED
        raise AgentFailed(code, str(error)) from error
    except KubeError as error:
        raise AgentFailed(ExitCode.FAILED, str(error)) from error
