"""Addresses of pools and the files for mutual TLS, for server and client alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_HOST_PORT = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:/\s]*):(\d{1,5})")

# Sockets have a path limit of the kernel: sun_path with its closing zero.
_LONGEST_PATH = 107


class EndpointError(ValueError):
    """An address or a TLS file cannot be used; the text says which and what to do."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`path` for a Unix socket, else host and port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @property
    def target(self) -> str:
        """As gRPC and people write it."""
        return f"unix:{self.path}" if self.path is not None else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """`unix:PATH`, `unix:///PATH` or `HOST:PORT`. Raises EndpointError."""
    if text.startswith("unix:"):
        rest = text[5:]
        if rest.startswith("//"):
            rest = rest[2:]
            if not rest.startswith("/"):
                raise EndpointError(f"{text!r}: after unix:// an absolute path must follow")
        if not rest:
            raise EndpointError(f"{text!r}: the path of the socket is missing")
        path = Path(rest).absolute()
        if len(str(path).encode()) > _LONGEST_PATH:
            raise EndpointError(
                f"{text!r}: a socket's path has at most {_LONGEST_PATH} bytes; shorten it"
            )
        return Endpoint(path=path)
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise EndpointError(f"{text!r} is neither unix:PATH nor HOST:PORT")
    return Endpoint(host=match[1] or "0.0.0.0", port=int(match[2]))


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `ca` signs the other side's certificates: a server's clients, a
    client's server. `server_name` overrides the name that a client expects."""

    cert: Path
    key: Path
    ca: Path
    server_name: str = ""

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        return self.cert, self.key, self.ca

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Certificate, key and CA. Raises EndpointError."""
        found = []
        for path, marker in (
            (self.cert, b"BEGIN CERTIFICATE"),
            (self.key, b"PRIVATE KEY"),
            (self.ca, b"BEGIN CERTIFICATE"),
        ):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise EndpointError(f"{path}: cannot be read: {error.strerror}") from error
            if marker not in content:
                raise EndpointError(f"{path}: holds no PEM block {marker.decode()!r}")
            found.append(content)
        return found[0], found[1], found[2]
