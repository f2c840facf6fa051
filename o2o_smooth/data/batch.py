"""The two forms in which experience travels: `Transitions` in numpy and `Batch` in torch.

Both keep `terminated` and `truncated` apart. Only `terminated` cuts bootstrapping; a truncated step has a successor
state whose value counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from o2o_smooth.errors import DataError

FloatArray = NDArray[np.float32]
_SLICE = 65_536  # rows at a time, so that no step needs memory for all


class Batch(NamedTuple):
    """One batch of transitions with a leading members axis M; all float32 on one device."""

    obs: torch.Tensor  # (M, B, O)
    action: torch.Tensor  # (M, B, A)
    reward: torch.Tensor  # (M, B)
    next_obs: torch.Tensor  # (M, B, O); the true successor, also where the episode ended there
    terminated: torch.Tensor  # (M, B), 0 or 1; the only flag that cuts bootstrapping
    truncated: torch.Tensor  # (M, B), 0 or 1
    mc_return: torch.Tensor  # (M, B); discounted return to the end of the episode, -inf where not known (yet)


class Packed(NamedTuple):
    """Packed rows (`data.buffer.pack`) where they lie, and how to read them."""

    rows: torch.Tensor  # (rings x capacity, width)
    obs_dim: int
    action_dim: int
    ring: int  # rows between the rings of two members; 0: all share one
    gaps: torch.Tensor | None = None  # numbers at which held-out rows are passed over (`data.holdout.RowMap`)
    shift: torch.Tensor | None = None  # by how many in all: before, between and after them
    reward: tuple[float, float] | None = None  # scale and shift; None: as they lie


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Rows of a buffer by number, not gathered yet."""

    packed: Packed
    """Where they lie."""
    size: int
    """Row numbers that there are."""
    index: torch.Tensor
    """(M, B) int64, contiguous, in [0, size)."""
    gather: Callable[[torch.Tensor], Batch]
    """The buffer's way from numbers to rows."""

    def batch(self) -> Batch:
        """The rows, (M, B, ...)."""
        return self.gather(self.index)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the observations: M, B, O."""
        members, rows = self.index.shape
        return members, rows, self.packed.obs_dim


def gathered(rows: Batch | Drawn) -> Batch:
    """The rows themselves."""
    return rows.batch() if isinstance(rows, Drawn) else rows


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
    rows: FloatArray | None = field(default=None, repr=False, compare=False)
    """(N, W): the packed rows (`data.store`) that the arrays are views of, where they are."""

    def __post_init__(self) -> None:
        if self.rows is not None and not all(
            np.may_share_memory(array, self.rows) for array in (self.obs, self.next_obs, self.action, self.reward)
        ):
            object.__setattr__(self, "rows", None)  # one of them was replaced
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
            row, bad = first_not_finite(array)
            if row is not None:
                raise DataError(
                    f"{name} holds NaN or infinity in {bad} of {n} rows, first in row {row}; drop or repair these rows"
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
        starts = np.append(0, ends[:-1] + 1)
        totals = np.zeros(len(ends))
        for i in range(0, len(self), _SLICE):  # at once, all rewards would be copied in float64
            part = self.reward[i : i + _SLICE].astype(np.float64)
            first, last = np.searchsorted(ends, (i, i + len(part) - 1))
            totals[first : last + 1] += np.add.reduceat(part, np.maximum(starts[first : last + 1] - i, 0))
        return totals

    def mc_returns(
        self, discount: float, reward: FloatArray | None = None, *, out: FloatArray | None = None
    ) -> FloatArray:
        """Discounted return from every step to the end of its episode, (N,), of `reward` (N,) or the recorded ones.

        They are written into `out` if it is given, which may be `reward` itself.

        A truncated episode counts what was seen: the tail beyond the cut is unknown and taken as zero, which for
        rewards of one sign makes the value a bound (a lower one where rewards are positive).
        """
        reward = self.reward if reward is None else reward
        ends = self.episode_ends
        lengths = np.diff(ends, prepend=-1)
        order = np.argsort(-lengths, kind="stable")  # longest first: those that still run are always the first k
        ends, lengths = ends[order], lengths[order]
        running = np.zeros(len(ends), dtype=np.float64)
        returns = np.empty(len(self), dtype=np.float32) if out is None else out
        alive = len(ends)
        for back in range(int(lengths[0])):  # backwards through all episodes at once
            while lengths[alive - 1] <= back:
                alive -= 1
            rows = ends[:alive] - back
            running[:alive] = reward[rows] + discount * running[:alive]
            returns[rows] = running[:alive]
        return returns


def first_not_finite(array: NDArray[Any]) -> tuple[int | None, int]:
    """The first row that holds NaN or infinity, and how many do; slice by slice, since datasets can be large."""
    first, count = None, 0
    for i in range(0, len(array), _SLICE):
        part = array[i : i + _SLICE]
        bad = ~np.isfinite(part.reshape(len(part), -1)).all(axis=1)
        if bad.any():
            first = i + int(bad.argmax()) if first is None else first
            count += int(bad.sum())
    return first, count


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
    if not isinstance(arrays, Mapping):
        raise DataError(f"a batch is a dict of arrays ({', '.join(Batch._fields[:5])}), got {type(arrays).__name__}")
    fields: dict[str, torch.Tensor] = {}
    for key, value in arrays.items():
        name = _ALIASES.get(key, key)
        if name not in Batch._fields:
            hint = "; give terminated and truncated apart" if name in ("done", "dones", "terminals") else ""
            raise DataError(f"a batch has no field '{key}'{hint}; it has {', '.join(Batch._fields)}")
        try:
            fields[name] = torch.as_tensor(value, dtype=dtype, device=device)
        except (TypeError, ValueError) as error:
            raise DataError(f"{key} holds no numbers: {str(error).splitlines()[0]}") from None
        if name in ("terminated", "truncated") and ((fields[name] < 0) | (fields[name] > 1)).any():
            raise DataError(f"{key} holds values outside of 0 to 1; it says whether an episode ended with the row")
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
            given = tuple(value.shape[1:] if obs.dim() == 2 else value.shape)
            shape = ("M", "B", "features")[obs.dim() == 2 : want]
            cure = f"; give {name}[..., 0]" if value.dim() == want + 1 == 3 and given[-1] == 1 else ""
            raise DataError(
                f"{name} has shape {given}, which does not fit obs of shape {tuple(obs.shape)}; expected "
                f"({', '.join(shape)}{',' if len(shape) == 1 else ''}){cure}"
            )
    if batch.next_obs.shape != batch.obs.shape:
        raise DataError(f"next_obs has shape {tuple(batch.next_obs.shape)}, obs {tuple(batch.obs.shape)}")
    return batch
