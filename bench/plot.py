"""The picture of a cold-start run: starts beside the floor, and where the time goes."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.figures import Figures

mpl.use("Agg")


def plot(figures: Figures, path: Path) -> None:
    """Write a PNG with three panels."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    serial, bursts, phases = figure.subplots(1, 3)

    serial.boxplot([figures.raw_serial, figures.serial], showfliers=True)
    serial.set_xticks([1, 2], ["raw CRI", "create → Running"])
    serial.set_ylabel("ms")
    serial.set_ylim(bottom=0)
    serial.set_title("one after another")

    names = [f"burst {n}" for n in figures.bursts] + [f"raw x{w}" for w in figures.raw_bursts]
    rates = [*figures.bursts.values(), *figures.raw_bursts.values()]
    bars = bursts.bar(names, [statistics.median(v) for v in rates])
    for bar in bars[len(figures.bursts) :]:
        bar.set_color("lightgrey")
    bursts.set_ylabel("Pods a second")
    bursts.set_title("at once (grey: raw, by calls in flight)")
    bursts.tick_params(axis="x", rotation=40)

    medians = {name: statistics.median(v) for name, v in figures.phases.items() if v}
    left = 0.0
    for name, at in sorted(medians.items(), key=lambda item: item[1]):
        phases.barh(["start"], [at - left], left=left, label=f"{name} at {at:.0f} ms")
        left = at
    phases.set_xlabel("ms after create")
    phases.set_title("where a serial start's time goes")
    phases.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize="small")
    figure.savefig(path, dpi=110)
