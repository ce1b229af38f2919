"""Who may use an image without a pull: as a kubelet remembers it, over any interruption."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vknode.pool.runtimes.cri.pullrecords import PullRecords
from vknode.pool.v1.spec_pb2 import RegistryCredential

ANN = RegistryCredential(registry="r.io", username="ann", password="a")
BOB = RegistryCredential(registry="r.io", username="bob", password="b")
NAME = "r.io/team/app:v1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pulls"


DIGEST = "r.io/team/app@sha256:00"


def opened(folder: Path, *present: str) -> PullRecords:
    """By a new process, with these images there."""
    records = PullRecords(folder)
    records.open({image: [NAME, DIGEST] if image == "id" else [] for image in present})
    return records


def may(
    records: PullRecords, *who: RegistryCredential, image: str = "id", name: str = NAME
) -> bool:
    return records.may_use(image, [NAME, DIGEST], name, who)


def pull(records: PullRecords, who: RegistryCredential | None, image: str = "id") -> None:
    records.begin(NAME)
    records.pulled(image, NAME, who)
    records.end(NAME, told=True)


def test_an_image_that_was_there_before_is_for_all(folder: Path) -> None:
    assert may(opened(folder))


def test_only_who_brings_what_it_was_pulled_with(folder: Path) -> None:
    records = opened(folder)
    pull(records, ANN)
    for one in (records, opened(folder, "id")):
        assert may(one, BOB, ANN)
        assert not may(one, BOB)
        assert not may(one)
        assert not may(one, ANN, name="r.io/other/app:v1"), "another repository"
        assert may(one, ANN, name=DIGEST), "the same one"
    pull(records, None)
    assert may(records), "it is public after all"


def test_a_changed_password_has_to_be_shown_to_the_registry(folder: Path) -> None:
    records = opened(folder)
    pull(records, ANN)
    changed = RegistryCredential(registry="r.io", username="ann", password="new")
    assert not may(records, changed)


@pytest.mark.parametrize("killed", [True, False])
def test_a_pull_whose_end_nobody_saw_makes_the_next_one_pull_again(
    folder: Path, killed: bool
) -> None:
    records = opened(folder)
    records.begin(NAME)
    for name in (NAME, DIGEST):
        assert not may(records, ANN, name=name)
    if killed:
        records = opened(folder, "id")
    else:
        records.end(NAME, told=False)  # given up: nobody waited any more
    for name in (NAME, DIGEST):
        assert not may(records, ANN, name=name)
    pull(records, ANN)
    assert may(records, ANN)
    assert not list(folder.glob("*.intent"))
    assert may(opened(folder, "id"), ANN) and not may(opened(folder, "id"))


def test_a_pull_that_could_not_be_recorded_opens_the_image_to_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = opened(folder)
    records.begin(NAME)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            records.pulled("id", NAME, ANN)
    records.end(NAME, told=False)
    for one in (records, opened(folder, "id")):
        assert not may(one) and not may(one, ANN)


def test_the_records_of_images_that_went_go_too(folder: Path) -> None:
    pull(opened(folder), ANN)
    assert may(opened(folder, "other"))
    assert not list(folder.glob("*.json"))


def test_a_damaged_record_opens_the_image_to_nobody(folder: Path) -> None:
    pull(opened(folder), ANN)
    (file,) = folder.glob("*.json")
    for content in (
        *(b"", b"{", b"[]", b"\xff", b'{"image": "id"}', b'{"repositories": []}'),
        b'{"repositories": {"r.io/team/app": 1}}',
    ):
        file.write_bytes(content)
        records = opened(folder, "id")
        assert not may(records) and not may(records, ANN)
        pull(records, ANN)
        assert may(records, ANN)
    (folder / "odd.intent").write_bytes(b"\xff")
    assert may(opened(folder, "id"), ANN)


def test_no_secret_is_on_the_disk_and_nobody_else_may_read_it(folder: Path) -> None:
    secret = RegistryCredential(username="ann", password="hunter2", identity_token="tokentoken")
    pull(opened(folder), secret)
    assert folder.stat().st_mode & 0o077 == 0
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o077 == 0
        assert not any(word in file.read_bytes() for word in (b"hunter2", b"tokentoken", b"ann"))


@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, ANN, BOB]), st.sampled_from(["id", "other"]), st.booleans()
        )
    )
)
def test_nobody_gets_what_nobody_like_him_has_pulled(
    tmp_path_factory: pytest.TempPathFactory,
    pulls: list[tuple[RegistryCredential | None, str, bool]],
) -> None:
    folder = tmp_path_factory.mktemp("pulls")
    records = opened(folder)
    model: dict[str, set[str]] = {}
    for who, image, restart in pulls:
        pull(records, who, image)
        model.setdefault(image, set()).add(who.username if who else "")
        if restart:
            records = opened(folder, "id", "other")
    for image in ("id", "other"):
        for asker in (None, ANN, BOB):
            brings = () if asker is None else (asker,)
            allowed = image not in model or bool(
                model[image] & {"", asker.username if asker else ""}
            )
            assert may(records, *brings, image=image) is allowed
