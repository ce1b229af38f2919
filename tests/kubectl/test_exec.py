"""kubectl exec and cp feel like a real node."""

from __future__ import annotations

import hashlib
import os
import pty
import random
import select
import struct
import subprocess
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest

from tests.support.kube import Kube, simple_pod

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


@pytest.fixture
def shell(kube: Kube) -> Kube:
    """A namespace with a running Pod called `shell`."""
    kube.apply(simple_pod("shell"))
    kube.wait_phase("shell", "Running")
    return kube


def test_output_and_exit_code(shell: Kube) -> None:
    done = shell.run(
        "exec", "shell", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False
    )
    assert done.stdout == "out\n"
    assert done.stderr.startswith("err\n")
    assert "exit code 7" in done.stderr
    assert done.returncode == 7


def test_stdin_ends_and_comes_back(shell: Kube) -> None:
    done = shell.run("exec", "-i", "shell", "--", "sh", "-c", "cat; echo done", input="hello\n")
    assert done.stdout == "hello\ndone\n"


def test_unknown_command(shell: Kube) -> None:
    done = shell.run("exec", "shell", "--", "no-such-program", check=False)
    assert done.returncode != 0
    assert "no-such-program" in done.stderr
    assert "executable file not found" in done.stderr or "not found" in done.stderr


def test_unknown_container_and_pod(shell: Kube) -> None:
    done = shell.run("exec", "shell", "-c", "nope", "--", "true", check=False)
    assert done.returncode == 1
    assert "container nope is not valid for pod shell" in done.stderr
    done = shell.run("exec", "nobody", "--", "true", check=False)
    assert 'pods "nobody" not found' in done.stderr


def test_container_that_has_ended(kube: Kube) -> None:
    kube.apply(simple_pod("over", ["true"], restart="Never"))
    kube.wait_phase("over", "Succeeded")
    done = kube.run("exec", "over", "--", "true", check=False)
    assert done.returncode == 1
    assert (
        "cannot exec into a container in a completed pod; current phase is Succeeded" in done.stderr
    )


@pytest.mark.timeout(600)
def test_50_mb_through_stdin_and_back(shell: Kube, tmp_path: Path) -> None:
    block = random.Random(7).randbytes(1 << 20)
    source = tmp_path / "source"
    with source.open("wb") as out:
        for i in range(50):
            out.write(i.to_bytes(4) + block[4:])
    expected = hashlib.sha256(source.read_bytes()).hexdigest()
    got = hashlib.sha256()
    size = 0
    with (
        source.open("rb") as stdin,
        shell.popen(
            "exec", "-i", "shell", "--", "cat", stdin=stdin, stdout=subprocess.PIPE
        ) as session,
    ):
        assert session.stdout is not None
        while piece := session.stdout.read(1 << 20):
            got.update(piece)
            size += len(piece)
        assert session.wait(60) == 0
    assert size == 50 << 20
    assert got.hexdigest() == expected


def test_terminal_with_resize(shell: Kube) -> None:
    main, secondary = pty.openpty()
    ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 101, 0, 0))
    with shell.popen(
        "exec", "-it", "shell", "--", "sh", stdin=secondary, stdout=secondary, stderr=secondary
    ) as session:
        os.close(secondary)
        text = b""

        def say(line: bytes) -> None:
            os.write(main, line + b"\n")

        def expect(what: bytes) -> None:
            nonlocal text
            deadline = time.monotonic() + 60
            while what not in text:
                left = deadline - time.monotonic()
                assert left > 0, f"{what!r} not in {text!r}"
                if select.select([main], [], [], left)[0]:
                    text += os.read(main, 4096)

        def expect_size(size: bytes) -> None:
            """Asked again and again: a size travels beside the input, in no order."""
            nonlocal text
            deadline = time.monotonic() + 60
            text = b""
            while size not in text:
                assert time.monotonic() < deadline, f"{size!r} not in {text!r}"
                text = b""
                say(b"stty size; echo again-$((50+1))")
                expect(b"again-51")

        try:
            expect(b"#")
            expect_size(b"30 101")
            ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 133, 0, 0))
            session.send_signal(28)  # SIGWINCH: kubectl reads the new size
            expect_size(b"44 133")
            say(b"tty; exit 5")
            expect(b"/dev/")
            assert session.wait(60) == 5
        finally:
            session.kill()
            os.close(main)


def test_cp_both_ways(shell: Kube, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "data").write_bytes(random.Random(3).randbytes(300_000))
    (folder / "hello.txt").write_text("hello\n")
    shell.out("cp", str(folder), "shell:/tmp/copied")
    assert shell.out("exec", "shell", "--", "cat", "/tmp/copied/hello.txt") == "hello\n"
    shell.out("cp", "shell:/tmp/copied", str(tmp_path / "back"))
    assert (tmp_path / "back" / "below" / "data").read_bytes() == (
        folder / "below" / "data"
    ).read_bytes()


def test_ten_sessions_at_once(shell: Kube) -> None:
    sessions = [
        shell.popen(
            "exec", "shell", "--", "sh", "-c", f"sleep 0.5; echo {i}", stdout=subprocess.PIPE
        )
        for i in range(10)
    ]
    outs = [s.communicate(timeout=60)[0] for s in sessions]
    assert outs == [f"{i}\n".encode() for i in range(10)]
