"""Checkpoints that were damaged or made to harm: refused in one line, or exactly what was written."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from o2o_smooth.agents.storage import load_agent
from o2o_smooth.agents.suspicion import LARGEST_HEADER
from o2o_smooth.errors import CheckpointError, O2OError
from o2o_smooth.training.checkpoint import find_checkpoint, load_checkpoint, read_record
from tests.hostile.attacks import DEEP, HOSTILE, places, replaced, without

TRIALS = 60
FILES = ("agent.json", "agent.safetensors", "run.json")


def contents(folder: Path) -> tuple[dict[str, Tensor], Any]:
    agent, record = load_checkpoint(folder)
    tensors = dict(agent.networks.state_dict()) | agent.optimizer.state_tensors()
    return tensors, (record, agent.seeds, agent.config, agent.updates, agent.acts, agent.action_low.tolist())


def refused_or(folder: Path, known: Mapping[str, Tensor] | None = None) -> str | None:
    """The error's text; None where it was read (and then it is sound)."""
    try:
        tensors, _ = contents(folder)
    except O2OError as error:
        assert "\n" not in " ".join(str(error).split()) and str(folder) in str(error)
        return str(error)
    assert all(bool(torch.isfinite(value).all()) for value in tensors.values())
    if known is not None:
        assert tensors.keys() == known.keys()
        assert all(value.shape == known[name].shape for name, value in tensors.items())
    return None


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(victim: Path, name: str) -> None:
    folder = victim / "checkpoints" / "switch"
    whole = (folder / name).read_bytes()
    rng = np.random.default_rng(1)
    for length in (0, 1, 7, 8, 9, len(whole) - 2, *rng.integers(0, len(whole) - 2, TRIALS // 3).tolist()):
        (folder / name).write_bytes(whole[:length])
        assert refused_or(folder), f"{name} of {length} bytes was read"


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits_are_refused_or_make_no_unsound_agent(victim: Path, name: str) -> None:
    folder = victim / "checkpoints" / "switch"
    known, _ = contents(folder)
    whole = (folder / name).read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(TRIALS):
        broken = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)).tolist():
            broken[place] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(bytes(broken))
        refused_or(folder, known if name == "agent.safetensors" else None)


@pytest.mark.parametrize("name", ["agent.json", "run.json"])
def test_hostile_values_are_refused_or_harmless(victim: Path, name: str) -> None:
    folder = victim / "checkpoints" / "switch"
    content = json.loads((folder / name).read_text())
    refused = 0
    for i, place in enumerate(places(content)):
        changed = [replaced(content, place, value) for value in HOSTILE[i % 3 :: 3]] + [without(content, place)]
        for one in changed:
            (folder / name).write_text(json.dumps(one))
            refused += refused_or(folder) is not None
    assert refused > 30


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("agent.json", "[" * DEEP),
        ("run.json", '{"a":' * DEEP),
        ("run.json", "[]"),
        ("agent.json", '{"format": 1, "format": 1}'),
        ("agent.json", '{"format": ' + "1" * 5000 + "}"),
        ("run.json", '{"reward_scale": NaN}'),
    ],
)
def test_json_bombs_are_refused(victim: Path, name: str, text: str) -> None:
    folder = victim / "checkpoints" / "switch"
    (folder / name).write_text(text)
    assert refused_or(folder)


def header(names: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    text = names if isinstance(names, bytes) else json.dumps(names).encode()
    return struct.pack("<Q", len(text)) + text + data


FLOAT = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "too many names": header({f"{i:08}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(80_000)}),
    "deep": header(b"[" * DEEP),
    "a name twice": header(
        b'{"a":' + json.dumps(FLOAT).encode() + b',"a":' + json.dumps(FLOAT).encode() + b"}", b"0000"
    ),
    "beyond the data": header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "overflow": header({"a": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 8]}}, b"00000000"),
    "nothing": b"",
}


@pytest.mark.parametrize("attack", HEADERS)
def test_hostile_headers_are_refused(victim: Path, attack: str) -> None:
    folder = victim / "checkpoints" / "switch"
    (folder / "agent.safetensors").write_bytes(HEADERS[attack])
    text = refused_or(folder)
    assert text is not None and "agent.safetensors is absent or broken" in text
    if attack == "too many names":
        assert len(HEADERS[attack]) > LARGEST_HEADER and "its header has" in text


def spoil(tensors: dict[str, Tensor], how: str) -> str:
    """Damage a tensor that all agents have; gives what the error says."""
    name = next(n for n in tensors if n.startswith("networks.actor") and tensors[n].dim() > 2)
    value = tensors[name]
    if how in ("nan", "inf"):
        value[0, 0, 0] = float(how)
        return "holds NaN or infinity"
    if how == "shape":
        tensors[name] = value[..., :-1].contiguous()
        return "has shape"
    if how == "missing":
        del tensors[name]
        return "is missing|holds"
    if how == "unknown":
        tensors["networks.extra"] = value.clone()
        return "unknown tensor"
    if how == "strange":
        tensors["other"] = value.clone()
        return "unknown tensor"
    if how == "steps":
        tensors["optimizer.actor.steps"] -= 10**6
        return "counts less than no steps"
    tensors[name] = value.to(getattr(torch, how))
    return "is of torch"


@pytest.mark.parametrize(
    "how", ["nan", "inf", "shape", "missing", "unknown", "strange", "steps", "float64", "float16", "int64", "complex64"]
)
def test_tensors_that_no_agent_saves_are_refused(victim: Path, how: str) -> None:
    folder = victim / "checkpoints" / "switch"
    tensors = load_file(folder / "agent.safetensors")
    text = spoil(tensors, how)
    save_file(tensors, folder / "agent.safetensors")
    with pytest.raises(CheckpointError, match=text):
        load_agent(folder)


@pytest.mark.parametrize(
    "claims",
    [
        {"hidden_dims": [100_000, 100_000]},
        {"hidden_dims": [10**6] * 8},
        {"num_critics": 10**9},
        {"obs_dim": 10**10},
        {"seeds": list(range(10**5))},
        {"hidden_dims": [-1, 8]},
        {"seeds": [-1, 5]},
        {"seeds": [10**30, 5]},
        {"updates": -5},
        {"action_high": [1e300]},
        {"action_high": [1.0] * 1000},
    ],
    ids=lambda claims: next(iter(claims)),
)
def test_a_small_file_cannot_claim_a_large_network(victim: Path, claims: dict[str, Any]) -> None:
    folder = victim / "checkpoints" / "switch"
    description = json.loads((folder / "agent.json").read_text())
    for name, value in claims.items():
        (description["config"] if name in description["config"] else description)[name] = value
    (folder / "agent.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="agent"):
        load_agent(folder)


def test_a_checkpoint_behind_a_link_is_refused(victim: Path, tmp_path: Path) -> None:
    outside = (victim / "checkpoints").rename(tmp_path / "outside")
    (victim / "checkpoints").symlink_to(outside)
    with pytest.raises(CheckpointError, match=r"link out of .*put the file itself there"):
        find_checkpoint(victim)
    assert find_checkpoint(outside / "switch") == outside / "switch"  # named by itself it is no link


@pytest.mark.parametrize("name", FILES)
def test_a_file_behind_a_link_is_refused(victim: Path, tmp_path: Path, name: str) -> None:
    folder = victim / "checkpoints" / "switch"
    outside = (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(outside)
    text = refused_or(folder)
    assert text is not None and "link out of" in text
    if name == "run.json":
        with pytest.raises(CheckpointError, match="link out of"):
            read_record(folder)
