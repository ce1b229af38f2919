"""Errors and values worded as Go's libraries word them. Pure.

A kubelet shows its Go libraries' errors to users, whose alerts and dashboards match on
them; so ours say the same. Sources: net, net/http, net/url, strconv, time of Go 1.26.
"""

from __future__ import annotations

import errno
import ssl

# Go has its own lower-case table; these are the ones that a connection can end with.
_ERRNO = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset by peer",
    errno.ECONNABORTED: "software caused connection abort",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network is unreachable",
    errno.EHOSTDOWN: "host is down",
    errno.ENETDOWN: "network is down",
    errno.ETIMEDOUT: "connection timed out",
    errno.EPIPE: "broken pipe",
    errno.EINVAL: "invalid argument",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EADDRNOTAVAIL: "cannot assign requested address",
}
# Our own lack of something; it says nothing of whom we asked.
OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})


def host_port(host: str, port: int) -> str:
    """net.JoinHostPort."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def errno_text(error: OSError) -> str:
    """What Go's syscall.Errno says."""
    number = error.errno or 0
    return _ERRNO.get(number) or (error.strerror or str(error)).lower()


def dial_error(address: str, error: OSError | TimeoutError) -> str:
    """net.OpError of a dial; TimeoutError without a number is the dialer's own."""
    if isinstance(error, TimeoutError) and not error.errno:
        return f"dial tcp {address}: i/o timeout"
    return f"dial tcp {address}: connect: {errno_text(error)}"


def tls_error(error: ssl.SSLError) -> str:
    """crypto/tls's words for what happens in practice, else OpenSSL's."""
    reason = (error.reason or "handshake failure").lower().replace("_", " ")
    for prefix in ("tlsv1 alert ", "sslv3 alert ", "tlsv13 alert "):
        if reason.startswith(prefix):
            return f"remote error: tls: {reason.removeprefix(prefix)}"
    if reason in ("wrong version number", "record layer failure", "packet length too long"):
        return "tls: first record does not look like a TLS handshake"
    return f"tls: {reason}"


def quote(text: str) -> str:
    """strconv.Quote."""
    out = []
    for character in text:
        code = ord(character)
        if character in '"\\':
            out.append("\\" + character)
        elif character in _ESCAPES:
            out.append(_ESCAPES[character])
        elif code < 0x20 or code == 0x7F:
            out.append(f"\\x{code:02x}")
        elif 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, by surrogateescape
            out.append(f"\\x{code - 0xDC00:02x}")
        elif character.isprintable():
            out.append(character)
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}


def duration(seconds: float) -> str:
    """time.Duration.String, to the millisecond."""
    millis = round(seconds * 1000)
    if millis < 1000:
        return f"{millis}ms" if millis else "0s"
    hours, rest = divmod(millis, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    text = f"{rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
