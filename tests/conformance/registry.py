"""A registry on loopback that serves the images of one archive, for the specs that pull.

Reads only; the requests are those of the OCI distribution specification, "Pull". No
authentication: the names are of a public registry.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from aiohttp import web


class Registry:
    """Serves `archive` on 127.0.0.1. `host` is the registry whose names it answers for."""

    def __init__(self, archive: Path, host: str) -> None:
        self.host = host
        self._blobs: dict[str, bytes] = {}
        self._manifests: dict[str, str] = {}
        self._runner: web.AppRunner | None = None
        with tarfile.open(archive) as packed:
            for member in packed.getmembers():
                content = packed.extractfile(member)
                if content is not None and member.name.startswith("blobs/sha256/"):
                    self._blobs[f"sha256:{Path(member.name).name}"] = content.read()
            index = packed.extractfile("index.json")
            assert index is not None
            for one in json.load(index)["manifests"]:
                name = one["annotations"]["io.containerd.image.name"]
                if name.startswith(f"{host}/"):
                    self._manifests[name.removeprefix(f"{host}/")] = one["digest"]

    async def start(self) -> str:
        """Listen on any free port; returns the URL."""
        app = web.Application()
        app.router.add_get("/v2/", self._hello)
        app.router.add_get("/v2/{name:.+}/manifests/{reference}", self._manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self._blob)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        address: tuple[str, int] = self._runner.addresses[0]
        return f"http://127.0.0.1:{address[1]}"

    async def stop(self) -> None:
        """End it."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _hello(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _manifest(self, request: web.Request) -> web.Response:
        reference = request.match_info["reference"]
        digest = reference
        if not reference.startswith("sha256:"):
            digest = self._manifests.get(f"{request.match_info['name']}:{reference}", "")
        raw = self._blobs.get(digest)
        if raw is None:
            raise web.HTTPNotFound
        kind: dict[str, Any] = json.loads(raw)
        return web.Response(
            body=raw,
            content_type=str(kind.get("mediaType", "application/octet-stream")),
            headers={"Docker-Content-Digest": digest},
        )

    async def _blob(self, request: web.Request) -> web.Response:
        raw = self._blobs.get(request.match_info["digest"])
        if raw is None:
            raise web.HTTPNotFound
        return web.Response(body=raw, content_type="application/octet-stream")
