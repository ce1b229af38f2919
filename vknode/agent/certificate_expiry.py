"""When the certificates in files expire; for metrics.

A file is read again only when it has changed, so a scrape costs a `stat` each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from cryptography import x509

log = structlog.get_logger()


@dataclass
class _File:
    path: Path
    bundle: bool
    seen: tuple[int, int, int] | None = None
    ends: tuple[float, ...] = ()


class CertificateExpiry:
    """`add` the files, then `read`."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._files: dict[tuple[str, str], _File] = {}

    def add(self, certificate: str, pool: str, path: Path, *, bundle: bool = False) -> None:
        """`bundle`: a file of CAs, where one that has expired is no news while others serve."""
        self._files[(certificate, pool)] = _File(path, bundle)

    def read(self) -> dict[tuple[str, str], float]:
        """Seconds since the epoch by (certificate, pool); 0 for a file that cannot be read."""
        return {key: self._expiry(file) for key, file in self._files.items()}

    def _expiry(self, file: _File) -> float:
        try:
            status = file.path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen != file.seen:
                found = x509.load_pem_x509_certificates(file.path.read_bytes())
                file.ends = tuple(one.not_valid_after_utc.timestamp() for one in found)
                file.seen = seen
        except (OSError, ValueError) as error:
            if file.seen is not None or not file.ends:
                log.warning("certificate_unreadable", file=str(file.path), error=str(error))
            file.seen, file.ends = None, (0.0,)
        if file.bundle:
            now = self._clock()
            return min((end for end in file.ends if end > now), default=max(file.ends))
        return min(file.ends)
