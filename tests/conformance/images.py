"""The images that upstream's tests name, made here: no registry is reached.

Which names at which versions, the test binary itself tells (`--list-images`). What is in
them follows upstream's Dockerfiles as far as Debian's programs go: agnhost is upstream's
own program, with curl, dig, nc and printenv beside it; the commands of the shell are busybox's.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.conformance.programs import Tools
from vknode.devcluster import imagelayout, images
from vknode.devcluster.imagelayout import Archive, Entry, Layer, Layout
from vknode.devcluster.pki import Authority

_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP = """\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
tty:x:5:
www-data:x:33:
nogroup:x:65534:
"""
#: Upstream's Dockerfile adds them for its tests of supplementary groups.
_AGNHOST_PASSWD = _PASSWD + "user-defined-in-image:x:1000:1000::/home:/bin/sh\n"
_AGNHOST_GROUP = (
    _GROUP
    + "user-defined-in-image:x:1000:\n"
    + "group-defined-in-image:x:50000:user-defined-in-image\n"
)


def listed(e2e: Path) -> list[str]:
    """The names of all images that the test binary knows."""
    done = subprocess.run([str(e2e), "--list-images"], capture_output=True, text=True, check=True)
    return sorted({line for line in done.stdout.split() if re.search(r"/[^/]+:[^/]+$", line)})


def libraries(programs: Iterable[Path]) -> list[Path]:
    """The shared libraries and the loader that these programs need, by the names under
    which they are looked for."""
    found: set[Path] = set()
    for program in programs:
        said = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
        found.update(Path(one) for one in re.findall(r"(?:=> |^\s+)(/\S+)", said.stdout, re.M))
    return sorted(found)


def make_images(tools: Tools, folder: Path) -> Archive:
    """The archive of all images that are made, in `folder` and named by content; written
    unless it is there. Raises ImagesUnavailable if busybox is not static."""
    if not images.is_static(tools.busybox):
        raise images.ImagesUnavailable(
            f"{tools.busybox} is not static: install the Debian package busybox-static"
        )
    names = listed(tools.e2e)
    digest = hashlib.sha256("\n".join(names).encode())
    dynamic = list(tools.debian.values())
    sources = [Path(module) for module in (__file__, imagelayout.__file__, images.__file__)]
    for path in (tools.agnhost, tools.nnp, tools.sh, tools.busybox, *dynamic, *sources):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    target = folder / f"conformance-{digest.hexdigest()[:16]}.tar"
    kitchen = _Kitchen(tools)
    wanted = {name: make for name in names if (make := kitchen.recipe(name)) is not None}
    if not target.exists():
        for name, make in wanted.items():
            make(name)
        folder.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{digest.hexdigest()[16:24]}.new")
        kitchen.layout.write(fresh)
        fresh.replace(target)
        for old in folder.glob("conformance-*.tar"):
            if old != target:
                old.unlink(missing_ok=True)
    return Archive(target, tuple(wanted))


class _Kitchen:
    """Makes one image at a time into one layout; layers are shared and made when needed."""

    def __init__(self, tools: Tools) -> None:
        self.layout = Layout()
        self._tools = tools
        self._layers: dict[str, Layer] = {}
        self._recipes: dict[str, Callable[[str], None]] = {
            "agnhost": self._agnhost,
            "busybox": self._busybox,
            "nautilus": self._nautilus,
            "nginx": self._nginx,
            "nonewprivs": self._nonewprivs,
            "nonroot": self._nonroot,
            "glibc-dns-testing": self._glibc,
            "pause": self._pause,
        }

    def recipe(self, name: str) -> Callable[[str], None] | None:
        """How the named image is made; None for one that the tests in focus do not use."""
        repository = name.rpartition(":")[0]
        if "/e2e-test-images/" not in name and not name.startswith("registry.k8s.io/pause:"):
            return None
        return self._recipes.get(repository.rpartition("/")[2])

    # -- layers

    def _shell(self) -> Layer:
        """busybox with its applets, and the C library that its lookups of names and users
        load even from a static build. `sh` is a program that chooses between busybox's and
        bash (`gomodule/sh` tells why)."""

        def entries() -> list[Entry]:
            busybox, bash = self._tools.busybox, self._tools.debian["bash"]
            said = subprocess.run(
                [str(busybox), "--list"], capture_output=True, text=True, check=True
            )
            applets = [name for name in said.stdout.split() if name not in ("busybox", "sh")]
            others = {"etc/passwd", "etc/group", "bin/fetch", "www", "www/cgi-bin"}
            system = images.busybox_entries(busybox.read_bytes(), applets)
            return [
                *(one for one in system if one.path not in others and "cgi-bin" not in one.path),
                Entry("usr/local", folder=True, mode=0o755),
                Entry("usr/local/bin", folder=True, mode=0o755),
                Entry("usr/sbin", folder=True, mode=0o755),
                Entry("etc/passwd", _PASSWD.encode()),
                Entry("etc/group", _GROUP.encode()),
                Entry("etc/nsswitch.conf", b"hosts: files dns\n"),
                Entry("bin/bash", bash.read_bytes(), 0o755),
                Entry("bin/sh", self._tools.sh.read_bytes(), 0o755),
                *self._libraries([bash]),
            ]

        return self._layer("shell", entries)

    def _network_tools(self) -> Layer:
        """curl, dig and nc, and printenv that Debian's busybox has not, with the libraries that
        they need."""

        def entries() -> list[Entry]:
            debian = self._tools.debian
            programs = {"curl": "curl", "dig": "dig", "nc": "nc.openbsd", "printenv": "printenv"}
            return [
                *(
                    Entry(f"usr/bin/{name}", debian[program].read_bytes(), 0o755)
                    for name, program in programs.items()
                ),
                *self._libraries(debian.values()),
            ]

        return self._layer("network tools", entries)

    def _libraries(self, programs: Iterable[Path]) -> list[Entry]:
        """The libraries of these programs, under their own names."""
        return [
            Entry(str(path).lstrip("/"), path.read_bytes(), path.stat().st_mode & 0o7777)
            for path in libraries(programs)
        ]

    def _layer(self, name: str, entries: Callable[[], list[Entry]]) -> Layer:
        if name not in self._layers:
            # Loaded from this disk and no other: what counts is the time to pack it.
            self._layers[name] = self.layout.layer(entries(), level=1)
        return self._layers[name]

    # -- images

    def _agnhost(self, name: str) -> None:
        def program() -> list[Entry]:
            return [
                Entry("agnhost", self._tools.agnhost.read_bytes(), 0o755),
                Entry("agnhost-2", link="agnhost"),
                Entry("uploads", folder=True, mode=0o755),
                *_registry_entries(),
                *_certificate_entries(),
                Entry("etc/passwd", _AGNHOST_PASSWD.encode()),
                Entry("etc/group", _AGNHOST_GROUP.encode()),
            ]

        # Two versions are two images, with digests of their own.
        version = self.layout.layer([Entry("etc/agnhost-version", f"{name}\n".encode())])
        layers = [
            self._shell(),
            self._network_tools(),
            self._layer("agnhost", program),
            version,
        ]
        self.layout.image(
            layers,
            ["pause"],
            [name],
            entrypoint=["/agnhost"],
            ports=[f"{port}/tcp" for port in (80, 8080, 8081, 9376, 5000)],
        )

    def _busybox(self, name: str) -> None:
        self.layout.image([self._shell()], ["sh"], [name])

    def _nautilus(self, name: str) -> None:
        """A web server on port 80 that tells which picture it would show."""
        page = self.layout.layer([Entry("www/data.json", b'{"image": "nautilus.jpg"}\n')])
        command = ["httpd", "-f", "-h", "/www"]
        self.layout.image([self._shell(), page], command, [name], ports=["80/tcp"])

    def _nginx(self, name: str) -> None:
        """A web server on port 80, as the tests use it; busybox's."""
        page = self.layout.layer(
            [
                Entry("usr/share/nginx/html/index.html", f"Welcome to nginx! {name}\n".encode()),
                Entry(
                    "usr/sbin/nginx", b"#!/bin/sh\nexec httpd -f -h /usr/share/nginx/html\n", 0o755
                ),
            ]
        )
        self.layout.image([self._shell(), page], ["nginx"], [name], ports=["80/tcp"])

    def _nonewprivs(self, name: str) -> None:
        """Upstream's program that tells its effective user, set-user-ID and set-group-ID root."""
        program = self.layout.layer(
            [Entry("usr/local/bin/nnp", self._tools.nnp.read_bytes(), 0o6755)]
        )
        self.layout.image([self._shell(), program], ["nnp"], [name])

    def _nonroot(self, name: str) -> None:
        self.layout.image([self._shell()], ["sh"], [name], user="1234")

    def _glibc(self, name: str) -> None:
        """Debian's own hostname and dig instead of busybox's: the point is the C library."""

        def entries() -> list[Entry]:
            hostname = self._tools.debian["hostname"]
            return [Entry("bin/hostname", hostname.read_bytes(), 0o755)]

        layers = [self._shell(), self._network_tools(), self._layer("hostname", entries)]
        self.layout.image(layers, ["bash"], [name])

    def _pause(self, name: str) -> None:
        _add_pause(self.layout, name)


