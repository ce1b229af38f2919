"""A vendor reads the proto files alone: nothing in them may be without a word."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "proto" / "vknode" / "pool" / "v1"

# Field numbers in descriptor.proto, of which the paths in SourceCodeInfo are made.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, NESTED, NESTED_ENUMS = 2, 3, 4
VALUES, METHODS = 2, 2

Named = Iterator[tuple[tuple[int, ...], str]]


def of_message(message: DescriptorProto, path: tuple[int, ...], name: str) -> Named:
    yield path, name
    for i, field in enumerate(message.field):
        yield (*path, FIELDS, i), f"{name}.{field.name}"
    for i, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from of_message(nested, (*path, NESTED, i), f"{name}.{nested.name}")
    for i, enum in enumerate(message.enum_type):
        yield from of_enum(enum, (*path, NESTED_ENUMS, i), f"{name}.{enum.name}")


def of_enum(enum: EnumDescriptorProto, path: tuple[int, ...], name: str) -> Named:
    yield path, name
    for i, value in enumerate(enum.value):
        yield (*path, VALUES, i), value.name


def everything(file: FileDescriptorProto) -> Named:
    for i, message in enumerate(file.message_type):
        yield from of_message(message, (MESSAGES, i), message.name)
    for i, enum in enumerate(file.enum_type):
        yield from of_enum(enum, (ENUMS, i), enum.name)
    for i, service in enumerate(file.service):
        yield (SERVICES, i), service.name
        for k, method in enumerate(service.method):
            yield (SERVICES, i, METHODS, k), f"{service.name}.{method.name}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    out = tmp_path_factory.mktemp("proto") / "set"
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"),
            *("--include_source_info", f"--descriptor_set_out={out}"),
            *map(str, sorted(FOLDER.glob("*.proto"))),
        ],
        check=True,
    )
    return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def test_every_message_field_value_and_call_is_explained(files: list[FileDescriptorProto]) -> None:
    bare = []
    for file in files:
        told = {
            tuple(place.path)
            for place in file.source_code_info.location
            if place.leading_comments.strip() or place.trailing_comments.strip()
        }
        bare += [f"{file.name}: {name}" for path, name in everything(file) if path not in told]
    assert len(files) == 7
    assert not bare, "\n".join(bare)
