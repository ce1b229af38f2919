"""Whether an ended container is to run once more, by its exit code. Pure.

Source: pkg/api/v1/pod/util.go (ContainerShouldRestart, FindMatchingContainerRestartRule).
"""

from __future__ import annotations

from vknode.pool.v1 import spec_pb2

_RESTART = spec_pb2.RestartRule.ACTION_RESTART
RESTART_ALL = spec_pb2.RestartRule.ACTION_RESTART_ALL_CONTAINERS


def matching_rule(container: spec_pb2.Container, exit_code: int) -> spec_pb2.RestartRule | None:
    """The first of the container's rules that fits."""
    for rule in container.restart_rules:
        if (exit_code in rule.exit_codes) is not rule.not_in:
            return rule
    return None


def asks_restart_of_all(container: spec_pb2.Container, exit_code: int) -> bool:
    rule = matching_rule(container, exit_code)
    return rule is not None and rule.action == RESTART_ALL


def should_restart(
    container: spec_pb2.Container,
    policy: spec_pb2.RestartPolicy.ValueType,
    exit_code: int,
    *,
    failed: bool,
) -> bool:
    """`policy` is the sandbox's, for a container that has none. `failed` counts more than
    the exit code where only failures restart (a killed process may have left with 0)."""
    rule = matching_rule(container, exit_code)
    if rule is not None and rule.action in (_RESTART, RESTART_ALL):
        return True
    policy = container.restart_policy or policy
    if policy == spec_pb2.RESTART_POLICY_NEVER:
        return False
    return failed or policy == spec_pb2.RESTART_POLICY_ALWAYS
