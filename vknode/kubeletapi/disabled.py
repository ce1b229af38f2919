"""Endpoints of a kubelet that a virtual node refuses, with the answer of a kubelet that has them
switched off: 405 and a sentence.

* /logs/ shows the files of a machine's /var/log (enableSystemLogHandler). There is no machine;
  where a folder is configured for it, `system_logs` answers instead.
* /run/ runs a command without an upgrade and gives back its output. A kubelet of 1.37 still has
  it, for nobody that we know of: clients use /exec/. Every way to run commands is one more to
  guard, so it gets what a kubelet says whose debugging handlers are off.
* /debug/ shows the process' own profile (enableProfilingHandler, enableDebugFlagsHandler).

Source: InstallSystemLogHandler, InstallDebuggingDisabledHandlers, InstallProfilingHandler and
InstallDebugFlagsHandler in pkg/kubelet/server/server.go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from aiohttp import web

from vknode.kubeletapi.responses import plain_error

_ANSWERS = {
    "/logs": "logs endpoint is disabled.\n",
    "/run": "Debug endpoints are disabled.\n",
    "/debug/pprof": "profiling endpoint is disabled.\n",
    "/debug/flags/v": "flags endpoint is disabled.\n",
}


class Disabled:
    """Every method, every path below. `but`: the paths that something else answers."""

    def __init__(self, but: Collection[str] = ()) -> None:
        self._answers = {path: text for path, text in _ANSWERS.items() if path not in but}

    def add_routes(self, router: web.UrlDispatcher) -> None:
        for path, text in self._answers.items():
            refuse = _refusal(text)
            router.add_route("*", path, refuse)
            router.add_route("*", path + r"/{rest:[\s\S]*}", refuse)  # a line's end is a byte, too


def _refusal(text: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        return plain_error(405, text)

    return refuse
