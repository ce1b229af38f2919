"""Pods as JSON, as these tests need them."""

from __future__ import annotations

from typing import Any

import msgspec

from vknode.agent.pod_store import PodObject


def pod_json(
    uid: str,
    *,
    name: str = "web",
    namespace: str = "default",
    node: str = "cell-1",
    version: int = 1,
    generation: int = 1,
    deleting: bool = False,
    grace: int | None = None,
    phase: str = "Pending",
    container_id: str = "",
    labels: dict[str, str] | None = None,
    spec: dict[str, Any] | None = None,
    deletion_timestamp: str = "2026-01-01T00:00:30Z",
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "uid": uid,
        "resourceVersion": str(version),
        "generation": generation,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": labels or {},
    }
    if deleting:
        metadata["deletionTimestamp"] = deletion_timestamp
        metadata["deletionGracePeriodSeconds"] = 30 if grace is None else grace
    status: dict[str, Any] = {"phase": phase, "qosClass": "BestEffort"}
    if container_id:
        status["containerStatuses"] = [{"name": "main", "containerID": container_id}]
    return {
        "metadata": metadata,
        "spec": {
            "nodeName": node,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "serviceAccountName": "default",
            "containers": [
                {
                    "name": "main",
                    "image": "busybox:1.36",
                    "imagePullPolicy": "IfNotPresent",
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                    "resources": {},
                    "volumeMounts": [
                        {"name": volume["name"], "mountPath": f"/{volume['name']}"}
                        for volume in (spec or {}).get("volumes", ())
                    ],
                }
            ],
            "dnsPolicy": "ClusterFirst",
            "securityContext": {},
            "schedulerName": "default-scheduler",
            "enableServiceLinks": True,
            **(spec or {}),
        },
        "status": status,
    }


def pod(uid: str, **options: Any) -> PodObject:
    return PodObject(msgspec.json.encode(pod_json(uid, **options)))
