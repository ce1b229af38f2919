"""Looks a kubeconfig over before the loader does, so that an error names file, field and fix.

kubernetes_asyncio's loader knows the format, but its errors are those of a library: a missing
user section is a TypeError, a missing file a log line. Nothing here reads credentials' content.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vknode.kube.errors import ConnectionConfigError


@dataclass(frozen=True)
class KubeconfigFacts:
    """What the connection needs to know beyond what the loader sets. Paths are absolute.
    `secrets`: the files that hold the agent's credentials, by the field that names them."""

    file: Path
    context: str
    user: str
    server: str
    token_file: Path | None
    uses_exec: bool
    secrets: Mapping[str, Path]


def inspect_kubeconfig(file: Path, context: str | None) -> KubeconfigFacts:
    """Checks that the context resolves and that every file it names can be read.

    Raises `ConnectionConfigError`.
    """
    document = _load(file)
    name = context or document.get("current-context")
    if not name:
        raise ConnectionConfigError(
            str(file),
            "current-context",
            "is not set",
            "run `kubectl config use-context NAME --kubeconfig FILE`",
        )
    entry = _named(file, document, "contexts", str(name), "current-context")
    ctx = _mapping(file, entry.get("context"), f"contexts[{name}].context")
    cluster_name = str(ctx.get("cluster") or "")
    user_name = str(ctx.get("user") or "")
    cluster_entry = _named(
        file, document, "clusters", cluster_name, f"contexts[{name}].context.cluster"
    )
    cluster = _mapping(file, cluster_entry.get("cluster"), f"clusters[{cluster_name}].cluster")
    user_entry = _named(file, document, "users", user_name, f"contexts[{name}].context.user")
    user = _mapping(file, user_entry.get("user") or {}, f"users[{user_name}].user")

    server = str(cluster.get("server") or "")
    if not server.startswith(("https://", "http://")):
        raise ConnectionConfigError(
            str(file),
            f"clusters[{cluster_name}].cluster.server",
            "is not a URL that starts with https://" if server else "is missing",
            "write the API server's address, such as https://10.0.0.1:6443",
        )
    for unsupported in ("as", "as-uid", "as-groups", "as-user-extra", "auth-provider"):
        if unsupported in user:
            raise ConnectionConfigError(
                str(file),
                f"users[{user_name}].user.{unsupported}",
                "is not supported",
                "give the agent credentials of its own: a certificate, a token or an exec plugin",
            )
    _readable(file, cluster, f"clusters[{cluster_name}].cluster", "certificate-authority")
    of_user = f"users[{user_name}].user"
    files = {
        key: _readable(file, user, of_user, key)
        for key in ("client-certificate", "client-key", "tokenFile")
    }
    _pair(file, user, user_name)
    return KubeconfigFacts(
        file=file,
        context=str(name),
        user=user_name,
        server=server,
        token_file=files["tokenFile"],
        uses_exec="exec" in user,
        secrets={
            f"{of_user}.{key}": path
            for key in ("client-key", "tokenFile")
            if (path := files[key]) is not None
        },
    )


def _load(file: Path) -> Mapping[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConnectionConfigError(
            str(file), "", "there is no such kubeconfig file", "check the path"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConnectionConfigError(
            str(file), "", f"cannot be read ({_reason(error)})", "check the file and its mode"
        ) from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        # The parser's own text quotes the file, which may hold a token: only the line is told.
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise ConnectionConfigError(
            str(file), "", f"is not valid YAML{where}", "correct or recreate the kubeconfig"
        ) from None
    if not isinstance(document, dict):
        raise ConnectionConfigError(
            str(file), "", "is not a kubeconfig", "it must have clusters, contexts and users"
        )
    return document


def _mapping(file: Path, value: object, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConnectionConfigError(
            str(file), field, "is missing or not a mapping", "recreate the kubeconfig"
        )
    return value


def _named(
    file: Path, document: Mapping[str, Any], section: str, name: str, referrer: str
) -> Mapping[str, Any]:
    entries = document.get(section) or []
    names = [
        str(e["name"]) for e in entries if isinstance(e, dict) and "name" in e
    ]  # an entry without a name cannot be referred to
    if name in names:
        for entry in entries:
            if isinstance(entry, dict) and str(entry.get("name")) == name:
                return entry
    known = ", ".join(names) or "none"
    raise ConnectionConfigError(
        str(file),
        referrer,
        f"names {name!r}, which is not under {section} (there: {known})",
        "correct the name",
    )


def _readable(file: Path, section: Mapping[str, Any], prefix: str, key: str) -> Path | None:
    """The absolute path that `key` names, checked; None when the key is not there."""
    value = section.get(key)
    if not value or f"{key}-data" in section:
        return None
    path = file.absolute().parent / str(value)
    if not os.access(path, os.R_OK) or not path.is_file():
        problem = "cannot be read" if path.exists() else "does not exist"
        raise ConnectionConfigError(
            str(file), f"{prefix}.{key}", f"{path} {problem}", "correct the path or the file's mode"
        )
    return path


def _pair(file: Path, user: Mapping[str, Any], user_name: str) -> None:
    has_cert = "client-certificate" in user or "client-certificate-data" in user
    has_key = "client-key" in user or "client-key-data" in user
    if has_cert != has_key:
        missing = "client-key" if has_cert else "client-certificate"
        raise ConnectionConfigError(
            str(file),
            f"users[{user_name}].user.{missing}",
            "is missing beside its counterpart",
            "a client certificate needs both the certificate and its key",
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