def _add_pause(layout: Layout, name: str) -> str:
    program = layout.layer([Entry("pause", images.pause_elf(), 0o755)])
    return layout.image([program], [], [name], entrypoint=["/pause"], user="65535:65535")


def _certificate_entries() -> list[Entry]:
    """A certificate for its servers that speak TLS, where upstream puts one. A fresh one: nobody
    verifies it, and no key need lie in this repository."""
    with tempfile.TemporaryDirectory() as folder:
        pair = Authority(Path(folder)).issue("localhost", "localhost", dns=["localhost"])
        return [
            Entry("localhost.crt", pair.cert.read_bytes()),
            # Readable: the servers run as any user.
            Entry("localhost.key", pair.key.read_bytes()),
        ]


def _registry_entries() -> list[Entry]:
    """The content that agnhost's own registry serves: `pause:testing`, in the places where
    upstream's prepare_registry.sh puts it."""
    layout = Layout()
    manifest = _add_pause(layout, "pause:testing")
    root = "var/registry/pause"
    entries = [Entry(f"{root}/manifests/testing", f"sha256:{manifest}\n".encode())]
    for digest, content in layout.blobs.items():
        kind = "manifests" if digest == manifest else "blobs"
        entries.append(Entry(f"{root}/{kind}/sha256/{digest[:2]}/{digest}/data", content))
    return entries
