"""Registry credentials from image pull secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vknode.pool.v1 import spec_pb2
from vknode.translate.facts import Json, Missing, Resolved
from vknode.translate.lookup import decode

_JSON_TYPE = "kubernetes.io/dockerconfigjson"
_OLD_TYPE = "kubernetes.io/dockercfg"


def registry_credentials(
    pod: Json, resolved: Resolved
) -> tuple[list[spec_pb2.RegistryCredential], list[str]]:
    """Credentials, the more specific registry first, and warnings for the user.

    A missing or unreadable Secret stops nothing: the pull may do without, as on a
    kubelet. The warnings name Secrets, never content.
    """
    found: list[spec_pb2.RegistryCredential] = []
    warnings: list[str] = []
    missing: list[str] = []
    for ref in pod["spec"].get("imagePullSecrets", ()):
        name = ref.get("name")
        if not name:
            continue
        if name not in resolved.secrets:
            raise LookupError(f"secret {name!r} is needed but was not looked up")
        secret = resolved.secrets[name]
        if isinstance(secret, Missing):
            missing.append(name)
            continue
        try:
            found.extend(_credentials(secret))
        except (ValueError, AttributeError, TypeError):
            # The parser's own text could show content.
            warnings.append(f"Secret {name} has no readable {_JSON_TYPE} or {_OLD_TYPE} data.")
    if missing:
        warnings.insert(
            0,
            f"Unable to retrieve some image pull secrets ({', '.join(missing)}); "
            "attempting to pull the image may not succeed.",
        )
    # A kubelet's keyring: reverse order, so that a longer path comes before its host.
    found.sort(key=lambda one: one.registry, reverse=True)
    return found, warnings


def _credentials(secret: Json) -> Iterator[spec_pb2.RegistryCredential]:
    data = secret.get("data") or {}
    entries: dict[str, Any]
    if secret.get("type") == _JSON_TYPE and ".dockerconfigjson" in data:
        entries = json.loads(decode(data[".dockerconfigjson"])).get("auths") or {}
    elif secret.get("type") == _OLD_TYPE and ".dockercfg" in data:
        entries = json.loads(decode(data[".dockercfg"]))
    else:
        raise ValueError("no registry configuration")
    for registry, entry in entries.items():
        username, password = entry.get("username") or "", entry.get("password") or ""
        if entry.get("auth"):
            username, colon, password = decode(entry["auth"]).decode().partition(":")
            if not colon:
                raise ValueError("auth is not user:password")
        yield spec_pb2.RegistryCredential(
            registry=_registry(registry),
            username=username,
            password=password,
            identity_token=entry.get("identitytoken") or "",
            registry_token=entry.get("registrytoken") or "",
        )


def _registry(name: str) -> str:
    """The key without scheme and API version, as the kubelet's keyring has it."""
    host, slash, path = name.removeprefix("https://").removeprefix("http://").partition("/")
    if path.startswith(("v1/", "v2/")):
        path = path[3:]
    return f"{host}{slash}{path}" if path else host
