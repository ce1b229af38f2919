"""Clients of the kubelet API other than the API server, as an attacker or a scraper comes."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from vknode.devcluster.pki import KeyPair

ISSUER = "https://kubernetes.default.svc.cluster.local"
WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(b"0" * 16).decode(),
    "Sec-WebSocket-Protocol": "v5.channel.k8s.io",
}


# By when the other side has ended it: while this one writes, before an answer, or in one.
_ENDED = (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)


class NoHandshake(Exception):
    """TLS ended the connection: there was no HTTP answer at all."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Port:
    """One listener of the kubelet API. `ca` verifies it."""

    host: str
    number: int
    ca: Path

    def ask(
        self,
        path: str,
        *,
        pair: KeyPair | None = None,
        token: str = "",
        method: str = "GET",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own. Raises NoHandshake."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if pair is not None:
            context.load_cert_chain(pair.cert, pair.key)
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPSConnection(
            self.host, self.number, context=context, timeout=60
        )
        try:
            connection.request(method, path, headers=sent)
            response = connection.getresponse()
            # After an upgrade the stream has no end.
            body = "" if response.status == 101 else response.read().decode()
            return Answer(response.status, body, dict(response.getheaders()))
        except (ssl.SSLError, *_ENDED) as error:
            raise NoHandshake(type(error).__name__) from error
        finally:
            connection.close()


def service_account_token(
    signer: Path, *, namespace: str, account: str, uid: str, ends_in: float
) -> str:
    """A token as the API server signs it (JWT, ES256), of any time; `signer` is its key."""
    key = serialization.load_pem_private_key(signer.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = time.time()
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": [ISSUER],
        "sub": f"system:serviceaccount:{namespace}:{account}",
        "iat": int(now - 7200),
        "nbf": int(now - 7200),
        "exp": int(now + ends_in),
        "kubernetes.io": {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": uid},
        },
    }
    text = f"{_part({'alg': 'ES256', 'typ': 'JWT'})}.{_part(claims)}"
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _part(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
