"""GET and POST /stats/summary

Source: handleSummary in k8s.io/kubernetes pkg/kubelet/server/stats/handler.go.
"""

from __future__ import annotations

from urllib.parse import parse_qs

import msgspec
from aiohttp import web

from vknode.kubeletapi.backend import BackendError
from vknode.kubeletapi.measuring import Measuring
from vknode.kubeletapi.one_node import OneNode
from vknode.kubeletapi.responses import plain_error
from vknode.kubeletapi.summary_json import summary

_ONLY = "only_cpu_and_memory"


class StatsSummary:
    """What one node and its Pods use."""

    def __init__(self, measuring: Measuring, one_node: OneNode) -> None:
        self._measuring = measuring
        self._one_node = one_node

    def add_routes(self, router: web.UrlDispatcher) -> None:
        for path in ("/stats/summary", "/stats/summary/"):
            router.add_get(path, self._handle, allow_head=False)
            router.add_post(path, self._handle)

    async def _handle(self, request: web.Request) -> web.Response:
        node = self._one_node.of(request)
        if isinstance(node, web.Response):
            return node
        given = request.query.getall(_ONLY, [])
        if request.method == "POST" and not given:
            try:
                given = await _of_form(request)
            except web.RequestPayloadError:
                return plain_error(400, "the form cannot be decoded")
        try:
            report = await self._measuring.report(node)
        except BackendError as error:
            return plain_error(500, f"Internal Error: failed to list pod stats: {error}")
        body = summary(report, only_cpu_and_memory=given == ["true"])
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")


async def _of_form(request: web.Request) -> list[str]:
    """As Go's ParseForm: a body that is no such form is not looked at, and one that is has its
    bytes taken for UTF-8, whatever it says. Raises `web.RequestPayloadError`."""
    if request.content_type != "application/x-www-form-urlencoded":
        return []
    body = await request.read()
    return parse_qs(body.decode(errors="replace"), keep_blank_values=True).get(_ONLY, [])
