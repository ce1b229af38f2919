"""One agent process: the agent, the kubelet API beside it, and signals.

Errors that a person must mend carry the exit status of the process (`ExitCode`).
"""

from __future__ import annotations

import asyncio
import enum
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from vknode.agent.app import Agent
from vknode.agent.config import AgentConfig, ConfigError
from vknode.agent.metrics import MetricsError
from vknode.agent.nodes import NodeNameConflict
from vknode.compose.backend import AgentBackend
from vknode.kube.errors import (
    ApiError,
    ConnectionConfigError,
    Forbidden,
    KubeError,
    Unauthorized,
    Unreachable,
)
from vknode.kubeletapi import KubeletApi, KubeletApiError, KubeletApiSettings
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
    with _signals(stopping.set), _told():
        agent = Agent(config)
        try:
            await agent.open()
            api = _kubelet_api(agent)
            if api is None:
                await agent.run(None, stopping)
                return
            port = await api.start()
            # Streams say good-bye while the last statuses are written, not after.
            ending = asyncio.create_task(_stop_with(api, stopping))
            try:
                await agent.run(port, stopping)
            finally:
                stopping.set()
                await ending
        finally:
            await agent.close()


async def _stop_with(api: KubeletApi, stopping: asyncio.Event) -> None:
    await stopping.wait()
    await api.stop()


def _kubelet_api(agent: Agent) -> KubeletApi | None:
    kubelet = agent.config.kubelet
    if kubelet.serving_cert is None or kubelet.serving_key is None or kubelet.client_ca is None:
        log.warning(
            "kubelet_api_off",
            hint="kubectl logs and exec need kubelet.servingCert, servingKey and clientCA",
        )
        return None
    streams = {
        link.name: link.client for link in agent.links if isinstance(link.client, PoolClient)
    }
    return KubeletApi(
        AgentBackend(agent.store, agent.records, streams),
        KubeletApiSettings(
            serving_cert=kubelet.serving_cert,
            serving_key=kubelet.serving_key,
            client_ca=kubelet.client_ca,
            allowed_client_names=kubelet.allowed_client_names,
            address=kubelet.address,
            port=kubelet.port,
        ),
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
        NodeNameConflict,
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
