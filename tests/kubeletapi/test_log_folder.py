"""What a folder that is shown gives away: what is in it, whatever links and paths say."""

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vknode.kubeletapi import log_folder
from vknode.kubeletapi.log_folder import Folder, LogFolder, NotShown, OpenedFile, TooManyEntries


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with files and links, and a secret beside it."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("SECRET")
    (tmp_path / "logs-too").mkdir()  # begins with the folder's own name
    (tmp_path / "logs-too" / "key").write_text("SECRET")
    root = tmp_path / "logs"
    (root / "pods" / "web").mkdir(parents=True)
    (root / "pods" / "web" / "0.log").write_text("shown: web")
    (root / "syslog").write_text("shown: syslog")
    (root / "current").symlink_to("syslog")
    (root / "whole").symlink_to(root / "pods" / "web" / "0.log")
    (root / "containers").symlink_to(root / "pods")
    (root / "pods" / "up").symlink_to("../syslog")
    (root / "pods" / "home").symlink_to("..")
    (root / "out").symlink_to("../secret/key")
    (root / "out-whole").symlink_to(tmp_path / "secret")
    (root / "out-near").symlink_to(tmp_path / "logs-too")
    (root / "out-again").symlink_to("out-whole/key")
    (root / "machine").symlink_to("/")
    (root / "loop").symlink_to("loop")
    (root / "nowhere").symlink_to("missing")
    return root


def content(folder: LogFolder, *names: bytes) -> bytes:
    found = folder.find(names, listed=False)
    assert isinstance(found, OpenedFile)
    return found.read(0, 1000)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("syslog", b"shown: syslog"),
        ("pods/web/0.log", b"shown: web"),
        ("current", b"shown: syslog"),
        ("whole", b"shown: web"),
        ("containers/web/0.log", b"shown: web"),
        ("pods/up", b"shown: syslog"),
        ("pods/home/pods/home/syslog", b"shown: syslog"),
    ],
)
def test_what_is_in_it_is_shown(root: Path, path: str, expected: bytes) -> None:
    assert content(LogFolder(root), *path.encode().split(b"/")) == expected


@pytest.mark.parametrize(
    "path",
    [
        *("out", "out-whole", "out-whole/key", "out-near", "out-near/key", "out-again"),
        *("machine", "machine/etc/hostname", "pods/home/out", "loop"),
        *("..", "../secret/key", "pods/../../secret/key", "", ".", "syslog/.", "a\0b"),
    ],
)
def test_what_is_outside_is_not(root: Path, path: str) -> None:
    with pytest.raises(NotShown):
        LogFolder(root).find(path.encode().split(b"/"), listed=True)


def test_a_name_with_a_slash_is_none(root: Path) -> None:
    with pytest.raises(NotShown):
        LogFolder(root).find([b"pods/web"], listed=True)


@pytest.mark.parametrize("path", ["missing", "nowhere", "loop/below", "syslog/below", "x" * 300])
def test_what_is_not_there_is_an_error_of_the_system(root: Path, path: str) -> None:
    with pytest.raises(OSError):
        LogFolder(root).find(path.encode().split(b"/"), listed=True)


NAMES = ["pods", "web", "0.log", "syslog", "current", "containers", "up", "home", "out", "key"]
MORE = ["out-whole", "out-near", "out-again", "machine", "loop", "..", ".", "", "secret", "etc"]


