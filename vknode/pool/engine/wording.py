"""The words of a kubelet (1.37), so that `kubectl describe` reads as it always does.

Sources: pkg/kubelet/images/image_manager.go, pkg/kubelet/kuberuntime/
kuberuntime_manager.go and kuberuntime_container.go, pkg/kubelet/active_deadline.go,
pkg/kubelet/kubelet_pods.go.
"""

from __future__ import annotations

import json

from vknode.pool.v1 import spec_pb2

CONTAINER_CREATING = "ContainerCreating"
POD_INITIALIZING = "PodInitializing"
CRASH_LOOP = "CrashLoopBackOff"
IMAGE_BACK_OFF = "ImagePullBackOff"
ERR_IMAGE_PULL = "ErrImagePull"
ERR_IMAGE_NEVER_PULL = "ErrImageNeverPull"
CONFIG_ERROR = "CreateContainerConfigError"

DEADLINE_REASON = "DeadlineExceeded"
DEADLINE_MESSAGE = "Pod was active on the node longer than the specified deadline"

EVICTED = "Evicted"

# A kubelet's own for a node that is shut down gracefully (pkg/kubelet/nodeshutdown).
TERMINATED = "Terminated"
DRAINED_MESSAGE = "Pod was terminated in response to imminent node shutdown."

SANDBOX_CHANGED = "Pod sandbox changed, it will be killed and re-created."

UNKNOWN_REASON = "ContainerStatusUnknown"
UNKNOWN_MESSAGE = "The container could not be located when the pod was terminated"
INIT_UNKNOWN_MESSAGE = (
    "Unable to get init container status from container runtime and pod has been "
    "initialized, treat it as exited normally"
)


def quoted(text: str) -> str:
    """As Go's %q for the texts met here."""
    return json.dumps(text, ensure_ascii=False)


def go_duration(nanoseconds: int) -> str:
    """As Go prints a time.Duration that was cut to milliseconds: "1m20s", "350ms"."""
    ms = max(0, nanoseconds) // 1_000_000
    if ms == 0:
        return "0s"
    if ms < 1000:
        return f"{ms}ms"
    seconds, rest = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{rest:03d}".rstrip("0") if rest else ""
    text = f"{seconds}{fraction}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    if minutes:
        return f"{minutes}m{text}"
    return text


def pod(spec: spec_pb2.SandboxSpec) -> str:
    return f"{spec.name}_{spec.namespace}({spec.uid})"


def crash_loop(backoff: int, container: str, spec: spec_pb2.SandboxSpec) -> str:
    return (
        f"back-off {go_duration(backoff)} restarting failed container={container} pod={pod(spec)}"
    )


def crash_loop_event(container: str, spec: spec_pb2.SandboxSpec) -> str:
    return f"Back-off restarting failed container {container} in pod {pod(spec)}"


def failed_probe(container: str, kind: str, *, init: bool, again: bool) -> str:
    """`kind` is "liveness" or "startup"."""
    what = "Init container" if init else "Container"
    text = f"{what} {container} failed {kind} probe"
    return text if init or not again else f"{text}, will be restarted"


def resize(prefix: str, spec: spec_pb2.SandboxSpec, generation: int, error: str = "") -> str:
    """As pkg/kubelet/events/resize.go: a word, and the resources as JSON."""
    summary: dict[str, object] = {}
    for key, group in (("initContainers", spec.init_containers), ("containers", spec.containers)):
        if group:
            summary[key] = [_resources(container) for container in group]
    summary["generation"] = generation
    if error:
        summary["error"] = error
    return f"{prefix}: {json.dumps(summary, separators=(',', ':'), ensure_ascii=False)}"


def _resources(container: spec_pb2.Container) -> dict[str, object]:
    found = {
        name: dict(sorted(amounts.items()))
        for name, amounts in (
            ("limits", container.resources.limits),
            ("requests", container.resources.requests),
        )
        if amounts
    }
    return {"name": container.name, "resources": found}


def image_present(reference: str) -> str:
    return (
        f"Container image {quoted(reference)} already present on machine and can be "
        "accessed by the pod"
    )


def image_pulled(reference: str, pulling: int, waiting: int, size: int) -> str:
    return (
        f"Successfully pulled image {quoted(reference)} in {go_duration(pulling)} "
        f"({go_duration(waiting)} including waiting). Image size: {size} bytes."
    )


def not_root_problem(
    spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, uid: int | None, username: str
) -> str:
    """Why run_as_non_root forbids this start; empty when it does not.

    An image that names no user at all runs as root.
    """
    security = container.security
    if not security.run_as_non_root:
        return ""
    where = f"(pod: {quoted(pod(spec))}, container: {container.name})"
    if security.HasField("run_as_user"):
        if security.run_as_user == 0:
            return f"container's runAsUser breaks non-root policy {where}"
        return ""
    if uid is None and username:
        return (
            f"container has runAsNonRoot and image has non-numeric user ({username}), "
            f"cannot verify user is non-root {where}"
        )
    if not uid:
        return f"container has runAsNonRoot and image will run as root {where}"
    return ""
