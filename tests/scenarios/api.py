"""The few calls to the API server that scenarios need, over one HTTP session."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

#: kind → (API group and version, resource, whether it lives in a namespace)
KINDS: dict[str, tuple[str, str, bool]] = {
    "ConfigMap": ("api/v1", "configmaps", True),
    "LimitRange": ("api/v1", "limitranges", True),
    "Namespace": ("api/v1", "namespaces", False),
    "Node": ("api/v1", "nodes", False),
    "Pod": ("api/v1", "pods", True),
    "Secret": ("api/v1", "secrets", True),
    "Service": ("api/v1", "services", True),
    "ServiceAccount": ("api/v1", "serviceaccounts", True),
    "Deployment": ("apis/apps/v1", "deployments", True),
    "Job": ("apis/batch/v1", "jobs", True),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets", True),
    "RuntimeClass": ("apis/node.k8s.io/v1", "runtimeclasses", False),
    "ClusterTrustBundle": ("apis/certificates.k8s.io/v1", "clustertrustbundles", False),
}

PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}


class ApiRefused(Exception):
    """The API server answered with an error; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Api:
    """A client of one API server. `session` carries the credentials; the caller closes it."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def call(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json"
    ) -> Any:
        """One request; its answer's JSON. Raises ApiRefused."""
        text = await self.text(method, path, body, kind=kind)
        return json.loads(text) if text else None

    async def text(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json"
    ) -> str:
        """One request; its answer as text. Raises ApiRefused."""
        async with self._session.request(
            method,
            f"{self._url}/{path}",
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": kind},
            timeout=aiohttp.ClientTimeout(total=60),
        ) as answer:
            text = await answer.text()
            if answer.status >= 400:
                try:
                    message = json.loads(text)["message"]
                except (ValueError, KeyError, TypeError):
                    message = text[:500]
                raise ApiRefused(answer.status, message)
            return text

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self.call("GET", place(kind, namespace, name))
        except ApiRefused as problem:
            if problem.status == 404:
                return None
            raise
        return found

    async def apply(self, namespace: str, thing: Mapping[str, Any]) -> None:
        """Create the object, or make an existing one like this."""
        kind = thing["kind"]
        try:
            await self.call("POST", place(kind, namespace), thing)
        except ApiRefused as problem:
            if problem.status != 409:
                raise
            name = thing["metadata"]["name"]
            await self.call("PATCH", place(kind, namespace, name), thing, kind=PATCHES["strategic"])

    async def lines(self, path: str) -> AsyncIterator[bytes]:
        """The lines of an answer that goes on. Raises ApiRefused."""
        async with self._session.get(
            f"{self._url}/{path}", timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)
        ) as answer:
            if answer.status >= 400:
                raise ApiRefused(answer.status, (await answer.text())[:500])
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line:
                        yield line
            if rest:
                yield rest


def place(kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
    """The path of a kind, or of one object."""
    group, resource, inside = KINDS[kind]
    parts = [group, *(["namespaces", namespace] if inside else []), resource]
    return "/".join([*parts, *filter(None, (name, subresource))])
