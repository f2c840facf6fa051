"""A suite's sweep as a file for `wandb sweep`, whose agents then call `o2o-smooth run`.

An agent of W&B runs seeds and all of one task and agent; it pretrains for each point, since it knows nothing of the
runner's sharing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from o2o_smooth.benchmarks.cells import Filters, make_cells
from o2o_smooth.benchmarks.suite import Suite, merged
from o2o_smooth.benchmarks.sweeps import Distribution, Sweep
from o2o_smooth.errors import ConfigError

_KINDS = {
    "uniform": "uniform",
    "log_uniform": "log_uniform_values",
    "int_uniform": "int_uniform",
    "int_log_uniform": "q_log_uniform_values",
}
METRIC = "eval/score"


def sweep_file(suite: Suite, *, task: str | None = None, agent: str | None = None) -> str:
    """The file's text, YAML.

    Args:
        suite: A suite with one [sweep].
        task: Name of one of its tasks; default: the first.
        agent: Name of one of its agents; default: the first.

    Raises:
        ConfigError: There is no sweep, or several; or an unknown name or setting.
    """
    if len(suite.sweeps) != 1:
        raise ConfigError(f"{suite.where} has {len(suite.sweeps)} [sweep] tables; a file for W&B is made of one")
    sweep = suite.sweeps[0]
    chosen = Filters(tasks=(task or suite.tasks[0].name,), agents=(agent or suite.agents[0].name,))
    make_cells(suite, chosen)  # everything in it must be a setting that exists
    lines = [
        "# made by o2o-smooth bench sweep-export; wandb sweep FILE, then wandb agent",
        f"name: {_yaml(suite.name)}",
        f"method: {'grid' if not sweep.distributions else 'random'}",
        *([f"run_cap: {sweep.count * _size(sweep)}"] if sweep.distributions else []),
        "metric:",
        f"  name: {METRIC}",
        "  goal: maximize",
        "command:",
        *(f"  - {_yaml(word)}" for word in ("o2o-smooth", "run", *_fixed(suite, sweep, chosen), "--wandb")),
        "  - ${args}",
        "parameters:",
    ]
    for name, values in sweep.grid.items():
        lines += _parameter(name, {"values": list(values)})
    for name, distribution in sweep.distributions.items():
        lines += _parameter(name, _drawn(distribution))
    return "\n".join(lines) + "\n"


def _fixed(suite: Suite, sweep: Sweep, chosen: Filters) -> list[str]:
    """The options that all points share, a word each."""
    task = next(t for t in suite.tasks if chosen.tasks and t.name == chosen.tasks[0])
    agent = next(a for a in suite.agents if chosen.agents and a.name == chosen.agents[0])
    arm = next(a for a in suite.arms if a.name == (sweep.arm or suite.arms[0].name))
    before = [o.settings for o in suite.overrides if o.matches(task.name, agent.name, None)]
    after = [o.settings for o in suite.overrides if o.matches(task.name, agent.name, arm.name)]
    layers: list[Mapping[str, Any]] = [suite.protocol, task.settings, agent.settings, *before, arm.pretraining]
    values = merged([*layers, arm.settings, *after])
    varied = {name.removeprefix("pretraining.") for name in (*sweep.grid, *sweep.distributions)}
    values = {name: value for name, value in values.items() if name not in varied}
    words = []
    for name, value in {"task": task.task, "agent": agent.agent, **values}.items():
        words += _words(name, value)
    return words


def _words(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, Mapping):
        return [word for key, inner in value.items() for word in _words(key, inner)]
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{flag}"]
    return [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]


def _size(sweep: Sweep) -> int:
    size = 1
    for values in sweep.grid.values():
        size *= len(values)
    return size


def _drawn(distribution: Distribution) -> dict[str, Any]:
    if distribution.kind == "choice":
        return {"values": list(distribution.arguments)}
    low, high = distribution.arguments
    return {"distribution": _KINDS[distribution.kind], "min": low, "max": high}


def _parameter(name: str, content: Mapping[str, Any]) -> list[str]:
    flag = name.removeprefix("pretraining.").replace("_", "-")
    return [f"  {flag}:", *(f"    {key}: {_yaml(inner)}" for key, inner in content.items())]


def _yaml(value: Any) -> str:
    """JSON, which YAML reads; floats with a point, or YAML 1.1 takes them for text."""
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(inner) for inner in value) + "]"
    if isinstance(value, float) and "e" in (text := json.dumps(value)) and "." not in text:
        mantissa, _, exponent = text.partition("e")
        return f"{mantissa}.0e{exponent}"
    return json.dumps(value)
