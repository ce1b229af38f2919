"""Container images written with nothing but Python: an OCI image layout in a tar file,
which `ctr images import` takes.

The order of files, their times and owners are fixed, so that the same content has the
same digest wherever and whenever it is made.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: A layer of an image: its descriptor and its diff id.
Layer = tuple[dict[str, object], str]


@dataclass(frozen=True)
class Archive:
    """A tar file of images, and the names that they have in it."""

    path: Path
    names: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One file of an image layer, root's. `link` makes it a symbolic link."""

    path: str
    content: bytes = b""
    mode: int = 0o644
    link: str = ""
    folder: bool = False


class Layout:
    """An image layout being put together in memory."""

    def __init__(self) -> None:
        #: Everything in it by SHA-256, in hexadecimal.
        self.blobs: dict[str, bytes] = {}
        self._manifests: list[dict[str, object]] = []

    def _blob(self, raw: bytes, media: str) -> dict[str, object]:
        digest = hashlib.sha256(raw).hexdigest()
        self.blobs[digest] = raw
        return {
            "mediaType": f"application/vnd.oci.image.{media}",
            "digest": f"sha256:{digest}",
            "size": len(raw),
        }

    def layer(self, entries: Sequence[Entry], *, level: int = 6) -> Layer:
        """A layer of these files, compressed with gzip `level` (1 is quick, 9 small)."""
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as packed:
            for entry in entries:
                info = tarfile.TarInfo(entry.path)
                info.mode = entry.mode
                if entry.folder:
                    info.type = tarfile.DIRTYPE
                elif entry.link:
                    info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
                else:
                    info.size = len(entry.content)
                packed.addfile(info, io.BytesIO(entry.content) if info.size else None)
        plain = raw.getvalue()
        diff = f"sha256:{hashlib.sha256(plain).hexdigest()}"
        return self._blob(gzip.compress(plain, level, mtime=0), "layer.v1.tar+gzip"), diff

    def image(
        self,
        layers: Sequence[Layer],
        command: Sequence[str],
        names: Sequence[str],
        *,
        entrypoint: Sequence[str] = (),
        user: str = "",
        ports: Sequence[str] = (),
    ) -> str:
        """Add an image under each of `names`; returns its manifest's SHA-256. `ports` are those
        that it exposes, like `80/tcp`."""
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(
            platform.machine(), platform.machine()
        )
        settings: dict[str, object] = {"Env": [PATH], "WorkingDir": "/"}
        if command:
            settings["Cmd"] = list(command)
        if entrypoint:
            settings["Entrypoint"] = list(entrypoint)
        if user:
            settings["User"] = user
        if ports:
            settings["ExposedPorts"] = {port: {} for port in ports}
        config = {
            "architecture": machine,
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [diff for _, diff in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self._blob(json.dumps(config).encode(), "config.v1+json"),
            "layers": [descriptor for descriptor, _ in layers],
        }
        described = self._blob(json.dumps(manifest).encode(), "manifest.v1+json")
        for name in names:
            note = {"io.containerd.image.name": name}
            self._manifests.append({**described, "annotations": note})
        return str(described["digest"]).removeprefix("sha256:")

    def write(self, target: Path) -> None:
        """Write the layout as a tar file."""
        files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
        files["index.json"] = json.dumps(
            {"schemaVersion": 2, "manifests": self._manifests}
        ).encode()
        for digest, raw in self.blobs.items():
            files[f"blobs/sha256/{digest}"] = raw
        with tarfile.open(target, mode="w") as packed:
            for name, raw in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(raw)
                packed.addfile(info, io.BytesIO(raw))
