"""What is asked of a checkpoint's `run.json` and of a run's manifest before anything follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from o2o_smooth.smoothing import COMPONENTS

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


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Refuse a run's manifest whose values are of other kinds than tables and pictures rely on.

    Raises:
        ValueError: The text names the value.
    """
    config = _part(manifest, "config")
    smoothing = _part(config, "smoothing")
    if config.get("hygiene") is not None:
        _part(config, "hygiene")
    wanted: list[tuple[Mapping[str, Any], str, type | tuple[type, ...], bool]] = [
        (_part(manifest, "task"), "id", str, True),
        (manifest, "agent", str, True),
        (manifest, "online", str, True),
        (config, "online_steps", (int, float), True),
        (config, "online_stream", int, False),
        (config.get("hygiene") or {}, "warm_up_steps", (int, float), False),
        (smoothing, "schedule", str, True),
        (smoothing, "regime", str, True),
        (smoothing, "ramp_unit", str, True),
        (smoothing, "ramp_steps", (int, float), True),
        (smoothing, "offline_fraction", (int, float, type(None)), False),
        *((smoothing, f"{name}_schedule", (str, type(None)), False) for name in COMPONENTS),
    ]
    for table, name, kind, needed in wanted:
        if name not in table and not needed:
            continue
        value = table.get(name)
        if name not in table or not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} is {str(value)[:40]!r}" if name in table else f"it has no {name}")
        if isinstance(value, int | float) and not abs(value) < _LARGEST:
            raise ValueError(f"{name} is {value:g}")


def _part(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table in a table."""
    found = table.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no table")
    return found
