"""What the manifests offer in comments is right once the comments are removed."""

import re
from pathlib import Path
from typing import Any

import yaml

BASE = Path(__file__).parents[2] / "manifests" / "base"


def opened(text: str, *beginnings: str) -> Any:
    """The document with these lines, and those that go on from them, no comments."""
    for beginning in beginnings:
        found = re.search(rf"^( *)# {re.escape(beginning)}.*(?:\n\1#   .*)*", text, re.MULTILINE)
        assert found is not None, beginning
        lines = re.sub(r"^( *)# ", r"\1", found.group(), flags=re.MULTILINE)
        text = text.replace(found.group(), lines)
    return yaml.safe_load(text)


def test_the_folder_of_logs_is_mounted_where_the_configuration_has_it() -> None:
    config = opened((BASE / "agent.yaml").read_text(), "systemLogs:")
    deployment = opened(
        (BASE / "agent-deployment.yaml").read_text(), "- {name: logs,", "- name: logs"
    )
    pod = deployment["spec"]["template"]["spec"]
    (volume,) = (one for one in pod["volumes"] if one["name"] == "logs")
    (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "logs")
    assert mount["mountPath"] == config["kubelet"]["systemLogs"]
    assert mount["readOnly"] is True
    assert set(volume) == {"name", "hostPath"}
