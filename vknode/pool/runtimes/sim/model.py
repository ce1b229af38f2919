"""What the simulated runtime knows: sandboxes, container instances, addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import uuid
from dataclasses import dataclass, field

from vknode.pool.runtimes.base import (
    ContainerExit,
    ContainerRef,
    Failure,
    Image,
    RunningSandbox,
)
from vknode.pool.runtimes.sim.behaviour import Behaviour
from vknode.pool.runtimes.sim.shell import World
from vknode.pool.runtimes.tokens import with_files, with_ips
from vknode.pool.v1 import spec_pb2


@dataclass(slots=True, eq=False)
class SimContainer:
    """One instance. `exit` is None while it runs."""

    ref: ContainerRef
    sandbox: SimSandbox
    spec: spec_pb2.Container
    image: Image
    behaviour: Behaviour
    started_at: int
    # The sandbox's spec at the start: what a mount with a sub path goes on showing.
    born_with: spec_pb2.SandboxSpec
    exit: ContainerExit | None = None
    timer: asyncio.TimerHandle | None = None
    # Whoever waits for the end; made on demand, a resting container has none.
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    # `spec` as it was asked for; there it has values for tokens.
    asked: spec_pb2.Container = field(init=False)

    def __post_init__(self) -> None:
        self.take(self.spec)

    def take(self, asked: spec_pb2.Container) -> None:
        """It is to be like this from now on."""
        self.asked = asked
        # Nobody writes files here: all variables from files are left out.
        spec = with_files(asked, {})
        self.spec = with_ips(self.sandbox.spec, spec, self.sandbox.ips)

    def argv(self) -> list[str]:
        return [*self.spec.command, *self.spec.args]

    def world(self, *, tty: bool = False, start: float | None = None) -> World:
        """A fresh view for one command in this container."""
        hostname = self.sandbox.spec.network.hostname or self.sandbox.spec.name
        env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME": hostname,
        }
        env.update(
            (entry.name, entry.value) for entry in self.spec.env if not entry.HasField("file")
        )
        return World(
            env=env,
            hostname=hostname,
            file=self.file,
            listing=self.listing,
            start=self.started_at / 1e9 if start is None else start,
            tty=tty,
        )

    def file(self, path: str) -> bytes | None:
        """Content of a file from a mounted volume, or of the few others there are."""
        for mount in self.spec.mounts:
            inside = _below(path, mount.path)
            if inside is None:
                continue
            name = "/".join(part for part in (mount.sub_path.strip("/"), inside) if part)
            for file in self._files(mount):
                if file.path == name:
                    return bytes(file.content)
            return None
        hostname = self.sandbox.spec.network.hostname or self.sandbox.spec.name
        if path == "/etc/hostname":
            return f"{hostname}\n".encode()
        if path == "/etc/hosts":
            own = "".join(f"{ip}\t{hostname}\n" for ip in self.sandbox.ips)
            aliases = "".join(
                f"{alias.ip}\t{chr(9).join(alias.hostnames)}\n"
                for alias in self.sandbox.spec.network.host_aliases
            )
            return f"127.0.0.1\tlocalhost\n{own}{aliases}".encode()
        if path == "/etc/resolv.conf":
            dns = self.sandbox.spec.network.dns
            lines = [f"nameserver {server}" for server in dns.servers]
            lines += [f"search {' '.join(dns.searches)}"] if dns.searches else []
            lines += [f"options {' '.join(dns.options)}"] if dns.options else []
            return "".join(f"{line}\n" for line in lines).encode()
        return b"" if path == "/dev/null" else None

    def listing(self, path: str) -> list[str] | None:
        if path == "/":
            return ["bin", "dev", "etc", "proc", "tmp"]
        for mount in self.spec.mounts:
            inside = _below(path, mount.path)
            if inside is not None:
                prefix = "/".join(part for part in (mount.sub_path.strip("/"), inside) if part)
                names = {
                    file.path[len(prefix) :].lstrip("/").partition("/")[0]
                    for file in self._files(mount)
                    if not prefix or file.path.startswith(prefix + "/")
                }
                return sorted(names)
        return None

    def _files(self, mount: spec_pb2.Mount) -> list[spec_pb2.File]:
        spec = self.born_with if mount.sub_path else self.sandbox.spec
        for candidate in spec.volumes:
            if candidate.name == mount.volume:
                return list(candidate.files.files)
        return []


@dataclass(slots=True, eq=False)
class SimSandbox:
    """One sandbox. Its spec is the newest that the engine has brought."""

    spec: spec_pb2.SandboxSpec
    id: str
    attempt: int
    ips: tuple[str, ...]
    created_at: int
    ready: bool = True
    # Newest last; removed instances are not in it.
    containers: list[SimContainer] = field(default_factory=list)


class Addresses:
    """Unique Pod IPs of one subnet, handed out in a circle so that one is not
    soon seen again."""

    def __init__(self, subnet: str) -> None:
        network = ipaddress.IPv4Network(subnet)
        self._first = int(network.network_address) + 2  # the network and its gateway
        self._count = network.num_addresses - 3
        self._next = 0
        self._taken: set[int] = set()
        self.subnet = subnet

    def take(self) -> str:
        """Raises Failure("FailedCreatePodSandBox") where all are in use."""
        if len(self._taken) >= self._count:
            raise Failure("FailedCreatePodSandBox", f"no address is free in {self.subnet}")
        while self._next in self._taken:
            self._next = (self._next + 1) % self._count
        taken = self._next
        self._taken.add(taken)
        self._next = (taken + 1) % self._count
        return str(ipaddress.IPv4Address(self._first + taken))

    def claim(self, address: str) -> None:
        """Mark an address of an earlier process as in use."""
        self._taken.add(int(ipaddress.IPv4Address(address)) - self._first)

    def give_back(self, address: str) -> None:
        self._taken.discard(int(ipaddress.IPv4Address(address)) - self._first)


def new_id() -> str:
    return (uuid.uuid4().hex + uuid.uuid4().hex)[:64]


def running(sandbox: SimSandbox) -> RunningSandbox:
    return RunningSandbox(
        sandbox.spec.uid, sandbox.id, sandbox.attempt, sandbox.ips, sandbox.created_at
    )


def user_of(
    spec: spec_pb2.SandboxSpec, container: spec_pb2.Container
) -> tuple[int, int, tuple[int, ...]]:
    group = container.security.run_as_group
    return container.security.run_as_user, group, (group, *spec.security.supplemental_groups)


def _below(path: str, mount: str) -> str | None:
    """`path` relative to a mount point; None where it is not below it."""
    mount = mount.rstrip("/")
    if path == mount:
        return ""
    return path[len(mount) + 1 :] if path.startswith(mount + "/") else None
