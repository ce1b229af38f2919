"""One pooled HTTP session to the API server, with credentials that stay fresh.

Configuration and credentials come through kubernetes_asyncio's loader; requests do not. Theory:

* TLS context, connection pool and base URL are made once.
* The Authorization header is made by `authorization()`: a token file (in-cluster or `tokenFile`)
  is read again when a minute has passed, since the kubelet rotates it; an exec plugin runs again
  when its credential is about to expire; a 401 brings either forward (`invalidate`).
* A client certificate on disk is loaded again into the same TLS context when its file changes:
  new connections use it, old ones end by themselves.
* What a kubeconfig holds inline (`*-data`, an exec plugin's certificate) the loader writes to
  temporary files, which a SIGKILL would leave behind, keys among them: they are removed as soon
  as the TLS context has read them.
* Watches have a session of their own without a limit on connections: each one holds its
  connection (HTTP/1.1), and must not take it from the requests. Whoever opens them bounds them.
* Dead peers are found by TCP keep-alive (about 30 s), so that a watch on a silent connection
  does not wait for hours.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from asyncio import sslproto
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
import structlog
from yarl import URL

from vknode.filemark import Mark, mark
from vknode.kube.errors import ConnectionConfigError
from vknode.kube.kubeconfig import KubeconfigFacts, inspect_kubeconfig

log = structlog.get_logger()

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CREDENTIAL_CHECK_SECONDS = 60.0
READ_BUFFER_BYTES = 1024 * 1024
TLS_BUFFER_BYTES = 32 * 1024


@dataclass
class _CertificateFiles:
    """Client certificate and key on disk, with what they looked like when last loaded."""

    cert: str
    key: str | None
    seen: Mark = ()

    def mark(self) -> Mark:
        return mark([Path(self.cert)])


class Connection:
    """Where the API server is and how to prove who we are. Make with `connect`; `close` it."""

    def __init__(
        self,
        *,
        server: str,
        source: str,
        session: aiohttp.ClientSession,
        streams: aiohttp.ClientSession | None = None,
        token: str | None,
        token_file: Path | None = None,
        exec_loader: Any = None,
        certificate: _CertificateFiles | None = None,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        proxy: str | None = None,
    ) -> None:
        self.server = server
        # For messages: which file, context and user these credentials are.
        self.source = source
        self.session = session
        # For requests that last: watches. Without one of their own they share the other's.
        self.streams = streams or session
        self.server_hostname = server_hostname
        self.proxy = proxy
        self._token = token
        self._token_file = token_file
        self._exec_loader = exec_loader
        self._certificate = certificate
        self._tls = tls
        self._check_after = time.monotonic() + CREDENTIAL_CHECK_SECONDS

    async def authorization(self) -> str | None:
        """The Authorization header's value, or None where a certificate does the work."""
        if time.monotonic() >= self._check_after:
            await self._refresh()
        return self._token

    def invalidate(self) -> bool:
        """The server refused the credentials: look again before the next request.

        Returns whether looking again can change anything.
        """
        self._check_after = 0.0
        if self._exec_loader is not None:
            with suppress(AttributeError):
                del self._exec_loader.exec_plugin_expiry
        return self._token_file is not None or self._exec_loader is not None

    async def _refresh(self) -> None:
        # First, so that concurrent requests do not all refresh; a failure is tried next minute.
        forced = self._check_after == 0.0
        self._check_after = time.monotonic() + CREDENTIAL_CHECK_SECONDS
        if self._token_file is not None:
            try:
                self._token = _read_token(self._token_file)
            except OSError as error:
                # The old token may well be good for a while: keep going with it.
                log.warning("token_file_unreadable", file=str(self._token_file), error=str(error))
        elif self._exec_loader is not None:
            await self._run_exec_plugin(forced)
        if self._certificate is not None and self._tls is not None:
            self._reload_certificate(self._certificate, self._tls)

    async def _run_exec_plugin(self, forced: bool) -> None:
        from kubernetes_asyncio.config import ConfigException

        loader = self._exec_loader
        # Without an expiry a credential is good until it is refused (as in client-go).
        if not forced and not hasattr(loader, "exec_plugin_expiry"):
            return
        try:
            await loader.load_from_exec_plugin()
        except (ConfigException, OSError) as error:
            log.warning("exec_credential_plugin_failed", error=type(error).__name__)
            return
        self._token = getattr(loader, "token", None)
        if self._tls is not None and getattr(loader, "cert_file", None):
            try:
                self._tls.load_cert_chain(loader.cert_file, loader.key_file, password=_no_password)
            except (OSError, ssl.SSLError) as error:
                log.warning("exec_credential_unreadable", error=_reason(error))
        _remove_temporary_files()

    def _reload_certificate(self, files: _CertificateFiles, tls: ssl.SSLContext) -> None:
        try:
            found = files.mark()
            if found == files.seen:
                return
            tls.load_cert_chain(files.cert, files.key, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            # Half-written during a rotation: the next check sees it whole.
            log.warning("client_certificate_unreadable", file=files.cert, error=str(error))
            return
        files.seen = found
        log.info("client_certificate_reloaded", file=files.cert)

    async def close(self) -> None:
        await self.session.close()
        await self.streams.close()
        # aiohttp ends TLS transports in callbacks of the loop; let them run before it closes.
        await asyncio.sleep(0)


async def connect(
    kubeconfig: Path | None,
    context: str | None = None,
    *,
    max_connections: int = 64,
    environ: Mapping[str, str] = os.environ,
    service_account: Path = SERVICE_ACCOUNT,
) -> Connection:
    """Loads configuration and opens the (lazy) connection pool.

    `kubeconfig` None means in-cluster: the service account's files and KUBERNETES_SERVICE_*.
    Raises `ConnectionConfigError`; no request is made yet.
    """
    from kubernetes_asyncio.client import Configuration
    from kubernetes_asyncio.config import kube_config

    # Its constructor is patched to hand out copies of a default; ours must be fresh.
    configuration = type.__call__(Configuration)
    exec_loader: Any = None
    token_file: Path | None
    try:
        if kubeconfig is None:
            source = "in-cluster service account"
            token_file = service_account / "token"
            _load_in_cluster(configuration, environ, service_account)
        else:
            facts = inspect_kubeconfig(kubeconfig, context)
            source = f"kubeconfig {facts.file}, context {facts.context}, user {facts.user}"
            token_file = facts.token_file
            loader = await _load_kubeconfig(configuration, facts)
            exec_loader = loader if facts.uses_exec else None
        server = str(configuration.host).rstrip("/")
        tls = _tls_context(configuration, source) if server.startswith("https") else None
        inline = set(kube_config._temp_files.values())
    finally:
        _remove_temporary_files()
    certificate = None
    if tls is not None and configuration.cert_file and configuration.cert_file not in inline:
        certificate = _CertificateFiles(configuration.cert_file, configuration.key_file)
        certificate.seen = certificate.mark()
    token = configuration.api_key.get("BearerToken")
    if token_file is not None:
        token = _read_token(token_file)
    return Connection(
        server=server,
        source=source,
        session=_session(tls, max_connections),
        streams=_session(tls, 0),
        token=token,
        token_file=token_file,
        exec_loader=exec_loader,
        certificate=certificate,
        tls=tls,
        server_hostname=configuration.tls_server_name,
        proxy=configuration.proxy or _environment_proxy(server, environ),
    )


def _session(tls: ssl.SSLContext | None, limit: int) -> aiohttp.ClientSession:
    """`limit` connections at most, 0 for any number."""
    # asyncio gives each TLS connection 256 KiB to read into; that is most of what a watch costs
    # (308 KiB of memory each, 84 KiB with this). A TLS record has at most 16 KiB.
    sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES
    connector = aiohttp.TCPConnector(
        limit=limit,
        ssl=tls if tls is not None else False,
        keepalive_timeout=75.0,
        socket_factory=_socket,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),
        read_bufsize=READ_BUFFER_BYTES,
    )


