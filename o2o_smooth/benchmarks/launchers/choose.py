"""A launcher by its name, with options as a command line has them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from o2o_smooth.benchmarks.launchers.base import Launcher
from o2o_smooth.errors import LaunchError

CLASSES = {"local": "LocalLauncher", "ray": "RayLauncher", "slurm": "SlurmLauncher"}
SBATCH = "sbatch."
"""An option that begins so goes to sbatch by the name that follows."""
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def make_launcher(name: str, options: Mapping[str, Any] | None = None) -> Launcher:
    """Make a launcher.

    Args:
        name: local | ray | slurm.
        options: Arguments of its class; texts are read as what the argument is, and `-` as `_`. `sbatch.NAME`: an
            option of sbatch; `setup`: lines of shell with `;` between them.

    Raises:
        LaunchError: There is no such launcher or option, a value is no value of it, or the launcher cannot be had here.
    """
    if name not in CLASSES:
        raise LaunchError(f"there is no launcher '{name}'; there are {', '.join(CLASSES)}")
    made: Callable[..., Launcher] = getattr(
        importlib.import_module(f"o2o_smooth.benchmarks.launchers.{name}"), CLASSES[name]
    )
    known = inspect.signature(made).parameters
    arguments: dict[str, Any] = {}
    for option, value in (options or {}).items():
        key = option.replace("-", "_")
        if option.startswith(SBATCH) and "sbatch" in known:
            text = option.removeprefix(SBATCH)
            arguments.setdefault("sbatch", {})[text] = TRUTHS.get(value, value) if value in ("true", "false") else value
        elif key not in known or key == "sbatch":
            names = [f"{SBATCH}NAME" if one == "sbatch" else one.replace("_", "-") for one in known]
            raise LaunchError(f"launcher {name} has no option '{option}'; it has {', '.join(names)}")
        else:
            arguments[key] = _read(option, value, str(known[key].annotation)) if isinstance(value, str) else value
    return made(**arguments)


def _read(option: str, text: str, kind: str) -> Any:
    """A text as a value of a kind, which is written as in the source: `int | None`."""
    try:
        if kind.startswith("bool"):
            return TRUTHS[text.lower()]
        if kind.startswith(("int", "float")):
            value = (int if kind.startswith("int") else float)(text)
            if not 0 <= value < float("inf"):
                raise ValueError
            return value
    except (KeyError, ValueError):
        raise LaunchError(f"option '{option}' takes {kind.partition(' ')[0]}, not '{text}'") from None
    return [line.strip() for line in text.split(";")] if kind.startswith("Sequence") else text
