"""What a request to the kubelet API needs to be allowed to. Pure: no loop.

The attributes are a kubelet's (pkg/kubelet/server/auth.go of Kubernetes 1.37, whose fine-grained
authorization is always on since 1.36): the resource `nodes`, the node's name, the verb of the HTTP
method, and one or two subresources, any of which suffices.

=========================================  ===================  ==========================
path                                       subresources         verb
=========================================  ===================  ==========================
/pods, /allocatedPods, /runningpods        pods, proxy          of the method
/healthz                                   healthz, proxy       of the method
/configz                                   configz, proxy       of the method
/stats                                     stats                of the method
/metrics                                   metrics              of the method
/logs                                      log                  of the method
/checkpoint                                checkpoint           of the method
/statusz                                   statusz              of the method
/flagz                                     configz              of the method
/exec, /attach, /portForward, /run, /cri   proxy                **always create**
all other, such as /containerLogs          proxy                of the method
=========================================  ===================  ==========================

In the last row but one we differ: a kubelet takes the verb of the method there too, and a WebSocket
begins with GET, so that whoever may `get nodes/proxy` (which monitoring often may) can run commands
in every Pod. Kubernetes has ended that for `pods/exec` (the API server asks for `create` whatever
the method, 1.35) and not for the kubelet. API servers come with `system:kubelet-api-admin`, which
has every verb, so that nothing that goes through them notices.
"""

from dataclasses import dataclass

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_SUBRESOURCES = {
    "pods": ("pods", "proxy"),
    "allocatedPods": ("pods", "proxy"),
    "runningpods": ("pods", "proxy"),
    "healthz": ("healthz", "proxy"),
    "configz": ("configz", "proxy"),
    "stats": ("stats",),
    "metrics": ("metrics",),
    "logs": ("log",),
    "checkpoint": ("checkpoint",),
    "statusz": ("statusz",),
    "flagz": ("configz",),
}
_RUNS_SOMETHING = frozenset(("exec", "attach", "portForward", "run", "cri"))


@dataclass(frozen=True, slots=True)
class Attributes:
    """`node`: empty for all nodes. `subresources`: in the order in which they are asked."""

    verb: str
    node: str
    subresources: tuple[str, ...]


def attributes(method: str, path: str, node: str) -> Attributes:
    """`path` is the one that was routed, so that what is authorized is what is served; an unknown
    method has the empty verb, which RBAC gives only to who may do anything."""
    first = path.removeprefix("/").partition("/")[0]
    verb = "create" if first in _RUNS_SOMETHING else _VERBS.get(method, "")
    return Attributes(verb, node, _SUBRESOURCES.get(first, ("proxy",)))
