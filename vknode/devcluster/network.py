"""Pod networks of the zones: one bridge and one subnet each, routed by the host.

A cluster takes one /16 out of 10/8 that overlaps no route of this machine, and
gives each zone a /22 of it (1,021 Pods). The bridge is made here rather than
left to the CNI plugin, because its address is what reserves the subnet: the
next cluster on this machine sees the route and takes another block.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import random
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: The cluster's own Services.
SERVICES = ipaddress.ip_network("10.96.0.0/16")
#: Kubernetes' usual Service range: no Pods are put there.
USUAL_SERVICES = ipaddress.ip_network("10.96.0.0/12")
LOCK = Path("/run/lock/vknode-network.lock")


class NetworkFailed(Exception):
    """A network could not be made; the text carries the tool's words."""


@dataclass(frozen=True)
class ZoneNetwork:
    """One zone's Pod network."""

    name: str  # the CNI network's
    bridge: str
    subnet: ipaddress.IPv4Network

    @property
    def gateway(self) -> ipaddress.IPv4Address:
        """The bridge's own address: the first of the subnet."""
        return self.subnet[1]

    def cni(self, data: Path) -> dict[str, object]:
        """The CNI configuration; host-local keeps its leases in `data`."""
        return {
            "cniVersion": "0.4.0",
            "name": self.name,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge,
                    "isGateway": True,
                    # A rule per Pod would cost every cold start an iptables run; one
                    # rule for the whole cluster does the same (`open_firewall`).
                    "ipMasq": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(data),
                        "ranges": [[{"subnet": str(self.subnet)}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                # hostPort; it does nothing for a Pod without one.
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }


def choose_block(
    routes: Iterable[ipaddress.IPv4Network], pick: random.Random | None = None
) -> ipaddress.IPv4Network:
    """A /16 of 10/8 that overlaps none of `routes`. Raises NetworkFailed if none is left."""
    taken = [*routes, USUAL_SERVICES]
    numbers = list(range(256))
    (pick or random.Random()).shuffle(numbers)
    for number in numbers:
        block = ipaddress.IPv4Network(f"10.{number}.0.0/16")
        if not any(block.overlaps(other) for other in taken):
            return block
    raise NetworkFailed("no 10.X.0.0/16 is free of this machine's routes")


def plan(cluster: str, zones: list[str], block: ipaddress.IPv4Network) -> dict[str, ZoneNetwork]:
    """Networks for the zones of cluster id `cluster` (six characters: a bridge's name has
    at most 15)."""
    subnets = block.subnets(new_prefix=22)
    return {
        zone: ZoneNetwork(f"vknode-{cluster}-{zone}", f"vk{cluster}z{number}", subnet)
        for number, (zone, subnet) in enumerate(zip(zones, subnets, strict=False), 1)
    }


def current_routes(ip: Path) -> list[ipaddress.IPv4Network]:
    """Every IPv4 destination in any of this machine's routing tables, the default aside."""
    listed = json.loads(_run([str(ip), "-j", "-4", "route", "show", "table", "all"]) or "[]")
    networks = []
    for route in listed:
        with contextlib.suppress(ValueError):  # "default", or a name
            networks.append(ipaddress.IPv4Network(route["dst"], strict=False))
    return networks


@contextlib.contextmanager
def reserving() -> Iterator[None]:
    """Hold the machine-wide right to choose a block and make its bridges."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def make_bridge(ip: Path, network: ZoneNetwork) -> None:
    """Make the zone's bridge with the gateway's address."""
    address = f"{network.gateway}/{network.subnet.prefixlen}"
    # forward_delay 0: a Pod's port forwards at once, not after 15 s of learning.
    _run([str(ip), "link", "add", network.bridge, "type", "bridge", "forward_delay", "0"])
    _run([str(ip), "addr", "add", address, "dev", network.bridge])
    _run([str(ip), "link", "set", network.bridge, "up"])
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    if forwarding.read_text().strip() != "1":
        # What the CNI bridge plugin would do at the first Pod, and every kubelet host has.
        forwarding.write_text("1\n")


def open_firewall(iptables: Path, block: ipaddress.IPv4Network, mark: str) -> None:
    """Let Pods reach each other and the world, but Services not: nothing here serves them, and a
    packet to one would leave for whatever the machine's router makes of it. Every rule carries
    `mark` as its comment."""
    comment = ["-m", "comment", "--comment", mark]
    command = [str(iptables), "-w", "10"]
    _run([*command, "-I", "FORWARD", "-s", str(block), *comment, "-j", "ACCEPT"])
    _run([*command, "-I", "FORWARD", "-d", str(block), *comment, "-j", "ACCEPT"])
    refused = ["-s", str(block), "-d", str(SERVICES), *comment, "-j", "REJECT"]
    _run([*command, "-I", "FORWARD", *refused])  # before the others
    nat = ["-t", "nat", "-A", "POSTROUTING", "-s", str(block), "!", "-d", str(block)]
    _run([*command, *nat, *comment, "-j", "MASQUERADE"])


def close_firewall(iptables: Path, mark: str) -> None:
    """Delete every rule that carries `mark`."""
    command = [str(iptables), "-w", "10"]
    for table, chain in (("filter", "FORWARD"), ("nat", "POSTROUTING")):
        for rule in _run([*command, "-t", table, "-S", chain]).splitlines():
            words = shlex.split(rule)
            if mark in words:
                _run([*command, "-t", table, "-D", *words[1:]])


def close_host_ports(iptables: Path, name: str) -> None:
    """Delete what the portmap plugin left for Pods of the CNI network `name`, and its own
    chains when nobody uses them any more (it makes them when it needs them)."""
    command = [str(iptables), "-w", "10", "-t", "nat"]
    dispatch, others = "CNI-HOSTPORT-DNAT", ("CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK")
    ours = [
        rule
        for rule in _rules(command)
        if rule[:2] == ["-A", dispatch] and any(f'"{name}"' in word for word in rule)
    ]
    for rule in ours:
        _run([*command, "-D", *rule[1:]])
        for step in ("-F", "-X"):
            _run([*command, step, rule[-1]])
    rules = _rules(command)
    if any(rule[:2] == ["-A", dispatch] for rule in rules):
        return
    chains = [chain for chain in (dispatch, *others) if ["-N", chain] in rules]
    for rule in rules:
        if rule[0] == "-A" and rule[-1] in chains:
            _run([*command, "-D", *rule[1:]])
    for step in ("-F", "-X"):
        for chain in chains:
            _run([*command, step, chain])


def _rules(command: list[str]) -> list[list[str]]:
    return [shlex.split(line) for line in _run([*command, "-S"]).splitlines()]


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        raise NetworkFailed(f"`{' '.join(command)}` failed: {words}")
    return done.stdout
