"""Free TCP ports on loopback for programs that cannot be handed a listening socket."""

from __future__ import annotations

import random
import socket

#: Below Linux's ephemeral range (32768…): no outgoing connection takes one of these
#: between our look and the program's bind.
RANGE = range(20000, 32000)


class PortTaken(Exception):
    """The port that was asked for is in use."""


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether the port can be bound now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def pick_port(wanted: int = 0, *, what: str = "", address: str = "127.0.0.1") -> int:
    """`wanted` if it is free, or any free port for 0. Raises PortTaken naming `what`."""
    if wanted:
        if not is_free(wanted, address):
            raise PortTaken(
                f"port {wanted} for {what or 'a server'} is in use: choose another, or 0 for any"
            )
        return wanted
    for port in random.sample(RANGE, 200):
        if is_free(port, address):
            return port
    raise PortTaken(f"no free port between {RANGE.start} and {RANGE.stop} on {address}")
