"""The resolver configuration of a host, read as a kubelet reads it (resolv.conf(5) and
parseResolvConf in k8s.io/kubernetes pkg/kubelet/network/dns). Pure.
"""

from __future__ import annotations

from vknode.pool.v1 import spec_pb2


def parse(text: str) -> spec_pb2.DnsConfig:
    """Nameservers and options add up, of one option and of search lines the last counts."""
    found = spec_pb2.DnsConfig()
    options: dict[str, str] = {}
    for line in text.splitlines():
        word, *values = line.split() or [""]
        if word == "nameserver" and values:
            found.servers.append(values[0])
        elif word == "search":
            found.searches[:] = [name.removesuffix(".") for name in values if name != "."]
        elif word == "options":
            options |= {value.partition(":")[0]: value for value in values}
    found.options[:] = options.values()
    return found
