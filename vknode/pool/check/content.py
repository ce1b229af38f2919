"""Checks of what containers see (environment, files) and of usage."""

from __future__ import annotations

import asyncio
import hashlib
import time

from vknode.pool.check.suite import Bench, CheckFailed, check, expect, expect_equal
from vknode.pool.v1 import spec_pb2

NEVER = spec_pb2.RESTART_POLICY_NEVER


@check("environment: in order, the last of a name wins, values arrive unchanged")
async def environment(bench: Bench) -> None:
    spec = bench.spec()
    value = "a b  c=\"d\" $HOME 'e' é"
    for name, text in (("TWICE", "first"), ("PLAIN", value), ("TWICE", "second")):
        spec.containers[0].env.add(name=name, value=text)
    await bench.running(spec)
    _, output, _ = await bench.exec(spec, ["env"])
    lines = output.decode().splitlines()
    expect(f"PLAIN={value}" in lines, "a value arrived changed")
    expect("TWICE=second" in lines and "TWICE=first" not in lines, "the first of a name won")


@check("Pod IP tokens are replaced in environment, command and args")
async def ip_tokens(bench: Bench) -> None:
    spec = bench.spec(["sh", "-c", "echo $ONE; echo @IP@"], policy=NEVER)
    spec.containers[0].command[2] = "echo $ONE $ALL; echo __pod_ip__"
    spec.pod_ip_token = "__pod_ip__"
    spec.pod_ips_token = "__pod_all_ips__"
    spec.containers[0].env.add(name="ONE", value="ip=__pod_ip__")
    spec.containers[0].env.add(name="ALL", value="ips=__pod_all_ips__")
    sandbox = await bench.finished(spec)
    text = (await bench.logs(spec)).decode()
    first = sandbox.pod_ips[0]
    wanted = f"ip={first} ips={','.join(sandbox.pod_ips)}\n{first}\n"
    expect_equal(text, wanted, "what the container printed")


@check("Pod IP tokens are replaced in sub paths")
async def ip_tokens_in_sub_paths(bench: Bench) -> None:
    spec = bench.spec()
    spec.pod_ip_token = "__pod_ip__"
    spec.volumes.add(name="data").empty_dir.SetInParent()
    main = spec.containers[0]
    main.mounts.add(volume="data", path="/data")
    main.mounts.add(volume="data", path="/own", sub_path="__pod_ip__")
    sandbox = await bench.running(spec)
    _, output, _ = await bench.exec(spec, ["ls", "/data"])
    # A pool may keep sub paths elsewhere; a folder of the token's name it must not make.
    expect(output.strip() in (sandbox.pod_ips[0].encode(), b""), f"the volume holds {output!r}")


@check("a variable from a file that is not there leaves what stands for its token")
async def file_tokens(bench: Bench) -> None:
    script = "echo $USES; echo __one__; echo '__two__'"
    spec = bench.spec(["sh", "-c", script], policy=NEVER)
    spec.volumes.add(name="data").empty_dir.SetInParent()
    main = spec.containers[0]
    main.mounts.add(volume="data", path="/data")
    file = spec_pb2.EnvFile(volume="data", path="env", key="K", optional=True)
    for name, token in (("ONE", "__one__"), ("TWO", "__two__")):
        file.token = token
        main.env.add(name=name, file=file)
    main.env[0].file.otherwise = "before"
    main.env.add(name="USES", value="<__one__>")
    await bench.finished(spec)
    expect_equal(await bench.logs(spec), b"<before>\nbefore\n$(TWO)\n", "what it printed")


@check("the host name is the asked one")
async def host_name(bench: Bench) -> None:
    spec = bench.spec()
    spec.network.hostname = "asked-name"
    await bench.running(spec)
    code, output, _ = await bench.exec(spec, ["hostname"])
    expect_equal((code, output), (0, b"asked-name\n"), "exit code and output of hostname")


def _files(spec: spec_pb2.SandboxSpec, name: str, **content: bytes) -> spec_pb2.Volume:
    volume = spec.volumes.add(name=name)
    for path, data in content.items():
        volume.files.files.add(path=path, content=data, mode=0o644)
    spec.containers[0].mounts.add(volume=name, path=f"/{name}", read_only=True)
    return volume


async def _until_it_says(
    bench: Bench, spec: spec_pb2.SandboxSpec, path: str, content: bytes
) -> None:
    deadline = time.monotonic() + bench.settings.timeout
    while (output := (await bench.exec(spec, ["cat", path]))[1]) != content:
        if time.monotonic() > deadline:
            raise CheckFailed(
                f"{bench.settings.timeout:g} s after the update {path} still says {output!r}"
            )
        await asyncio.sleep(0.1)  # nothing tells when the container sees it


