"""Environment from files in a volume (fileKeyRef)."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cri.harness import Harness, add, pod
from vknode.pool.runtimes.cri import envfile
from vknode.pool.runtimes.cri.images import Images
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.preparing import Preparer
from vknode.pool.runtimes.cri.volumes import Volumes
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

FILE = b"""# comment
  LEADING='white space'
\tTAB='x' # comment

PLAIN='a=b # no comment $HOME \\n "quoted"'
EMPTY=''
BLANK='  '
SHELL=  'is empty'
LINES='one
two

'  # three
DOS='line'\r
"""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("LEADING", "white space"),
        ("TAB", "x"),
        ("PLAIN", 'a=b # no comment $HOME \\n "quoted"'),
        ("EMPTY", ""),
        ("BLANK", "  "),
        ("SHELL", ""),
        ("LINES", "one\ntwo\n\n"),
        ("DOS", "line"),
        ("MISSING", ""),
        ("LEADIN", ""),
    ],
)
def test_values_stand_between_single_quotes(key: str, value: str) -> None:
    assert envfile.parse(FILE).value(key.encode()).decode() == value


@pytest.mark.parametrize(
    "text",
    [
        "A='1'\nno equals sign\nB='2'",
        "A ='1'\nB='2'",
        "='1'\nB='2'",
        "A=1\nB='2'",
        "A=\"1\"\nB='2'",
        "A='1'2\nB='2'",
        "A='1''1'\nB='2'",
        "A='1\nB='2'",
        "A='1",
        "A='" + "x" * 70_000 + "'\nB='2'",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(envfile.EnvFileError):
        envfile.parse(text.encode()).value(b"B")


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=3))
def test_any_file_is_read_or_refused(data: bytes, key: bytes) -> None:
    try:
        value = envfile.parse(data).value(key)
    except envfile.EnvFileError:
        return
    assert value == b"" or value in data.replace(b"\r\n", b"\n")


def variable(
    container: spec_pb2.Container, name: str, key: str, path: str = "env", *, optional: bool = False
) -> None:
    container.env.add(name=name).file.CopyFrom(
        spec_pb2.EnvFile(volume="shared", path=path, key=key, optional=optional)
    )


@pytest.mark.containerd
async def test_a_container_has_what_one_before_it_wrote(harness: Harness) -> None:
    spec = pod("mkdir /shared/sub; printf \"A='1'\\nB='2\\n3'\\n\" > /shared/sub/env")
    reader = add(spec, 'echo "[$A][$B][${C-unset}][${D-unset}]"', name="reader")
    spec.volumes.add(name="shared").empty_dir.SetInParent()
    spec.containers[0].mounts.add(volume="shared", path="/shared")
    variable(reader, "A", "A", "sub/env")
    variable(reader, "B", "B", "sub/env")
    variable(reader, "C", "C", "sub/env", optional=True)
    variable(reader, "D", "D", "no/file", optional=True)
    sandbox, writer = await harness.start(spec)
    await harness.exit_of(writer)
    assert harness.runtime.problems(spec) == []
    ref = await harness.start_in(spec, sandbox, reader)
    await harness.exit_of(ref)
    assert await harness.log(ref) == "[1][2\n3][unset][unset]\n"


@pytest.mark.containerd
async def test_what_is_missing_holds_the_container_until_it_is_there(harness: Harness) -> None:
    spec = pod("echo up; until [ -e /shared/go ]; do sleep 0.05; done; echo gone")
    reader = add(spec, 'echo "[$A]"', name="reader")
    spec.volumes.add(name="shared").empty_dir.memory = True
    spec.containers[0].mounts.add(volume="shared", path="/shared")
    variable(reader, "A", "A")
    sandbox, writer = await harness.start(spec)
    await harness.says(writer, "up")
    write = 'printf "%s" "$1" > /shared/env'
    for text, why in (
        (None, "couldn't parse env file"),
        ("A=unquoted\n", "couldn't parse env file"),
        ("B='other'\n", 'environment variable key "A" not found in file "'),
    ):
        if text is not None:
            await harness.runtime.exec_sync(writer, ["sh", "-c", write, "sh", text], 5)
        with pytest.raises(Failure) as failed:
            await harness.start_in(spec, sandbox, reader)
        assert failed.value.reason == "CreateContainerConfigError"
        assert failed.value.message.startswith(why)
    await harness.runtime.exec_sync(writer, ["sh", "-c", write, "sh", "A='there'\n"], 5)
    ref = await harness.start_in(spec, sandbox, reader)
    await harness.exit_of(ref)
    assert await harness.log(ref) == "[there]\n"


def test_nothing_outside_the_volume_is_read(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (tmp_path / "secret").write_text("A='stolen'\n")
    (volume / "up").symlink_to("../secret")
    (volume / "absolute").symlink_to(tmp_path / "secret")
    (volume / "folder").mkdir()
    os.mkfifo(volume / "pipe")
    (volume / "big").write_bytes(b"A='1'\n" + b"\n" * (2 << 20))
    (volume / "good").write_text("A='inside'\n")
    (volume / "link").symlink_to("/good")
    for path in ("up", "absolute", "folder", "pipe", "big"):
        with pytest.raises(Failure, match="couldn't parse env file"):
            envfile.EnvFiles().read(volume, spec_pb2.EnvFile(path=path, key="A"))
    assert envfile.EnvFiles().read(volume, spec_pb2.EnvFile(path="link", key="A")) == b"inside"


def test_only_an_empty_dir_holds_such_files(tmp_path: Path) -> None:
    spec = pod()
    variable(spec.containers[0], "A", "A")
    volumes = Volumes(Layout(tmp_path / "s", tmp_path / "m"), ())
    spec.volumes.add(name="shared").files.SetInParent()
    with pytest.raises(Failure) as failed:
        volumes.environment(spec, spec.containers[0])
    assert failed.value.message == 'cannot find the volume "shared" referenced by FileKeyRef'


async def test_files_are_read_once_for_a_start_and_not_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parse of the largest file takes half a second: no other Pod may wait for it."""
    spec = pod()
    main = spec.containers[0]
    for number in range(50):
        variable(main, f"V{number}", f"K{number}", "env" if number % 2 else "other")
    spec.volumes.add(name="shared").empty_dir.SetInParent()
    layout = Layout(tmp_path / "s", tmp_path / "m")
    volumes = Volumes(layout, ())
    volumes.prepare(spec, 1 << 30)
    folder = layout.volume(spec.uid, "shared", memory=False)
    for name in ("env", "other"):
        (folder / name).write_text("".join(f"K{n}='{name}-{n}'\n" for n in range(50)))
    parsed: list[int] = []
    begun, go = threading.Event(), threading.Event()
    parse = envfile.parse

    def slow(data: bytes) -> envfile.Parsed:
        parsed.append(len(data))
        begun.set()
        assert go.wait(30), "the event loop is blocked by it"
        return parse(data)

    monkeypatch.setattr(envfile, "parse", slow)
    preparer = Preparer(Images.__new__(Images), volumes, 30.0)
    task = asyncio.create_task(preparer.container(spec, main, 0))
    while not begun.is_set():
        await asyncio.sleep(0)
    go.set()
    await task
    found = (await preparer.take(spec, main, 0)).environment
    assert found == {n: f"{'env' if n % 2 else 'other'}-{n}".encode() for n in range(50)}
    assert len(parsed) == 2
