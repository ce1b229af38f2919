"""Attach over WebSocket: a running container's own streams, as exec's but for its end."""

from __future__ import annotations

import pytest

from tests.kubeletapi.conftest import Served
from tests.kubeletapi.local_backend import running
from tests.kubeletapi.test_exec import Client, refused
from vknode.kubeletapi import BackendError
from vknode.streaming.channels import V1, V4, V5, Channel, ChannelProtocol
from vknode.streaming.remotecommand import Exited, Failed

ATTACH = "/attach/default/web/main"


async def attach(
    served: Served, flags: str = "input output error", protocol: ChannelProtocol = V5
) -> Client:
    parameters = [(name, "1") for name in flags.split()]
    socket = await served.http.ws_connect(
        served.url + ATTACH, params=parameters, protocols=(protocol.name,)
    )
    return Client(socket, protocol)


@pytest.mark.parametrize("protocol", [V5, V4, V1])
async def test_the_end_of_the_container_is_the_end_whatever_its_code(
    served: Served, protocol: ChannelProtocol
) -> None:
    served.backend.add("web")
    served.backend.main_command = ("sh", "-c", "echo out; echo err >&2; exit 3")
    seen = await (await attach(served, "output error", protocol)).finish()
    assert (bytes(seen.stdout), bytes(seen.stderr)) == (b"out\n", b"err\n")
    assert seen.outcome(protocol) == Exited(0)


async def test_input_reaches_the_container_and_its_end_too(served: Served) -> None:
    served.backend.add("web")
    client = await attach(served)
    await client.send(Channel.STDIN, b"hello\n")
    await client.read_until(b"hello\n")
    await client.close_stdin()
    assert (await client.finish()).outcome() == Exited(0)


async def test_the_spec_decides_whether_there_is_a_terminal(served: Served) -> None:
    served.backend.add("web", running("main", tty=True))
    served.backend.main_command = ("sh", "-c", "test -t 0 && echo terminal >&2; sleep 0.1")
    seen = await (await attach(served, "input output tty")).finish()
    assert bytes(seen.stdout) == b"terminal\r\n" and not seen.stderr
    (request,) = served.backend.attached
    assert request.tty and not request.stderr
    # As a kubelet, whose runtime knows no second output beside a terminal.
    told = await refused(served, f"{ATTACH}?input=1&output=1&error=1")
    assert told == (500, "tty and stderr cannot both be true")


async def test_a_pool_that_cannot_attach_is_told_in_words(served: Served) -> None:
    served.backend.add("web")
    served.backend.exec_error = BackendError("the pool is away")
    seen = await (await attach(served)).finish()
    assert seen.outcome() == Failed(
        "Internal error occurred: error attaching to container: the pool is away"
    )


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/attach/default/web/main", (400, "you must specify at least 1 of stdin, stdout, stderr")),
        ("/attach/default/none/main?output=1", (404, "pod does not exist")),
        ("/attach/default/web/other?output=1", (500, 'container not found ("other")')),
        ("/attach/default/web/u-2/main?output=1", (500, 'container not found ("main")')),
    ],
)
async def test_wrong_requests(served: Served, path: str, told: tuple[int, str]) -> None:
    served.backend.add("web")
    assert await refused(served, path) == told
