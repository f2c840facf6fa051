"""The two forms in which experience travels: `Transitions` in numpy and `Batch` in torch.

Both keep `terminated` and `truncated` apart. Only `terminated` cuts bootstrapping; a truncated step has a successor
state whose value counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_smooth.errors import DataError

FloatArray = NDArray[np.float32]


class Batch(NamedTuple):
    """One batch of transitions with a leading members axis M; all float32 on one device."""

    obs: torch.Tensor  # (M, B, O)
    action: torch.Tensor  # (M, B, A)
    reward: torch.Tensor  # (M, B)
    next_obs: torch.Tensor  # (M, B, O); the true successor, also where the episode ended there
    terminated: torch.Tensor  # (M, B), 0 or 1; the only flag that cuts bootstrapping
    truncated: torch.Tensor  # (M, B), 0 or 1
    mc_return: torch.Tensor  # (M, B); discounted return to the end of the episode, -inf where not known (yet)


@dataclass(frozen=True)
class Transitions:
    """Experience in numpy, in time order, with exact episode boundaries.

    Shapes: N transitions, observation O, action A. Arrays are float32, flags are bool. `next_obs[i]` is the true
    successor of `obs[i]`, also at the end of an episode. Where an episode was cut without a flag (the end of a
    recording), its last row must carry `truncated`.

    Raises:
        DataError: An array has the wrong shape or dtype, or holds NaN or infinity; the field and the row are named.
    """

    obs: FloatArray  # (N, O)
    action: FloatArray  # (N, A)
    reward: FloatArray  # (N,)
    next_obs: FloatArray  # (N, O)
    terminated: NDArray[np.bool_]  # (N,)
    truncated: NDArray[np.bool_]  # (N,)

    def __post_init__(self) -> None:
        if self.obs.ndim != 2 or self.action.ndim != 2:
            raise DataError(
                f"obs and action must have two axes (transitions, features), "
                f"got shapes {self.obs.shape} and {self.action.shape}"
            )
        n = len(self.obs)
        if n == 0:
            raise DataError("the dataset has no transitions")
        shapes = {
            "action": (n, self.action.shape[1]),
            "reward": (n,),
            "next_obs": self.obs.shape,
            "terminated": (n,),
            "truncated": (n,),
        }
        for name, shape in shapes.items():
            got = getattr(self, name).shape
            if got != shape:
                raise DataError(f"{name} has shape {got}, expected {shape} to fit obs of shape {self.obs.shape}")
        for name in ("obs", "action", "reward", "next_obs"):
            array = getattr(self, name)
            if array.dtype != np.float32:
                raise DataError(f"{name} has dtype {array.dtype}, expected float32")
            finite = np.isfinite(array) if array.ndim == 1 else np.isfinite(array).all(axis=1)
            if not finite.all():
                row = int(np.argmin(finite))
                raise DataError(
                    f"{name} holds NaN or infinity in {int((~finite).sum())} of {n} rows, first in row {row}; "
                    f"drop or repair these rows"
                )
        for name in ("terminated", "truncated"):
            if getattr(self, name).dtype != np.bool_:
                raise DataError(f"{name} has dtype {getattr(self, name).dtype}, expected bool")

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def episode_ends(self) -> NDArray[np.int64]:
        """Rows that end an episode; the last row always counts as an end."""
        ends = np.flatnonzero(self.terminated | self.truncated)
        if len(ends) == 0 or ends[-1] != len(self) - 1:
            ends = np.append(ends, len(self) - 1)
        return ends.astype(np.int64)

    @property
    def episode_returns(self) -> NDArray[np.float64]:
        """Undiscounted return of every episode."""
        ends = self.episode_ends
        totals = np.cumsum(self.reward, dtype=np.float64)[ends]
        return np.diff(totals, prepend=0.0)

    def mc_returns(self, discount: float) -> FloatArray:
        """Discounted return from every step to the end of its episode, (N,).

        A truncated episode counts what was seen: the tail beyond the cut is unknown and taken as zero, which for
        rewards of one sign makes the value a bound (a lower one where rewards are positive).
        """
        returns = np.empty(len(self), dtype=np.float64)
        ends = np.zeros(len(self), dtype=np.bool_)
        ends[self.episode_ends] = True
        running = 0.0
        for i in range(len(self) - 1, -1, -1):
            running = float(self.reward[i]) + (0.0 if ends[i] else discount * running)
            returns[i] = running
        return returns.astype(np.float32)


_ALIASES = {
    "observations": "obs",
    "actions": "action",
    "rewards": "reward",
    "next_observations": "next_obs",
    "terminations": "terminated",
    "truncations": "truncated",
}
_OPTIONAL = {"truncated": 0.0, "mc_return": -float("inf")}


def as_batch(
    arrays: Mapping[str, object],
    *,
    members: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Make a `Batch` from named arrays or tensors, for use without our buffers.

    Args:
        arrays: `obs` (B, O), `action` (B, A), `reward` (B,), `next_obs` (B, O), `terminated` (B,) and optionally
            `truncated`, `mc_return` (B,); or each with a leading members axis. Plural and D4RL-like names
            (`observations`, ...) are understood too.
        members: M; without a members axis every member sees the same rows.
        device: Where the batch goes.
        dtype: Floating dtype.

    Raises:
        DataError: A field is missing, unknown, or of a shape that does not fit.
    """
    fields: dict[str, torch.Tensor] = {}
    for key, value in arrays.items():
        name = _ALIASES.get(key, key)
        if name not in Batch._fields:
            hint = "; give terminated and truncated apart" if name in ("done", "dones", "terminals") else ""
            raise DataError(f"a batch has no field '{key}'{hint}; it has {', '.join(Batch._fields)}")
        fields[name] = torch.as_tensor(value, dtype=dtype, device=device)
        if name != "mc_return" and not torch.isfinite(fields[name]).all():
            raise DataError(f"{key} holds NaN or infinity, which would spoil the networks for good; repair the rows")
    missing = [name for name in Batch._fields if name not in fields and name not in _OPTIONAL]
    if missing:
        raise DataError(f"the batch lacks {', '.join(missing)}; it needs {', '.join(Batch._fields[:5])}")
    obs = fields["obs"]
    if obs.dim() == 2:
        fields = {name: value.unsqueeze(0).expand(members, *value.shape) for name, value in fields.items()}
    for name, fill in _OPTIONAL.items():
        fields.setdefault(name, torch.full_like(fields["reward"], fill))
    batch = Batch(**fields)
    expected_rows = batch.obs.shape[:2]
    if batch.obs.dim() != 3 or batch.obs.shape[0] != members:
        raise DataError(f"obs has shape {tuple(obs.shape)}, expected (batch, features) or ({members}, batch, features)")
    for name, value in zip(Batch._fields, batch, strict=True):
        want = 3 if name in ("obs", "action", "next_obs") else 2
        if value.dim() != want or value.shape[:2] != expected_rows:
            raise DataError(
                f"{name} has shape {tuple(value.shape)}, which does not fit obs of shape {tuple(batch.obs.shape)}; "
                f"expected {want - 1} axes per member"
            )
    if batch.next_obs.shape != batch.obs.shape:
        raise DataError(f"next_obs has shape {tuple(batch.next_obs.shape)}, obs {tuple(batch.obs.shape)}")
    return batch
