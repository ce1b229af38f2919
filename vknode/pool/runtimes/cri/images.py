"""Image references and credentials (pure), and images that are made sure to be there.

A look and a pull are shared: whoever asks for the same image (with the same
credentials) while one is under way waits for that one, as Pods of a Deployment do that
start together; it is given up only when nobody waits any more.
"""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic, TypeVar

import structlog

from vknode.pool.runtimes.cri.client import CriClient, NotFound
from vknode.pool.runtimes.cri.pullrecords import PullRecords, repository_of
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import Failure, Image, RuntimeAway
from vknode.pool.v1 import spec_pb2

log = structlog.get_logger()

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

_DEFAULT_DOMAIN = "docker.io"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"(?:{_HOST}|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")


def normalize(reference: str) -> str:
    """The full reference: default registry, "library/" and ":latest" filled in.

    Raises Failure("InvalidImageName"). The grammar is the one of
    github.com/distribution/reference.
    """

    def invalid(why: str) -> Failure:
        return Failure(
            "InvalidImageName",
            f'Failed to apply default image tag "{reference}": couldn\'t parse image name '
            f'"{reference}": {why}',
            retryable=False,
        )

    if not reference or reference != reference.strip():
        raise invalid("invalid reference format")
    name, at, digest = reference.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise invalid("invalid reference format: bad digest")
    head, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        name = head
        if not _TAG.fullmatch(tag):
            raise invalid("invalid reference format: bad tag")
    else:
        tag = ""
    domain, slash, path = name.partition("/")
    if not slash or not ("." in domain or ":" in domain or domain == "localhost"):
        domain, path = _DEFAULT_DOMAIN, name
    if domain == "index.docker.io":
        domain = _DEFAULT_DOMAIN
    if domain == _DEFAULT_DOMAIN and "/" not in path:
        path = f"library/{path}"
    if path != path.lower():
        raise invalid("invalid reference format: repository name must be lowercase")
    if not _DOMAIN.fullmatch(domain) or not _PATH.fullmatch(path) or len(path) > 255:
        raise invalid("invalid reference format")
    if not tag and not at:
        tag = "latest"
    return f"{domain}/{path}" + (f":{tag}" if tag else "") + (f"@{digest}" if at else "")


def matching(
    reference: str, credentials: Sequence[spec_pb2.RegistryCredential]
) -> list[spec_pb2.RegistryCredential]:
    """Those that fit a normalized reference, the most specific registry first."""
    repository = repository_of(reference)
    host, _, path = repository.partition("/")
    found: list[tuple[str, spec_pb2.RegistryCredential]] = []
    for credential in credentials:
        registry = re.sub(r"^https?://", "", credential.registry).rstrip("/")
        registry = re.sub(r"/v[12]$", "", registry)
        want_host, _, want_path = registry.partition("/")
        if want_host in ("index.docker.io", "registry-1.docker.io"):
            want_host = _DEFAULT_DOMAIN
        parts, wanted = host.split("."), want_host.split(".")
        fits = len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
        if fits and (not want_path or path == want_path or path.startswith(f"{want_path}/")):
            found.append((registry, credential))
    found.sort(key=lambda item: item[0], reverse=True)
    return [credential for _, credential in found]


def from_cri(reference: str, image: cri_pb2.Image, *, pulled: bool) -> Image:
    """The pool's view of an image the runtime has."""
    repository = repository_of(reference)
    digests = [d for d in image.repo_digests if d.partition("@")[0] == repository]
    return Image(
        reference=reference,
        id=(digests or list(image.repo_digests) or [image.id])[0],
        uid=image.uid.value if image.HasField("uid") else None,
        username=image.username,
        pulled=pulled,
        size=image.size,
    )


def _names(image: cri_pb2.Image) -> list[str]:
    return [*image.repo_tags, *image.repo_digests]


