"""The image registry of the scenarios, on loopback. The first part of a repository's name says
how it behaves; what follows is free, so that each scenario has an image of its own.

| repository        | behaves                                                            |
|-------------------|--------------------------------------------------------------------|
| `open/NAME`       | gives busybox to everybody                                         |
| `team/NAME`       | only to the user `ann` with the password `open sesame`             |
| `number/NAME`     | an image whose USER is 1234                                        |
| `nobody/NAME`     | an image whose USER is the name `nobody`                           |
| `signal/NAME`     | an image whose STOPSIGNAL is SIGUSR1                               |
| `settings/NAME`   | an image with ENV, WORKDIR, ENTRYPOINT and CMD                     |
| `hangs/NAME`      | takes the question and never answers                               |
| `slow/NAME`       | takes 10 s for its answer, then gives busybox                      |
| `late/NAME`       | answers 500 for its first 8 s, then busybox                         |

Whatever else is asked for does not exist. Every image has the tag `v1`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from vknode.devcluster.imagelayout import Layout
from vknode.devcluster.images import busybox_entries

USER, PASSWORD = "ann", "open sesame"
_SETTINGS: dict[str, dict[str, Any]] = {
    "open": {},
    "team": {},
    "late": {},
    "slow": {},
    "number": {"User": "1234"},
    "nobody": {"User": "nobody"},
    "signal": {"StopSignal": "SIGUSR1"},
    "settings": {
        "Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=yes", "GREETING=image"],
        "WorkingDir": "/var/run",
        "Entrypoint": ["/bin/echo", "entrypoint"],
        "Cmd": ["cmd"],
    },
}
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
#: Seconds for which `late/NAME` answers 500, from the first question for it: less than the 10 s
#: after which it is asked again.
LATE = 8.0
#: Seconds that `slow/NAME` takes for its manifest.
SLOW = 10.0


class Registry:
    """Serves images made of `busybox`, a static program with these applets."""

    def __init__(self, busybox: Path, applets: list[str]) -> None:
        self._blobs: dict[str, bytes] = {}
        self._first_asked: dict[str, float] = {}
        self._runner: web.AppRunner | None = None
        self._config, self._layers = self._base(busybox, applets)
        self.host = ""

    def manifest(self, repository: str) -> bytes | None:
        """The manifest of a repository's image; None where there is none.

        Each repository's image has an ID of its own: a kubelet keeps by the ID who may use an
        image, and once one with the same content was pulled, one that it had before counts as
        pulled too."""
        settings = _SETTINGS.get(repository.partition("/")[0])
        if settings is None:
            return None
        labels = {"Labels": {"repository": repository}}
        own = {**self._config, "config": {**self._config["config"], **settings, **labels}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._keep(
                json.dumps(own).encode(), "application/vnd.oci.image.config.v1+json"
            ),
            "layers": self._layers,
        }
        return json.dumps(manifest).encode()

    @property
    def digest(self) -> str:
        """The digest of the image `open/exact`."""
        return _digest(self.manifest("open/exact") or b"")

    def _base(self, busybox: Path, applets: list[str]) -> tuple[dict[str, Any], list[Any]]:
        """The plain image's configuration and layers, whose blobs are kept."""
        layout = Layout()
        layer = layout.layer(busybox_entries(busybox.read_bytes(), applets), level=1)
        layout.image([layer], ["sh"], ["base"])
        with tempfile.NamedTemporaryFile(suffix=".tar") as packed:
            layout.write(Path(packed.name))
            with tarfile.open(packed.name) as files:
                content = {
                    one.name.rpartition("/")[2]: _read(files, one) for one in files.getmembers()
                }
        index = json.loads(content["index.json"])
        manifest = json.loads(content[_name(index["manifests"][0]["digest"])])
        for one in manifest["layers"]:
            self._blobs[one["digest"]] = content[_name(one["digest"])]
        config: dict[str, Any] = json.loads(content[_name(manifest["config"]["digest"])])
        return config, manifest["layers"]

    def _keep(self, raw: bytes, media: str) -> dict[str, Any]:
        self._blobs[_digest(raw)] = raw
        return {"mediaType": media, "digest": _digest(raw), "size": len(raw)}

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        app = web.Application()
        app.router.add_get("/v2/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        repository, _, rest = path.partition("/manifests/")
        kind = path.partition("/")[0]
        if kind == "team" and request.headers.get("Authorization") != _basic():
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="scenarios"'})
        if kind == "hangs":
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        if rest:
            first = self._first_asked.setdefault(repository, time.monotonic())
            if kind == "late" and time.monotonic() < first + LATE:
                return web.Response(status=500)
            if kind == "slow":
                await asyncio.sleep(SLOW)
            manifest = self.manifest(repository)
            if manifest is not None and rest in ("v1", _digest(manifest)):
                return web.Response(
                    body=manifest,
                    headers={"Docker-Content-Digest": _digest(manifest)},
                    content_type=_MANIFEST,
                )
        blob = self._blobs.get(path.rpartition("/")[2])
        return web.Response(body=blob) if blob is not None else web.Response(status=404)


def _basic() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def _digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _name(digest: object) -> str:
    return str(digest).partition(":")[2]


def _read(files: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = files.extractfile(member)
    return opened.read() if opened else b""
