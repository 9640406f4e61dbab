"""A picture of the dashboard: its panels with their curves, drawn of what Prometheus answered."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.stack.prometheus import QUIET, Panel, Series

__all__ = ["can_draw", "draw"]

_COLUMNS = 4
_COLORS = 128
"""Enough for lines and letters, and a third of the bytes; shared out in a way that keeps those that few lines have."""
_UNITS = {"ops": "per second", "s": "seconds", "Bps": "MB/s", "bytes": "MiB", "percentunit": "%", "short": ""}
_FACTORS = {"Bps": 1e-6, "bytes": 1 / (1 << 20), "percentunit": 100}


def can_draw() -> bool:
    """Whether matplotlib is here."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(curves: Sequence[tuple[Panel, list[Series]]], start: float, path: Path) -> None:
    """Small multiples, in the order of the dashboard; time is in minutes since the start."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    rows = -(-len(curves) // _COLUMNS)
    figure, axes = pyplot.subplots(rows, _COLUMNS, squeeze=False, layout="constrained", sharex=True)
    figure.set_size_inches(4 * _COLUMNS, 2.3 * rows)
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, (panel, series) in zip(axes.flat, curves, strict=False):
        _one(axis, panel, series, start)
    for axis in axes[-1]:
        axis.set_xlabel("minutes", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    pyplot.close(figure)
    Image.open(drawn).convert("RGB").quantize(_COLORS, Image.Quantize.FASTOCTREE).save(path, optimize=True)


def _one(axis: Any, panel: Panel, series: list[Series], start: float) -> None:
    unit, factor = _UNITS[panel.unit], _FACTORS.get(panel.unit, 1)
    axis.set_title(f"{panel.title}, {unit}" if unit else panel.title, fontsize=10, loc="left")
    for number, one in enumerate(series):
        at, values = zip(*one.points, strict=True)
        minutes = [(moment - start) / 60 for moment in at]
        axis.plot(
            minutes, [value * factor for value in values], color=f"C{number % 10}", linewidth=1.3, label=one.legend
        )
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if any(value for one in series for _, value in one.points):
        axis.set_ylim(0, axis.get_ylim()[1] * (1 + 0.1 * min(len(series), 4)))  # the legend has its room
        axis.legend(fontsize=7, frameon=False, ncols=2, loc="upper left")
    else:
        axis.set_ylim(0, 1)
        told = f"{'0' if series else 'no series'}: {QUIET.get(panel.title, 'nothing')}"
        axis.text(0.5, 0.5, told, transform=axis.transAxes, ha="center", fontsize=8, color="gray")
