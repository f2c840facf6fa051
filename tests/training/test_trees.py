"""State that goes through JSON and arrays comes back to the last bit, and what cannot is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.errors import CheckpointError
from o2o_smooth.reading import parse_json
from o2o_smooth.training.trees import DEEPEST, Arrays, Unkeepable, decode, encode


def through(tree: Any) -> Any:
    arrays: Arrays = {}
    text = json.dumps(encode(tree, arrays), allow_nan=False)
    return decode(json.loads(text), arrays)


def test_numbers_and_arrays_come_back_exactly() -> None:
    rng = np.random.default_rng(3)
    tree: dict[str, Any] = {
        "big": rng.bit_generator.state,
        "third": 1 / 3,
        "odd": [math.inf, -math.inf, True, None, "text"],
        "array": rng.normal(size=(2, 3)),
        "bools": np.array([True, False]),
        "words": np.arange(4, dtype=np.uint32),
        "tensor": torch.full((2,), 1 / 3),
        "empty": np.zeros((0, 2), np.float32),
    }
    found = through(tree)
    assert found["big"] == tree["big"]
    assert found["third"] == 1 / 3
    assert found["odd"] == tree["odd"]
    for name in ("array", "bools", "words", "empty"):
        np.testing.assert_array_equal(found[name], tree[name])
        assert found[name].dtype == tree[name].dtype
    assert found["tensor"].tobytes() == torch.full((2,), 1 / 3).numpy().tobytes()
    assert math.isnan(through(math.nan))


def test_what_is_kept_does_not_move_with_its_source() -> None:
    source, arrays = np.zeros(3), Arrays()
    encode({"x": source}, arrays)
    source += 1
    assert not arrays["state.x"].any()


@pytest.mark.parametrize("leaf", [object(), np.array([object()]), np.array(["text"]), {1: 2}, {"__array__": "x"}])
def test_what_cannot_be_kept_is_refused_with_its_place(leaf: Any) -> None:
    with pytest.raises(CheckpointError, match=r"state\.a\.0"):
        encode({"a": [leaf]}, {})


def test_missing_arrays_are_refused() -> None:
    with pytest.raises(CheckpointError, match="missing"):
        decode({"__array__": "state.x"}, {})


def nested(levels: int) -> Any:
    """An array so many levels down."""
    tree: Any = np.zeros(1)
    for i in range(levels - 1):
        tree = [tree] if i % 2 else {"a": tree}
    return tree


def test_what_is_kept_is_not_too_deep_to_be_read() -> None:
    parse_json(json.dumps(encode(nested(DEEPEST), {})))
    for levels in (DEEPEST + 1, 500):
        with pytest.raises(Unkeepable, match="nested too deeply"):
            encode(nested(levels), {})
