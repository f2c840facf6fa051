"""No file that is read can run code: nothing in the package unpickles, and pickles in disguise are refused unrun."""

from __future__ import annotations

import ast
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import o2o_smooth
from o2o_smooth.agents.storage import load_agent
from o2o_smooth.data import read_path
from o2o_smooth.data.policies import ArrayPolicy
from o2o_smooth.data.rollout import read_recordings
from o2o_smooth.envs import tasks_from_toml
from o2o_smooth.errors import O2OError
from o2o_smooth.stability.csv_curves import read_csv_curves
from o2o_smooth.training.checkpoint import load_checkpoint
from o2o_smooth.training.config import read_toml
from o2o_smooth.training.pictures import draw_run

PACKAGE = Path(o2o_smooth.__file__).parent
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml", "runpy", "code", "imp"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {
    "load": "torch.load",
    "read_pickle": "pandas",
    "loads": "pickle's",
    "allow_pickle": "numpy",
    "load_source": "imp",
    "unsafe_load": "yaml",
    "safe_globals": "torch",
    "extractall": "an archive may name files outside",
    "unpack_archive": "an archive may name files outside",
}
ALLOWED = {
    ("json", "loads"),  # JSON
    ("tomllib", "loads"),  # TOML
    ("tomllib", "load"),
    ("IQL", "load"),  # our own agents: safetensors
    ("Agent", "load"),
    ("build", "load"),  # the compiled kernels: from a folder of the user's alone, tests/hostile/test_kernels.py
}
"""(what it is called on, name) that reads no pickle."""
EXPLAINED = {"benchmarks/speed_worker.py: import runpy"}  # runs one of our own modules, named in the code


def found(tree: ast.AST) -> list[str]:
    """What could run a file's code, with its line."""
    bad = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bad += [f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            bad.append(f"{node.lineno}: from {node.module}")
        if not isinstance(node, ast.Call):
            continue
        for word in node.keywords:
            if word.arg == "allow_pickle" and not (isinstance(word.value, ast.Constant) and word.value.value is False):
                bad.append(f"{node.lineno}: allow_pickle")
            if word.arg == "weights_only":
                bad.append(f"{node.lineno}: torch.load")
        if isinstance(node.func, ast.Name) and node.func.id in CALLS:
            bad.append(f"{node.lineno}: {node.func.id}")
        if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            owner = ast.unparse(node.func.value)
            if (owner.split(".")[-1], node.func.attr) in ALLOWED:
                continue
            explicit = {word.arg for word in node.keywords}
            if owner == "np" and node.func.attr == "load" and "allow_pickle" in explicit:
                continue
            bad.append(f"{node.lineno}: {owner}.{node.func.attr}")
    return bad


def test_nothing_in_the_package_unpickles_or_evaluates() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    bad = [f"{file.relative_to(PACKAGE)}:{one}" for file in files for one in found(ast.parse(file.read_text()))]
    assert [one for one in bad if re.sub(r":\d+", "", one) not in EXPLAINED] == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "pickle.loads(x)",
        "import yaml",
        "archive.extractall()",
    ],
)
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert found(ast.parse(text))


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


def npz_of(content: bytes, *names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return out.getvalue()


def object_array(payload: Payload) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([payload], dtype=object), allow_pickle=True)
    return out.getvalue()


def torch_file(payload: Payload) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(payload, out)
    return out.getvalue()


DISGUISES: dict[str, Callable[[Payload], bytes]] = {
    "pickle": pickle.dumps,
    "old pickle": lambda payload: pickle.dumps(payload, protocol=0),
    "torch's file": torch_file,
    "object array": object_array,
    "npz of object arrays": lambda payload: npz_of(
        object_array(payload), "observations.npy", "actions.npy", "rewards.npy", "W0.npy", "b0.npy", "length.npy"
    ),
    "npz of pickles": lambda payload: npz_of(pickle.dumps(payload), "observations.npy", "W0.npy", "length.npy"),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_pickles_in_disguise_are_refused_and_not_run(victim: Path, tmp_path: Path, disguise: str) -> None:
    canary = tmp_path / "canary"
    content = DISGUISES[disguise](Payload(canary))
    switch = victim / "checkpoints" / "switch"
    kept = {name: (switch / name).read_bytes() for name in ("agent.json", "agent.safetensors", "run.json")}
    readers: dict[Path, Callable[[Path], object]] = {
        tmp_path / "x.npz": read_path,
        tmp_path / "x.hdf5": read_path,
        tmp_path / "x.h5": read_path,
        tmp_path / "x.pkl": read_path,
        tmp_path / "x.npy": read_path,
        tmp_path / "policy.npz": ArrayPolicy,
        tmp_path / "round.npz": read_recordings,
        tmp_path / "x.toml": read_toml,
        tmp_path / "t.toml": tasks_from_toml,
        tmp_path / "x.csv": read_csv_curves,
        switch / "agent.json": lambda _: load_agent(switch),
        switch / "agent.safetensors": lambda _: load_agent(switch),
        switch / "run.json": lambda _: load_checkpoint(victim),
        victim / "evaluations.jsonl": lambda _: draw_run(victim),
        victim / "metrics.jsonl": lambda _: draw_run(victim),
        victim / "manifest.json": lambda _: draw_run(victim),
    }
    for file, read in readers.items():
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(content + b"\n" * (file.suffix == ".jsonl"))  # without its end a line is not counted
        with pytest.raises(O2OError):
            read(file)
        assert not canary.exists(), f"{file.name} was run"
        if before is not None:
            file.write_bytes(before)
    assert {name: (switch / name).read_bytes() for name in kept} == kept
    pickle.loads(pickle.dumps(Payload(canary)))
    assert canary.is_dir(), "the payload would not have been noticed"


def test_attributes_of_hdf5_are_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["observations"] = np.zeros((4, 3), np.float32)
        file["actions"] = np.frombuffer(pickle.dumps(Payload(canary)), dtype=np.uint8)
        file.attrs["o2o_smooth"] = np.void(pickle.dumps(Payload(canary)))
    with pytest.raises(O2OError):
        read_path(tmp_path / "x.hdf5")
    assert not canary.exists()
