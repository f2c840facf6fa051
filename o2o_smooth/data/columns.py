"""D4RL's layout, one row a step: columns in, exact transitions out, slice by slice.

The columns may be arrays in memory or datasets of an HDF5 file; what is said of a broken one names the column and the
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.batch import FloatArray, first_not_finite
from o2o_smooth.data.store import RowStore
from o2o_smooth.data.suspicion import slice_rows
from o2o_smooth.errors import DataError

Progress = Callable[[int, int], None]

KEYS = {
    "obs": ("observations", "obs"),
    "action": ("actions", "action"),
    "reward": ("rewards", "reward"),
    "next_obs": ("next_observations", "next_obs"),
    "terminated": ("terminals", "terminated", "terminations"),
    "truncated": ("timeouts", "truncated", "truncations"),
}
ROUNDING = 1e-4  # of an observation that was stored twice
REQUIRED = ("obs", "action", "reward", "terminated")


class Column(Protocol):
    """What is needed of an array or of an HDF5 dataset."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        ...

    @property
    def dtype(self) -> Any:
        """Type of the entries."""
        ...

    def __getitem__(self, key: Any) -> Any:
        """Rows."""
        ...


class Table:
    """The columns of one recording, checked against each other.

    Args:
        columns: By their name in the file; unknown ones are refused unless `ignore_unknown`.
        horizon: Time limit of the task's episodes: tells where they end if neither `timeouts` nor
            `next_observations` does.
        ignore_unknown: For files, which may hold more.

    Raises:
        DataError: A column is unknown, doubled or missing, has another length, or is not made of numbers.
    """

    def __init__(
        self, columns: Mapping[str, Column], *, horizon: int | None = None, ignore_unknown: bool = False
    ) -> None:
        given = _collect(columns, ignore_unknown)
        self.n = int(given["obs"].shape[0])
        for name in ("obs", "action", "reward", "next_obs"):
            if name in given:
                _check_numbers(name, given[name], self.n)
        if "next_obs" in given and given["next_obs"].shape != given["obs"].shape:
            raise DataError(
                f"next_observations have shape {given['next_obs'].shape}, observations {given['obs'].shape}"
            )
        self.columns = given
        self.obs_dim = int(given["obs"].shape[1])
        self.action_dim = 1 if len(given["action"].shape) == 1 else int(given["action"].shape[1])
        self.guessed = ""
        self.terminated = _flags("terminated", given["terminated"], self.n)
        self.truncated = self._truncated(horizon)
        self.paired = "next_obs" not in given
        self.keep = np.ones(self.n, dtype=np.bool_)
        if self.paired:  # a step that was cut off has no successor in the file, and none is made up
            cut = self.truncated & ~self.terminated
            cut[-1] |= not self.terminated[-1]  # the end of the recording
            self.keep = ~cut
            if not self.keep.any():
                raise DataError("no step has a successor: every episode is cut off after one step")
            ended = np.zeros_like(cut)
            ended[:-1] = cut[1:] & ~self.terminated[:-1]  # the step before a dropped one is now the episode's last
            self.truncated = ended
        else:
            self.truncated[-1] |= not self.terminated[-1]
        self.rows = int(self.keep.sum())

    def _truncated(self, horizon: int | None) -> NDArray[np.bool_]:
        """Where episodes were cut off; guessed where no column says it."""
        flagged = "truncated" in self.columns
        truncated = np.zeros(self.n, dtype=np.bool_)
        if flagged:
            truncated = _flags("truncated", self.columns["truncated"], self.n)
        if "next_obs" in self.columns:
            ended = truncated | self.terminated
            unflagged = self._jumps() & ~ended
            if not flagged:
                self.guessed = "; no timeouts: episode ends guessed where a successor is not the next row"
            elif unflagged.any():
                self.guessed = (
                    f"; {int(unflagged.sum()):,} steps without a flag, first row {int(unflagged.argmax())}, have a "
                    f"successor that is not the next row: taken as cuts"
                )
            return truncated | unflagged
        if flagged:
            return truncated
        if horizon is None:
            raise DataError("there are neither timeouts nor next_observations: where episodes end cannot be told")
        ends = np.flatnonzero(self.terminated)
        starts = np.concatenate([[0], ends + 1])
        for start, stop in zip(starts, [*ends, self.n], strict=True):
            truncated[start + horizon - 1 : stop : horizon] = True  # D4RL's v0 files, cut at the time limit
        self.guessed = f"; no timeouts: episode ends taken at the task's limit of {horizon} steps"
        return truncated

    def _jumps(self) -> NDArray[np.bool_]:
        """Where a row's successor is not the next row, by more than rounding."""
        jumps = np.zeros(self.n, dtype=np.bool_)
        obs, successors = self.columns["obs"], self.columns["next_obs"]
        for i, j in slices(self.n - 1, obs):
            here, there = to_float32(np.asarray(obs[i + 1 : j + 1])), to_float32(np.asarray(successors[i:j]))
            with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are refused where rows are read
                jumps[i:j] = (np.abs(here - there) > ROUNDING * (1.0 + np.abs(here))).any(axis=1)
        return jumps

    @property
    def entries(self) -> int:
        """What `fill` reads, in rows of columns."""
        return self.n * (3 if self.paired else 4)

    def fill(self, store: RowStore, first: int, advance: Callable[[int], None]) -> None:
        """Write the transitions into rows `first` and following of a store; `advance` is told the entries read.

        Raises:
            DataError: NaN or infinity; column and row are named.
        """
        last = first + self.rows
        store.terminated[first:last] = self.terminated[self.keep]
        store.truncated[first:last] = self.truncated[self.keep]
        store_columns = {"obs": store.obs, "action": store.action, "reward": store.reward[:, None]}
        if not self.paired:
            store_columns["next_obs"] = store.next_obs
        for name, target in store_columns.items():
            at = first
            for i, j in slices(self.n, self.columns[name]):
                values = self._read(name, i, j)
                kept = values[self.keep[i:j]]
                target[at : at + len(kept)] = kept
                if name == "obs" and self.paired:
                    self._write_successors(store, values, at, i)
                at += len(kept)
                advance(j - i)

    def _read(self, name: str, i: int, j: int) -> FloatArray:
        values = to_float32(np.asarray(self.columns[name][i:j])).reshape(j - i, -1)
        row, bad = first_not_finite(values)
        if row is not None:
            column = self.columns[name]
            for k, end in slices(self.n, column):
                if k > i:
                    bad += first_not_finite(to_float32(np.asarray(column[k:end])))[1]
            raise DataError(
                f"{KEYS[name][0]} hold NaN or infinity in {bad} of {self.n} rows, first in row {i + row}; "
                f"drop or repair these rows"
            )
        return values

    def _write_successors(self, store: RowStore, values: FloatArray, at: int, i: int) -> None:
        """The observations of rows i.. are the successors of the rows before; a terminated one gets its own."""
        j = i + len(values)
        keep, terminated = self.keep[i:j], self.terminated[i:j]
        own = values[keep & terminated]
        places = at + np.cumsum(keep) - 1
        store.next_obs[places[keep & terminated]] = own
        before = keep[:-1] & ~terminated[:-1]
        store.next_obs[places[:-1][before]] = values[1:][before]
        if i > 0 and self.keep[i - 1] and not self.terminated[i - 1]:
            store.next_obs[at - 1] = values[0]


