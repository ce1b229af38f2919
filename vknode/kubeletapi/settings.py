"""Settings of the kubelet API, and the TLS context made from them."""

import ssl
from dataclasses import dataclass
from pathlib import Path


class KubeletApiError(Exception):
    """The server cannot start; the text names the setting and the fix."""


@dataclass(frozen=True, slots=True)
class KubeletApiSettings:
    """
    serving_cert, serving_key: PEM files; the certificate may be followed by its chain
    client_ca:                 PEM file with the CA of the API server's client certificate
    allowed_client_names:      common names that may use the API; empty: every one of that CA
    address, port:             where to listen; port 0 lets the system choose
    max_message_bytes:         largest WebSocket message taken (a kubelet takes 32 MiB)
    max_streams:               exec sessions and logs at one time; more get 429
    ping_interval:             seconds between pings to the clients of open sessions
    certificate_check_interval: seconds between looks at the three files for changes
    stop_timeout:              seconds for running streams to say good-bye in `stop`
    """

    serving_cert: Path
    serving_key: Path
    client_ca: Path
    allowed_client_names: tuple[str, ...] = ()
    address: str = "0.0.0.0"
    port: int = 10250
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
            path.read_bytes()
        except OSError as error:
            raise KubeletApiError(
                f"{setting}: cannot read {path}: {error.strerror}; give a PEM file"
            ) from None
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
