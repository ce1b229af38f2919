"""All probes and hooks that go over the network, for one pool."""

from __future__ import annotations

from collections.abc import Sequence

from vknode.pool.probes import gowords, grpc_health, http, tcp
from vknode.pool.probes.exchange import Resolver
from vknode.pool.probes.turnstile import Turnstile
from vknode.pool.runtimes.facts import Failure, ProbeOutcome, ProbeResult
from vknode.pool.v1 import spec_pb2

# Beginning at once; an answer usually takes milliseconds.
_WIDTH = 64


class Network:
    """`close` it in the end."""

    def __init__(self) -> None:
        self._resolver = Resolver()
        self._turnstile = Turnstile(_WIDTH)

    def close(self) -> None:
        self._resolver.close()

    async def probe(
        self, handler: spec_pb2.Handler, ips: Sequence[str], timeout_seconds: float
    ) -> ProbeOutcome:
        """As `Runtime.probe`, for http_get, tcp_socket and grpc."""
        action = handler.WhichOneof("action")
        if action not in ("http_get", "tcp_socket", "grpc"):
            return ProbeOutcome(ProbeResult.ERROR, f"there is no probe of the kind {action}")
        ip = ips[0] if ips else ""
        host = "" if action == "grpc" else getattr(handler, action).host
        if not ip and not host:
            return ProbeOutcome(ProbeResult.ERROR, "the sandbox has no IP")
        async with self._turnstile.entry():
            match action:
                case "http_get":
                    return await http.probe(self._resolver, handler.http_get, ip, timeout_seconds)
                case "tcp_socket":
                    return await tcp.probe(self._resolver, handler.tcp_socket, ip, timeout_seconds)
                case _:
                    return await grpc_health.probe(
                        self._resolver, handler.grpc, ip, timeout_seconds
                    )

    async def hook(
        self, action: spec_pb2.Handler.HttpGet, ips: Sequence[str], container: str, pod: str
    ) -> None:
        """To its end; any answer is good. `container` and `pod` ("NAME_NAMESPACE(UID)") are
        for the text. Raises Failure."""
        try:
            if not ips and not action.host:
                raise http.GetFailed("failed to find networking container: it has no IP")
            async with self._turnstile.entry():
                await http.hook(self._resolver, action, ips[0] if ips else "")
        except http.GetFailed as failed:
            raise Failure(
                "HookFailed",
                f"HTTP lifecycle hook ({action.path}) for Container {gowords.quote(container)} "
                f"in Pod {gowords.quote(pod)} failed - error: {failed}",
            ) from None