async def _load_kubeconfig(configuration: Any, facts: KubeconfigFacts) -> Any:
    from kubernetes_asyncio.config import ConfigException, load_kube_config

    try:
        return await load_kube_config(
            config_file=str(facts.file),
            context=facts.context,
            client_configuration=configuration,
            persist_config=False,
        )
    except ConfigException as error:
        # Of an exec plugin the message holds its stderr: a person needs it to repair the plugin.
        raise ConnectionConfigError(
            str(facts.file), f"users[{facts.user}].user", str(error), "correct the kubeconfig"
        ) from None
    except FileNotFoundError as error:
        raise ConnectionConfigError(
            str(facts.file),
            f"users[{facts.user}].user.exec.command" if facts.uses_exec else "",
            f"{error.filename or 'a file'} does not exist",
            "install it or correct the path",
        ) from None
    except ValueError:
        # base64 that does not decode; the text would quote the data.
        raise ConnectionConfigError(
            str(facts.file),
            f"contexts[{facts.context}]",
            "a *-data field is not valid base64",
            "recreate the kubeconfig",
        ) from None


def _load_in_cluster(configuration: Any, environ: Mapping[str, str], account: Path) -> None:
    from kubernetes_asyncio.config import ConfigException
    from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader

    if not environ.get("KUBERNETES_SERVICE_HOST") or not environ.get("KUBERNETES_SERVICE_PORT"):
        raise ConnectionConfigError(
            "environment",
            "KUBERNETES_SERVICE_HOST",
            "is not set, so this process does not run in a cluster",
            "name a kubeconfig file (key `kubeconfig`)",
        )
    try:
        InClusterConfigLoader(
            token_filename=str(account / "token"),
            cert_filename=str(account / "ca.crt"),
            environ=dict(environ),
        ).load_and_set(configuration)
    except (ConfigException, OSError) as error:
        raise ConnectionConfigError(
            str(account), "", str(error), "mount the Pod's service account token"
        ) from None


