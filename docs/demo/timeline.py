"""The demo's second picture: where the time of each fit went."""

from pathlib import Path

import matplotlib
from fit import Fit
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

matplotlib.use("Agg")

OBJECTIVE, WAITING, BUILD, SWAP = "#1971c2", "#ffa94d", "#8ce99a", "#c2255c"
LANES = {"fixed": "neighbors fixed", "inline": "refreshed inline", "track": "followed by a track"}
HALF = 0.3  # of a lane's height


def draw_timeline(path: Path, title: str, fits: dict[str, Fit], builds: list[tuple[float, float]]) -> None:
    """Draw what each fit did when, one lane each, and write it as a PNG.

    fits: by the names in LANES. builds: start and stop of those in the background of "track", in its seconds.
    """
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    axes = figure.add_subplot()
    longest = max(fit.seconds for fit in fits.values())
    for lane, name in enumerate(LANES):
        _draw_lane(axes, -lane, fits[name], longest)
    last = 1 - len(LANES)
    bars = [(max(0.0, start_s), stop_s - max(0.0, start_s)) for start_s, stop_s in builds]
    axes.broken_barh(bars, (last - HALF - 0.24, 0.16), color=BUILD, edgecolor="white", linewidth=0.5)
    axes.set_yticks([-lane for lane in range(len(LANES))], list(LANES.values()), fontsize=12)
    axes.set(xlim=(0, 1.23 * longest), ylim=(last - 0.75, 0.62), xlabel="seconds since the fit began")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#e9ecef")
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=14, loc="left")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=4, frameon=False, fontsize=11)
    figure.savefig(path, dpi=110)


def _draw_lane(axes: Axes, at: float, fit: Fit, longest: float) -> None:
    for kind, color in (("objective", OBJECTIVE), ("waiting", WAITING)):
        bars = [(start_s, stop_s - start_s) for each, start_s, stop_s in fit.blocks if each == kind]
        axes.broken_barh(bars, (at - HALF, 2 * HALF), color=color, edgecolor="white", linewidth=0.4)
    swaps = [swap.at_s for swap in fit.swaps]
    axes.plot(swaps, [at + HALF + 0.07] * len(swaps), "v", color=SWAP, markersize=6, markeredgewidth=0)
    said = (
        f"{fit.seconds:.1f} s, {fit.spent_s('waiting'):.1f} s of it waiting\nlog-likelihood {fit.log_likelihood:,.0f}"
    )
    axes.text(fit.seconds + 0.012 * longest, at, said, va="center", fontsize=11, color="#343a40")


def _legend() -> list[Patch | Line2D]:
    return [
        Patch(color=OBJECTIVE, label="one evaluation of objective and gradient"),
        Patch(color=WAITING, label="waiting for neighbors"),
        Patch(color=BUILD, label="build in the background"),
        Line2D([], [], color=SWAP, marker="v", linestyle="", label="swap to a new graph"),
    ]