@given(st.lists(st.sampled_from(NAMES + MORE).map(str.encode), max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_leads_out(root: Path, names: Sequence[bytes]) -> None:
    try:
        found = LogFolder(root).find(names, listed=True)
    except (NotShown, OSError):
        return
    if isinstance(found, OpenedFile):
        assert found.read(0, 1000).startswith(b"shown: ")
    else:
        listed = {name.decode() for name, _ in found.entries or ()}
        assert listed in (set(os.listdir(root)), {"web", "up", "home"}, {"0.log"})  # noqa: PTH208 - names are what is compared


def test_a_link_that_is_put_there_meanwhile_leads_nowhere(root: Path) -> None:
    """A name that is a file, a folder, or a link out of the folder, in turns."""
    done = threading.Event()

    def swap() -> None:
        spare = root / "spare"
        while not done.is_set():
            spare.symlink_to("../secret/key")
            spare.replace(root / "turning")
            spare.write_text("shown: turning")
            spare.replace(root / "turning")
            (root / "door").rename(root / "door-aside")
            (root / "door").symlink_to("../secret")
            (root / "door").unlink()
            (root / "door-aside").rename(root / "door")

    (root / "turning").write_text("shown: turning")
    (root / "door").mkdir()
    (root / "door" / "key").write_text("shown: door")
    folder, seen = LogFolder(root), 0
    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(3000):
            for names in ((b"turning",), (b"door", b"key")):
                try:
                    assert content(folder, *names) in (b"shown: turning", b"shown: door", b"")
                    seen += 1
                except (NotShown, OSError):
                    pass
    finally:
        done.set()
        swapper.join()
    assert seen > 0


def test_a_fifo_is_not_opened(root: Path) -> None:
    """Its writer would take us for its reader."""
    os.mkfifo(root / "pipe")
    writer = threading.Thread(target=lambda: (root / "pipe").write_text("x"))
    writer.start()
    try:
        with pytest.raises(NotShown):
            LogFolder(root).find([b"pipe"], listed=False)
        writer.join(0.1)
        assert writer.is_alive(), "it waits for a reader still"
    finally:
        reader = os.open(root / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


def test_sockets_and_devices_are_not_shown(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(root / "socket"))
        with pytest.raises(NotShown):
            LogFolder(root).find([b"socket"], listed=False)
    for device in ("null", "zero", "tty"):
        with pytest.raises(NotShown):
            LogFolder(Path("/dev")).find([device.encode()], listed=False)


def test_a_folder_has_its_entries_in_order(root: Path) -> None:
    folder = LogFolder(root / "pods")
    (root / "pods" / "a\udcff").write_text("no UTF-8")
    found = folder.find([], listed=True)
    assert isinstance(found, Folder)
    assert found.entries == ((b"a\xff", False), (b"home", False), (b"up", False), (b"web", True))
    assert content(folder, b"a\xff") == b"no UTF-8"
    unlisted = folder.find([b"web"], listed=False)
    assert isinstance(unlisted, Folder)
    assert unlisted.entries is None


def test_a_folder_may_itself_be_a_link_and_be_replaced(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    folder = LogFolder(link)
    assert content(folder, b"syslog") == b"shown: syslog"
    assert content(folder, b"whole") == b"shown: web"
    link.unlink()
    with pytest.raises(FileNotFoundError):
        folder.find([], listed=True)
    link.mkdir()
    (link / "syslog").write_text("shown: new")
    assert content(folder, b"syslog") == b"shown: new"


def test_a_folder_of_very_many_files_is_not_read_whole(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_folder, "MOST_ENTRIES", 3)
    LogFolder(root).find([b"pods"], listed=True)
    with pytest.raises(TooManyEntries):
        LogFolder(root).find([], listed=True)


def test_no_file_stays_open(root: Path) -> None:
    def held() -> list[str]:
        """Files there: what else the process opens and closes meanwhile is of other threads."""
        found = []
        for one in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # closed in between
                found.append(str(one.readlink()))
        return [path for path in found if path.startswith(str(root.parent))]

    folder = LogFolder(root)
    for _ in range(20):
        content(folder, b"pods", b"web", b"0.log")
        folder.find([b"pods"], listed=True)
        for names in ((b"missing",), (b"out",), (b"pods", b"missing")):
            with pytest.raises((NotShown, OSError)):
                folder.find(names, listed=True)
        assert held() == []
