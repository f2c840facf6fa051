"""Budgets and the like for the domains whose tasks are too small for the defaults."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def _tables() -> dict[str, dict[str, dict[str, Any]]]:
    text = resources.files("o2o_smooth.training").joinpath("run_presets.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def run_preset(agent: str, domain: str) -> dict[str, Any]:
    """Settings of a run by their flags' names, as a config file has them; empty where the defaults stand."""
    tables = _tables()
    return {**tables.get("default", {}).get(domain, {}), **tables.get(agent, {}).get(domain, {})}
