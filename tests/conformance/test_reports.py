"""What a whole run comes to: reports read, targets compared, the page and the last line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import quick, results, table
from tests.conformance.__main__ import tell
from tests.conformance.results import Result, Results, Side
from tests.conformance.specs import (
    Outcome,
    ReportUnusable,
    State,
    parse_outcomes,
    parse_specs,
    together,
)
from tests.conformance.suite import counted, exactly


def spec(text: str, state: str, seconds: float = 1.0, message: str = "", **more: Any) -> Any:
    """One spec as ginkgo's JSON has it."""
    return {
        "ContainerHierarchyTexts": ["[sig-node] Pods"],
        "ContainerHierarchyLabels": [["sig-node"]],
        "LeafNodeType": "It",
        "LeafNodeText": text,
        "LeafNodeLabels": ["NodeConformance"],
        "State": state,
        "RunTime": int(seconds * 1e9),
        "Failure": {"Message": message},
        **more,
    }


def report(*specs: Any) -> str:
    return json.dumps([{"SuiteDescription": "e2e", "SpecReports": list(specs)}])


def result(**states: str) -> Result:
    outcomes = {
        name: Outcome(name, State(state), 2.0, "" if state == "passed" else f"{name} says why")
        for name, state in states.items()
    }
    return Result(outcomes, runs=1, minutes=3.0)


BOTH = Results(
    "v1.37.2",
    {
        "kubelet": result(a="passed", b="passed", c="failed", d="skipped", e="passed"),
        "vknode": result(a="passed", b="failed", c="passed", d="failed"),
    },
)


def test_each_end_of_a_spec_is_told_apart() -> None:
    found = parse_outcomes(
        report(
            spec("runs", "passed", 12.34),
            spec("breaks", "failed", message="no such file"),
            spec("panics", "panicked", Failure={"Message": "", "ForwardedPanic": "nil map"}),
            spec("hangs", "timedout"),
            spec("needs Windows", "skipped", message="only on Windows"),
            spec("was not chosen", "skipped", 0, message=""),
            spec("is pending", "pending", 0),
        )
    )
    assert {name: one.state for name, one in found.items()} == {
        "[sig-node] Pods runs": State.PASSED,
        "[sig-node] Pods breaks": State.FAILED,
        "[sig-node] Pods panics": State.FAILED,
        "[sig-node] Pods hangs": State.FAILED,
        "[sig-node] Pods needs Windows": State.SKIPPED,
    }
    assert found["[sig-node] Pods runs"].seconds == 12.3
    assert found["[sig-node] Pods panics"].message == "nil map"
    assert found["[sig-node] Pods hangs"].message == "timedout"


def test_two_specs_of_one_name_pass_only_together() -> None:
    twice = [spec("same", "failed", message="first"), spec("same", "passed")]
    for order in (twice, twice[::-1]):
        (found,) = parse_outcomes(report(*order)).values()
        assert found.state is State.FAILED and found.message == "first"


def test_a_suite_that_did_not_start_is_no_result() -> None:
    broken = spec("", "failed", message="no nodes", LeafNodeType="SynchronizedBeforeSuite")
    with pytest.raises(ReportUnusable, match="no nodes"):
        parse_outcomes(report(broken, spec("runs", "skipped", 0)))
    for text in ("", "{}", "[1]", '[{"SpecReports": [{}]}]'):
        with pytest.raises(ReportUnusable):
            parse_outcomes(text)


def test_announced_specs_have_the_labels_of_all_their_levels() -> None:
    (found,) = parse_specs(report(spec("runs", "passed")))
    assert found.name == "[sig-node] Pods runs"
    assert found.labels == {"sig-node", "NodeConformance"}


def test_a_spec_passes_several_runs_only_if_it_passes_each() -> None:
    good, bad = Outcome("s", State.PASSED, 1), Outcome("s", State.FAILED, 2, "why")
    assert together([{"s": good}, {"s": good}])["s"] == good
    mixed = together([{"s": good}, {"s": bad}, {"s": good}])["s"]
    assert mixed.state is State.FAILED and mixed.message == "in run 2, after it had passed: why"
    assert together([{"s": bad}, {"s": good}])["s"] == bad


def test_the_targets_are_compared_spec_by_spec() -> None:
    assert results.compare(BOTH.targets["kubelet"], BOTH.targets["vknode"]) == {
        "a": Side.BOTH,
        "b": Side.KUBELET_ONLY,
        "c": Side.VKNODE_ONLY,
        "d": Side.NEITHER,
        "e": Side.KUBELET_ONLY,  # not run on vknode: nothing is excused by leaving it out
    }


def test_a_part_of_the_specs_is_put_over_what_is_known() -> None:
    again = Result({"a": Outcome("a", State.FAILED, 1), "new": Outcome("new", State.PASSED, 1)}, 2)
    known = Results("v1.37.2", {"vknode": Result({"a": Outcome("a", State.PASSED, 1)}, 3, 30.0)})
    after = known.adding("vknode", again).targets["vknode"]
    assert {name: one.state for name, one in after.outcomes.items()} == {
        "a": State.FAILED,
        "new": State.PASSED,
    }
    assert (after.runs, after.minutes) == (2, 30.0)
    assert known.adding("kubelet", again).targets["kubelet"] == again


def test_results_survive_their_file(tmp_path: Path) -> None:
    file = tmp_path / "conformance.json"
    file.write_text(results.dump(BOTH))
    again = results.load(file, "v1.37.2")
    assert again == BOTH and results.dump(again) == file.read_text()
    assert results.load(file, "v1.38.0").targets == {}, "another release's results count nothing"
    assert results.load(tmp_path / "none.json", "v1.37.2").targets == {}
    file.write_text('{"kubernetes": "v1.37.2", "targets": []}')
    with pytest.raises(results.ResultsUnusable, match=r"conformance\.json"):
        results.load(file, "v1.37.2")


