"""Images: names, credentials, policies, and pulls from a real registry."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cri.harness import BUSYBOX, Harness, pod
from tests.cri.registry import Registry
from vknode.pool.runtimes.cri.client import CriClient
from vknode.pool.runtimes.cri.images import Images, Shared, matching, normalize
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.preparing import Preparer
from vknode.pool.runtimes.cri.pullrecords import PullRecords
from vknode.pool.runtimes.cri.volumes import Volumes
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import Failure, Image, RuntimeAway
from vknode.pool.v1 import spec_pb2

DIGEST = "sha256:" + "0" * 64
ALWAYS = spec_pb2.IMAGE_PULL_POLICY_ALWAYS
IF_NOT_PRESENT = spec_pb2.IMAGE_PULL_POLICY_IF_NOT_PRESENT
NEVER = spec_pb2.IMAGE_PULL_POLICY_NEVER


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("team/app", "docker.io/team/app:latest"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("r.example.com/a/b/c:v1", "r.example.com/a/b/c:v1"),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"nginx:1@{DIGEST}", f"docker.io/library/nginx:1@{DIGEST}"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
    ],
)
def test_names_are_completed(given: str, full: str) -> None:
    assert normalize(given) == full


@pytest.mark.parametrize(
    "bad", ["", " nginx", "Nginx", "a//b", "nginx:", "nginx@sha256:12", "a/b:t:t", "-a", "x y"]
)
def test_impossible_names_are_refused_for_good(bad: str) -> None:
    with pytest.raises(Failure) as refused:
        normalize(bad)
    assert refused.value.reason == "InvalidImageName" and not refused.value.retryable


def test_the_most_specific_credential_comes_first() -> None:
    names = ["r.io", "https://r.io/team", "other.io", "*.io", "r.io/team/app", "r.io/te"]
    credentials = [spec_pb2.RegistryCredential(registry=name) for name in names]
    found = matching("r.io/team/app:v1", credentials)
    assert [c.registry for c in found] == ["r.io/team/app", "https://r.io/team", "r.io", "*.io"]
    hub = [spec_pb2.RegistryCredential(registry="https://index.docker.io/v1/")]
    assert matching("docker.io/library/nginx:latest", hub) == hub


async def test_work_under_way_is_shared_until_nobody_waits() -> None:
    shared: Shared[str, int] = Shared()
    made: list[str] = []
    go = asyncio.Event()

    async def work() -> int:
        made.append("begun")
        try:
            await go.wait()
        except asyncio.CancelledError:
            made.append("given up")
            raise
        return len(made)

    def ask() -> asyncio.Task[int]:
        return asyncio.create_task(shared.get("image", work))

    waiters = [ask() for _ in range(40)]
    await asyncio.sleep(0)
    waiters[0].cancel()  # whoever began it may leave
    go.set()
    assert await asyncio.gather(*waiters[1:]) == [1] * 39
    assert await ask() == 2, "what is over is not remembered"
    go.clear()
    waiters = [ask(), ask()]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    await asyncio.sleep(0)
    assert made == ["begun", "begun", "begun", "given up"]


@pytest.mark.containerd
async def test_a_present_image_is_found_without_a_pull(harness: Harness) -> None:
    for policy in (IF_NOT_PRESENT, NEVER):
        image = await harness.runtime.ensure_image(BUSYBOX, policy, ())
        assert image.reference == "docker.io/library/busybox:1.36"
        assert not image.pulled and image.size > 0 and "sha256:" in image.id
    with pytest.raises(Failure) as absent:
        await harness.runtime.ensure_image("no/such:1", NEVER, ())
    assert absent.value.reason == "ErrImageNeverPull"
    assert absent.value.message == (
        'Container image "no/such:1" is not present with pull policy of Never'
    )


@pytest.mark.containerd
async def test_a_pull_uses_the_password_and_is_shared(harness: Harness) -> None:
    registry = Registry()
    runner = await registry.start()
    name = f"{registry.host}/team/app:v1"
    good = spec_pb2.RegistryCredential(registry=registry.host, username="ann", password="secret")
    bad = spec_pb2.RegistryCredential(
        registry=f"{registry.host}/team", username="ann", password="guess"
    )
    try:
        for credentials in ((), (bad,)):
            with pytest.raises(Failure) as refused:
                await harness.runtime.ensure_image(name, IF_NOT_PRESENT, credentials)
            assert refused.value.reason == "ErrImagePull"
            assert "guess" not in str(refused.value)
        both = (bad, good)
        pulls = [harness.runtime.ensure_image(name, IF_NOT_PRESENT, both) for _ in range(5)]
        first = await asyncio.gather(*pulls)
        assert all(image == first[0] for image in first)
        image = first[0]
        assert image.pulled and image.id == f"{registry.host}/team/app@{registry.digest}"
        assert image.uid == 1234
        layers = sum(n for what, n in registry.asked.items() if "blobs" in what)
        assert layers == 2, "the configuration and the layer, each once"
        again = await harness.runtime.ensure_image(name, IF_NOT_PRESENT, (good,))
        assert not again.pulled
        assert (await harness.runtime.ensure_image(name, ALWAYS, both)).pulled
    finally:
        await runner.cleanup()
    with pytest.raises(Failure) as gone:
        await harness.runtime.ensure_image(name, ALWAYS, both)
    assert gone.value.reason == "ErrImagePull"


@pytest.mark.containerd
async def test_what_a_secret_pulled_is_for_those_who_have_it(harness: Harness) -> None:
    registry = Registry()
    runner = await registry.start()
    name = f"{registry.host}/team/app:v1"
    good = spec_pb2.RegistryCredential(registry=registry.host, username="ann", password="secret")
    try:
        assert (await harness.runtime.ensure_image(name, IF_NOT_PRESENT, (good,))).pulled
        await harness.restart()  # a new process knows it too
        with pytest.raises(Failure) as refused:
            await harness.runtime.ensure_image(name, IF_NOT_PRESENT, ())
        assert refused.value.reason == "ErrImagePull"
        with pytest.raises(Failure) as refused:
            await harness.runtime.ensure_image(name, NEVER, ())
        assert refused.value.reason == "ErrImageNeverPull"
        for policy in (IF_NOT_PRESENT, NEVER):
            assert not (await harness.runtime.ensure_image(name, policy, (good,))).pulled
    finally:
        await runner.cleanup()
    kept = b"".join(file.read_bytes() for file in harness.options.state_dir.glob("pulls/*.json"))
    assert b"team/app" in kept and b"secret" not in kept


class Flaky(CriClient):
    """Pulls, and then cannot be reached."""

    def __init__(self) -> None:
        self.image: Any = SimpleNamespace(
            PullImage=lambda request: "pull", ImageStatus=lambda request, timeout: "look"
        )
        self.away = False

    async def call(self, reason: str, call: Any) -> Any:
        if call == "pull":
            self.away = True
            return cri_pb2.PullImageResponse(image_ref="id")
        if self.away:
            raise RuntimeAway("gone")
        return cri_pb2.ImageStatusResponse(image=cri_pb2.Image(id="id"))


async def test_a_pull_whose_image_was_not_seen_opens_it_to_nobody(tmp_path: Path) -> None:
    client = Flaky()
    records = PullRecords(tmp_path)
    records.open({})
    images = Images(client, records)
    ann = spec_pb2.RegistryCredential(registry="r.io", username="ann", password="a")
    with pytest.raises(RuntimeAway):
        await images.ensure("r.io/team/app:v1", ALWAYS, (ann,))
    client.away = False
    with pytest.raises(Failure) as refused:
        await images.ensure("r.io/team/app:v1", NEVER, ())
    assert refused.value.reason == "ErrImageNeverPull"


class Hanging(Images):
    """Has `there`, and `private` for whoever has a secret; whatever must be pulled never
    comes."""

    def __init__(self) -> None:
        self.pulls = 0

    async def ensure(
        self,
        reference: str,
        policy: spec_pb2.ImagePullPolicy.ValueType,
        credentials: Sequence[spec_pb2.RegistryCredential],
    ) -> Image:
        there = reference == "there" or (reference == "private" and bool(credentials))
        if there and policy != ALWAYS:
            return Image(reference, f"{reference}@sha256:1")
        if policy == NEVER:
            raise Failure("ErrImageNeverPull", "not present")
        self.pulls += 1
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


async def test_a_private_image_volume_that_is_there_is_looked_at_with_its_secret() -> None:
    asked = []

    class Asked(Images):
        def __init__(self) -> None:
            pass

        async def ensure(
            self,
            reference: str,
            policy: spec_pb2.ImagePullPolicy.ValueType,
            credentials: Sequence[spec_pb2.RegistryCredential],
        ) -> Image:
            asked.append([one.username for one in credentials])
            return Image(reference, "there@sha256:1")

    spec = pod()
    spec.registry_credentials.add(registry="r.io", username="ann")
    volume = spec.volumes.add(name="data").image
    volume.reference, volume.pull_policy = "r.io/data", NEVER
    spec.containers[0].mounts.add(volume="data", path="/data")
    preparer = Preparer(Asked(), Volumes(Layout(Path("/nowhere"), Path("/nowhere")), ()), 5.0)
    await preparer.container(spec, spec.containers[0], 0, ())
    assert asked == [["ann"]]


async def test_image_volumes_that_hang_keep_no_others_waiting(tmp_path: Path) -> None:
    images = Hanging()
    volumes = Volumes(Layout(tmp_path / "s", tmp_path / "m"), ())
    preparer = Preparer(images, volumes, 30.0)

    def volume(reference: str) -> spec_pb2.SandboxSpec:
        spec = pod()
        spec.volumes.add(name="data").image.reference = reference
        spec.containers[0].mounts.add(volume="data", path="/data")
        return spec

    def prepare(spec: spec_pb2.SandboxSpec) -> asyncio.Task[None]:
        return asyncio.create_task(preparer.container(spec, spec.containers[0], 0, ["10.0.0.1"]))

    def volume_beside_ip(reference: str) -> spec_pb2.SandboxSpec:
        spec = volume(reference)
        spec.pod_ip_token = "@IP@"
        spec.volumes.add(name="own").empty_dir.SetInParent()
        spec.containers[0].mounts.add(volume="own", path="/own", sub_path="a/@IP@")
        return spec

    hanging = [prepare(volume(f"hangs-{number}")) for number in range(20)]
    hanging.append(prepare(volume_beside_ip("hangs-too")))
    try:
        spec = volume("there")
        volumes.prepare(spec, 1 << 30)
        await asyncio.wait_for(prepare(spec), 30)
        ready = await asyncio.wait_for(preparer.take(spec, spec.containers[0], 0, ()), 30)
        assert ready.mounts[0].image.image == "there@sha256:1"
        spec = volume("private")
        spec.volumes[0].image.pull_policy = NEVER
        spec.registry_credentials.add(registry="r.io", username="ann")
        volumes.prepare(spec, 1 << 30)
        await asyncio.wait_for(prepare(spec), 30)
        assert images.pulls == 4, "no more at once than a registry should be asked"
        assert not any(task.done() for task in hanging), "their starts would wait instead"
    finally:
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
