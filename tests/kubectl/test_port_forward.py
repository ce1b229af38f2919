"""kubectl port-forward: many connections, both ends closing first, large bodies, errors."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.support.kube import Kube, simple_pod

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

# Says back what it is told, and closes once the client says no more; and listens all the time, so
# that one connection may follow another at once.
ECHO = "nc -ll -p 7000 -e cat"


@contextmanager
def forwarded(kube: Kube, pod: str, port: int) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A local port that kubectl forwards, and kubectl."""
    with kube.popen(
        *("port-forward", "--address=127.0.0.1", f"pod/{pod}", f":{port}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as client:
        try:
            assert client.stdout is not None
            line = client.stdout.readline().decode()
            found = re.search(r"127\.0\.0\.1:(\d+) ->", line)
            assert found, line
            yield int(found[1]), client
        finally:
            client.terminate()


def read_all(connection: socket.socket) -> bytes:
    found = bytearray()
    while piece := connection.recv(1 << 16):
        found += piece
    return bytes(found)


@pytest.fixture
def web(kube: Kube) -> Kube:
    """A Pod `web` with an HTTP server at 8080 that has a file of 8 MiB, and an echo at 7000."""
    script = (
        "mkdir /www; head -c 8388608 /dev/urandom > /www/large; "
        f"httpd -p 8080 -h /www; ({ECHO}) & echo ready; wait"
    )
    kube.apply(simple_pod("web", ["sh", "-c", script]))
    kube.wait_phase("web", "Running")
    listen = "until grep -q ':1F90 ' /proc/net/tcp* && grep -q ':1B58 ' /proc/net/tcp*"
    kube.out("exec", "web", "--", "sh", "-c", f"{listen}; do sleep 0.1; done")
    return kube


def get(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        return read_all(connection).partition(b"\r\n\r\n")[2]


def test_large_answers_arrive_whole_on_many_connections_at_once(web: Kube) -> None:
    wanted = web.out("exec", "web", "--", "sha256sum", "/www/large").split()[0]
    with forwarded(web, "web", 8080) as (port, _), ThreadPoolExecutor(8) as threads:
        sums = list(
            threads.map(lambda _: hashlib.sha256(get(port, "/large")).hexdigest(), range(8))
        )
        assert sums == [wanted] * 8
        # And small ones, one after the other, through the same kubectl. (Each takes a second:
        # containerd gives the other direction so long after one has ended.)
        assert {hashlib.sha256(get(port, "/none")).hexdigest() for _ in range(5)} != {wanted}


def test_a_client_that_says_no_more_still_gets_the_rest(web: Kube) -> None:
    data = random.Random(7).randbytes(5 << 20)
    with forwarded(web, "web", 7000) as (port, _):
        for _ in range(2):
            with (
                socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
                ThreadPoolExecutor(1) as thread,
            ):
                back = thread.submit(read_all, connection)
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                assert hashlib.sha256(back.result(60)).digest() == hashlib.sha256(data).digest()


def test_where_nobody_listens_the_client_is_told(web: Kube) -> None:
    with forwarded(web, "web", 9) as (port, client):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            assert read_all(connection) == b""
        client.terminate()
        assert client.stderr is not None
        said = client.stderr.read().decode()
        assert "error forwarding port 9 to pod web" in said
        assert "refused" in said
