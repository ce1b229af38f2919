"""Who makes a request: users of client certificates, and tokens in headers. Pure: no loop.

The rules are those of Kubernetes' x509, bearer token and WebSocket protocol authenticators
(k8s.io/apiserver/pkg/authentication/request). Whether a token is good is asked elsewhere.

No token is in an exception or a repr.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import NameOID

# A user's UID in a certificate's subject, and the key under which a certificate is named.
_UID = x509.ObjectIdentifier("1.3.6.1.4.1.57683.2")
_CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"
AUTHENTICATED = "system:authenticated"
_ANONYMOUS = frozenset(("system:anonymous",))
_NOT_AUTHENTICATED = "system:unauthenticated"
# How a browser gives its token, which cannot set headers for a WebSocket.
TOKEN_PROTOCOL = "base64url.bearer.authorization.k8s.io."


class BadCredentialsError(Exception):
    """What a client showed is nothing that anybody could be recognised by. The text says why and
    holds nothing of it."""


@dataclass(frozen=True, slots=True)
class User:
    """As authentication.k8s.io/v1 UserInfo. `extra`: sorted by key."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


def authenticated(user: User) -> User:
    """The user with the group of everybody who is known."""
    if user.name in _ANONYMOUS or {AUTHENTICATED, _NOT_AUTHENTICATED} & set(user.groups):
        return user
    return replace(user, groups=(*user.groups, AUTHENTICATED))


def user_of_certificate(der: bytes, now: datetime) -> User:
    """The user that a client certificate stands for: its common name, in the groups that its
    organizations name. The TLS layer has verified its chain and its purpose.

    `now` (with a time zone) is compared again, since a connection may outlive the certificate.
    Raises `BadCredentialsError`. Stricter than Kubernetes where a subject has several common
    names: it takes the last one, we take none.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = _texts(certificate.subject, NameOID.COMMON_NAME)
        groups = _texts(certificate.subject, NameOID.ORGANIZATION_NAME)
        uids = _texts(certificate.subject, _UID)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (ValueError, TypeError) as error:
        raise BadCredentialsError(
            f"the client certificate is unreadable ({type(error).__name__})"
        ) from None
    if not begins <= now <= ends:
        raise BadCredentialsError("the client certificate is not valid at this time")
    if len(names) != 1 or not names[0]:
        raise BadCredentialsError(f"the client certificate has {len(names)} common names")
    if len(uids) > 1 or uids == [""]:
        raise BadCredentialsError("the client certificate has no usable UID")
    fingerprint = hashlib.sha256(der).hexdigest()
    return User(
        name=names[0],
        uid=uids[0] if uids else "",
        groups=tuple(groups),
        extra=((_CREDENTIAL_ID, (f"X509SHA256={fingerprint}",)),),
    )


def _texts(subject: x509.Name, oid: x509.ObjectIdentifier) -> list[str]:
    values = [attribute.value for attribute in subject.get_attributes_for_oid(oid)]
    return [value if isinstance(value, str) else value.decode() for value in values]


def bearer_token(authorization: str) -> str | None:
    """The token in an Authorization header; None if it has none."""
    parts = authorization.strip().split(" ", 2)
    if len(parts) < 2 or parts[0].lower() != "bearer":
        return None
    token = parts[1]
    # Anything else is no token of anybody; headers may hold any byte.
    return token if token.isascii() and token.isprintable() and token else None


def protocol_token(offered: Sequence[str]) -> str | None:
    """The token among a WebSocket's subprotocols; None if there is none.

    Raises `BadCredentialsError` where it is not one token beside at least one real protocol.
    """
    tokens = [one.removeprefix(TOKEN_PROTOCOL) for one in offered if is_token_protocol(one)]
    if not tokens:
        return None
    if len(tokens) > 1:
        raise BadCredentialsError("several tokens among the WebSocket protocols")
    token = _decoded(tokens[0])
    if token and len(offered) == 1:
        raise BadCredentialsError("no WebSocket protocol beside the token")
    return token or None


def is_token_protocol(name: str) -> bool:
    """Such a name is a secret: it is never echoed."""
    return name.startswith(TOKEN_PROTOCOL)


def without_tokens(offered: Iterable[str]) -> list[str]:
    """The subprotocols that are protocols."""
    return [one for one in offered if not is_token_protocol(one)]


def _decoded(text: str) -> str:
    if "=" in text:
        raise BadCredentialsError("the token among the WebSocket protocols is padded")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return raw.decode()
    except (binascii.Error, ValueError):
        # The cause would show the token.
        raise BadCredentialsError(
            "the token among the WebSocket protocols is not base64url of text"
        ) from None