def slices(n: int, column: Column) -> Iterator[tuple[int, int]]:
    """Begin and end of slices that cover n rows, whole chunks of the file each, so that none is decompressed twice."""
    rows = slice_rows(column)
    for i in range(0, n, rows):
        yield i, min(n, i + rows)


def to_float32(array: NDArray[Any]) -> FloatArray:
    """Convert without warnings; what is beyond float32 becomes infinite, which is refused by name."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array, dtype=np.float32)


def room_for(tables: Sequence[Table]) -> RowStore:
    """One store for the transitions of several recordings, one after the other.

    Raises:
        DataError: They are of different widths, or there is no room.
    """
    widths = {(table.obs_dim, table.action_dim) for table in tables}
    if len(widths) > 1:
        raise DataError(f"the parts have different widths of observations and actions: {sorted(widths)}")
    return RowStore(sum(table.rows for table in tables), *widths.pop())


def counter(tables: Sequence[Table], progress: Progress | None) -> Callable[[int], None]:
    """What tells `progress` the entries read so far, of all tables."""
    done, total = 0, sum(table.entries for table in tables)

    def advance(entries: int) -> None:
        nonlocal done
        done += entries
        if progress is not None:
            progress(done, total)

    return advance


def _collect(columns: Mapping[str, Column], ignore_unknown: bool) -> dict[str, Column]:
    """Columns by field; unknown, doubled and missing ones are refused."""
    fields_by_key = {key: name for name, keys in KEYS.items() for key in keys}
    given: dict[str, Column] = {}
    for key, column in columns.items():
        name = fields_by_key.get(key)
        if name is None:
            if ignore_unknown:
                continue
            known = ", ".join(keys[0] for keys in KEYS.values())
            raise DataError(f"unknown key {key!r} in the arrays, expected {known}")
        if name in given:
            raise DataError(f"the arrays have {' and '.join(k for k in KEYS[name] if k in columns)}: give one of them")
        given[name] = column
    for name in REQUIRED:
        if name not in given:
            raise DataError(f"the arrays lack {KEYS[name][0]!r}")
    shape = given["obs"].shape
    if len(shape) != 2 or shape[0] == 0 or shape[1] == 0:
        raise DataError(f"observations have shape {shape}, expected (steps, features) with steps")
    return given


def _check_numbers(name: str, column: Column, n: int) -> None:
    key, shape = KEYS[name][0], column.shape
    if not (np.issubdtype(column.dtype, np.floating) or np.issubdtype(column.dtype, np.integer)):
        raise DataError(f"{key} have dtype {column.dtype}, expected real numbers")
    if len(shape) == 0 or shape[0] != n:
        raise DataError(f"{key} have shape {shape}, expected {n} rows as the observations have")
    wrong = len(shape) > 2 or 0 in shape
    if wrong or (name == "reward" and shape not in ((n,), (n, 1))):
        wanted = f"({n},)" if name == "reward" else f"({n}, features)"
        raise DataError(f"{key} have shape {shape}, expected {wanted}")


def _flags(name: str, column: Column, n: int) -> NDArray[np.bool_]:
    key = KEYS[name][0]
    if column.shape not in ((n,), (n, 1)):
        raise DataError(f"{key} have shape {column.shape}, expected {n} rows as the observations have")
    if column.dtype.kind not in "bfiu":
        raise DataError(f"{key} have dtype {column.dtype}, expected true and false")
    flags = np.zeros(n, dtype=np.bool_)
    for i, j in slices(n, column):
        part = np.asarray(column[i:j]).reshape(-1)
        wrong = np.zeros(0, dtype=np.bool_) if part.dtype == np.bool_ else (part != 0) & (part != 1)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"{key} hold values other than 0 and 1, first {part[row]} in row {i + row}")
        flags[i:j] = part != 0
    return flags
