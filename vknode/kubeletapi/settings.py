"""Settings of the kubelet API, and the TLS context made from them."""

import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vknode.kubeletapi.node_ports import PortRange


class KubeletApiError(Exception):
    """The server cannot start; the text names the setting and the fix."""


@dataclass(frozen=True, slots=True)
class AuthenticationSettings:
    """Who makes a request; the defaults are a kubelet's.

    token_review: whether bearer tokens are taken
    token_ttl:    seconds for which a good token is remembered; 0: it is reviewed each time
    """

    token_review: bool = True
    token_ttl: float = 120.0


@dataclass(frozen=True, slots=True)
class AuthorizationSettings:
    """What who is known may do; the defaults are a kubelet's.

    always_allow: everything: for development only
    allowed_ttl, denied_ttl: seconds for which the cluster's yes and no are remembered
    """

    always_allow: bool = False
    allowed_ttl: float = 300.0
    denied_ttl: float = 30.0


@dataclass(frozen=True, slots=True)
class KubeletApiSettings:
    """
    serving_cert, serving_key: PEM files; the certificate may be followed by its chain. Both None:
                               no handshake succeeds until `KubeletApi.use_certificate`
    client_ca:                 PEM file with the CAs of client certificates
    authentication, authorization: whom the API serves
    address, port:             where to listen; port 0 lets the system choose
    node_ports:                where each node has a port of its own; None: the system chooses
    system_logs:               folder whose files /logs/ shows, absolute; None: 405
    max_message_bytes:         largest WebSocket message taken (a kubelet takes 32 MiB)
    max_streams:               exec sessions and logs at one time; more get 429
    ping_interval:             seconds between pings to the clients of open sessions
    certificate_check_interval: seconds between looks at the three files for changes
    stop_timeout:              seconds for running streams to say good-bye in `stop`
    """

    serving_cert: Path | None
    serving_key: Path | None
    client_ca: Path
    authentication: AuthenticationSettings = AuthenticationSettings()
    authorization: AuthorizationSettings = AuthorizationSettings()
    address: str = "0.0.0.0"
    port: int = 10250
    node_ports: PortRange | None = None
    system_logs: Path | None = None
    max_message_bytes: int = 32 * 1024 * 1024
    max_streams: int = 1024
    ping_interval: float = 30.0
    certificate_check_interval: float = 60.0
    stop_timeout: float = 5.0


def make_tls_context(settings: KubeletApiSettings) -> ssl.SSLContext:
    """Raises `KubeletApiError` naming the setting whose file is missing or wrong.

    A client without a certificate gets through the handshake, so that it can be told 401 as by
    a kubelet; one with a certificate of another CA does not.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.verify_mode = ssl.CERT_OPTIONAL
    for setting, path in (
        ("servingCert", settings.serving_cert),
        ("servingKey", settings.serving_key),
        ("clientCA", settings.client_ca),
    ):
        try:
            if path is not None:
                path.read_bytes()
        except OSError as error:
            raise KubeletApiError(
                f"{setting}: cannot read {path}: {error.strerror}; give a PEM file"
            ) from None
    if settings.serving_cert is not None and settings.serving_key is not None:
        try:
            context.load_cert_chain(settings.serving_cert, settings.serving_key)
        except (ssl.SSLError, OSError) as error:
            raise KubeletApiError(
                f"servingCert, servingKey: {settings.serving_cert} and {settings.serving_key} are "
                f"not a certificate and its key in PEM: {error}"
            ) from None
    try:
        context.load_verify_locations(settings.client_ca)
    except (ssl.SSLError, OSError) as error:
        raise KubeletApiError(
            f"clientCA: {settings.client_ca} holds no PEM certificate: {error}"
        ) from None
    return context


def load_serving_pem(context: ssl.SSLContext, pem: bytes) -> None:
    """A key and its certificate with the chain, from memory. Raises `KubeletApiError`.

    Python's ssl reads them from a path only: here one that leads to memory. Where the system has
    no such thing, a file of the owner's only that is gone right after.
    """
    try:
        if not hasattr(os, "memfd_create"):
            with tempfile.NamedTemporaryFile() as file:
                file.write(pem)
                file.flush()
                context.load_cert_chain(file.name)
            return
        with os.fdopen(os.memfd_create("serving"), "wb") as memory:
            memory.write(pem)
            memory.flush()
            context.load_cert_chain(f"/proc/self/fd/{memory.fileno()}")
    except (ssl.SSLError, OSError) as error:
        raise KubeletApiError(f"the certificate that was issued cannot be used: {error}") from None
