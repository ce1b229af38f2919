"""Paths of the host: allowed or not, of the right type, whatever others do to them meanwhile."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cri.harness import Harness, pod, with_volume
from tests.cri.mounted import bound, mounted_below, sharing
from vknode.pool.runtimes.cri import hostpath, mounts
from vknode.pool.runtimes.cri.images import Images
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.preparing import Preparer
from vknode.pool.runtimes.cri.volumes import Volumes
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2


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
    for path, kind, why in (
        (tmp_path / "ok" / "link", "", "hostPath {}: this pool does not allow Pods to mount it"),
        (
            tmp_path / "ok",
            "Socket",
            "hostPath type check failed: {} is not a socket file, it's a Directory",
        ),
    ):
        other = pod()
        wrong = with_volume(other, "host", "/host")
        wrong.host_path.path, wrong.host_path.type = str(path), kind
        with pytest.raises(Failure) as refused:
            await allowed.runtime.run_sandbox(other, 0)
        assert refused.value.reason == "FailedMount"
        assert refused.value.message == (
            f'MountVolume.SetUp failed for volume "host" : {why.format(path)}'
        )
    await allowed.clear()
    await allowed.disconnect()


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("Directory", "folder", ""),
        ("Directory", "file", "failed: {} is not a directory, it's a File"),
        (
            "Directory",
            "none",
            'failed, {} is not a directory, unable to determine its type: path "{}" does not exist',
        ),
        ("DirectoryOrCreate", "new/deep", ""),
        ("DirectoryOrCreate", "file", "failed: {} is not a directory, it's a File"),
        ("File", "file", ""),
        ("File", "folder", "failed: {} is not a file, it's a Directory"),
        ("FileOrCreate", "made", ""),
        ("Socket", "file", "failed: {} is not a socket file, it's a File"),
        ("CharDevice", "folder", "failed: {} is not a character device, it's a Directory"),
        ("BlockDevice", "file", "failed: {} is not a block device, it's a File"),
        ("", "none", ""),
    ],
)
def test_a_host_paths_type_is_checked_in_a_kubelets_words(
    tmp_path: Path, kind: str, name: str, why: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    path = tmp_path / name
    source = spec_pb2.HostPath(path=str(path), type=kind)
    if why:
        with pytest.raises(hostpath.HostPathError) as failed:
            hostpath.check(source, [str(tmp_path)])
        assert str(failed.value) == f"hostPath type check {why.replace('{}', str(path))}"
    else:
        hostpath.check(source, [str(tmp_path)])
        assert path.exists() == (kind != ""), "without a type it is made when it is mounted"
        with hostpath.opened(source, [str(tmp_path)]) as file:
            assert file.path == path
            assert os.path.samestat(os.fstat(file.descriptor), path.stat())


def test_a_file_cannot_be_made_where_its_folder_is_missing(tmp_path: Path) -> None:
    source = spec_pb2.HostPath(path=str(tmp_path / "none" / "file"), type="FileOrCreate")
    with pytest.raises(hostpath.HostPathError) as failed:
        hostpath.check(source, [str(tmp_path)])
    assert str(failed.value) == f"open {source.path}: no such file or directory"


def unshare() -> None:
    """The calling thread has a mount namespace of its own from now on."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x20000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


class Ground:
    """An allowed folder `ok` with `data` in it, a Pod that mounts that, and `secret` outside."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ok, self.data = folder, folder / "ok", folder / "ok" / "data"
        self.secret = folder / "secret"
        self.data.mkdir(parents=True)
        self.secret.mkdir()
        (self.data / "file").write_text("allowed")
        (self.secret / "file").write_text("stolen")
        self.volumes = Volumes(Layout(folder / "s", folder / "m"), (str(self.ok),))
        self.spec = pod()
        self.source = with_volume(self.spec, "host", "/host").host_path
        self.source.path = str(self.data)
        self.volumes.prepare(self.spec, 1 << 30)

    def swap(self) -> None:
        """What whoever may write below the prefix can do at any moment."""
        if not self.data.is_symlink():
            self.data.rename(self.ok / "real")
            self.data.symlink_to(self.secret)

    def mount(self, attempt: int = 0) -> cri_pb2.Mount:
        container = self.spec.containers[0]
        return self.volumes.container_mounts(self.spec, container, attempt)[0]

    def forget(self, attempt: int = 0) -> None:
        self.volumes.forget_container(self.spec.uid, "main", attempt)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Below mounts that are shared, as those of most hosts."""
    with sharing(tmp_path):
        made = Ground(tmp_path)
        yield made
        made.volumes.remove(made.spec.uid)
        assert mounted_below(tmp_path) == [str(tmp_path)]


@pytest.mark.containerd
def test_a_host_path_is_looked_at_anew_for_every_instance(ground: Ground) -> None:
    assert Path(ground.mount(0).host_path, "file").read_text() == "allowed"
    ground.data.rename(ground.ok / "real")
    ground.data.symlink_to(ground.ok / "real")
    assert Path(ground.mount(1).host_path, "file").read_text() == "allowed"
    ground.data.unlink()
    ground.data.symlink_to(ground.secret)
    with pytest.raises(Failure, match="does not allow"):
        ground.mount(2)


