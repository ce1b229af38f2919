"""Certificates for mutual TLS that are renewed under a running process.

Theory of operation. The `mark` of the files (`filemark`) changes when one of them does. Whoever
uses them compares it, the server at each new connection, the client every some seconds, and loads
the files when it differs. What is loaded
is checked whole (a key that does not belong to its certificate is half a renewal), and only what
is right is used; until then the earlier ones are. No connection that is open ends for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import structlog

from vknode.filemark import Mark, mark
from vknode.pool.endpoint import EndpointError, TlsFiles

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Loaded:
    """PEM, and when the certificate ends (ISO 8601, UTC)."""

    cert: bytes
    key: bytes
    ca: bytes
    expires: str

    def __repr__(self) -> str:
        return f"Loaded(expires={self.expires!r})"  # never the key


def load(files: TlsFiles) -> Loaded:
    """Raises EndpointError naming the file, and a key that is another certificate's."""
    # Only those who use TLS wait for this import.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )

    cert, key, ca = files.read()
    # `cryptography` raises more than ValueError: for a curve that it does not know, say.

    def spki(public: object) -> bytes:
        encoded: bytes = public.public_bytes(  # type: ignore[attr-defined]  # every public key has it
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        return encoded

    try:
        leaf = x509.load_pem_x509_certificate(cert)
        public = leaf.public_key()
    except Exception as error:
        raise EndpointError(f"{files.cert}: is no certificate that can be used: {error}") from error
    try:
        private = load_pem_private_key(key, None)
    except Exception as error:
        # The error's own text might quote the file.
        raise EndpointError(
            f"{files.key}: is no key that can be used, or has a password"
        ) from error
    try:
        x509.load_pem_x509_certificates(ca)
    except Exception as error:
        raise EndpointError(
            f"{files.ca}: holds no certificates that can be used: {error}"
        ) from error
    if spki(public) != spki(private.public_key()):
        raise EndpointError(
            f"{files.key}: is not the key of {files.cert}; both must be renewed together"
        )
    return Loaded(cert, key, ca, leaf.not_valid_after_utc.isoformat())


class ServerTls:
    """Credentials of a server that follow their files."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises EndpointError."""
        self._files = files
        self._mark = mark(files.paths)
        self._complained: Mark | None = None
        self.credentials = grpc.dynamic_ssl_server_credentials(
            _config(load(files)),
            self._newer,  # type: ignore[arg-type]  # the stubs forget that None is an answer
            require_client_authentication=True,
        )

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks at each new connection, in a thread of its own; None: as before."""
        found = mark(self._files.paths)
        if found == self._mark:
            return None
        try:
            loaded = load(self._files)
            config = _config(loaded)
        except Exception as error:  # whatever it is, the earlier ones serve on
            if found != self._complained:
                self._complained = found
                log.warning(
                    "pool_tls_files_unusable", error=str(error), hint="the earlier serve on"
                )
            return None
        self._mark = found
        log.info("pool_tls_files_reloaded", expires=loaded.expires)
        return config


def _config(loaded: Loaded) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(loaded.key, loaded.cert)], root_certificates=loaded.ca
    )