def test_a_cause_is_one_line_without_dumped_objects() -> None:
    message = """Timed out after 300.001s.
Expected Pod to be Running
    <v1.Pod>: {
      "metadata": {"name": "x", "labels": [
         "a"
      ]}
    }
to be running"""
    assert results.cause(message) == (
        "Timed out after 300s.; Expected Pod to be Running; <v1.Pod>; to be running"
    )
    listed = "Verifying. Pod: {\n 'a': [\n{}]\n}\n: [\n  value 0 is not 1 \n  {\n s: 0\n }\n]\n]"
    assert results.cause(listed) == "Verifying. Pod; value 0 is not 1"
    block = (
        "not Running:\n    <*v1.Pod | 0x14>: \n        metadata:\n          name: x\n    to be so"
    )
    assert results.cause(block) == "not Running; to be so"
    error = "an error:\n    <*errors.errorString | 0x14>: \n    no such file\n    {s: no such file}"
    assert results.cause(error) == "an error; no such file"
    named = "pod busybox-0f8fad5b-d9cb-469f-a165-70867728950e failed"
    assert results.cause(named) == "pod busybox-… failed"
    assert len(results.cause("x" * 1000)) == results.LONGEST_CAUSE


def test_the_page_shows_every_difference_with_its_reason() -> None:
    reasons = [table.Reason(re.compile("^[bc]$"), "a | reason")]
    page = table.render(BOTH, reasons)
    assert (
        "Of 5 specs 1 pass on both, 2 on the kubelet only, 1 on vknode only, 1 on neither" in page
    )
    assert r"| b | passed | failed | a \| reason |" in page
    assert r"| c | failed | passed | a \| reason |" in page
    assert "| d | skipped | failed | not known; it says: d says why |" in page
    assert "| e | passed | not run |" in page
    assert page.count("| a | passed | passed |") == 1
    assert "| passed | 3 | 2 |" in page and "| minutes | 3 | 3 |" in page


def test_the_page_is_whole_before_the_second_target_has_run() -> None:
    page = table.render(Results("v1.37.2", {"kubelet": result(a="passed")}), [])
    assert "| a | passed | not run |" in page


def test_labels_are_left_out_of_the_tables_names() -> None:
    name = (
        "[sig-node] Pods [FeatureGate:X] with [LinuxOnly] one [It] thing [Beta] [NodeConformance]"
    )
    assert table.short(name) == "Pods with one [It] thing"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: b", "must be a list"),
        ("- {specs: x}", r"\[0\]: must have `specs` and `reason`"),
        ("- {specs: a, reason: b}\n- {specs: '(', reason: b}", r"\[1\]\.specs"),
    ],
)
def test_a_wrong_reason_is_named(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "reasons.yaml"
    file.write_text(text)
    with pytest.raises(table.ReasonsUnusable, match=problem):
        table.read_reasons(file)


def test_the_committed_reasons_can_be_read() -> None:
    table.read_reasons(Path(table.__file__).with_name("reasons.yaml"))


def test_the_last_line_is_json_and_the_status_tells_of_differences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tell(BOTH, BOTH, 5.04) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {
        "kubernetes": "v1.37.2",
        "specs": 5,
        "kubelet_passed": 3,
        "vknode_passed": 2,
        "kubelet_only": ["b", "e"],
        "minutes": 5.0,
    }
    good = Results("v1.37.2", {"vknode": result(a="passed")})
    assert tell(good, BOTH, 1) == 0, "the kubelet's earlier results count for what was run"
    bad = Results("v1.37.2", {"vknode": result(b="failed")})
    assert tell(bad, BOTH, 1) == 1
    told = capsys.readouterr().out
    assert "vknode: failed: b: b says why" in told
    assert tell(Results("v1.37.2", {"vknode": result()}), BOTH, 1) == 1, "nothing was run"


def test_quick_specs_pass_on_both_and_fit_into_the_budget() -> None:
    def outcome(seconds: float, state: State = State.PASSED) -> Outcome:
        return Outcome("", state, seconds)

    times = {"slow": 100.0, "long": quick.LONGEST + 1, "fast": 1.0, "broken": 1.0}
    times |= {f"more {number:02}": 99.0 for number in range(60)}
    passing = {name: outcome(seconds) for name, seconds in times.items()}
    broken = passing | {"broken": outcome(1.0, State.FAILED)}
    chosen = quick.choose(Results("v1", {"kubelet": Result(passing), "vknode": Result(broken)}))
    assert "fast" in chosen and "broken" not in chosen and "long" not in chosen
    assert chosen == sorted(chosen)
    assert sum(times[name] for name in chosen) <= quick.BUDGET < 60 * 99
    assert quick.choose(Results("v1", {"kubelet": Result(passing)})) == []


def test_a_focus_names_exactly_its_specs() -> None:
    names = ["[sig-node] a (b) c.d + e? | f", "[sig-node] x"]
    focus = exactly(names)
    described = "Kubernetes e2e suite "
    for name in names:
        assert re.search(focus, described + name)
        assert not re.search(focus, described + name + " more")
    assert not re.search(focus, described + "[sig-node] a (b) cxd + e? | f")


def test_progress_is_counted_from_ginkgos_output() -> None:
    log = "••\n------------------------------\n• [FAILED] [4.8 seconds]\n[sig-node] x\n•S•\n"
    assert counted(log) == (5, 1)
