"""Who may use an image that is on the machine: those who could pull it.

Theory of operation, after pkg/kubelet/images/pullmanager of Kubernetes 1.37
(KubeletEnsureSecretPulledImages, with its default policy NeverVerifyPreloadedImages). Every
pull leaves a record: which image, under which repository, with which credential, or without
any. An image

- without a record was there before us: everybody may use it, unless a pull of one of its names
  was begun and its end never seen (a pool that was killed in between, say);
- with one may be used under a repository by all, if it was ever pulled there without a
  credential, or else by those who bring a credential that it was pulled with. Others have to
  pull, and so to show to the registry that they may.

A credential is kept as a keyed hash only. Files are small and written once a pull:

    FOLDER/key             of the hashes
    FOLDER/HASH.json       the record of one image
    FOLDER/HASH.intent     a pull of one name that is under way

Several pools (or a kubelet) on one runtime know nothing of each other's pulls: to each, the
others' images were there before. Where a Secret's password was changed, the new one has to be
shown to the registry; a kubelet knows the Secret by its name, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import structlog

from vknode.pool.v1 import spec_pb2

log = structlog.get_logger()

# In a record, in place of a credential's hash: pulled without any.
_NONE = "none"
# The most that is remembered for one repository of one image, the newest last.
_MOST = 100


class PullRecords:
    """The records of one runtime's images. Blocking, and quick: small files."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read or made before `open`."""
        self._folder = folder
        self._key = b""
        # image → repository → hashes
        self._records: dict[str, dict[str, list[str]]] = {}
        # Names: pulls of this process, and pulls whose end nobody saw.
        self._under_way: Counter[str] = Counter()
        self._unsure: set[str] = set()

    def open(self, present: Mapping[str, Collection[str]]) -> None:
        """Read what an earlier process left; forget images that are not `present` (ID → full
        names). Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = self._folder / "key"
        if not key.exists():
            self._write(key, secrets.token_bytes(32))
        self._key = key.read_bytes()
        for file in self._folder.glob("*.tmp"):
            file.unlink(missing_ok=True)
        by_file = {f"{_digest(image)}.json": image for image in present}
        for file in sorted(self._folder.glob("*.json")):
            image = by_file.get(file.name)
            if image is None:
                file.unlink(missing_ok=True)
            else:
                self._records[image] = _read(file)
        for file in self._folder.glob("*.intent"):
            name = file.read_text(errors="replace")
            for image, names in present.items():
                if name in names and image not in self._records:
                    self._keep(image, {})
            file.unlink(missing_ok=True)

    def may_use(
        self,
        image: str,
        names: Collection[str],
        reference: str,
        credentials: Sequence[spec_pb2.RegistryCredential],
    ) -> bool:
        """Whether it may be used without a pull, by who brings these. `image` is its ID, with
        all its full `names`; `reference` is one of them, and `credentials` those that fit."""
        record = self._records.get(image)
        if record is None:
            of_it = {reference, *names}
            return self._unsure.isdisjoint(of_it) and self._under_way.keys().isdisjoint(of_it)
        known = record.get(repository_of(reference), ())
        return _NONE in known or any(self._hash(one) in known for one in credentials)

    def begin(self, reference: str) -> None:
        """A pull begins; `end` follows, whatever becomes of it. Raises OSError."""
        if not self._under_way[reference] and reference not in self._unsure:
            self._write(self._intent(reference), reference.encode())
        self._under_way[reference] += 1

    def pulled(
        self, image: str, reference: str, credential: spec_pb2.RegistryCredential | None
    ) -> None:
        """A pull has ended well, with this. Raises OSError."""
        record = self._records.get(image, {})
        repository = repository_of(reference)
        known = record.get(repository, [])
        one = _NONE if credential is None else self._hash(credential)
        if one not in known:
            self._keep(image, {**record, repository: [*known, one][-_MOST:]})

    def end(self, reference: str, *, told: bool) -> None:
        """A pull is over; `told`: it is known, and recorded, what became of it."""
        self._under_way[reference] -= 1
        if not told:
            self._unsure.add(reference)
        if self._under_way[reference]:
            return
        del self._under_way[reference]
        if told:
            self._unsure.discard(reference)
            try:
                self._intent(reference).unlink(missing_ok=True)
            except OSError as error:
                log.warning("pull_intent_not_removed", error=error.strerror)

    def _keep(self, image: str, record: dict[str, list[str]]) -> None:
        content = {"image": image, "repositories": record}
        self._write(self._folder / f"{_digest(image)}.json", json.dumps(content).encode())
        self._records[image] = record

    def _intent(self, reference: str) -> Path:
        return self._folder / f"{_digest(reference)}.intent"

    def _hash(self, credential: spec_pb2.RegistryCredential) -> str:
        parts = (
            credential.username,
            credential.password,
            credential.identity_token,
            credential.registry_token,
        )
        text = json.dumps(parts).encode()
        return hashlib.blake2b(text, key=self._key, digest_size=32).hexdigest()

    def _write(self, file: Path, content: bytes) -> None:
        """All of it or nothing, also after a power cut."""
        unfinished = file.with_name(file.name + ".tmp")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)


def repository_of(reference: str) -> str:
    """A full name without its tag and digest."""
    name = reference.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(file: Path) -> dict[str, list[str]]:
    """Nobody's where it makes no sense: then whoever wants the image has to pull, as with a
    kubelet."""
    try:
        found = json.loads(file.read_bytes())["repositories"]
        return {str(name): [str(one) for one in known] for name, known in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("pull_record_unreadable", file=file.name, error=type(error).__name__)
        return {}
