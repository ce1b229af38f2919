"""What a failed scenario tells: its title, the step, the Pods' histories, events and logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tests.scenarios.facts import pod_facts
from tests.scenarios.history import Version

if TYPE_CHECKING:
    from tests.scenarios.play import Play


async def of_failure(play: Play, where: str, what: str) -> str:
    scenario = play.scenario
    parts = [
        f"{scenario.title}\n(tests/scenarios/{scenario.name}.yaml, {where})",
        what,
    ]
    for name, versions in play.space.pods.items():
        parts.append(f"-- history of Pod {name}\n" + "\n".join(history_lines(play, versions)))
    parts.append("-- events\n" + "\n".join(event_lines(play)))
    for name, versions in play.space.pods.items():
        if not versions[-1].gone:
            parts.append(f"-- describe {name}\n" + (await play.describe(name))[:6000])
        for kind in ("initContainers", "containers", "ephemeralContainers"):
            for container in versions[-1].thing["spec"].get(kind, ()):
                text = await play.logs(name, container["name"])
                parts.append(f"-- logs of {name}/{container['name']}\n{text[-1500:]}")
    return "\n".join(parts)


def history_lines(play: Play, versions: list[Version]) -> Iterator[str]:
    """One line a version, without those that look the same."""
    before = ""
    for version in versions:
        line = _summary(version.thing) + (" GONE" if version.gone else "")
        if line != before:
            yield f"{version.at - play.begun:6.1f} s  {line}"
        before = line


def _summary(pod: Mapping[str, Any]) -> str:
    facts = pod_facts(pod)
    words = [str(facts.get("phase", "-")), str(facts.get("reason", ""))]
    if "deletionTimestamp" in pod["metadata"]:
        words.append(f"deleted({pod['metadata'].get('deletionGracePeriodSeconds')})")
    true = [name for name, one in facts["conditions"].items() if one["status"] == "True"]
    words.append("+".join(true))
    for name, one in facts["containers"].items():
        state = f"{name}={one['state']}"
        for key in ("reason", "exitCode"):
            if key in one:
                state += f"/{one[key]}"
        state += f"/r{one['restartCount']}" + ("/ready" if one["ready"] else "")
        words.append(state)
    return " ".join(filter(None, words))


def event_lines(play: Play) -> list[str]:
    """One line an event, in the order in which they came."""
    return [
        f"{one.at - play.begun:6.1f} s  {one.thing['involvedObject']['kind']} "
        f"{one.thing['involvedObject'].get('name')} {one.thing['reason']}: {one.thing['message']}"
        + (f" (x{one.thing['count']})" if (one.thing.get("count") or 1) > 1 else "")
        for one in sorted(play.space.latest_events(), key=lambda one: one.at)
    ]