@pytest.mark.containerd
def test_it_stays_below_what_its_namespace_may_have(ground: Ground) -> None:
    """The pool allows more; a link there, made by one who may write, gives no more either."""
    other = ground.ok / "other"
    other.mkdir()
    ground.source.within[:] = [str(ground.data)]
    assert Path(ground.mount(0).host_path, "file").read_text() == "allowed"
    (ground.data / "way-out").symlink_to(other)
    ground.source.path = str(ground.data / "way-out")
    volume = ground.spec.volumes[0]
    for look in (lambda: ground.mount(1), lambda: ground.volumes.check_host_path(volume)):
        with pytest.raises(Failure, match="leads to where the Pod's namespace may not mount"):
            look()
    ground.source.within.append(str(other))
    ground.mount(2)


@pytest.mark.containerd
@pytest.mark.parametrize("sub_path", ["", "."])
def test_a_link_that_comes_right_after_the_check_gains_nothing(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, sub_path: str
) -> None:
    ground.spec.containers[0].mounts[0].sub_path = sub_path
    really = os.path.realpath

    def realpath(path: str) -> str:
        found = really(path)
        if path == str(ground.data):
            ground.swap()
        return found

    monkeypatch.setattr(os.path, "realpath", realpath)
    with pytest.raises(Failure, match="does not allow"):
        ground.mount()
    with pytest.raises(Failure, match="does not allow"):
        ground.volumes.check_host_path(ground.spec.volumes[0])


