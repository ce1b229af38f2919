"""What this process knows of ours in the runtime: the meaning of IDs in events. Pure."""

from __future__ import annotations

from vknode.pool.runtimes.facts import ContainerRef


class Known:
    """Filled by creations and inventories, emptied by removals."""

    def __init__(self) -> None:
        self.containers: dict[str, ContainerRef] = {}
        self.started: dict[str, int] = {}  # ns, by container ID
        # ID to UID; those being stopped by us are in `stopping` too.
        self.sandboxes: dict[str, str] = {}
        self.stopping: set[str] = set()
        self.ended: set[str] = set()
        self.memory_limits: dict[str, int] = {}  # bytes, by container ID; 0 or -1: none
        # By UID, as their annotations have them.
        self.storage_limits: dict[str, str] = {}
        self.host_ports: dict[str, str] = {}
        # UID to the Pod as messages name it: "NAME_NAMESPACE(UID)".
        self.pods: dict[str, str] = {}

    def name_pod(self, uid: str, namespace: str, name: str) -> None:
        self.pods[uid] = f"{name}_{namespace}({uid})"

    def newest(self, uid: str, name: str) -> ContainerRef | None:
        """The newest instance of a container."""
        found = [r for r in self.containers.values() if r.uid == uid and r.name == name]
        return max(found, key=lambda ref: ref.attempt, default=None)

    def of(self, uid: str) -> list[ContainerRef]:
        return [ref for ref in self.containers.values() if ref.uid == uid]

    def forget_container(self, container_id: str) -> None:
        self.containers.pop(container_id, None)
        self.started.pop(container_id, None)
        self.memory_limits.pop(container_id, None)
        self.ended.discard(container_id)

    def forget_sandbox(self, sandbox_id: str) -> None:
        self.sandboxes.pop(sandbox_id, None)
        self.stopping.discard(sandbox_id)

    def forget_uid(self, uid: str) -> None:
        for ref in self.of(uid):
            self.forget_container(ref.id)
        for sandbox_id in [i for i, owner in self.sandboxes.items() if owner == uid]:
            self.forget_sandbox(sandbox_id)
        self.pods.pop(uid, None)
        self.storage_limits.pop(uid, None)
        self.host_ports.pop(uid, None)
