"""kubectl logs, with every option that a real node honours."""

from __future__ import annotations

import hashlib
import subprocess
import time
from datetime import UTC, datetime

import pytest

from tests.support.kube import Kube, simple_pod
from tests.support.until import until

pytestmark = [pytest.mark.cluster, pytest.mark.containerd]


def lines_pod(name: str, count: int) -> dict[str, object]:
    script = f"i=1; while [ $i -le {count} ]; do echo line $i; i=$((i+1)); done; sleep 3600"
    return simple_pod(name, ["sh", "-c", script])


def wait_for_line(kube: Kube, pod: str, line: str) -> None:
    until(lambda: line in kube.out("logs", pod), f"{line!r} in the log of {pod}")


def test_all_tail_and_limit(kube: Kube) -> None:
    kube.apply(lines_pod("talker", 20))
    kube.wait_phase("talker", "Running")
    wait_for_line(kube, "talker", "line 20\n")
    everything = "".join(f"line {i}\n" for i in range(1, 21))
    assert kube.out("logs", "talker") == everything
    assert kube.out("logs", "talker", "--tail=3") == "line 18\nline 19\nline 20\n"
    assert kube.out("logs", "talker", "--tail=0") == ""
    assert kube.out("logs", "talker", "--limit-bytes=10") == everything[:10]


def test_since_and_timestamps(kube: Kube) -> None:
    begun = datetime.now(UTC)
    script = "echo early; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo late; sleep 3600"
    kube.apply(simple_pod("timed", ["sh", "-c", script]))
    kube.wait_phase("timed", "Running")
    wait_for_line(kube, "timed", "early\n")
    seen = datetime.now(UTC)
    time.sleep(2)  # the option knows whole seconds only
    between = datetime.now(UTC)
    kube.out("exec", "timed", "--", "touch", "/tmp/go")
    wait_for_line(kube, "timed", "late\n")
    stamped = kube.out("logs", "timed", "--timestamps").splitlines()
    early, late = (
        datetime.fromisoformat(line.split(" ", 1)[0][:26] + "+00:00") for line in stamped
    )
    assert [line.split(" ", 1)[1] for line in stamped] == ["early", "late"]
    # On one machine, of one clock.
    assert begun <= early <= seen and between <= late <= datetime.now(UTC)
    since = between.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert kube.out("logs", "timed", f"--since-time={since}") == "late\n"
    assert kube.out("logs", "timed", "--since=1h") == "early\nlate\n"


def test_follow_ends_with_the_container(kube: Kube) -> None:
    kube.apply(
        simple_pod(
            "counter",
            ["sh", "-c", "for i in 1 2 3 4 5; do echo tick $i; sleep 0.4; done"],
            restart="Never",
        )
    )
    kube.wait_phase("counter", "Running", "Succeeded")
    assert kube.out("logs", "-f", "counter") == "".join(f"tick {i}\n" for i in range(1, 6))


def test_follow_shows_a_line_soon_after_it_was_written(kube: Kube) -> None:
    kube.apply(
        simple_pod(
            "live",
            [
                *("sh", "-c"),
                "echo early; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo now; sleep 3600",
            ],
        )
    )
    kube.wait_phase("live", "Running")
    with kube.popen("logs", "-f", "live", stdout=subprocess.PIPE, bufsize=0) as follower:
        try:
            assert follower.stdout is not None
            assert follower.stdout.readline() == b"early\n"  # it follows
            kube.out("exec", "live", "--", "touch", "/tmp/go")
            started = time.monotonic()
            assert follower.stdout.readline() == b"now\n"
            assert time.monotonic() - started < 15.0, "not only when something else happens"
        finally:
            follower.terminate()


def test_previous_instance(kube: Kube) -> None:
    kube.apply(simple_pod("again", ["sh", "-c", "echo instance; echo oops >&2; exit 3"]))
    until(
        lambda: any(
            c["restartCount"] >= 1 for c in kube.pod("again")["status"].get("containerStatuses", ())
        ),
        "a restart",
        timeout=60,
    )
    # The two streams are two pipes: which line is first in the log is chance.
    lines = kube.out("logs", "again", "--previous").splitlines()
    assert sorted(lines) == ["instance", "oops"]
    alone = kube.run("logs", "-p", "again", "-c", "nope", check=False)
    assert alone.returncode == 1
    assert "container nope is not valid for pod again" in alone.stderr


def test_previous_that_never_was(kube: Kube) -> None:
    kube.apply(simple_pod("first"))
    kube.wait_phase("first", "Running")
    done = kube.run("logs", "first", "--previous", check=False)
    assert done.returncode == 1
    assert 'previous terminated container "main" in pod "first" not found' in done.stderr


def test_container_that_still_waits(kube: Kube) -> None:
    kube.apply(
        simple_pod("absent", image="no-such-image:1", container={"imagePullPolicy": "Never"})
    )
    until(
        lambda: "ErrImageNeverPull" in kube.out("get", "pod", "absent"),
        "ErrImageNeverPull",
        show=lambda: kube.describe("absent"),
    )
    done = kube.run("logs", "absent", check=False)
    assert done.returncode == 1
    assert 'container "main" in pod "absent" is waiting to start' in done.stderr


def test_logs_of_a_deployment_with_prefixes(kube: Kube) -> None:
    kube.apply(simple_pod("a", ["sh", "-c", "echo from a; sleep 3600"], labels={"set": "x"}))
    kube.apply(simple_pod("b", ["sh", "-c", "echo from b; sleep 3600"], labels={"set": "x"}))
    kube.wait_phase("a", "Running")
    kube.wait_phase("b", "Running")
    until(
        lambda: (
            sorted(kube.out("logs", "-l", "set=x", "--prefix").splitlines())
            == ["[pod/a/main] from a", "[pod/b/main] from b"]
        ),
        "both lines",
    )


@pytest.mark.timeout(600)
def test_100_mb_followed_arrive_whole(kube: Kube) -> None:
    # 1,600,000 lines of 64 bytes; the sum is made from what must have been written.
    lines = 1_600_000
    script = (
        "echo ready; while [ ! -e /tmp/go ]; do sleep 0.05; done; "
        f"yes 'the quick brown fox jumps over the lazy dog, again and again. ' | head -n {lines}; "
        # containerd's shim drops what the disk has not taken 2 s after the end of a container.
        "sleep 5"
    )
    kube.apply(simple_pod("flood", ["sh", "-c", script], restart="Never"))
    kube.wait_phase("flood", "Running")
    line = b"the quick brown fox jumps over the lazy dog, again and again. \n"
    expected = hashlib.sha256()
    for _ in range(lines // 1000):
        expected.update(line * 1000)
    got = hashlib.sha256()
    size = 0
    with kube.popen("logs", "-f", "flood", stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        # From here on the log may be rotated: who comes later reads only what is left.
        assert follower.stdout.readline() == b"ready\n"
        kube.out("exec", "flood", "--", "touch", "/tmp/go")
        while piece := follower.stdout.read(1 << 20):
            got.update(piece)
            size += len(piece)
    assert follower.returncode == 0
    assert size == lines * len(line)
    assert got.hexdigest() == expected.hexdigest()
