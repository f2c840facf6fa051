"""What is asked of a saved agent before anything is built from it: a small file must not claim a large network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from o2o_smooth.errors import CheckpointError
from o2o_smooth.reading import Unreadable, check_inside, opened

LARGEST_HEADER = 4 * 2**20
"""Bytes of the names and shapes in a safetensors file: about 40,000 tensors, where an agent has a hundred."""
_LARGEST_FILE = 2**46
_LARGEST_COUNT, _LARGEST_BOUND = 2**63, 1e38
_CLAIM, _SMALL = 4, 2**20
"""A network of so many times the stored weights, or of so many, may be built before its shapes are compared."""


def check_tensor_file(file: Path) -> None:
    """Refuse a safetensors file whose header no checkpoint has, before the header is read.

    Raises:
        OSError: It cannot be read.
        Unreadable: It is too large, no plain file, led to by a link out of its folder, or no safetensors file.
    """
    check_inside(file, file.parent)
    with opened(file, _LARGEST_FILE) as handle:
        start = handle.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > file.stat().st_size - 8:
            raise Unreadable("it is cut off, or no safetensors file")
        if length > LARGEST_HEADER:
            raise Unreadable(f"its header has {length:,} bytes, a checkpoint's has {LARGEST_HEADER:,} at most")
        header = handle.read(length)
    try:
        pairs: list[tuple[str, Any]] = json.loads(header, object_pairs_hook=list)
        doubled = len(dict(pairs)) < len(pairs)
    except (ValueError, TypeError, RecursionError):
        raise Unreadable("its header is broken") from None
    if doubled:
        raise Unreadable("its header names a tensor twice")


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that no agent saves: unknown, of odd types, or with NaN.

    Raises:
        CheckpointError: The text names the tensor.
    """
    floating = {value.dtype for name, value in tensors.items() if not name.endswith(".steps")}
    for name, value in tensors.items():
        if not name.startswith(("networks.", "optimizer.")):
            raise CheckpointError(f"{path}: unknown tensor '{name[:80]}'")
        steps = name.startswith("optimizer.") and name.endswith(".steps")
        expected = (torch.int64,) if steps else (torch.float32, torch.float64)
        if value.dtype not in expected or (not steps and len(floating) > 1):
            raise CheckpointError(
                f"{path}: '{name}' is of {value.dtype}, expected {' or '.join(map(str, expected))}, the same for all; "
                f"the file is broken or was edited"
            )
        if steps and bool((value < 0).any()):
            raise CheckpointError(f"{path}: '{name}' counts less than no steps; the file is broken or was edited")
        if not steps and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: '{name}' holds NaN or infinity; the training had diverged or the file is broken: take an "
                f"earlier checkpoint"
            )


def check_description(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a description that claims more than the tensors hold, so that building it takes no more memory than they.

    Raises:
        ValueError: What it claims cannot be; the text says it.
        KeyError: Something is missing.
        TypeError: Something is of another kind.
    """
    seeds, low, high = description["seeds"], description["action_low"], description["action_high"]
    config = description["config"]
    widths = config.get("hidden_dims", (256, 256))
    obs_dim, critics = description["obs_dim"], config.get("num_critics", 2)
    counts = {"obs_dim": obs_dim, "updates": description["updates"], "acts": description["acts"], "critics": critics}
    counts |= {f"seed {i}": seed for i, seed in enumerate(seeds)} | {f"width {i}": w for i, w in enumerate(widths)}
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count < _LARGEST_COUNT:
            raise ValueError(f"{name} is {str(count)[:40]}, expected a whole number from 0 on")
    if len(low) != len(high) or not all(type(x) in (int, float) and abs(x) < _LARGEST_BOUND for x in (*low, *high)):
        raise ValueError("action_low and action_high are no bounds of one box")
    sizes = (obs_dim, *widths)
    layers = len(seeds) * sum(a * b for a, b in pairwise(sizes))
    for net, claimed in (("actor", layers), ("critic", layers * critics)):
        held = sum(value.numel() for name, value in tensors.items() if name.startswith(f"networks.{net}."))
        if claimed > max(_CLAIM * held, _SMALL):
            raise ValueError(f"an {net} of {claimed:,} weights, of which agent.safetensors holds {held:,}")
