"""Volumes: on a real containerd, and the rules that keep them inside their folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cri.harness import Harness, add, pod
from vknode.pool.runtimes.cri import filesvolume, mounts
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.volumes import Volumes
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2


def files(volume: spec_pb2.Volume, content: dict[str, bytes], mode: int = 0o644) -> None:
    del volume.files.files[:]
    volume.files.SetInParent()
    for path, data in content.items():
        volume.files.files.add(path=path, content=data, mode=mode)


def with_volume(spec: spec_pb2.SandboxSpec, name: str, path: str) -> spec_pb2.Volume:
    for container in spec.containers:
        container.mounts.add(volume=name, path=path)
    return spec.volumes.add(name=name)


@pytest.mark.containerd
async def test_files_are_there_with_their_modes_and_owners(harness: Harness) -> None:
    spec = pod(
        "cat /c/a /c/deep/er/b", "stat -L -c '%a %u %g' /c/a /s/key", "(echo x > /c/new) 2>&1 || :"
    )
    spec.security.fs_group = 2000
    files(with_volume(spec, "config", "/c"), {"a": b"A\n", "deep/er/b": b"B\n"})
    secret = with_volume(spec, "secret", "/s")
    files(secret, {"key": b"K"}, mode=0o400)
    secret.files.sensitive = True
    secret.files.files[0].user = 1000
    _, log = await harness.run(spec)
    assert log.splitlines()[:4] == ["A", "B", "644 0 2000", "440 1000 2000"]
    assert "Read-only file system" in log
    on_disk = [p for p in (harness.options.state_dir / "pods").rglob("*") if p.name == "key"]
    assert on_disk == [], "a secret must never be on the disk"


@pytest.mark.containerd
async def test_an_update_is_seen_all_at_once(harness: Harness) -> None:
    script = 'while [ "$(cat /c/a)" != 2 ]; do sleep 0.02; done; cat /c/b; ls /c'
    spec = pod(script)
    volume = with_volume(spec, "config", "/c")
    files(volume, {"a": b"1", "b": b"old\n", "gone": b""})
    _, ref = await harness.start(spec)
    new = spec_pb2.SandboxSpec.FromString(spec.SerializeToString())
    files(new.volumes[0], {"a": b"2", "b": b"new\n"})
    await harness.runtime.update_sandbox(spec, new)
    await harness.exit_of(ref)
    assert (await harness.log(ref)).split() == ["new", "a", "b"]


@pytest.mark.containerd
async def test_an_empty_dir_is_shared_and_outlives_a_container(harness: Harness) -> None:
    spec = pod("echo kept > /data/file")
    add(spec, "cat /data/file; stat -c %a /data", name="reader")
    with_volume(spec, "data", "/data").empty_dir.SetInParent()
    sandbox, ref = await harness.start(spec)
    await harness.exit_of(ref)
    await harness.runtime.remove_container(ref, keep_log=False)
    reader = await harness.start_in(spec, sandbox, spec.containers[1])
    await harness.exit_of(reader)
    assert await harness.log(reader) == "kept\n777\n"


@pytest.mark.containerd
async def test_an_empty_dir_in_memory_has_its_limit(harness: Harness) -> None:
    spec = pod(
        "grep ' /ram ' /proc/mounts | cut -d' ' -f1",
        "head -c 2m /dev/zero > /ram/big 2>/dev/null || echo full",
    )
    with_volume(spec, "ram", "/ram").empty_dir.CopyFrom(
        spec_pb2.EmptyDir(memory=True, size_limit="1Mi")
    )
    _, log = await harness.run(spec)
    assert log.split() == ["tmpfs", "full"]


@pytest.mark.containerd
async def test_a_sub_path_is_mounted_made_and_given_back(harness: Harness) -> None:
    spec = pod("cat /etc/app.conf", "echo in > /made/x", "ls /all")
    files(with_volume(spec, "config", "/ignored"), {"app.conf": b"conf\n"})
    with_volume(spec, "data", "/all").empty_dir.SetInParent()
    main = spec.containers[0].mounts
    main.add(volume="config", path="/etc/app.conf", sub_path="app.conf", read_only=True)
    main.add(volume="data", path="/made", sub_path="some/folder")
    _, ref = await harness.start(spec)
    await harness.exit_of(ref)
    assert (await harness.log(ref)).split() == ["conf", "some"]
    await harness.runtime.remove_container(ref, keep_log=True)
    assert "subpaths" not in Path("/proc/self/mountinfo").read_text()
    assert (await harness.log(ref)).startswith("conf")


@pytest.mark.containerd
async def test_a_sub_path_cannot_lead_out_of_its_volume(harness: Harness) -> None:
    spec = pod("ln -s /etc /data/out", "ln -s / /data/root")
    add(spec, "ls /stolen", name="thief")
    with_volume(spec, "data", "/data").empty_dir.SetInParent()
    spec.containers[1].mounts.add(volume="data", path="/stolen", sub_path="root/etc")
    sandbox, ref = await harness.start(spec)
    await harness.exit_of(ref)
    thief = await harness.start_in(spec, sandbox, spec.containers[1])
    await harness.exit_of(thief)
    assert await harness.log(thief) == "", "the link must end inside the volume"


@pytest.mark.containerd
async def test_a_host_path_needs_permission_and_its_type(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "ok").mkdir()
    (tmp_path / "ok" / "file").write_text("host\n")
    (tmp_path / "ok" / "link").symlink_to("/etc")
    spec = pod("cat /host/file")
    volume = with_volume(spec, "host", "/host")
    volume.host_path.path = str(tmp_path / "ok")
    assert [p.path for p in harness.runtime.problems(spec)] == ["volumes[0].host_path"]
    allowed = Harness(
        Path(harness.options.endpoint),
        harness.options.state_dir,
        harness.options.pool,
        host_path_prefixes=(str(tmp_path),),
    )
    await allowed.connect()
    assert allowed.runtime.problems(spec) == []
    _, log = await allowed.run(spec)
    assert log == "host\n"
    for path, kind in ((tmp_path / "ok" / "link", ""), (tmp_path / "ok", "Socket")):
        other = pod()
        wrong = with_volume(other, "host", "/host")
        wrong.host_path.path, wrong.host_path.type = str(path), kind
        with pytest.raises(Failure):
            await allowed.runtime.run_sandbox(other, 0)
    await allowed.clear()
    await allowed.disconnect()


def test_readers_of_files_never_see_a_mixture(tmp_path: Path) -> None:
    first, second = spec_pb2.Files(), spec_pb2.Files()
    for key in ("a", "b"):
        first.files.add(path=key, content=b"1", mode=0o600)
        second.files.add(path=key, content=b"2", mode=0o644)
    assert filesvolume.write(tmp_path, first, fs_group=None)
    assert not filesvolume.write(tmp_path, first, fs_group=None), "nothing changed"
    held = os.open(tmp_path / "..data", os.O_PATH)
    assert filesvolume.write(tmp_path, second, fs_group=None)
    os.close(held)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"2"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    assert len([p for p in tmp_path.iterdir() if p.name.startswith("..2")]) == 1


def test_a_crash_in_the_middle_of_an_update_is_cleaned_up(tmp_path: Path) -> None:
    content = spec_pb2.Files()
    content.files.add(path="a", content=b"1", mode=0o600)
    filesvolume.write(tmp_path, content, fs_group=None)
    (tmp_path / "..2020_01_01_00_00_00.1").mkdir()
    (tmp_path / "..data_tmp").symlink_to("nowhere")
    content.files[0].content = b"2"
    filesvolume.write(tmp_path, content, fs_group=None)
    assert (tmp_path / "a").read_bytes() == b"2"
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 3 and "..data_tmp" not in names
    (tmp_path / "a").unlink()  # or right before the last step
    assert not filesvolume.write(tmp_path, content, fs_group=None)
    assert (tmp_path / "a").read_bytes() == b"2"


def test_a_host_path_is_looked_at_anew_for_every_instance(tmp_path: Path) -> None:
    """Whoever may write below the prefix can make a link of a folder meanwhile."""
    (tmp_path / "ok" / "data").mkdir(parents=True)
    spec = pod()
    with_volume(spec, "host", "/host").host_path.path = str(tmp_path / "ok" / "data")
    volumes = Volumes(Layout(tmp_path / "s", tmp_path / "m"), (str(tmp_path / "ok"),))
    volumes.prepare(spec)
    mount = volumes.container_mounts(spec, spec.containers[0], 0)[0]
    assert mount.host_path == str(tmp_path / "ok" / "data")
    (tmp_path / "ok" / "data").rename(tmp_path / "ok" / "real")
    (tmp_path / "ok" / "data").symlink_to(tmp_path / "ok" / "real")
    mount = volumes.container_mounts(spec, spec.containers[0], 1)[0]
    assert mount.host_path == str(tmp_path / "ok" / "real"), "the runtime follows no link"
    (tmp_path / "ok" / "data").unlink()
    (tmp_path / "ok" / "data").symlink_to("/etc")
    with pytest.raises(Failure, match="does not allow"):
        volumes.container_mounts(spec, spec.containers[0], 2)


def test_a_state_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    spec = pod()
    volumes = Volumes(Layout(tmp_path / "s", tmp_path / "m"), ())
    volumes.prepare(spec)
    (tmp_path / "s" / "pods" / spec.uid / "logs" / "main").write_text("in the way")
    with pytest.raises(Failure, match="EEXIST") as failure:
        volumes.container_mounts(spec, spec.containers[0], 0)
    assert failure.value.reason == "CreateContainerConfigError"


def test_links_are_resolved_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "v" / "up").symlink_to("../outside")
    root = os.open(tmp_path / "v", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(FileNotFoundError):
            mounts.open_in_root(root, "up")
    finally:
        os.close(root)
