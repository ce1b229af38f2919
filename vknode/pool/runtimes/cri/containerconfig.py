"""Container → ContainerConfig: environment, mounts, resources, security. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from vknode.pool.engine.wording import not_root_problem
from vknode.pool.runtimes.cri import layout
from vknode.pool.runtimes.cri.layout import Layout
from vknode.pool.runtimes.cri.resources import linux_resources
from vknode.pool.runtimes.cri.sandboxconfig import namespaces, pod_labels, se_linux_option
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import Failure, Image
from vknode.pool.v1 import spec_pb2

_READONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
_MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
_SECCOMP = {
    spec_pb2.SecurityProfile.TYPE_RUNTIME_DEFAULT: cri_pb2.SecurityProfile.RuntimeDefault,
    spec_pb2.SecurityProfile.TYPE_UNCONFINED: cri_pb2.SecurityProfile.Unconfined,
    spec_pb2.SecurityProfile.TYPE_LOCALHOST: cri_pb2.SecurityProfile.Localhost,
}
_NO_FILES: Mapping[int, bytes | None] = {}


def container_config(
    spec: spec_pb2.SandboxSpec,
    container: spec_pb2.Container,
    image: Image,
    attempt: int,
    *,
    paths: Layout,
    pool: str,
    mounts: Iterable[cri_pb2.Mount],
    memory_capacity: int,
    target_id: str = "",
    seccomp_dir: Path | None = None,
    from_files: Mapping[int, bytes | None] = _NO_FILES,
) -> cri_pb2.ContainerConfig:
    """Of a container that has no tokens any more. `from_files` are the values of variables that
    come from a file, by their index; None: the variable is left out.

    Raises Failure("CreateContainerConfigError") where a rule of the Pod forbids it."""
    # The engine asks before each start; a runtime that is called otherwise must not forget it.
    problem = not_root_problem(spec, container, image.uid, image.username)
    if problem:
        raise Failure("CreateContainerConfigError", problem)
    config = cri_pb2.ContainerConfig(
        metadata=cri_pb2.ContainerMetadata(name=container.name, attempt=attempt),
        image=cri_pb2.ImageSpec(image=image.id, user_specified_image=container.image),
        command=container.command,
        args=container.args,
        working_dir=container.working_dir,
        mounts=mounts,
        labels={**pod_labels(spec, pool), layout.CONTAINER_NAME: container.name},
        annotations={
            layout.TERMINATION_PATH: container.termination_message_path,
            layout.TERMINATION_FALLBACK: (
                "true" if container.termination_message_fallback_to_logs else "false"
            ),
            layout.IMAGE_REFERENCE: image.reference,
            layout.IMAGE_DIGEST: image.id,
        },
        log_path=paths.log_name(container.name, attempt),
        stdin=container.stdin,
        stdin_once=container.stdin_once,
        tty=container.tty,
        linux=cri_pb2.LinuxContainerConfig(
            resources=linux_resources(spec, container, memory_capacity),
            security_context=_security(spec, container, image, target_id, seccomp_dir),
        ),
    )
    # A later entry of the same name wins; runtimes differ in which of two they take.
    env: dict[str, bytes] = {}
    for index, entry in enumerate(container.env):
        value = from_files[index] if index in from_files else entry.value.encode()
        if value is not None:
            env[entry.name] = value
    config.envs.extend(cri_pb2.KeyValue(key=name, value=value) for name, value in env.items())
    for device in container.devices:
        config.devices.add(
            container_path=device.container_path,
            host_path=device.host_path,
            permissions=device.permissions,
        )
    if container.stop_signal:
        config.stop_signal = cri_pb2.Signal.Value(f"SIGNAL_{container.stop_signal}")
    return config


def _security(
    spec: spec_pb2.SandboxSpec,
    container: spec_pb2.Container,
    image: Image,
    target_id: str,
    seccomp_dir: Path | None,
) -> cri_pb2.LinuxContainerSecurityContext:
    security, pod = container.security, spec.security
    namespace = namespaces(spec)
    if target_id and namespace.pid == cri_pb2.CONTAINER:
        namespace.pid, namespace.target_id = cri_pb2.TARGET, target_id
    groups = [pod.fs_group] if pod.HasField("fs_group") else []
    context = cri_pb2.LinuxContainerSecurityContext(
        namespace_options=namespace,
        privileged=security.privileged,
        readonly_rootfs=security.read_only_root_filesystem,
        no_new_privs=(
            security.HasField("allow_privilege_escalation")
            and not security.allow_privilege_escalation
        ),
        supplemental_groups=[*groups, *pod.supplemental_groups],
        supplemental_groups_policy=(
            cri_pb2.Strict if pod.supplemental_groups_strict else cri_pb2.Merge
        ),
        # Runtimes take an empty list as "mask nothing".
        masked_paths=_masked_paths(),
        readonly_paths=_READONLY_PATHS,
        seccomp=_profile(
            security.seccomp if security.HasField("seccomp") else pod.seccomp,
            cri_pb2.SecurityProfile.Unconfined,
        ),
    )
    seccomp = context.seccomp
    if seccomp.profile_type == cri_pb2.SecurityProfile.Localhost and seccomp_dir is not None:
        seccomp.localhost_ref = str(seccomp_dir / seccomp.localhost_ref)
    if security.capabilities_add or security.capabilities_drop:
        context.capabilities.add_capabilities.extend(security.capabilities_add)
        context.capabilities.drop_capabilities.extend(security.capabilities_drop)
    if security.HasField("run_as_user"):
        context.run_as_user.value = security.run_as_user
    elif image.uid is not None:
        context.run_as_user.value = image.uid
    elif image.username:
        context.run_as_username = image.username
    elif security.HasField("run_as_group"):
        context.run_as_user.value = 0  # CRI wants a user with a group
    if security.HasField("run_as_group"):
        context.run_as_group.value = security.run_as_group
    for label in (pod, security):
        if label.HasField("se_linux"):
            context.selinux_options.CopyFrom(se_linux_option(label.se_linux))
    if security.HasField("app_armor") or pod.HasField("app_armor"):
        chosen = security.app_armor if security.HasField("app_armor") else pod.app_armor
        context.apparmor.CopyFrom(_profile(chosen, cri_pb2.SecurityProfile.RuntimeDefault))
    return context


def _profile(
    profile: spec_pb2.SecurityProfile, default: cri_pb2.SecurityProfile.ProfileType.ValueType
) -> cri_pb2.SecurityProfile:
    return cri_pb2.SecurityProfile(
        profile_type=_SECCOMP.get(profile.type, default), localhost_ref=profile.localhost_profile
    )


@cache
def _masked_paths() -> tuple[str, ...]:
    cpus = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle"))
    return (*_MASKED_PATHS, *map(str, cpus))
