"""What is asked of a checkpoint's `run.json` before anything follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LARGEST = 1e30
"""Of returns, rewards and rates; sums overflow beyond."""


def check_record(content: Mapping[str, Any]) -> None:
    """Refuse values of other kinds than a switch's record has, on which everything that follows relies.

    Raises:
        ValueError: A number is none, or none that can be.
        TypeError: Something else is of another kind.
        LookupError: Something is missing.
        AttributeError: Something that is asked for its parts has none.
    """
    rates = content.get("learning_rates") or {}
    numbers = {name: content[name] for name in ("reward_scale", "reward_shift", "offline_updates")}
    numbers |= {f"return {i}": value for i, row in enumerate(content["returns"]) for value in row}
    numbers |= {f"learning rate of {name}": value for name, own in rates.items() for value in own}
    numbers |= {f"held-out row {i}": value for i, span in enumerate(content.get("held_out", ())) for value in span}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
            raise ValueError(f"{name} is {str(value)[:40]!r}, expected a number")
    settings, dataset, returns = content["settings"], content["dataset"], content["returns"]
    if not isinstance(settings, dict):
        raise TypeError("its settings are no table")
    if not all(isinstance(text, str) for text in (content["task"], settings.get("task", ""))):
        raise TypeError("its task is no text")
    if dataset is not None and not all(isinstance(dataset[name], str) for name in ("id", "provenance")):
        raise TypeError("its dataset has an id or a provenance that is no text")
    if dataset is not None and not isinstance(dataset.get("source", ""), str):
        raise TypeError("its dataset has a source that is no text")
    if not isinstance(content["rows"], list) or not all(isinstance(row, dict) for row in content["rows"]):
        raise TypeError("its rows are no evaluations")
    if len({len(row) for row in returns}) != 1 or not returns[0]:
        raise ValueError("its returns are not equally many of every seed")
