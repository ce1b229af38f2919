"""The simulation's memory over a restart of the pool: JSON lines, appended.

A line is written before the call that caused it returns, without fsync: a killed
process loses nothing, a machine that loses power may. Loading writes the file anew
with only what still exists. Specs may hold secrets: the file has mode 0600.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from vknode.pool.runtimes.base import ContainerExit, ContainerRef, Image
from vknode.pool.runtimes.sim.behaviour import NO_BEHAVIOUR
from vknode.pool.runtimes.sim.model import SimContainer, SimSandbox
from vknode.pool.v1 import spec_pb2


class Journal:
    """One file, for one runtime. Raises OSError where it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def load(self) -> list[SimSandbox]:
        """What an earlier process left; makes the journal ready for writing."""
        sandboxes: dict[str, SimSandbox] = {}
        try:
            with self._path.open() as file:
                for line in file:
                    if not line.endswith("\n"):
                        break  # cut off in the middle of a write
                    _apply(sandboxes, json.loads(line))
        except FileNotFoundError:
            pass
        fresh = self._path.with_suffix(".new")
        self._file = _open_private(fresh)
        for sandbox in sandboxes.values():
            self.sandbox(sandbox)
            for container in sandbox.containers:
                self.container(container)
                if container.exit is not None:
                    self.exited(container)
            if not sandbox.ready:
                self.stopped(sandbox.spec.uid)
        fresh.replace(self._path)
        return list(sandboxes.values())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def sandbox(self, sandbox: SimSandbox) -> None:
        self._write(
            {
                "op": "sandbox",
                "spec": base64.b64encode(sandbox.spec.SerializeToString()).decode(),
                "id": sandbox.id,
                "attempt": sandbox.attempt,
                "ips": sandbox.ips,
                "created_at": sandbox.created_at,
            }
        )

    def container(self, container: SimContainer) -> None:
        self._write(
            {
                "op": "container",
                "ref": dataclasses.asdict(container.ref),
                "spec": base64.b64encode(container.asked.SerializeToString()).decode(),
                "image": dataclasses.asdict(container.image),
                "started_at": container.started_at,
            }
        )

    def exited(self, container: SimContainer) -> None:
        if container.exit is not None:
            self._write(
                {
                    "op": "exit",
                    "uid": container.ref.uid,
                    "id": container.ref.id,
                    "exit": dataclasses.asdict(container.exit),
                }
            )

    def forgotten(self, container: SimContainer) -> None:
        self._write({"op": "forgotten", "uid": container.ref.uid, "id": container.ref.id})

    def stopped(self, uid: str) -> None:
        self._write({"op": "stopped", "uid": uid})

    def removed(self, uid: str) -> None:
        self._write({"op": "removed", "uid": uid})

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")
            self._file.flush()


def _open_private(path: Path) -> TextIO:
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")


def _apply(sandboxes: dict[str, SimSandbox], entry: dict[str, Any]) -> None:
    op = entry["op"]
    if op == "sandbox":
        spec = spec_pb2.SandboxSpec.FromString(base64.b64decode(entry["spec"]))
        known = sandboxes.get(spec.uid)
        if known is not None and known.id == entry["id"]:
            known.spec = spec
            return
        sandboxes[spec.uid] = SimSandbox(
            spec, entry["id"], entry["attempt"], tuple(entry["ips"]), entry["created_at"]
        )
    elif op == "container":
        ref = ContainerRef(**entry["ref"])
        if (sandbox := sandboxes.get(ref.uid)) is not None:
            for older in _of(sandbox.containers, ref.id):  # told again: it was resized
                sandbox.containers.remove(older)
            sandbox.containers.append(
                SimContainer(
                    ref=ref,
                    sandbox=sandbox,
                    spec=spec_pb2.Container.FromString(base64.b64decode(entry["spec"])),
                    image=Image(**entry["image"]),
                    behaviour=NO_BEHAVIOUR,
                    started_at=entry["started_at"],
                    born_with=sandbox.spec,
                )
            )
    elif op == "removed":
        sandboxes.pop(entry["uid"], None)
    elif op == "stopped":
        if (sandbox := sandboxes.get(entry["uid"])) is not None:
            sandbox.ready = False
    elif (sandbox := sandboxes.get(entry["uid"])) is not None:
        for container in _of(sandbox.containers, entry["id"]):
            if op == "exit":
                container.exit = ContainerExit(**entry["exit"])
            else:
                sandbox.containers.remove(container)


def _of(containers: Iterable[SimContainer], identity: str) -> list[SimContainer]:
    return [container for container in containers if container.ref.id == identity]
