"""Volumes: on a real containerd, and the rules that keep them inside their folder."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

import pytest

from tests.cri.harness import Harness, add, pod, with_volume
from tests.cri.mounted import mounted_below
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


@pytest.mark.containerd
async def test_files_are_there_with_their_modes_and_owners(harness: Harness) -> None:
    spec = pod(
        "cat /c/a /c/deep/er/b",
        "stat -L -c '%a %u %g' /c/a /s/key",
        "stat -c '%a %u %g' /s/key /s",
        "(echo x > /c/new) 2>&1 || :",
    )
    spec.security.fs_group = 2000
    files(with_volume(spec, "config", "/c"), {"a": b"A\n", "deep/er/b": b"B\n"})
    secret = with_volume(spec, "secret", "/s")
    files(secret, {"key": b"K"}, mode=0o400)
    secret.files.sensitive = True
    secret.files.files[0].user = 1000
    _, log = await harness.run(spec)
    assert log.splitlines()[:6] == [
        *("A", "B", "644 0 2000", "440 1000 2000"),
        *("777 1000 2000", "3777 0 2000"),
    ]
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
    mounted = Path("/proc/self/mountinfo").read_text().splitlines()
    ours = [line for line in mounted if str(harness.options.state_dir) in line]
    assert not [line for line in ours if "subpaths" in line]
    assert (await harness.log(ref)).startswith("conf")


@pytest.mark.containerd
@pytest.mark.parametrize("sub_path", ["root/etc", "out", "up/x", "up/../../x", "dangling"])
async def test_a_sub_path_cannot_lead_out_of_its_volume(harness: Harness, sub_path: str) -> None:
    spec = pod(
        "ln -s /etc /data/out",
        "ln -s / /data/root",
        "ln -s .. /data/up",
        "ln -s /no /data/dangling",
    )
    add(spec, "ls /stolen", name="thief")
    with_volume(spec, "data", "/data").empty_dir.SetInParent()
    spec.containers[1].mounts.add(volume="data", path="/stolen", sub_path=sub_path)
    sandbox, ref = await harness.start(spec)
    await harness.exit_of(ref)
    with pytest.raises(Failure) as refused:
        await harness.start_in(spec, sandbox, spec.containers[1])
    assert refused.value.reason == "CreateContainerConfigError"
    assert refused.value.message == (
        'failed to prepare subPath for volumeMount "data" of container "thief"'
    )


@pytest.mark.containerd
async def test_a_sub_path_follows_links_inside_its_volume(harness: Harness) -> None:
    spec = pod("mkdir -p /data/a/b", "echo in > /data/a/b/file", "ln -s a/../a/b /data/link")
    add(spec, "cat /link/file; cat /file", name="reader")
    with_volume(spec, "data", "/data").empty_dir.SetInParent()
    spec.containers[1].mounts.add(volume="data", path="/link", sub_path="link")
    spec.containers[1].mounts.add(volume="data", path="/file", sub_path="link/file")
    sandbox, ref = await harness.start(spec)
    await harness.exit_of(ref)
    reader = await harness.start_in(spec, sandbox, spec.containers[1])
    await harness.exit_of(reader)
    assert await harness.log(reader) == "in\nin\n"


@pytest.mark.containerd
async def test_an_fs_group_may_write_into_volumes_and_new_sub_paths(harness: Harness) -> None:
    spec = pod(
        "stat -c '%a %g' /data /ram /made",
        "touch /made/x /ram/y && stat -c '%g' /made/x /ram/y",
        "stat -L -c '%a %g' /c /c/..data/ /c/sub /c/sub/b",
    )
    spec.security.fs_group = 2000
    security = spec.containers[0].security
    security.run_as_user, security.run_as_group = 1000, 1000
    with_volume(spec, "data", "/data").empty_dir.SetInParent()
    with_volume(spec, "ram", "/ram").empty_dir.memory = True
    files(with_volume(spec, "config", "/c"), {"sub/b": b"B"}, mode=0o400)
    spec.containers[0].mounts.add(volume="data", path="/made", sub_path="new/deep")
    _, log = await harness.run(spec)
    lines = log.splitlines()
    assert lines[:3] == ["2777 2000", "3777 2000", "2777 2000"]
    assert lines[3:5] == ["2000", "2000"]
    assert lines[5:] == ["2777 2000", "2755 2000", "2755 2000", "440 2000"]


@pytest.mark.containerd
async def test_volumes_nest_whatever_their_order(harness: Harness) -> None:
    spec = pod("cat /a/b/key", "touch /a/mine && ls /a")
    main = spec.containers[0]
    main.mounts.add(volume="inner", path="/a/b", read_only=True)
    main.mounts.add(volume="outer", path="/a")
    spec.volumes.add(name="outer").empty_dir.SetInParent()
    files(spec.volumes.add(name="inner"), {"key": b"value\n"})
    _, log = await harness.run(spec)
    assert log.split() == ["value", "b", "mine"]


@pytest.mark.containerd
async def test_a_volume_in_memory_is_no_larger_than_its_pods_memory(harness: Harness) -> None:
    spec = pod("df -k /small /ram /any | tail -n +2 | sed 's/  */ /g' | cut -d' ' -f2")
    spec.containers[0].resources.limits["memory"] = "64Mi"
    for name, limit in (("small", "1Mi"), ("ram", ""), ("any", "1Ti")):
        with_volume(spec, name, f"/{name}").empty_dir.CopyFrom(
            spec_pb2.EmptyDir(memory=True, size_limit=limit)
        )
    _, log = await harness.run(spec)
    assert log.split() == ["1024", "65536", "65536"]


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


def test_a_state_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    spec = pod()
    volumes = Volumes(Layout(tmp_path / "s", tmp_path / "m"), ())
    volumes.prepare(spec, 1 << 30)
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


@pytest.mark.containerd
@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("step", ["os.chown", "pathlib.Path.chmod", "mounts.mount_tmpfs"])
def test_a_volume_that_was_half_set_up_is_whole_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool, step: str
) -> None:
    spec = pod()
    spec.security.fs_group = 2000
    with_volume(spec, "data", "/data").empty_dir.memory = memory
    layout = Layout(tmp_path / "s", tmp_path / "m")
    volumes = Volumes(layout, ())

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        if step == "mounts.mount_tmpfs":
            broken.setattr(mounts, "mount_tmpfs", fail)
        else:
            broken.setattr(step, fail)
        with contextlib.suppress(Failure):
            volumes.prepare(spec, 1 << 20)
    volumes.prepare(spec, 1 << 20)
    folder = layout.volume(spec.uid, "data", memory=memory)
    (folder / "kept").touch()
    volumes.prepare(spec, 1 << 20)
    try:
        status = folder.stat()
        assert stat.S_IMODE(status.st_mode) == (0o3777 if memory else 0o2777)
        assert status.st_gid == 2000
        assert mounts.is_tmpfs(folder) == folder.is_mount() == memory
        assert [path.name for path in folder.iterdir()] == ["kept"]
    finally:
        volumes.remove(spec.uid)
        volumes.close()
    assert mounted_below(tmp_path) == []
