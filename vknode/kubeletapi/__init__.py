"""The kubelet API: what an API server asks a node, served once for all virtual nodes.

`server.py` has the listener, `backend.py` what it needs from the rest of the agent; every other
module is one endpoint or one piece that endpoints share.
"""

from vknode.kubeletapi.backend import (
    AttachRequest,
    BackendError,
    ContainerView,
    Ended,
    ExecRequest,
    ExecSession,
    Exit,
    ForwardedConnection,
    LogOptions,
    LogStream,
    PodBackend,
    PodView,
    SessionEvent,
    Stderr,
    Stdout,
)
from vknode.kubeletapi.identity import User
from vknode.kubeletapi.node_ports import PortRange
from vknode.kubeletapi.reviews import Access, Reviewer, ReviewError
from vknode.kubeletapi.server import KubeletApi
from vknode.kubeletapi.settings import (
    AuthenticationSettings,
    AuthorizationSettings,
    KubeletApiError,
    KubeletApiSettings,
)
from vknode.kubeletapi.usage import (
    ContainerUsage,
    NodeBackend,
    NodeUsage,
    PodUsage,
    ProbeCount,
    ProbeType,
    RunningPod,
    Usage,
    VolumeUsage,
)

__all__ = [
    "Access",
    "AttachRequest",
    "AuthenticationSettings",
    "AuthorizationSettings",
    "BackendError",
    "ContainerUsage",
    "ContainerView",
    "Ended",
    "ExecRequest",
    "ExecSession",
    "Exit",
    "ForwardedConnection",
    "KubeletApi",
    "KubeletApiError",
    "KubeletApiSettings",
    "LogOptions",
    "LogStream",
    "NodeBackend",
    "NodeUsage",
    "PodBackend",
    "PodUsage",
    "PodView",
    "PortRange",
    "ProbeCount",
    "ProbeType",
    "ReviewError",
    "Reviewer",
    "RunningPod",
    "SessionEvent",
    "Stderr",
    "Stdout",
    "Usage",
    "User",
    "VolumeUsage",
]