@check("6 MiB of volume files arrive byte for byte")
async def big_volumes(bench: Bench) -> None:
    spec = bench.spec()
    block = bytes(range(256)) * 4096  # 1 MiB
    for number in range(6):
        _files(spec, f"big{number}", data=block)
    await bench.running(spec)
    for number in range(6):
        code, output, _ = await bench.exec(spec, ["cat", f"/big{number}/data"])
        expect_equal(code, 0, "exit code of cat")
        expect_equal(hashlib.sha256(output).hexdigest(), hashlib.sha256(block).hexdigest(), "hash")


@check("new volume content becomes visible without a restart")
async def volume_refresh(bench: Bench) -> None:
    spec = bench.spec()
    volume = _files(spec, "config", key=b"one")
    before = await bench.running(spec)
    code, output, _ = await bench.exec(spec, ["cat", "/config/key"])
    expect_equal((code, output), (0, b"one"), "the first content")
    volume.files.files[0].content = b"two"
    spec.generation = 2
    await bench.client.update(spec)
    await _until_it_says(bench, spec, "/config/key", b"two")
    now = bench.observer.latest[spec.uid]
    expect_equal(now.containers[0].container_id, before.containers[0].container_id, "container")


@check("a volume that an update keeps stays as it was, and the others are refreshed")
async def kept_volume(bench: Bench) -> None:
    spec = bench.spec()
    for name in ("gone", "token"):
        _files(spec, name, key=b"one")
    await bench.running(spec)
    spec.volumes[0].keep.reason = 'secret "gone" not found'
    spec.volumes[1].files.files[0].content = b"two"
    spec.generation = 2
    _, kept = await bench.client.update(spec)
    expect_equal(kept, [], "`kept`: a volume that asks for it is no difference")
    await _until_it_says(bench, spec, "/token/key", b"two")
    code, output, _ = await bench.exec(spec, ["cat", "/gone/key"])
    expect_equal((code, output), (0, b"one"), "what was kept")


@check("a newer environment counts at the container's next start, and restarts nothing")
async def environment_refresh(bench: Bench) -> None:
    spec = bench.spec(["sh", "-c", "echo word=$WORD; sleep 3; exit 7"])
    variable = spec.containers[0].env.add(name="WORD", value="one")
    await bench.running(spec)
    variable.value = "two"  # of a ConfigMap, which raises no generation
    answer, kept = await bench.client.update(spec)
    expect_equal(kept, [], "`kept`")
    before = answer.containers[0].restart_count
    sandbox = await bench.wait(
        spec,
        lambda s: (
            s.containers[0].restart_count > before and s.containers[0].state.HasField("running")
        ),
        "started again",
    )
    last = sandbox.containers[0].last_termination.terminated
    expect_equal(last.exit_code, 7, "exit code of the instance that ran during the update")
    await bench.says(spec, "word=two")


@check("a resize without room holds up nothing else of its update")
async def resize_pending_beside(bench: Bench) -> None:
    spec = bench.spec()
    spec.containers[0].resources.requests["cpu"] = "10m"
    volume = _files(spec, "config", key=b"one")
    await bench.running(spec)
    spec.containers[0].resources.requests["cpu"] = "1000000"
    volume.files.files[0].content = b"two"
    spec.generation = 2
    await bench.client.update(spec)
    await _until_it_says(bench, spec, "/config/key", b"two")
    sandbox = await bench.wait(spec, lambda s: s.resize.pending_reason, "pending")
    expect_equal(sandbox.containers[0].allocated.requests["cpu"], "10m", "allocated cpu")


@check("ListStats tells each container's usage, and can be narrowed")
async def stats(bench: Bench) -> None:
    spec, other = bench.spec(), bench.spec()
    await asyncio.gather(bench.running(spec), bench.running(other))
    deadline = time.monotonic() + bench.settings.timeout
    while True:  # a fresh container's first samples may lack something, or all
        found = await bench.client.stats([spec.uid])
        usage = found[0].containers[0].usage if found and found[0].containers else None
        if usage and usage.memory_working_set_bytes and usage.cpu_nanoseconds:
            break
        if time.monotonic() > deadline:
            raise CheckFailed(
                "no usage of memory and processor by a running container within "
                f"{bench.settings.timeout:g} s: {found}"
            )
        await asyncio.sleep(0.5)
    expect_equal([entry.uid for entry in found], [spec.uid], "the sandboxes asked for")
    entry = found[0]
    expect_equal((entry.namespace, entry.name), (spec.namespace, spec.name), "namespace and name")
    expect_equal(entry.cell, spec.cell, "cell")
    expect_equal([container.name for container in entry.containers], ["main"], "containers")
    expect(entry.containers[0].usage.HasField("at"), "usage has no time")
    everything = {entry.uid for entry in await bench.client.stats()}
    expect({spec.uid, other.uid} <= everything, "a list of all lacks a running sandbox")
    expect_equal(await bench.client.stats(cell="no-such-cell"), [], "usage in an unknown cell")
