"""A small image registry on loopback, with a password and a count of what was asked."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections import Counter
from typing import Any

from aiohttp import web


class Registry:
    """Serves `team/app:v1` to the user `ann` with the password `secret`."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self._blobs: dict[str, bytes] = {}
        layer = self._layer()
        config = self._blob(
            json.dumps(
                {
                    "architecture": "amd64",
                    "os": "linux",
                    "config": {"User": "1234"},
                    "rootfs": {"type": "layers", "diff_ids": [self._diff_id]},
                }
            ).encode()
        )
        kind = "application/vnd.oci.image"
        self._manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{kind}.manifest.v1+json",
                "config": {"mediaType": f"{kind}.config.v1+json", **config},
                "layers": [{"mediaType": f"{kind}.layer.v1.tar+gzip", **layer}],
            }
        ).encode()
        self.digest = f"sha256:{hashlib.sha256(self._manifest).hexdigest()}"
        self.host = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v2/{path:.*}", self._serve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.host = f"127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _serve(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        wanted = "Basic " + base64.b64encode(b"ann:secret").decode()
        if request.headers.get("Authorization") != wanted:
            self.asked["refused"] += 1
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        self.asked[f"{request.method} {path.split(':')[0]}"] += 1
        digest = path.rpartition("/")[2]
        if path.startswith("team/app/manifests/") and digest in ("v1", self.digest):
            return web.Response(
                body=self._manifest,
                headers={"Docker-Content-Digest": self.digest},
                content_type="application/vnd.oci.image.manifest.v1+json",
            )
        if digest in self._blobs:
            return web.Response(body=self._blobs[digest])
        return web.Response(status=404)

    def _blob(self, data: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._blobs[digest] = data
        return {"digest": digest, "size": len(data)}

    def _layer(self) -> dict[str, Any]:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            info = tarfile.TarInfo("hello")
            info.size = 2
            tar.addfile(info, io.BytesIO(b"hi"))
        self._diff_id = f"sha256:{hashlib.sha256(out.getvalue()).hexdigest()}"
        return self._blob(gzip.compress(out.getvalue(), mtime=0))