class Images:
    """Makes sure that images are there. One for all sandboxes of a runtime."""

    def __init__(self, client: CriClient, records: PullRecords) -> None:
        self._client = client
        self._records = records
        self._pulls: Shared[tuple[str, bytes], Image] = Shared()
        self._looks: Shared[str, cri_pb2.Image | None] = Shared()

    async def ensure(
        self,
        reference: str,
        policy: spec_pb2.ImagePullPolicy.ValueType,
        credentials: Sequence[spec_pb2.RegistryCredential],
    ) -> Image:
        """Raises Failure as `Runtime.ensure_image` tells."""
        full = normalize(reference)
        fitting = matching(full, credentials)
        if policy != spec_pb2.IMAGE_PULL_POLICY_ALWAYS:
            present = await self._looks.get(full, lambda: self.status(full))
            if present is not None and self._may_use(present, full, fitting):
                return from_cri(full, present, pulled=False)
            if policy == spec_pb2.IMAGE_PULL_POLICY_NEVER:
                raise Failure(
                    "ErrImageNeverPull",
                    f'Container image "{reference}" is not present with pull policy of Never',
                )
        key = (full, b"\0".join(c.SerializeToString(deterministic=True) for c in fitting))
        return await self._pulls.get(key, lambda: self._pull(full, fitting))

    async def status(self, reference: str) -> cri_pb2.Image | None:
        """What the runtime has under this reference or ID."""
        request = cri_pb2.ImageStatusRequest(image=cri_pb2.ImageSpec(image=reference))
        try:
            answer = await self._client.call(
                "ImageInspectError", self._client.image.ImageStatus(request, timeout=30)
            )
        except NotFound:
            return None
        return answer.image if answer.HasField("image") and answer.image.id else None

    def _may_use(
        self,
        image: cri_pb2.Image,
        reference: str,
        credentials: Sequence[spec_pb2.RegistryCredential],
    ) -> bool:
        return self._records.may_use(image.id, _names(image), reference, credentials)

    async def open(self) -> None:
        """Once the runtime can be asked. Raises Failure."""
        answer = await self._client.call(
            "ImageInspectError",
            self._client.image.ListImages(cri_pb2.ListImagesRequest(), timeout=60),
        )
        try:
            self._records.open({image.id: _names(image) for image in answer.images})
        except OSError as error:
            raise Failure("StateDirectory", f"pull records: {error.strerror}") from error

    async def _pull(self, reference: str, credentials: list[spec_pb2.RegistryCredential]) -> Image:
        try:
            self._records.begin(reference)
        except OSError as error:
            text = f"failed to record image pull intent for image {reference!r}: {error.strerror}"
            raise Failure("ErrImagePull", text) from error
        known = False  # and recorded, what became of it
        try:
            try:
                got, credential = await self._pull_with_any(reference, credentials)
            except Failure as error:
                known = not isinstance(error, RuntimeAway)
                raise
            present = await self.status(got or reference)
            if present is None:
                raise Failure("ErrImagePull", f"{reference} vanished right after its pull")
            known = self._record(present.id, reference, credential)
            return from_cri(reference, present, pulled=True)
        finally:
            self._records.end(reference, told=known)

    async def _pull_with_any(
        self, reference: str, credentials: list[spec_pb2.RegistryCredential]
    ) -> tuple[str, spec_pb2.RegistryCredential | None]:
        """The runtime's name of it, and what it was pulled with."""
        spec = cri_pb2.ImageSpec(image=reference, user_specified_image=reference)
        errors: list[Failure] = []
        attempts: list[spec_pb2.RegistryCredential | None] = [*credentials]
        for credential in attempts or [None]:
            request = cri_pb2.PullImageRequest(image=spec)
            if credential is not None:
                request.auth.CopyFrom(
                    cri_pb2.AuthConfig(
                        username=credential.username,
                        password=credential.password,
                        identity_token=credential.identity_token,
                        registry_token=credential.registry_token,
                    )
                )
            try:
                answer = await self._client.call(
                    "ErrImagePull", self._client.image.PullImage(request)
                )
            except NotFound as error:
                errors.append(Failure("ErrImagePull", str(error)))
            except Failure as error:
                if error.reason != "ErrImagePull":
                    raise
                errors.append(error)
            else:
                return answer.image_ref, credential
        raise errors[-1]

    def _record(
        self, image: str, reference: str, credential: spec_pb2.RegistryCredential | None
    ) -> bool:
        try:
            self._records.pulled(image, reference, credential)
        except OSError as error:
            # Whoever wants it next has to pull again.
            log.warning("pull_not_recorded", image=reference, error=error.strerror)
            return False
        return True


class Shared(Generic[Key, Result]):
    """Work that several may wait for at once, each kind of it under its key."""

    def __init__(self) -> None:
        self._running: dict[Key, _Running[Result]] = {}

    async def get(self, key: Key, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of what runs under this key, or of `make()` where nothing does.
        Raises what it raised; a waiter that is cancelled leaves the work to the others."""
        running = self._running.get(key)
        if running is None:
            task = asyncio.ensure_future(make())
            running = self._running[key] = _Running(task)
            task.add_done_callback(lambda _: self._forget(key, task))
        running.waiters += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiters -= 1
            if running.waiters == 0 and not running.task.done():
                self._forget(key, running.task)
                running.task.cancel()

    def _forget(self, key: Key, task: asyncio.Future[Result]) -> None:
        current = self._running.get(key)
        if current is not None and current.task is task:
            del self._running[key]


class _Running(Generic[Result]):
    __slots__ = ("task", "waiters")

    def __init__(self, task: asyncio.Future[Result]) -> None:
        self.task = task
        self.waiters = 0
