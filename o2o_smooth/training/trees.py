"""Nested state as JSON and arrays: what a checkpoint keeps of everything that is no network.

A tree is made of dicts with text keys, lists, numbers, text, None, and arrays or tensors as leaves. Numbers come back
to the last bit; arrays go to a safetensors file beside the JSON, and nothing in either can execute code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_smooth.errors import CheckpointError

ARRAY, NUMBER = "__array__", "__float__"
DEEPEST = 60  # levels; a little less than is read again
Arrays = dict[str, NDArray[Any]]


class Unkeepable(CheckpointError):
    """A state that cannot be kept, or not so that it could be read again."""


def encode(tree: Any, arrays: Arrays, at: str = "state", level: int = 1) -> Any:
    """The tree as JSON types; its arrays are put into `arrays` under names of their own.

    Raises:
        Unkeepable: A leaf of another kind, or one too deep down; the text says where.
    """
    if level > DEEPEST:
        raise Unkeepable(f"the state at {at[:200]} is nested too deeply; it cannot be kept")
    if tree is None or (isinstance(tree, bool | int | str) and not isinstance(tree, np.generic)):
        return tree
    if isinstance(tree, float) and not isinstance(tree, np.generic):
        return tree if math.isfinite(tree) else {NUMBER: repr(tree)}
    if isinstance(tree, Mapping):
        if not all(isinstance(key, str) for key in tree) or tree.keys() & {ARRAY, NUMBER}:
            raise Unkeepable(f"the state at {at} has keys that are no plain text; it cannot be kept")
        return {key: encode(value, arrays, f"{at}.{key}", level + 1) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [encode(value, arrays, f"{at}.{i}", level + 1) for i, value in enumerate(tree)]
    if isinstance(tree, torch.Tensor):
        tree = tree.detach().cpu().numpy()
    if isinstance(tree, np.ndarray | np.generic):
        values = np.asarray(tree)
        if values.dtype.kind not in "biuf":
            raise Unkeepable(f"the state at {at} is an array of {values.dtype}; it cannot be kept")
        arrays[at] = np.array(values, order="C")  # a copy: what is kept is what was there now
        return {ARRAY: at}
    raise Unkeepable(f"the state at {at} is a {type(tree).__name__}; it cannot be kept")


def decode(tree: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """What `encode` was given; tensors come back as arrays, tuples as lists.

    Raises:
        CheckpointError: An array is missing.
    """
    if isinstance(tree, list):
        return [decode(value, arrays) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {NUMBER}:
        return float(tree[NUMBER])
    if tree.keys() == {ARRAY}:
        if tree[ARRAY] not in arrays:
            raise CheckpointError(f"the array '{tree[ARRAY]}' is missing")
        return arrays[tree[ARRAY]]
    return {key: decode(value, arrays) for key, value in tree.items()}
