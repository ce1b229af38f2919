"""kubectl attach, and what builds on it: run -i, run --rm, debug."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
import termios
import time
from fcntl import ioctl

import pytest

from tests.support.kube import Kube, simple_pod

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]

IMAGE = "busybox:1.36"


def talker(name: str = "talker", *, tty: bool = False) -> dict[str, object]:
    """Says back what it is told, and ends with code 3 at "bye".

    With `stdinOnce`, as kubectl run has it: else the end of a client's input is the end of its
    output too (containerd's ContainerIO.Attach; the same with a kubelet)."""
    script = 'while read line; do [ "$line" = bye ] && exit 3; echo "you said $line"; done'
    return simple_pod(
        name,
        ["sh", "-c", script],
        restart="Never",
        container={"stdin": True, "stdinOnce": True, "tty": tty},
    )


def test_input_goes_in_and_output_comes_out(kube: Kube) -> None:
    kube.apply(talker())
    kube.wait_phase("talker", "Running")
    said = kube.run("attach", "-i", "talker", input="hello\nbye\n", timeout=60)
    assert said.stdout == "you said hello\n"
    ended = kube.wait_phase("talker", "Failed")
    (status,) = ended["status"]["containerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 3


def test_two_at_once_see_the_same_and_both_end_with_it(kube: Kube) -> None:
    kube.apply(talker())
    kube.wait_phase("talker", "Running")
    with (
        kube.popen("attach", "talker", stdout=subprocess.PIPE) as watcher,
        kube.popen(
            "attach", "-i", "talker", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as speaker,
    ):
        assert speaker.stdin is not None
        assert speaker.stdout is not None
        assert watcher.stdout is not None
        # Said until both are there: an attached client sees only what comes later.
        deadline = time.monotonic() + 60
        while not select.select([watcher.stdout], [], [], 0.5)[0]:
            assert time.monotonic() < deadline, "the watcher never saw anything"
            speaker.stdin.write(b"again\n")
            speaker.stdin.flush()
        speaker.stdin.write(b"bye\n")
        speaker.stdin.close()
        heard = speaker.stdout.read()
        assert heard.startswith(b"you said again\n")
        seen = watcher.stdout.read()
        assert seen and heard.endswith(seen)


def test_a_terminal_has_the_size_of_the_clients(kube: Kube) -> None:
    script = 'while read line; do [ "$line" = bye ] && exit 0; stty size; done'
    kube.apply(
        simple_pod(
            "terminal",
            ["sh", "-c", script],
            restart="Never",
            container={"stdin": True, "tty": True},
        )
    )
    kube.wait_phase("terminal", "Running")
    main, secondary = pty.openpty()
    ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    with kube.popen("attach", "-it", "terminal", stdin=secondary, stdout=secondary) as client:
        os.close(secondary)
        seen = b""
        deadline = time.monotonic() + 60
        # Asked again and again: the size travels beside the input, in no order.
        while b"33 101" not in seen:
            assert time.monotonic() < deadline, f"the size did not come; there was {seen!r}"
            os.write(main, b"\r")
            while select.select([main], [], [], 0.2)[0]:
                seen += os.read(main, 4096)
        os.write(main, b"bye\r")
        assert client.wait(60) == 0
    os.close(main)
    kube.wait_phase("terminal", "Succeeded")


def test_run_with_input_gives_output_and_exit_code_and_goes(kube: Kube) -> None:
    done = kube.run(
        *("run", "once", f"--image={IMAGE}", "-i", "--rm", "--restart=Never", "--quiet"),
        *("--", "sh", "-c", "read word; echo said $word; exit 4"),
        input="hello\n",
        timeout=90,
        check=False,
    )
    assert "said hello\n" in done.stdout
    assert done.returncode == 4
    kube.gone("pod", "once")


def test_a_container_without_input_or_an_unknown_one(kube: Kube) -> None:
    script = "while [ ! -e /tmp/go ]; do sleep 0.05; done"
    kube.apply(simple_pod("deaf", ["sh", "-c", script], restart="Never"))
    kube.wait_phase("deaf", "Running")
    unknown = kube.run("attach", "deaf", "-c", "none", check=False)
    assert unknown.returncode == 1 and "none" in unknown.stderr
    kube.out("exec", "deaf", "--", "touch", "/tmp/go")
    kube.wait_phase("deaf", "Succeeded")
    late = kube.run("attach", "deaf", check=False)
    assert late.returncode == 1
    assert "cannot attach a container in a completed pod" in late.stderr
