"""What a host's resolv.conf says, as a kubelet reads it."""

from __future__ import annotations

from vknode.pool.runtimes.cri.resolvconf import parse

TEXT = """
# nameserver 9.9.9.9
nameserver 10.0.0.1 trailing
nameserver
nameserver 10.0.0.2
search old.example
search corp.example. . lab.example
domain ignored.example
options ndots:3 edns0
options ndots:2 timeout:1
"""


def test_servers_and_options_add_up_and_of_one_option_the_last_counts() -> None:
    found = parse(TEXT)
    assert list(found.servers) == ["10.0.0.1", "10.0.0.2"]
    assert list(found.searches) == ["corp.example", "lab.example"]
    assert list(found.options) == ["ndots:2", "edns0", "timeout:1"]
    assert parse("") == type(found)()
