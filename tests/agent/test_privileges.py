"""Who may have what on which cell, and what a Pod is told that may not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vknode.agent.patterns import fits
from vknode.agent.privileges import NOT_ALLOWED, Grant, Privileges, rejection
from vknode.translate.privileges import Allowed, Closed

NETWORK, PROCESSES = Allowed(host_network=True), Allowed(host_pid=True)
GIVEN = Privileges(
    [
        Grant(("kube-system", "log-*"), NETWORK, cells=("az1-*",)),
        Grant(("log-a",), PROCESSES, pools=("big",)),
    ]
)


def test_an_entry_holds_for_its_namespaces_on_its_cells_only() -> None:
    assert GIVEN.allowed("kube-system", "small", "az1-a") == NETWORK
    assert GIVEN.allowed("log-b", "big", "az1-b") == NETWORK
    for namespace, cell in (
        ("kube-system", "az2-a"),
        ("kube-system-2", "az1-a"),
        ("log", "az1-a"),
        ("default", "az1-a"),
        ("kube-system", "xaz1-a"),
    ):
        assert GIVEN.allowed(namespace, "big", cell) == Allowed()


def test_what_several_entries_allow_adds_up() -> None:
    assert GIVEN.allowed("log-a", "big", "az1-a") == NETWORK | PROCESSES
    assert GIVEN.allowed("log-a", "big", "az2-a") == PROCESSES
    assert GIVEN.allowed("log-a", "small", "az1-a") == NETWORK


def test_without_entries_nothing_is_open() -> None:
    assert Privileges().allowed("kube-system", "az1", "az1-a") == Allowed()


@given(st.text(), st.text())
def test_a_pattern_is_a_name_or_a_prefix(name: str, stem: str) -> None:
    assert fits(name, "*")
    assert fits(name, f"{stem}*") == name.startswith(stem)
    if not stem.endswith("*"):
        assert fits(name, stem) == (name == stem)


def test_a_refusal_names_the_fields_and_what_would_open_them() -> None:
    found = [Closed("spec.hostPID", "hostPID: true"), Closed("spec.hostIPC", "hostIPC: true")]
    why = rejection(found, "web", "az1-a")
    assert why.reason == NOT_ALLOWED
    first, second = why.message.split("; spec.")
    assert first.startswith("spec.hostPID: ") and second.startswith("hostIPC: ")
    for word in ("namespace web", "cell az1-a", "privileges[].allow", "{hostPID: true}"):
        assert word in first


def test_kernel_parameters_alone_have_a_kubelets_reason() -> None:
    sysctl = Closed("spec.securityContext.sysctls[0]", "unsafeSysctls: [a.b]", "forbidden sysctl")
    why = rejection([sysctl], "web", "c")
    assert why.reason == "SysctlForbidden"
    assert why.message.startswith("forbidden sysctl; spec.securityContext.sysctls[0]: ")
    mixed = rejection([Closed("spec.hostPID", "hostPID: true"), sysctl], "web", "c")
    assert mixed.reason == NOT_ALLOWED
