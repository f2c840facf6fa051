"""Launchers by name: options are read, wrong ones are refused with the right ones."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from o2o_smooth.benchmarks.launchers import make_launcher
from o2o_smooth.errors import LaunchError


class Recorder:
    """Takes arguments like the launchers'."""

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: int | None = None,
        keep: bool = False,
        grace_s: float = 1.0,
        sbatch: Mapping[str, Any] | None = None,
        setup: Sequence[str] = (),
    ) -> None:
        self.got = {
            "address": address,
            "cpus": cpus,
            "keep": keep,
            "grace_s": grace_s,
            "sbatch": sbatch,
            "setup": setup,
        }


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("o2o_smooth.benchmarks.launchers.slurm")
    monkeypatch.setattr(module, "SlurmLauncher", Recorder)


def test_texts_become_values() -> None:
    texts = {
        "address": "10.0.0.1:6379",
        "cpus": "4",
        "keep": "true",
        "grace-s": "2.5",
        "sbatch.account": "lab",
        "sbatch.exclusive": "true",
        "setup": "module load cuda; true",
    }
    made: Any = make_launcher("slurm", texts)
    assert made.got == {
        "address": "10.0.0.1:6379",
        "cpus": 4,
        "keep": True,
        "grace_s": 2.5,
        "sbatch": {"account": "lab", "exclusive": True},
        "setup": ["module load cuda", "true"],
    }


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("pbs", {}, "no launcher 'pbs'; there are local, ray, slurm"),
        ("slurm", {"adress": "x"}, "no option 'adress'; it has address, cpus, keep, grace-s, sbatch.NAME, setup"),
        ("slurm", {"cpus": "four"}, "'cpus' takes int, not 'four'"),
        ("slurm", {"cpus": "-1"}, "'cpus' takes int, not '-1'"),
        ("slurm", {"grace-s": "nan"}, "'grace-s' takes float, not 'nan'"),
        ("slurm", {"keep": "maybe"}, "'keep' takes bool, not 'maybe'"),
        ("slurm", {"sbatch": "x"}, "no option 'sbatch'"),
    ],
)
def test_what_is_wrong_is_named(name: str, options: dict[str, str], match: str) -> None:
    with pytest.raises(LaunchError, match=match):
        make_launcher(name, options)


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LaunchError, match=rf"pip install 'o2o_smooth\[{name}\]'"):
        make_launcher(name)
