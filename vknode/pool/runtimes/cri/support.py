"""What of a SandboxSpec this runtime cannot honour, said before anything is started. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vknode.pool import quantity, sysctls
from vknode.pool.hostpaths import host_path_allowed
from vknode.pool.runtimes.cri.features import Features
from vknode.pool.runtimes.cri.options import CriOptions
from vknode.pool.runtimes.cri.wire import cri_pb2
from vknode.pool.runtimes.facts import FieldProblem
from vknode.pool.v1 import spec_pb2

_SIGNALS = frozenset(cri_pb2.Signal.keys())
# "" is the runtime's choice.
_SE_LINUX_TYPES = (
    *("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"),
)
_LOCALHOST = spec_pb2.SecurityProfile.TYPE_LOCALHOST
# Other resources are only used by the scheduler, where they are requests.
_LIMITS = frozenset({"cpu", "memory", "ephemeral-storage"})
_POD_LIMITS = frozenset({"cpu", "memory"})


def problems(
    spec: spec_pb2.SandboxSpec, options: CriOptions, features: Features
) -> list[FieldProblem]:
    """Every field that would have to be ignored, with a sentence for the user."""
    return [FieldProblem(path, message) for path, message in _check(spec, options, features)]


_Found = Iterator[tuple[str, str]]


def _check(spec: spec_pb2.SandboxSpec, options: CriOptions, features: Features) -> _Found:
    if spec.runtime_handler and spec.runtime_handler not in features.handlers:
        known = ", ".join(sorted(h for h in features.handlers if h)) or "none but the default"
        yield (
            "runtime_handler",
            f"the container runtime has no handler {spec.runtime_handler!r}; it has {known}",
        )
    if spec.network.name and spec.network.name not in options.networks:
        yield "network.name", f"this pool has no tenant network {spec.network.name!r}"
    if not options.allow_host_namespaces:
        for path, wanted in (
            ("network.host_network", spec.network.host_network),
            ("host_pid", spec.host_pid),
            ("host_ipc", spec.host_ipc),
        ):
            if wanted:
                yield path, "this pool does not share its host's namespaces with Pods"
    yield from _pod_resources(spec, features)
    yield from _pod_security(spec, options, features)
    for i, volume in enumerate(spec.volumes):
        yield from _volume(f"volumes[{i}]", volume, options, features)
    names = {volume.name for volume in spec.volumes}
    for kind in ("init_containers", "containers", "ephemeral_containers"):
        containers = getattr(spec, kind)
        for i, container in enumerate(containers):
            yield from _container(f"{kind}[{i}]", spec, container, names, options, features)


def _pod_resources(spec: spec_pb2.SandboxSpec, features: Features) -> _Found:
    yield from _amounts("resources.requests", spec.resources.requests, limits=False)
    for name, amount in spec.resources.limits.items():
        path = f'resources.limits["{name}"]'
        if name not in _POD_LIMITS:
            yield path, f"this runtime has no limit for {name}"
            continue
        bad = _bad_quantity(amount)
        if bad:
            yield path, bad
            continue
        if features.pod_cgroups:
            continue
        # Each container without a limit gets the Pod's: alone that is enough.
        parts = [c.resources.limits.get(name, amount) for c in spec.containers]
        if any(map(_bad_quantity, parts)):
            continue
        if sum(map(quantity.milli, parts)) > quantity.milli(amount):
            yield (
                path,
                f"this pool cannot limit {name} for a Pod as a whole; give each container a "
                "limit so that together they fit into it",
            )


def _pod_security(spec: spec_pb2.SandboxSpec, options: CriOptions, features: Features) -> _Found:
    security = spec.security
    if security.supplemental_groups_strict and not features.strict_groups:
        yield (
            "security.supplemental_groups_strict",
            "the container runtime cannot keep an image's groups out (supplementalGroupsPolicy "
            "Strict needs containerd 2.0 or CRI-O 1.31)",
        )
    for name in security.sysctls:
        bad = sysctls.problem(
            name,
            options.unsafe_sysctls,
            host_network=spec.network.host_network,
            host_ipc=spec.host_ipc,
        )
        if bad:
            yield f'security.sysctls["{name}"]', bad
    yield from _profiles("security", security, options, features)


def _profiles(
    path: str,
    security: spec_pb2.SandboxSecurity | spec_pb2.ContainerSecurity,
    options: CriOptions,
    features: Features,
) -> _Found:
    if security.seccomp.type == _LOCALHOST:
        profile = security.seccomp.localhost_profile
        if options.seccomp_dir is None:
            yield (
                f"{path}.seccomp",
                "this pool has no folder of seccomp profiles (--seccomp-dir); use RuntimeDefault",
            )
        elif bad_file_path(profile):
            yield f"{path}.seccomp", bad_file_path(profile)
    if (
        security.HasField("app_armor")
        and security.app_armor.type != spec_pb2.SecurityProfile.TYPE_UNCONFINED
        and not features.app_armor
    ):
        yield (
            f"{path}.app_armor",
            "AppArmor is not enabled on the host",
        )
    if security.HasField("se_linux") and features.se_linux and not options.allow_privileged:
        label = security.se_linux
        # As "baseline" of the Pod Security Standards.
        for part, value, fine in (
            ("user", label.user, ("",)),
            ("role", label.role, ("",)),
            ("type", label.type, _SE_LINUX_TYPES),
        ):
            if value not in fine:
                yield (
                    f"{path}.se_linux.{part}",
                    f"this pool does not allow the SELinux {part} {value!r} (--allow-privileged)",
                )


def _volume(path: str, volume: spec_pb2.Volume, options: CriOptions, features: Features) -> _Found:
    match volume.WhichOneof("source"):
        case "empty_dir":
            empty = volume.empty_dir
            if empty.size_limit:
                bad = _bad_quantity(empty.size_limit)
                if bad:
                    yield f"{path}.empty_dir.size_limit", bad
        case "files":
            for i, file in enumerate(volume.files.files):
                bad = bad_file_path(file.path)
                if bad:
                    yield f"{path}.files.files[{i}].path", bad
        case "host_path":
            if not host_path_allowed(volume.host_path.path, options.host_path_prefixes):
                yield f"{path}.host_path", "this pool does not allow Pods to mount this host path"
        case "image":
            if not features.image_volumes:
                yield (
                    f"{path}.image",
                    "the container runtime cannot mount images (needs containerd 2.1 or "
                    "CRI-O 1.31)",
                )
        case _:
            yield path, f"volume {volume.name!r} has no source that this runtime knows"


def _container(
    path: str,
    spec: spec_pb2.SandboxSpec,
    container: spec_pb2.Container,
    volumes: set[str],
    options: CriOptions,
    features: Features,
) -> _Found:
    security = container.security
    if security.privileged and not options.allow_privileged:
        yield f"{path}.security.privileged", "this pool does not allow privileged containers"
    if security.proc_mount not in ("", "Default"):
        yield f"{path}.security.proc_mount", "an unmasked /proc is not supported"
    yield from _profiles(f"{path}.security", security, options, features)
    if container.devices:
        yield f"{path}.devices", "devices of the host are not supported"
    if container.stop_signal:
        if f"SIGNAL_{container.stop_signal}" not in _SIGNALS:
            yield f"{path}.stop_signal", f"{container.stop_signal!r} is no signal"
        elif not features.stop_signals and container.stop_signal != "SIGTERM":
            yield (
                f"{path}.stop_signal",
                "the container runtime takes the stop signal only from the image (needs "
                "containerd 2.2 or CRI-O 1.33)",
            )
    for i, port in enumerate(container.ports):
        if port.host_port and not spec.network.host_network:
            if not options.allow_host_ports:
                yield f"{path}.ports[{i}].host_port", "this pool does not map ports of its host"
            elif not features.port_mappings:
                yield (
                    f"{path}.ports[{i}].host_port",
                    "the container runtime's network configuration maps no ports: it lacks the "
                    "CNI plugin portmap",
                )
        if port.protocol not in ("", "TCP", "UDP", "SCTP"):
            yield f"{path}.ports[{i}].protocol", f"unknown protocol {port.protocol!r}"
    for i, entry in enumerate(container.env):
        if entry.HasField("file") and bad_file_path(entry.file.path):
            yield f"{path}.env[{i}].file.path", bad_file_path(entry.file.path)
    for i, mount in enumerate(container.mounts):
        yield from _mount(f"{path}.mounts[{i}]", spec, container, mount, volumes, features)
    yield from _amounts(f"{path}.resources.requests", container.resources.requests, limits=False)
    yield from _amounts(f"{path}.resources.limits", container.resources.limits, limits=True)


def _mount(
    path: str,
    spec: spec_pb2.SandboxSpec,
    container: spec_pb2.Container,
    mount: spec_pb2.Mount,
    volumes: set[str],
    features: Features,
) -> _Found:
    if mount.volume not in volumes:
        yield f"{path}.volume", f"the sandbox has no volume {mount.volume!r}"
    if not mount.path.startswith("/"):
        yield f"{path}.path", f"{mount.path!r} is not an absolute path"
    if mount.recursive_read_only and spec.runtime_handler not in features.recursive_read_only:
        yield (
            f"{path}.recursive_read_only",
            "the container runtime cannot make mounts below read-only (needs containerd 2.0)",
        )
    if mount.propagation == spec_pb2.PROPAGATION_BIDIRECTIONAL and not (
        container.security.privileged
    ):
        yield f"{path}.propagation", "only privileged containers may propagate mounts to the host"
    if mount.sub_path and bad_file_path(mount.sub_path):
        yield f"{path}.sub_path", bad_file_path(mount.sub_path)


def _amounts(path: str, amounts: Mapping[str, str], *, limits: bool) -> _Found:
    for name, amount in amounts.items():
        bad = _bad_quantity(amount)
        if bad:
            yield f'{path}["{name}"]', bad
        elif limits and name not in _LIMITS and quantity.milli(amount):
            yield f'{path}["{name}"]', f"this runtime has no limit for {name}"


def _bad_quantity(text: str) -> str:
    try:
        if quantity.milli(text) < 0:
            return f"{text!r} is negative"
    except ValueError as error:
        return str(error)
    return ""


def bad_file_path(path: str) -> str:
    """Why this cannot be a path inside a volume; empty where it can."""
    parts = path.split("/")
    if not path or path.startswith("/"):
        return f"{path!r} is not a relative path"
    if ".." in parts:
        return f"{path!r} leaves its volume"
    if "\0" in path or len(path) > 4095 or any(len(part.encode()) > 255 for part in parts):
        return f"{path[:64]!r} is not a usable path"
    return ""
