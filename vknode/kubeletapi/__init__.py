"""The kubelet API: what an API server asks a node, served once for all virtual nodes.

`server.py` has the listener, `backend.py` what it needs from the rest of the agent; every other
module is one endpoint or one piece that endpoints share.
"""

from vknode.kubeletapi.backend import (
    BackendError,
    ContainerView,
    ExecRequest,
    ExecSession,
    Exit,
    LogOptions,
    LogStream,
    PodBackend,
    PodView,
    SessionEvent,
    Stderr,
    Stdout,
)
from vknode.kubeletapi.server import KubeletApi
from vknode.kubeletapi.settings import KubeletApiError, KubeletApiSettings

__all__ = [
    "BackendError",
    "ContainerView",
    "ExecRequest",
    "ExecSession",
    "Exit",
    "KubeletApi",
    "KubeletApiError",
    "KubeletApiSettings",
    "LogOptions",
    "LogStream",
    "PodBackend",
    "PodView",
    "SessionEvent",
    "Stderr",
    "Stdout",
]
