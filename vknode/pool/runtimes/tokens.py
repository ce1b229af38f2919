"""Puts values in the place of tokens: of the Pod's IPs, and of what was read from files. Pure.

The agent writes tokens where only the pool will know the value (SandboxSpec.pod_ip_token,
EnvFile.token): into environment, command, args and sub paths of a container.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

_REASON = "CreateContainerConfigError"


def with_ips(
    spec: spec_pb2.SandboxSpec, container: spec_pb2.Container, ips: Sequence[str]
) -> spec_pb2.Container:
    """With the Pod's IPs, the first one first. Raises Failure as `with_files`."""
    texts = {
        spec.pod_ip_token: ips[0] if ips else "",
        spec.pod_ips_token: ",".join(ips),
    }
    texts.pop("", None)
    return _put(container, texts, {} if ips else dict.fromkeys(texts, "the Pod's IP"))


def with_files(
    container: spec_pb2.Container, values: Mapping[int, bytes | None]
) -> spec_pb2.Container:
    """With the values of variables by their index in `env`, None for one that is left out; what
    a value holds is not searched for tokens again.

    Raises Failure("CreateContainerConfigError") in a kubelet's words where a sub path comes to
    nothing or leads out of its volume.
    """
    texts: dict[str, str] = {}
    lacking: dict[str, str] = {}
    for index, entry in enumerate(container.env):
        file = entry.file
        if not file.token:
            continue
        value = values.get(index)
        if value is not None:
            # The runtime's messages are UTF-8.
            text = value.decode(errors="replace")
        else:
            known = file.HasField("otherwise")
            text = _replace(file.otherwise, texts) if known else f"$({entry.name})"
            if not text or not known or file.otherwise in lacking:
                lacking[file.token] = entry.name
        texts[file.token] = text
    return _put(container, texts, lacking)


def _put(
    container: spec_pb2.Container, texts: Mapping[str, str], lacking: Mapping[str, str]
) -> spec_pb2.Container:
    """A copy with `texts` for their tokens; itself where there are none. A token in `lacking`,
    with what it is called, cannot stand in a sub path."""
    if not texts:
        return container
    result = spec_pb2.Container()
    result.CopyFrom(container)
    for entry in result.env:
        entry.value = _replace(entry.value, texts)
    result.command[:] = [_replace(word, texts) for word in result.command]
    result.args[:] = [_replace(word, texts) for word in result.args]
    for mount in result.mounts:
        missing = {name for token, name in lacking.items() if token in mount.sub_path}
        if missing:
            raise Failure(_REASON, f"missing value for {', '.join(sorted(missing))}")
        mount.sub_path = _sub_path(_replace(mount.sub_path, texts))
    return result


def _replace(text: str, texts: Mapping[str, str]) -> str:
    """In one pass: no value is searched for the tokens of others. Of two tokens that begin alike
    the longer one is meant."""
    if not any(token in text for token in texts):
        return text
    tokens = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    return re.sub(tokens, lambda match: texts[match[0]], text)


def _sub_path(path: str) -> str:
    if "\0" in path:
        raise Failure(_REASON, "error SubPath must not hold a NUL character")
    if path.startswith("/"):
        raise Failure(_REASON, f"error SubPath `{path}` must not be an absolute path")
    if ".." in path.split("/"):
        raise Failure(_REASON, f"unable to provision SubPath `{path}`: must not contain '..'")
    return path
