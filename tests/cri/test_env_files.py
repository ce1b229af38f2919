"""Environment from files in a volume (fileKeyRef)."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cri.harness import PATIENCE, Harness, add, pod
from vknode.pool.runtimes.cri import envfile
from vknode.pool.runtimes.cri.images import Images
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.preparing import Preparer
from vknode.pool.runtimes.cri.volumes import Volumes
from vknode.pool.runtimes.facts import Failure
from vknode.pool.runtimes.tokens import with_files, with_ips
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
    container: spec_pb2.Container,
    name: str,
    key: str,
    path: str = "env",
    *,
    optional: bool = False,
    token: str = "",
    otherwise: str | None = None,
) -> None:
    file = spec_pb2.EnvFile(volume="shared", path=path, key=key, optional=optional, token=token)
    if otherwise is not None:
        file.otherwise = otherwise
    container.env.add(name=name, file=file)


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
async def test_a_value_from_a_file_stands_wherever_its_token_is(harness: Harness) -> None:
    spec = pod("printf \"A='1@B@'\\n\" > /shared/env; mkdir /shared/1@B@; echo in >/shared/1@B@/f")
    reader = add(spec, 'echo "$C $1 $2 $(cat /sub/f)"', name="reader")
    spec.volumes.add(name="shared").empty_dir.SetInParent()
    spec.containers[0].mounts.add(volume="shared", path="/shared")
    reader.mounts.add(volume="shared", path="/sub", sub_path="@A@/.")
    variable(reader, "A", "A", token="@A@")
    variable(reader, "B", "B", token="@B@", optional=True)
    variable(reader, "D", "D", token="@D@", optional=True, otherwise="<@A@>")
    reader.env.add(name="C", value="[@A@,@B@,@D@]")
    reader.args.extend(["sh", "@A@", "x@D@"])
    sandbox, writer = await harness.start(spec)
    await harness.exit_of(writer)
    ref = await harness.start_in(spec, sandbox, reader)
    await harness.exit_of(ref)
    # What a file holds is not searched again.
    assert await harness.log(ref) == "[1@B@,$(B),<1@B@>] 1@B@ x<1@B@> in\n"


_PATHS = [
    (b"a/b", None, "a/b"),
    (b"/a", None, "error SubPath `/a` must not be an absolute path"),
    (b"a\0b", None, "error SubPath must not hold a NUL character"),
    (b"a/../b", None, "unable to provision SubPath `a/../b`: must not contain '..'"),
    (None, None, "missing value for F"),
    (None, "", "missing value for F"),
    (None, "x", "x"),
]


@pytest.mark.parametrize(("value", "otherwise", "said"), _PATHS)
def test_a_sub_path_from_a_file_stays_in_its_volume(
    value: bytes | None, otherwise: str | None, said: str
) -> None:
    container = spec_pb2.Container(mounts=[spec_pb2.Mount(sub_path="T")])
    variable(container, "F", "K", token="T", otherwise=otherwise)
    try:
        found = with_files(container, {0: value}).mounts[0].sub_path
    except Failure as failure:
        assert failure.reason == "CreateContainerConfigError"
        found = failure.message
    assert found == said


def test_a_sub_path_with_the_ip_needs_one() -> None:
    spec = spec_pb2.SandboxSpec(pod_ip_token="IP", pod_ips_token="ALL")
    container = spec_pb2.Container(args=["ALL"], mounts=[spec_pb2.Mount(sub_path="a/IP")])
    found = with_ips(spec, container, ["10.0.0.1", "fd00::1"])
    assert (list(found.args), found.mounts[0].sub_path) == (["10.0.0.1,fd00::1"], "a/10.0.0.1")
    with pytest.raises(Failure, match="missing value for the Pod's IP"):
        with_ips(spec, container, [])


def test_of_two_tokens_that_begin_alike_the_longer_one_is_meant() -> None:
    spec = spec_pb2.SandboxSpec(pod_ip_token="@IP", pod_ips_token="@IPS")
    found = with_ips(spec, spec_pb2.Container(args=["@IPS @IP"]), ["10.0.0.1", "fd00::1"])
    assert list(found.args) == ["10.0.0.1,fd00::1 10.0.0.1"]


_TOKENS = ("@f:0@", "@f:1@", "@f:2@")
_PIECES = st.lists(st.sampled_from([*_TOKENS, "", "@", "f:", "$(A)", "x"]), max_size=6)


@given(st.lists(_PIECES, min_size=1, max_size=4), st.lists(st.binary(max_size=4), max_size=3))
def test_tokens_alone_are_replaced(texts: list[list[str]], values: list[bytes]) -> None:
    container = spec_pb2.Container(args=["".join(pieces) for pieces in texts])
    for number, token in enumerate(_TOKENS):
        variable(container, f"V{number}", "K", token=token)
    before = container.SerializeToString()
    found = with_files(container, dict(enumerate(values)))
    assert container.SerializeToString() == before
    says = {token: f"$(V{number})" for number, token in enumerate(_TOKENS)}
    says |= {_TOKENS[n]: value.decode(errors="replace") for n, value in enumerate(values)}
    assert list(found.args) == ["".join(says.get(one, one) for one in pieces) for pieces in texts]


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
            await harness.runtime.exec_sync(writer, ["sh", "-c", write, "sh", text], PATIENCE)
        with pytest.raises(Failure) as failed:
            await harness.start_in(spec, sandbox, reader)
        assert failed.value.reason == "CreateContainerConfigError"
        assert failed.value.message.startswith(why)
    await harness.runtime.exec_sync(writer, ["sh", "-c", write, "sh", "A='there'\n"], PATIENCE)
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
    task = asyncio.create_task(preparer.container(spec, main, 0, ()))
    while not begun.is_set():
        await asyncio.sleep(0)
    go.set()
    await task
    found = (await preparer.take(spec, main, 0, ())).environment
    assert found == {n: f"{'env' if n % 2 else 'other'}-{n}".encode() for n in range(50)}
    assert len(parsed) == 2
