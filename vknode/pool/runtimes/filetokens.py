"""Puts what was read from files (EnvFile) in the place of its tokens. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from vknode.pool.runtimes.facts import Failure
from vknode.pool.v1 import spec_pb2

_REASON = "CreateContainerConfigError"


def with_values(
    container: spec_pb2.Container, values: Mapping[int, bytes | None]
) -> spec_pb2.Container:
    """The container as it is to be created; a copy where a token occurs. `values` of variables
    by their index in `env`, None for one that is left out.

    Raises Failure("CreateContainerConfigError") in a kubelet's words where a sub path comes to
    nothing or leads out of its volume.
    """
    texts, lacking = _replacements(container, values)
    if not texts:
        return container
    token = _any_of(texts)

    def put(text: str) -> str:
        return token.sub(lambda match: texts[match[0]], text)

    result = spec_pb2.Container()
    result.CopyFrom(container)
    for entry in result.env:
        entry.value = put(entry.value)
    result.command[:] = [put(word) for word in result.command]
    result.args[:] = [put(word) for word in result.args]
    for mount in result.mounts:
        missing = {lacking[one] for one in token.findall(mount.sub_path) if one in lacking}
        if missing:
            raise Failure(_REASON, f"missing value for {', '.join(sorted(missing))}")
        mount.sub_path = put(mount.sub_path)
        if mount.sub_path.startswith("/"):
            raise Failure(_REASON, f"error SubPath `{mount.sub_path}` must not be an absolute path")
        if ".." in mount.sub_path.split("/"):
            raise Failure(
                _REASON, f"unable to provision SubPath `{mount.sub_path}`: must not contain '..'"
            )
    return result


def _replacements(
    container: spec_pb2.Container, values: Mapping[int, bytes | None]
) -> tuple[dict[str, str], dict[str, str]]:
    """What stands for each token, and the names of variables whose tokens stand for nothing."""
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
            text = file.otherwise if known else f"$({entry.name})"
            if texts:
                text = _any_of(texts).sub(lambda match: texts[match[0]], text)
            if not text or not known or file.otherwise in lacking:
                lacking[file.token] = entry.name
        texts[file.token] = text
    return texts, lacking


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)))
