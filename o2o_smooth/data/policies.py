"""Policies in plain arrays: a small network in an .npz file, played with numpy; nothing in the file can run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.arrays import read_arrays
from o2o_smooth.errors import DataError

Array = NDArray[np.float64]


class ArrayPolicy:
    """A Gaussian or deterministic MLP policy held in arrays.

    The file holds `W0, b0, W1, ...` (W: outputs x inputs), `hidden` ("tanh" or "relu") and `output` ("clip", or "tanh"
    for a squashed Gaussian). Optional: `obs_mean, obs_std, obs_clip` (input standardisation), `log_std` (A,) or
    `log_std_W, log_std_b` (a head on the last hidden layer); without either the policy is deterministic.

    Raises:
        DataError: The file is absent or broken, or its arrays do not make a network.
    """

    def __init__(self, path: Path) -> None:
        try:
            arrays: dict[str, Any] = dict(read_arrays(path))
        except FileNotFoundError:
            raise DataError(f"there is no policy file {path}") from None
        except Exception as error:  # whatever numpy, zipfile and zlib make of a broken file
            raise DataError(f"policy file {path} is broken or no .npz of plain arrays") from error
        depth = sum(f"W{i}" in arrays for i in range(len(arrays)))
        if depth == 0 or any(f"W{i}" not in arrays or f"b{i}" not in arrays for i in range(depth)):
            raise DataError(f"policy file {path} holds no network: expected W0, b0, W1, b1, ...")
        self.path = path
        self._weights: list[Array] = [np.asarray(arrays[f"W{i}"], dtype=np.float64) for i in range(depth)]
        self._biases: list[Array] = [np.asarray(arrays[f"b{i}"], dtype=np.float64) for i in range(depth)]
        sizes = [w.shape for w in self._weights]
        fits = all(len(s) == 2 for s in sizes) and all(a[0] == b[1] for a, b in itertools.pairwise(sizes))
        if not fits or any(b.shape != (w.shape[0],) for w, b in zip(self._weights, self._biases, strict=True)):
            raise DataError(f"policy file {path}: layers of shapes {sizes} do not fit each other or their biases")
        for name, known in (("hidden", ("relu", "tanh")), ("output", ("clip", "tanh"))):
            if str(arrays.get(name, known[0])) not in known:
                raise DataError(f"policy file {path}: {name} is {arrays[name]}, expected {' or '.join(known)}")
        for name, wide in (("obs_mean", sizes[0][1]), ("obs_std", sizes[0][1]), ("log_std", sizes[-1][0])):
            if name in arrays and np.shape(arrays[name]) not in ((), (wide,)):
                raise DataError(f"policy file {path}: {name} has shape {np.shape(arrays[name])}, expected ({wide},)")
        self._relu = str(arrays.get("hidden", "relu")) == "relu"
        self._squashed = str(arrays.get("output", "clip")) == "tanh"
        self._arrays = arrays
        self.obs_dim, self.action_dim = int(sizes[0][1]), int(sizes[-1][0])

    def __call__(self, obs: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[np.float32]:
        """Actions (n, A) for observations (n, O); sampled where a generator is given and the policy has a deviation."""
        hidden = self._standardise(np.asarray(obs, dtype=np.float64))
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            hidden = hidden @ weight.T + bias
            hidden = np.maximum(hidden, 0.0) if self._relu else np.tanh(hidden)
        action = hidden @ self._weights[-1].T + self._biases[-1]
        if rng is not None:
            action = action + self._std(hidden) * rng.standard_normal(action.shape)
        action = np.tanh(action) if self._squashed else np.clip(action, -1.0, 1.0)
        return np.asarray(action, dtype=np.float32)

    def _standardise(self, obs: Array) -> Array:
        if "obs_mean" not in self._arrays:
            return obs
        limit = float(self._arrays.get("obs_clip", np.inf))
        return np.asarray(((obs - self._arrays["obs_mean"]) / self._arrays["obs_std"]).clip(-limit, limit))

    def _std(self, hidden: Array) -> Any:
        a = self._arrays
        if "log_std_W" in a:
            return np.exp((hidden @ np.asarray(a["log_std_W"], np.float64).T + a["log_std_b"]).clip(-20.0, 2.0))
        return np.exp(np.asarray(a["log_std"], np.float64)) if "log_std" in a else 0.0
