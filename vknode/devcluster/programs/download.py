"""Released programs from Kubernetes' official download site, and etcd's from its releases.

Each file is checked against the SHA-256 that the same publisher gives, over TLS.
The site is tried for a few seconds only: a machine without internet must not wait.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from vknode.devcluster.programs.cache import place
from vknode.devcluster.programs.catalog import (
    Program,
    etcd_version,
    go_architecture,
    kubernetes_version,
)
from vknode.devcluster.programs.progress import Progress

KUBERNETES_SITE = "https://dl.k8s.io"
ETCD_SITE = "https://github.com/etcd-io/etcd/releases/download"
#: Seconds until the site counts as out of reach.
REACH_TIMEOUT = 4.0
_CHUNK = 1 << 20


class DownloadFailed(Exception):
    """The file could not be fetched or is not what the publisher says it is."""


def reachable(site: str = KUBERNETES_SITE, timeout: float = REACH_TIMEOUT) -> bool:
    """Whether the download site answers within `timeout` seconds, name lookup included
    (which no socket timeout bounds: hence the thread)."""
    answer: list[bool] = []
    url = f"{site}/release/{kubernetes_version()}/bin/linux/{go_architecture()}/kubectl.sha256"

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as reply:
                answer.append(reply.status == 200)
        except (OSError, ValueError):
            answer.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answer == [True]


def download(
    programs: Sequence[Program],
    folder: Path,
    progress: Progress,
    *,
    kubernetes_site: str = KUBERNETES_SITE,
    etcd_site: str = ETCD_SITE,
) -> list[str]:
    """Fetch the programs into `folder`; returns the reasons of those that failed.
    A failure of one does not keep the others from coming: what lacks is built."""
    failures: list[str] = []
    for program in programs:
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as work:
                if program.name == "etcd":
                    made = _etcd(Path(work), etcd_site, progress)
                else:
                    made = _kubernetes(program.name, Path(work), kubernetes_site, progress)
                place(made, folder, program.name)
                progress.say(f"downloaded {program.name} {program.version}")
        except (DownloadFailed, OSError, tarfile.TarError) as problem:
            failures.append(f"{program.name}: {problem}")
    return failures


def _kubernetes(name: str, work: Path, site: str, progress: Progress) -> Path:
    version, machine = kubernetes_version(), go_architecture()
    url = f"{site}/release/{version}/bin/linux/{machine}/{name}"
    expected = _text(f"{url}.sha256").split()[0]
    return _fetch(url, expected, work / name, progress)


def _etcd(work: Path, site: str, progress: Progress) -> Path:
    version = etcd_version()
    base = f"etcd-{version}-linux-{go_architecture()}"
    sums = _text(f"{site}/{version}/SHA256SUMS")
    found = re.search(rf"^([0-9a-f]{{64}})\s+{re.escape(base)}\.tar\.gz$", sums, re.MULTILINE)
    if found is None:
        raise DownloadFailed(f"SHA256SUMS of etcd {version} does not name {base}.tar.gz")
    archive = _fetch(
        f"{site}/{version}/{base}.tar.gz", found.group(1), work / "etcd.tar.gz", progress
    )
    with tarfile.open(archive) as packed:
        member = packed.extractfile(f"{base}/etcd")
        if member is None:
            raise DownloadFailed(f"{base}.tar.gz holds no etcd")
        made = work / "etcd"
        with member, made.open("wb") as out:
            while chunk := member.read(_CHUNK):
                out.write(chunk)
    return made


def _text(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            raw: bytes = reply.read(1 << 20)
            return raw.decode()
    except (urllib.error.URLError, UnicodeDecodeError) as problem:
        raise DownloadFailed(f"{url}: {problem}") from problem


def _fetch(url: str, expected: str, target: Path, progress: Progress) -> Path:
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as reply, target.open("wb") as out:
            total = int(reply.headers.get("Content-Length") or 0)
            done = 0
            while chunk := reply.read(_CHUNK):
                out.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                of = f" of {total >> 20}" if total else ""
                progress.update(f"downloading {target.name}: {done >> 20}{of} MiB")
    except urllib.error.URLError as problem:
        raise DownloadFailed(f"{url}: {problem}") from problem
    if digest.hexdigest() != expected:
        raise DownloadFailed(
            f"{url}: SHA-256 is {digest.hexdigest()}, the publisher says {expected}"
        )
    return target