def _tls_context(configuration: Any, source: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    except (OSError, ssl.SSLError) as error:
        raise ConnectionConfigError(
            source,
            "certificate-authority",
            f"{configuration.ssl_ca_cert} is not a readable PEM certificate ({_reason(error)})",
            "write the cluster's CA certificate there",
        ) from None
    # Cluster CAs often lack the extensions that Python ≥ 3.13 insists on; Go's clients do not.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        try:
            context.load_cert_chain(
                configuration.cert_file, configuration.key_file, password=_no_password
            )
        except (OSError, ssl.SSLError) as error:
            raise ConnectionConfigError(
                source,
                "client-certificate",
                f"certificate and key cannot be loaded ({_reason(error)})",
                "check that both are PEM, belong together and have no password",
            ) from None
    return context


def _remove_temporary_files() -> None:
    from kubernetes_asyncio.config import kube_config

    # The loader has no public way; it does this itself when the process ends well.
    kube_config._cleanup_temp_files()


def _no_password() -> str:
    # OpenSSL would ask on the terminal and hang a service.
    raise ssl.SSLError("the key has a password")


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)


def _read_token(file: Path) -> str:
    token = file.read_text(encoding="ascii").strip()
    if not token:
        raise ConnectionConfigError(str(file), "", "the token file is empty", "renew the token")
    return f"Bearer {token}"


def _environment_proxy(server: str, environ: Mapping[str, str]) -> str | None:
    # aiohttp's trust_env would also read ~/.netrc into the Authorization header.
    if environ is not os.environ:
        return None
    url = URL(server)
    host = url.host or ""
    if proxy_bypass(host):
        return None
    return getproxies().get(url.scheme)


def _socket(addr_info: Any) -> socket.socket:
    family, kind, proto = addr_info[:3]
    sock = socket.socket(family=family, type=kind, proto=proto)
    sock.setblocking(False)
    for option, value in (
        ("TCP_KEEPIDLE", 15),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 30_000),  # milliseconds of unacknowledged data
    ):
        if hasattr(socket, option):  # not all exist on every platform
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
