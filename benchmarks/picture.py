"""The picture in the README: every system of a finished run's domains, with intervals. `python -m benchmarks.picture runs/lab`."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from cowest.results import Results

NAMES = {
    "weak": "weak alone (tuned)",
    "strong": "strong alone",
    "collab": "strong, with drafts",
    "collab_aligned": "strong, with aligned drafts",
}
COLOURS = ("#8a8f98", "#8a8f98", "#5b8fd6", "#1f5fb4")


def draw(run: Path, out: Path) -> Path:
    """One panel a domain, in the order of the run's folder names; writes a PNG."""
    found = [Results.model_validate_json(p.read_text(encoding="utf-8")) for p in sorted(run.glob("*/results.json"))]
    figure, axes = plt.subplots(1, len(found), figsize=(8.6, 2.1), sharey=True, layout="constrained")
    for axis, results in zip(axes, found, strict=True):
        metric = next(iter(results.systems["collab"].metrics))
        values = [results.systems[name].metrics[metric] for name in NAMES]
        for place, (value, colour) in enumerate(zip(values, COLOURS, strict=True)):
            if value.mean is None or value.ci_low is None or value.ci_high is None:
                continue
            error = [[100 * (value.mean - value.ci_low)], [100 * (value.ci_high - value.mean)]]
            axis.barh(place, 100 * value.mean, xerr=error, color=colour, height=0.66, error_kw={"lw": 1, "capsize": 2})
            axis.text(100 * value.ci_high + 2, place, f"{100 * value.mean:.0f}", va="center", fontsize=9)
        axis.set(yticks=range(len(NAMES)), yticklabels=NAMES.values(), xlim=(0, 100))
        axis.set_title(f"{results.task} ({metric}, %)", fontsize=9, loc="left")
        axis.tick_params(labelsize=8, left=False)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].invert_yaxis()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, facecolor="white", metadata={"Software": None})
    return out


def main() -> None:
    """Read the arguments, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/demo.png"))
    args = parser.parse_args()
    print(draw(args.run, args.out))


if __name__ == "__main__":
    main()
