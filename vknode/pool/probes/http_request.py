"""The request of an httpGet action, and where its redirects lead. Pure.

What a kubelet's prober hands to Go's HTTP client (pkg/probe/http/request.go) and what
that client then writes (net/http, net/url).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

from vknode.pool.probes import gowords
from vknode.pool.v1 import spec_pb2

# Kubernetes' version whose kubelet we follow.
VERSION = "1.37"
_PORTS = {"http": 80, "https": 443}
_UNRESERVED = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~"
# Left as they are in a path: all that may stand there, and what Go itself would not escape.
_PATH_VALID = frozenset(_UNRESERVED + "!$&'()*+,;=:@[]/%")
_PATH_SAFE = "$&+,/:;=@"
_AUTHORITY = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*:)?//[^/]*")
_TOKEN = frozenset("!#$%&'*+-.^_`|~" + _UNRESERVED)
_NOT_IN_HOST = re.compile(r"[\x00-\x20\x7f\"#/<>?@\\^`{|}]")
# net/http writes these itself, or never.
_NOT_COPIED = frozenset({"Host", "User-Agent", "Content-Length", "Transfer-Encoding", "Trailer"})


class BadRequest(Exception):
    """Cannot be sent; the text is the client's."""


@dataclass(frozen=True, slots=True)
class Url:
    """`target` is the escaped path with the query."""

    scheme: str
    host: str
    port: int | None
    target: str

    @property
    def netloc(self) -> str:
        if self.port is None:
            return f"[{self.host}]" if ":" in self.host else self.host
        return gowords.host_port(self.host, self.port)

    @property
    def line_target(self) -> str:
        """As in the request line."""
        return self.target if self.target.startswith("/") else "/" + self.target

    @property
    def address(self) -> tuple[str, int]:
        """Raises BadRequest."""
        if self.scheme not in _PORTS:
            raise BadRequest(f"unsupported protocol scheme {gowords.quote(self.scheme)}")
        return self.host, self.port or _PORTS[self.scheme]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"


def url_of(action: spec_pb2.Handler.HttpGet, ip: str) -> Url:
    """Where the action asks; `ip` where it names no host."""
    scheme = action.scheme.lower() or "http"
    return Url(scheme, action.host or ip, action.port, _target(action.path))


def _target(path: str) -> str:
    whole = path.partition("#")[0]
    raw, mark, query = whole.partition("?")
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in path) or _bad_escape(raw):
        escaped = _escape(path.encode(errors="surrogateescape"))
        mark = query = ""
    else:
        # Scheme and host in it are replaced by the action's own.
        raw = _AUTHORITY.sub("", raw)
        if all(c in _PATH_VALID for c in raw):
            escaped = raw
        else:
            escaped = _escape(unquote_to_bytes(raw.encode(errors="surrogateescape")))
    if escaped and not escaped.startswith("/"):
        escaped = "/" + escaped
    return escaped + mark + query


def _escape(path: bytes) -> str:
    return quote(path, safe=_PATH_SAFE + _UNRESERVED)


def _bad_escape(path: str) -> bool:
    hexdigits = "0123456789abcdefABCDEF"
    parts = path.split("%")[1:]
    return any(len(p) < 2 or p[0] not in hexdigits or p[1] not in hexdigits for p in parts)


class Request:
    """Headers of one probe or hook, written anew for each place it is led to."""

    def __init__(self, headers: Iterable[spec_pb2.Handler.HttpHeader], agent: str) -> None:
        """`agent` is "probe" or "lifecycle"."""
        found: dict[str, list[str]] = {}
        for header in headers:
            found.setdefault(_canonical(header.name), []).append(header.value)
        found.setdefault("User-Agent", [f"kube-{agent}/{VERSION}"])
        if found.setdefault("Accept", ["*/*"])[0] == "":
            del found["Accept"]
        self._host = found.get("Host", [""])[0]
        self._headers = found

    def without(self, name: str) -> None:
        self._headers.pop(name, None)

    def headers(
        self, url: Url, came_from: Url | None = None, *, relative: bool = True
    ) -> list[tuple[str, str]]:
        """In the order that they are sent. `came_from` redirected here, by a `relative`
        location or not. Raises BadRequest."""
        for name, values in self._headers.items():
            if not name or not all(c in _TOKEN for c in name):
                raise BadRequest(f"net/http: invalid header field name {gowords.quote(name)}")
            if not all(map(_valid_value, values)):
                # The value may be a secret.
                raise BadRequest(f"net/http: invalid header field value for {gowords.quote(name)}")
        host = self._host if self._host and relative else url.netloc
        # Go would rather send none than one with these in it.
        found = [("Host", "" if _NOT_IN_HOST.search(host) else host)]
        agent = self._headers["User-Agent"][0]
        if agent:
            found.append(("User-Agent", agent.strip(" \t")))
        others = {k: v for k, v in self._headers.items() if k not in _NOT_COPIED}
        if came_from is not None and (came_from.scheme == "http" or url.scheme != "http"):
            others.setdefault("Referer", [str(came_from)])
        found += [(k, value.strip(" \t")) for k in sorted(others) for value in others[k]]
        words = ",".join(others.get("Connection", ())).lower().split(",")
        if not {"close", "upgrade"} & {word.strip() for word in words}:
            found.append(("Connection", "close"))
        return found


def _canonical(name: str) -> str:
    if not all(c in _TOKEN for c in name):
        return name
    return "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))


def _valid_value(text: str) -> bool:
    return not any((ord(c) < 0x20 and c != "\t") or ord(c) == 0x7F for c in text)


def redirected(url: Url, location: str) -> tuple[Url, bool]:
    """Where a Location leads, and whether it is relative. Raises BadRequest."""
    try:
        there = urlsplit(urljoin(str(url), location))
        relative = not urlsplit(location).scheme
        port = there.port
    except ValueError as error:
        raise BadRequest(
            f"failed to parse Location header {gowords.quote(location)}: "
            + str(error).encode(errors="replace").decode()
        ) from None
    target = there.path + (f"?{there.query}" if there.query else "")
    return Url(there.scheme, there.hostname or "", port, _target(target)), relative
