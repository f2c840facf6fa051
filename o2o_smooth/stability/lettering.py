"""The words and numbers of a picture: headings, ticks, and names beside lines, so placed that none touches another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

INK, GREY = "#222222", "#767676"
LABEL_SIZE = 8.5


@dataclass
class Label:
    """A name in the right margin, beside the end of its line."""

    y: float
    text: str
    colour: str
    bold: bool


def label_right(axes: Axes, labels: list[Label]) -> None:
    """Write the labels beside the right border, moved apart until none touches another."""
    low, high = axes.get_ylim()
    height = axes.get_figure().get_size_inches()[1] * 0.62 * 72  # type: ignore[union-attr]  # points, about
    gap = (LABEL_SIZE * 1.45) / height * (high - low)
    labels = sorted((label for label in labels if np.isfinite(label.y)), key=lambda label: label.y)
    for label, y in zip(labels, spread_out([label.y for label in labels], gap, low, high), strict=True):
        axes.annotate(
            label.text,
            (1.0, label.y),
            xycoords=axes.get_yaxis_transform(),
            xytext=(1.035, y),
            textcoords=axes.get_yaxis_transform(),
            color=label.colour,
            fontsize=LABEL_SIZE,
            fontweight="bold" if label.bold else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": label.colour,
                "lw": 0.6,
                "shrinkA": 2,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart and as near as may be to those wanted (rising); inside [low, high] if they fit."""
    groups: list[list[float]] = []  # each: sum of (wanted - offset), members; a group sits together, a gap apart
    for y in wanted:
        groups.append([y, 1])
        while len(groups) > 1:
            (sum_a, n_a), (sum_b, n_b) = groups[-2], groups[-1]
            if sum_b / n_b - (sum_a / n_a + n_a * gap) >= 0:
                break
            groups[-2:] = [[sum_a + sum_b - n_b * n_a * gap, n_a + n_b]]
    placed = [total / n + i * gap for total, n in groups for i in range(int(n))]
    for i in range(len(placed)):  # up from the floor, then down from the ceiling
        placed[i] = max(placed[i], low if i == 0 else placed[i - 1] + gap)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], high if i == len(placed) - 1 else placed[i + 1] - gap)
    return placed


def ticks(first: float, last: float, fraction: float) -> list[float]:
    """0 and round numbers up to the end, no nearer to each other than a share of the axis."""
    decades = 10.0 ** np.arange(np.floor(np.log10(first)), np.ceil(np.log10(last)) + 1)
    rounds = np.unique(np.concatenate([m * decades for m in (1, 2, 5)]))
    apart = fraction * np.log1p(last / first)
    found = [0.0]
    for value in [first, *rounds[(rounds > first) & (rounds < last)]]:
        room_left = np.log1p(value / first) - np.log1p(found[-1] / first)
        room_right = np.log1p(last / first) - np.log1p(value / first)
        if room_left >= apart and room_right >= apart:
            found.append(float(value))
    return [*found, last]


def count(value: float) -> str:
    """1500 -> 1.5k."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def amount(value: float) -> str:
    """A score or a return, as precise as can be read off a picture."""
    return f"{value:,.0f}" if abs(value) >= 20 else f"{value:.2g}"


def headings(figure: Figure, title: str, subtitle: str) -> None:
    """Title and subtitle above the panels, broken into lines that fit; the panels keep below them."""
    height = float(figure.get_size_inches()[1])
    top = 0.12
    for words, size, weight, colour in ((title, 12.0, "bold", INK), (subtitle, 9.0, "normal", GREY)):
        line: Text | None = None
        for word in words.split():
            if line:
                before = line.get_text()
                line.set_text(f"{before} {word}")
                if line.get_window_extent().x1 <= figure.bbox.width * 0.988:
                    continue
                line.set_text(before)
            line = figure.text(0.012, 1 - top / height, word, size=size, weight=weight, color=colour, va="top")
            top += size * 1.4 / 72
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0.0, 0.0, 1.0, 1 - (top + 0.02) / height))
