"""The images that upstream's tests name, as they are made here."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.conformance.images import libraries, make_images
from tests.conformance.programs import DEBIAN, Tools
from tests.conformance.registry import Registry
from tests.support.fixtures import have

E2E = "registry.k8s.io/e2e-test-images"
NAMES = [
    f"{E2E}/agnhost:2.66.1",
    f"{E2E}/agnhost:2.55",
    f"{E2E}/busybox:1.37.0-2",
    f"{E2E}/nonewprivs:1.4",
    f"{E2E}/nonroot:1.5",
    f"{E2E}/volume/nfs:1.6.0",
    "registry.k8s.io/pause:3.10.2",
    "gcr.io/k8s-authenticated-test/agnhost:2.6",
]


class Images:
    """An archive of images, read again."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as packed:
            self.files: dict[str, bytes] = {}
            for member in packed.getmembers():
                content = packed.extractfile(member)
                assert content is not None
                self.files[member.name] = content.read()
        index = json.loads(self.files["index.json"])
        self._manifests: dict[str, dict[str, Any]] = {
            one["annotations"]["io.containerd.image.name"]: json.loads(self.blob(one["digest"]))
            for one in index["manifests"]
        }

    def blob(self, digest: str) -> bytes:
        return self.files[f"blobs/sha256/{digest.removeprefix('sha256:')}"]

    def config(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self.blob(self._manifests[name]["config"]["digest"]))
        settings: dict[str, Any] = config["config"]
        return settings

    def root(self, name: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
        """The image's files; a later layer's replace an earlier one's."""
        found: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
        for layer in self._manifests[name]["layers"]:
            raw = io.BytesIO(gzip.decompress(self.blob(layer["digest"])))
            with tarfile.open(fileobj=raw) as packed:
                for member in packed.getmembers():
                    content = packed.extractfile(member) if member.isfile() else None
                    found[member.name] = (member, content.read() if content else b"")
        return found


def script(path: Path, *lines: str) -> Path:
    path.write_text("#!/bin/sh\n" + "".join(f"echo {line}\n" for line in lines))
    path.chmod(0o755)
    return path


@pytest.fixture
def made(tmp_path: Path) -> tuple[Images, tuple[str, ...], Tools]:
    """Archives of real busybox and of programs that stand for the built ones."""
    bash = shutil.which("bash")
    assert bash is not None
    tools = Tools(
        ginkgo=tmp_path / "ginkgo",
        e2e=script(tmp_path / "e2e.test", "'some I1126 log line'", *NAMES),
        agnhost=script(tmp_path / "agnhost", "agnhost"),
        nnp=script(tmp_path / "nnp", "nnp"),
        sh=script(tmp_path / "sh", "sh"),
        busybox=have(("busybox",))["busybox"],
        debian=dict.fromkeys(DEBIAN, Path(bash)),
    )
    archive = make_images(tools, tmp_path / "images")
    assert make_images(tools, tmp_path / "images") == archive
    return Images(archive.path), archive.names, tools


Made = tuple[Images, tuple[str, ...], Tools]


def test_only_what_the_specs_in_focus_use_is_made(made: Made) -> None:
    assert sorted(made[1]) == sorted(
        name for name in NAMES if "nfs" not in name and not name.startswith("gcr.io")
    )


def test_agnhost_is_upstreams_program_with_its_helpers(made: Made) -> None:
    images, _, tools = made
    name = f"{E2E}/agnhost:2.66.1"
    files = images.root(name)
    assert files["agnhost"][1] == tools.agnhost.read_bytes() and files["agnhost"][0].mode == 0o755
    assert files["agnhost-2"][0].linkname == "agnhost"
    for program in ("usr/bin/curl", "usr/bin/dig", "usr/bin/nc", "bin/bash", "bin/busybox"):
        assert files[program][0].mode & 0o111
    assert files["bin/sh"][1] == tools.sh.read_bytes()
    for library in libraries([tools.debian["curl"]]):
        assert str(library)[1:] in files
    assert b"group-defined-in-image:x:50000:user-defined-in-image" in files["etc/group"][1]
    assert b"BEGIN CERTIFICATE" in files["localhost.crt"][1]
    assert b"PRIVATE KEY" in files["localhost.key"][1] and files["localhost.key"][0].mode == 0o644
    config = images.config(name)
    assert config["Entrypoint"] == ["/agnhost"] and config["Cmd"] == ["pause"]
    assert "8080/tcp" in config["ExposedPorts"]


def test_two_versions_are_two_images(made: Made) -> None:
    images = made[0]
    assert images.root(f"{E2E}/agnhost:2.66.1") != images.root(f"{E2E}/agnhost:2.55")


def test_users_and_modes_are_upstreams(made: Made) -> None:
    images = made[0]
    assert images.config(f"{E2E}/nonroot:1.5")["User"] == "1234"
    assert images.config("registry.k8s.io/pause:3.10.2")["User"] == "65535:65535"
    assert "User" not in images.config(f"{E2E}/busybox:1.37.0-2")
    helper, _ = images.root(f"{E2E}/nonewprivs:1.4")["usr/local/bin/nnp"]
    assert helper.mode == 0o6755 and helper.uid == 0


def test_agnhosts_own_registry_has_an_image_to_serve(made: Made) -> None:
    files = made[0].root(f"{E2E}/agnhost:2.66.1")
    root = "var/registry/pause"

    def stored(kind: str, digest: str) -> bytes:
        sha = digest.removeprefix("sha256:")
        return files[f"{root}/{kind}/sha256/{sha[:2]}/{sha}/data"][1]

    manifest = json.loads(stored("manifests", files[f"{root}/manifests/testing"][1].decode()[:-1]))
    config = json.loads(stored("blobs", manifest["config"]["digest"]))
    assert config["config"]["Entrypoint"] == ["/pause"]
    for layer in manifest["layers"]:
        assert len(stored("blobs", layer["digest"])) == layer["size"]


async def test_the_images_can_be_pulled_from_a_registry_on_loopback(
    made: Made, tmp_path: Path
) -> None:
    (archive,) = (tmp_path / "images").glob("*.tar")
    registry = Registry(archive, "registry.k8s.io")
    url = await registry.start()
    try:
        async with aiohttp.ClientSession() as session:
            where = f"{url}/v2/e2e-test-images/agnhost"
            async with session.get(f"{where}/manifests/2.66.1") as answer:
                digest = answer.headers["Docker-Content-Digest"]
                assert answer.content_type == "application/vnd.oci.image.manifest.v1+json"
                manifest = json.loads(await answer.read())
            async with session.head(f"{where}/manifests/{digest}") as answer:
                assert answer.status == 200
            for one in (manifest["config"], *manifest["layers"]):
                async with session.get(f"{where}/blobs/{one['digest']}") as answer:
                    assert await answer.read() == made[0].blob(one["digest"])
            for path in ("manifests/1.0", f"blobs/sha256:{'0' * 64}"):
                async with session.get(f"{where}/{path}") as answer:
                    assert answer.status == 404
    finally:
        await registry.stop()


def test_the_libraries_of_a_program_include_its_loader() -> None:
    found = libraries([Path(sys.executable).resolve()])
    assert any("libc.so" in path.name for path in found)
    assert any(path.name.startswith("ld-") for path in found)
    assert libraries([]) == []
