"""Checks of the service itself, its cells and its refusals."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any, cast

import grpc.aio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from vknode.pool import quantity
from vknode.pool.check.suite import OWNER, Bench, check, expect, expect_equal, expect_failure
from vknode.pool.errors import NOT_FOUND, REFUSED, UNSUPPORTED_FIELD, from_rpc_error
from vknode.pool.v1 import cell_pb2, pool_pb2, spec_pb2

_SERVICE = pool_pb2.DESCRIPTOR.services_by_name["Pool"].full_name
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@check("grpc.health.v1 answers SERVING for the server and for the Pool service")
async def health_serving(bench: Bench) -> None:
    stub: Any = health_pb2_grpc.HealthStub(bench.channel)
    for service in ("", _SERVICE):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        expect_equal(
            answer.status, health_pb2.HealthCheckResponse.SERVING, f"health of {service!r}"
        )


@check("server reflection lists the Pool service and describes it")
async def reflection_on(bench: Bench) -> None:
    stub: Any = cast("Any", reflection_pb2_grpc.ServerReflectionStub)(bench.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=_SERVICE),
    ]
    call = stub.ServerReflectionInfo(iter(requests), timeout=10)
    listed = (await call.read()).list_services_response
    described = (await call.read()).file_descriptor_response
    call.cancel()
    names = [service.name for service in listed.service]
    expect(_SERVICE in names, f"{_SERVICE} is not in {names}")
    expect("grpc.health.v1.Health" in names, f"grpc.health.v1.Health is not in {names}")
    files = [FileDescriptorProto.FromString(data) for data in described.file_descriptor_proto]
    methods = {
        method.name for file in files for service in file.service for method in service.method
    }
    expect({"WatchSandboxes", "Exec"} <= methods, f"the description has only {sorted(methods)}")


@check("the first WatchCells response is a snapshot of well-formed cells")
async def cells_snapshot_valid(bench: Bench) -> None:
    call = bench.stub.WatchCells(cell_pb2.WatchCellsRequest())
    try:
        response = await asyncio.wait_for(call.read(), 10)
    finally:
        call.cancel()
    expect(response.snapshot, "the first response has no `snapshot`")
    expect(response.cells, "the snapshot has no cell")
    expect(not response.removed, "a snapshot cannot remove cells")
    names = [cell.name for cell in response.cells]
    expect_equal(len(set(names)), len(names), "number of different cell names")
    for cell in response.cells:
        where = f"cell {cell.name!r}"
        expect(_LABEL.fullmatch(cell.name), f"{where}: its name is not a DNS label")
        expect(cell.zone, f"{where}: has no zone")
        expect(cell.health != cell_pb2.HEALTH_UNSPECIFIED, f"{where}: has no health")
        if cell.health == cell_pb2.HEALTH_UNHEALTHY:
            expect(cell.health_reason, f"{where}: is unhealthy without a reason")
        for resource in ("cpu", "memory", "pods"):
            expect(resource in cell.capacity, f"{where}: its capacity lacks {resource!r}")
        for key, text in (*cell.capacity.items(), *cell.allocatable.items()):
            expect(quantity.is_amount(text), f"{where}: {key}={text!r} is no quantity")
        expect(cell.info.operating_system, f"{where}: info.operating_system is empty")
        expect(cell.info.architecture, f"{where}: info.architecture is empty")
        expect(
            "://" in cell.info.container_runtime_version,
            f"{where}: info.container_runtime_version is not like containerd://1.6.20",
        )


@check("a second CreateSandbox with the same UID changes nothing")
async def create_idempotent(bench: Bench) -> None:
    spec = bench.spec()
    first = await bench.create(spec)
    again, created = await bench.client.create(spec, OWNER)
    expect(not created, "`created` is true for a UID that exists")
    expect_equal(again.created_at, first.created_at, "created_at of the second answer")
    running = await bench.wait(spec, lambda s: s.pod_ips and s.containers[0].ready, "running")
    again, created = await bench.client.create(spec, OWNER)
    expect(not created, "`created` is true for a sandbox that runs")
    expect_equal(again.containers[0].container_id, running.containers[0].container_id, "container")


@check("twenty CreateSandbox calls at once with one UID make one sandbox")
async def create_concurrent(bench: Bench) -> None:
    spec = bench.spec()
    answers = await asyncio.gather(*(bench.client.create(spec, OWNER) for _ in range(20)))
    expect_equal(sum(created for _, created in answers), 1, "number of answers with `created`")


@check("an unknown cell is refused")
async def unknown_cell(bench: Bench) -> None:
    spec = bench.spec()
    spec.cell = "no-such-cell"
    await expect_failure(bench.client.create(spec, OWNER), REFUSED, NOT_FOUND, field="cell")


@check("an unknown runtime handler is refused with its field")
async def unknown_runtime_handler(bench: Bench) -> None:
    spec = bench.spec()
    spec.runtime_handler = "no-such-handler"
    await expect_failure(
        bench.client.create(spec, OWNER), UNSUPPORTED_FIELD, REFUSED, field="runtime_handler"
    )


@check("a field that cannot be honoured gives UNSUPPORTED_FIELD with its path")
async def unsupported_field(bench: Bench) -> None:
    # Nobody has this tenant network; where one is ignored, isolation is lost.
    spec = bench.spec()
    spec.network.name = f"no-such-network-{uuid.uuid4().hex[:8]}"
    failure = await expect_failure(
        bench.client.create(spec, OWNER), UNSUPPORTED_FIELD, REFUSED, field="network.name"
    )
    expect(not failure.retryable, "the failure is retryable")
    await asyncio.sleep(0)
    expect(spec.uid not in bench.observer.latest, "the refused sandbox exists")


def _wrong(bench: Bench) -> list[tuple[str, spec_pb2.SandboxSpec]]:
    cases = []

    def case(field: str) -> spec_pb2.SandboxSpec:
        spec = bench.spec()
        cases.append((field, spec))
        return spec

    case("uid").uid = ""
    case("uid").uid = "../escape"
    case("cell").cell = ""
    case("restart_policy").restart_policy = spec_pb2.RESTART_POLICY_UNSPECIFIED
    case("containers").ClearField("containers")
    case("containers[0].image").containers[0].image = ""
    case("containers[0].image_pull_policy").containers[
        0
    ].image_pull_policy = spec_pb2.IMAGE_PULL_POLICY_UNSPECIFIED
    bench.container(case("containers[1].name"), "main", ["true"])
    case("containers[0].mounts[0].volume").containers[0].mounts.add(volume="none", path="/data")
    volume = case("volumes[0].files.files[0].path").volumes.add(name="files")
    volume.files.files.add(path="../escape", content=b"")
    file = case("containers[0].env[0].file.path").containers[0].env.add(name="A").file
    file.volume, file.path, file.key = "scratch", "../escape", "A"
    cases[-1][1].volumes.add(name="scratch").empty_dir.SetInParent()
    resized = case("containers[0].resize_restarts[0]")
    resized.containers[0].resize_restarts.append("gpu")
    return cases


@check("malformed specs are REFUSED, each with the field that is wrong")
async def malformed_refused(bench: Bench) -> None:
    for field, spec in _wrong(bench):
        await expect_failure(bench.client.create(spec, OWNER), REFUSED, field=field)


@check("a malformed request for a stream is refused, one for an unknown UID is NOT_FOUND")
async def stream_requests_checked(bench: Bench) -> None:
    await expect_failure(bench.client.delete(""), REFUSED, field="uid")
    unknown = bench.spec()
    await expect_failure(bench.logs(unknown), NOT_FOUND)
    await expect_failure(bench.exec(unknown, ["true"]), NOT_FOUND)
    await expect_failure(bench.client.port_forward(unknown.uid, 80), NOT_FOUND)
    call = bench.stub.Exec()
    await call.done_writing()
    try:
        await asyncio.wait_for(call.read(), 10)
        raise AssertionError("an exec without a start was accepted")
    except grpc.aio.AioRpcError as error:
        expect_equal(from_rpc_error(error).kind, REFUSED, "kind of an exec without a start")


@check("an update of an unknown sandbox is NOT_FOUND, deleting one is no error")
async def unknown_sandbox(bench: Bench) -> None:
    await expect_failure(bench.client.update(bench.spec()), NOT_FOUND)
    answer = await bench.client.delete(str(uuid.uuid4()), 0)
    expect(not answer.found, "`found` is true for nothing")