@pytest.mark.containerd
@pytest.mark.parametrize("step", ["pin", "afterwards"])
def test_what_was_checked_is_mounted_whatever_the_path_has_become(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The runtime is another process and takes a path, some milliseconds later."""
    if step == "pin":
        pin = mounts.pin

        def slow(descriptor: int, target: Path) -> None:
            ground.swap()
            pin(descriptor, target)

        monkeypatch.setattr(mounts, "pin", slow)
    given = ground.mount()
    ground.swap()
    assert Path(given.host_path, "file").read_text() == "allowed"


@pytest.mark.containerd
async def test_a_container_never_sees_what_a_link_led_to(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = Harness(
        Path(harness.options.endpoint),
        harness.options.state_dir,
        harness.options.pool,
        host_path_prefixes=(str(tmp_path / "ok"),),
    )
    await allowed.connect()
    ground = Ground(tmp_path)
    spec = pod("cat /host/file")
    with_volume(spec, "host", "/host").host_path.path = str(ground.data)
    create = allowed.runtime._containers.create

    async def late(
        sandbox_id: str, config: cri_pb2.ContainerConfig, sandbox: cri_pb2.PodSandboxConfig
    ) -> str:
        ground.swap()
        return await create(sandbox_id, config, sandbox)

    monkeypatch.setattr(allowed.runtime._containers, "create", late)
    _, log = await allowed.run(spec)
    assert log == "allowed"
    await allowed.clear()
    await allowed.disconnect()
    assert mounted_below(harness.options.state_dir / "pods") == []
    assert (ground.ok / "real" / "file").read_text() == "allowed"


@pytest.mark.containerd
@pytest.mark.parametrize("how", ["container", "sandbox"])
def test_what_is_mounted_below_a_host_path_shows_and_stays(ground: Ground, how: str) -> None:
    (ground.data / "disk").mkdir()
    (ground.data / "later").mkdir()
    with bound(ground.secret, ground.data / "disk"):
        given = ground.mount()
        assert Path(given.host_path, "disk", "file").exists()
        with bound(ground.secret, ground.data / "later"):
            assert Path(given.host_path, "later", "file").exists(), "mounts propagate into it"
        assert not Path(given.host_path, "later", "file").exists()
        if how == "container":
            ground.forget()
        else:
            ground.volumes.remove(ground.spec.uid)
        assert (ground.data / "disk" / "file").exists(), "the host's own mount was detached"
        assert not Path(given.host_path).exists()


@pytest.mark.containerd
@pytest.mark.parametrize("sub_path", ["", "."])
def test_a_pool_in_a_container_mounts_for_its_host_and_leaves_nothing(
    ground: Ground, sub_path: str
) -> None:
    """As the DaemonSet runs it: the state folder's mounts propagate to the runtime's."""
    ground.spec.containers[0].mounts[0].sub_path = sub_path
    (ground.data / "disk").mkdir()
    with bound(ground.secret, ground.data / "disk"), ThreadPoolExecutor(1, "own", unshare) as own:
        given = own.submit(ground.mount).result()
        assert Path(given.host_path, "file").read_text() == "allowed"
        if not sub_path:
            assert Path(given.host_path, "disk", "file").exists()
        own.submit(ground.forget).result()
        assert mounted_below(ground.folder / "s") == []
        assert (ground.data / "disk" / "file").exists(), "the host's own mount was detached"


@pytest.mark.containerd
def test_the_end_of_a_sub_path_detaches_nothing_of_the_host(ground: Ground) -> None:
    (ground.data / "later").mkdir()
    ground.spec.containers[0].mounts[0].sub_path = "."
    given = ground.mount()
    with bound(ground.secret, ground.data / "later"):
        assert Path(given.host_path, "later", "file").exists()
        ground.forget()
        assert (ground.data / "later" / "file").exists(), "the host's own mount was detached"


@pytest.mark.containerd
def test_host_paths_of_every_kind_can_be_pinned(ground: Ground) -> None:
    (ground.ok / "plain").write_text("plain")
    ground.source.path = str(ground.ok / "plain")
    assert Path(ground.mount().host_path).read_text() == "plain"
    ground.source.path = str(ground.ok / "none")
    given = Path(ground.mount(1).host_path)
    (ground.ok / "none" / "made").touch()
    assert (given / "made").exists(), "a missing one becomes a folder"


@pytest.mark.containerd
def test_a_privileged_container_is_given_the_path_itself(ground: Ground) -> None:
    """It shares its mounts with the host, and gains nothing by a link."""
    ground.spec.containers[0].security.privileged = True
    assert ground.mount().host_path == str(ground.data)
    ground.spec.containers[0].security.privileged = False
    everything = Volumes(Layout(ground.folder / "s", ground.folder / "m"), ("/",))
    given = everything.container_mounts(ground.spec, ground.spec.containers[0], 1)[0]
    assert given.host_path == str(ground.data)
    ground.source.path = str(ground.folder)
    above = Volumes(Layout(ground.folder / "s", ground.folder / "m"), (str(ground.folder),))
    given = above.container_mounts(ground.spec, ground.spec.containers[0], 2)[0]
    assert given.host_path == str(ground.folder), "a copy would hold all earlier copies"


@pytest.mark.containerd
def test_a_copy_does_not_pretend_to_follow_the_host(tmp_path: Path) -> None:
    with sharing(tmp_path, shared=False):
        ground = Ground(tmp_path)
        mount = ground.spec.containers[0].mounts[0]
        mount.propagation = spec_pb2.PROPAGATION_HOST_TO_CONTAINER
        with pytest.raises(Failure, match="not shared or slave"):
            ground.mount()


class Dead:
    """A folder whose file system does not answer until `wake`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.asked = 0
        self.went_on = threading.Event()
        self._alive = threading.Event()
        really = mounts.open_no_links

        def look(asked: Path, *arguments: int) -> int:
            if not asked.is_relative_to(path) or self._alive.is_set():
                return really(asked, *arguments)
            self.asked += 1
            self._alive.wait()
            try:
                return really(asked, *arguments)
            finally:
                self.went_on.set()

        monkeypatch.setattr(mounts, "open_no_links", look)

    def wake(self) -> None:
        self._alive.set()


@pytest.mark.containerd
async def test_a_dead_path_holds_up_its_own_pod_only(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Dead(monkeypatch, ground.data)
    (ground.ok / "fine").mkdir()
    other = pod()
    with_volume(other, "host", "/host").host_path.path = str(ground.ok / "fine")
    ground.volumes.prepare(other, 1 << 30)
    preparer = Preparer(Images.__new__(Images), ground.volumes, 30)
    spec, main = ground.spec, ground.spec.containers[0]
    try:
        hanging = asyncio.create_task(preparer.sandbox(spec))
        await preparer.sandbox(other)
        await preparer.container(other, other.containers[0], 0, ())
        assert not hanging.done(), "the others were ready in the meantime"
        hanging.cancel()
        preparer._host.seconds = 0.3
        with pytest.raises(Failure) as failed:
            await preparer.sandbox(spec)
        assert failed.value.reason == "FailedMount" and failed.value.retryable
        assert failed.value.message == (
            f'MountVolume.SetUp failed for volume "host" : hostPath {ground.data} '
            "did not answer within 300ms"
        )
        with pytest.raises(Failure) as failed:
            await preparer.container(spec, main, 0, ())
        assert failed.value.reason == "CreateContainerConfigError"
        assert failed.value.message == f"hostPath {ground.data} did not answer within 300ms"
        assert dead.asked == 1, "a Pod has one thread, however often it is tried"
    finally:
        dead.wake()
    preparer._host.seconds = 30
    await preparer.container(spec, main, 0, ())
    given = (await preparer.take(spec, main, 0, ())).mounts[0]
    assert Path(given.host_path, "file").read_text() == "allowed"
    ground.volumes.remove(other.uid)


@pytest.mark.containerd
async def test_a_path_that_answers_too_late_leaves_no_mount(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Dead(monkeypatch, ground.data)
    preparer = Preparer(Images.__new__(Images), ground.volumes, 0.1)
    spec = ground.spec
    with pytest.raises(Failure, match="did not answer"):
        await preparer.container(spec, spec.containers[0], 0, ())
    async with asyncio.timeout(60):
        while not dead.asked:  # its thread may only just begin
            await asyncio.sleep(0.01)
    dead.wake()
    async with asyncio.timeout(60):
        while any(thread.name == f"volumes-{spec.uid}" for thread in threading.enumerate()):
            await asyncio.sleep(0)
    assert dead.went_on.is_set()
    assert mounted_below(ground.folder) == [str(ground.folder)]
