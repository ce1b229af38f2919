"""GET /runningpods/: what the pool runs, whatever the API server wants.

Source: getRunningPods in pkg/kubelet/server/server.go and ToAPIPod in pkg/kubelet/container: a
Pod has its name, namespace, UID and the names and images of its containers, nothing else.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from vknode.kubeletapi.node_identity import node_of
from vknode.kubeletapi.usage import NodeBackend, RunningPod


class RunningPods:
    """The sandboxes of the node that is asked; on the shared port those of all nodes."""

    def __init__(self, backend: NodeBackend) -> None:
        self._backend = backend

    def add_routes(self, router: web.UrlDispatcher) -> None:
        for path in ("/runningpods", "/runningpods/"):
            router.add_get(path, self._handle, allow_head=False)

    async def _handle(self, request: web.Request) -> web.Response:
        asked = node_of(request)
        nodes = self._backend.nodes() if asked is None else [asked]
        items = [_pod(pod) for name in nodes for pod in self._backend.running_pods(name)]
        body = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _pod(pod: RunningPod) -> dict[str, Any]:
    return {
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "spec": {
            "containers": [
                {"name": name, "image": image, "resources": {}}
                for name, image in pod.images.items()
            ]
        },
        "status": {},
    }
