"""Rolling policies out: whole episodes of what the environment below our wrapper gives, n environments in lockstep.

Every environment (lane) restarts by itself, and one call of the policy serves all that run. An episode is never cut to
fit a budget. Episodes are taken in the order of their start, and the first ones that are all finished and together long
enough make the result: counting those that finish first instead would favour short episodes. All random numbers come
from one generator in a fixed order, so equal arguments give equal arrays, however long a step takes.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from o2o_smooth.data.arrays import read_arrays
from o2o_smooth.data.batch import FloatArray
from o2o_smooth.envs.make import Env
from o2o_smooth.errors import DataError, EnvError

Act = Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]
"""Flat observations (n, O) and the source of all randomness to actions (n, A), in the environment's units."""
Flatten = Callable[[Any], NDArray[Any]]
Progress = Callable[[int, int], None]
LONGEST_EPISODE = 100_000  # steps; an environment without a time limit would collect for ever
SEEDS = 2**31  # environment seeds are below this


@dataclass(frozen=True)
class Recording:
    """An episode as it was played, finished or not; T steps."""

    observations: Any  # (T + 1, ...) as the environment below our wrapper gives them, or a dict of such arrays
    actions: FloatArray  # (T, A), as executed
    rewards: NDArray[np.float64]  # (T,), raw
    terminations: NDArray[np.bool_]  # (T,)
    truncations: NDArray[np.bool_]  # (T,); never in the same step as a termination
    seed: int  # of the reset
    lane: int
    start: int  # steps of the lanes' clock before the first one

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def finished(self) -> bool:
        """Whether the environment ended it."""
        return len(self) > 0 and bool(self.terminations[-1] or self.truncations[-1])

    def flat(self, flatten: Flatten) -> NDArray[Any]:
        """All observations as a policy sees them, (T + 1, O)."""
        stored = self.observations
        if not isinstance(stored, dict):
            return np.stack([flatten(obs) for obs in stored])
        return np.stack([flatten({key: value[i] for key, value in stored.items()}) for i in range(len(self) + 1)])

    def buffer(self) -> EpisodeBuffer:
        """The episode as Minari stores it."""
        return EpisodeBuffer(
            seed=self.seed,
            observations=self.observations,
            actions=self.actions,
            rewards=self.rewards,
            terminations=self.terminations,
            truncations=self.truncations,
        )


class Step(NamedTuple):
    """One step of the running lanes, in the order of the lanes; flat observations, raw rewards."""

    obs: NDArray[Any]  # (n, O)
    action: FloatArray  # (n, A)
    reward: NDArray[np.float64]  # (n,)
    next_obs: NDArray[Any]  # (n, O); the true successor
    terminated: NDArray[np.bool_]  # (n,)
    truncated: NDArray[np.bool_]  # (n,)


class _Take:
    """An episode in the making."""

    def __init__(self, raw: Any, flat: NDArray[Any], seed: int, lane: int, start: int) -> None:
        self.seed, self.lane, self.start = seed, lane, start
        self.flat = flat
        self.raw = [_copy(raw)]
        self.actions: list[FloatArray] = []
        self.rewards: list[float] = []
        self.terminations: list[bool] = []
        self.truncations: list[bool] = []
        self._closed: Recording | None = None

    def __len__(self) -> int:
        return len(self.rewards) if self._closed is None else len(self._closed)

    @property
    def over(self) -> bool:
        return self._closed is not None or (len(self) > 0 and (self.terminations[-1] or self.truncations[-1]))

    def close(self) -> None:
        """Keep arrays instead of lists, which take several times as much memory."""
        self._closed = self.recording()
        self.raw, self.actions, self.rewards, self.terminations, self.truncations = [], [], [], [], []

    def recording(self) -> Recording:
        if self._closed is not None:
            return self._closed
        first = self.raw[0]
        keys = first if isinstance(first, dict) else None
        stacked = np.stack(self.raw) if keys is None else {k: np.stack([obs[k] for obs in self.raw]) for k in keys}
        return Recording(
            stacked,
            np.stack(self.actions),
            np.array(self.rewards, dtype=np.float64),
            np.array(self.terminations, dtype=np.bool_),
            np.array(self.truncations, dtype=np.bool_),
            self.seed,
            self.lane,
            self.start,
        )


class Lanes:
    """Environments that step together and record what happens.

    Args:
        envs: Of `make_env`; the caller closes them.
        flatten: From an observation of the environment below our wrapper to (O,); default: our wrapper's, float32.
    """

    def __init__(self, envs: Sequence[Env], flatten: Flatten | None = None) -> None:
        self._envs: list[Any] = list(envs)
        self._flatten: Flatten = self._envs[0]._flat if flatten is None else flatten
        space = self._envs[0].action_space
        self._low, self._high = space.low, space.high
        self._running: dict[int, _Take] = {}
        self._takes: list[_Take] = []  # in the order of their start
        self._whole = 0  # of the takes: those at the beginning that are all over
        self.steps = 0
        """Transitions so far, of running episodes too."""
        self.whole_steps = 0
        """Transitions of the episodes at the beginning that are all finished."""
        self.finished_steps = 0
        """Transitions of all finished episodes."""
        self.clock = 0
        """Calls of `step`."""

    @property
    def idle(self) -> list[int]:
        """Lanes without a running episode."""
        return [lane for lane in range(len(self._envs)) if lane not in self._running]

    @property
    def obs(self) -> NDArray[Any]:
        """What the running lanes see, in their order, (n, O)."""
        return np.stack([self._running[lane].flat for lane in sorted(self._running)])

    @property
    def running(self) -> int:
        """How many lanes have a running episode."""
        return len(self._running)

    def begin(self, lane: int, seed: int) -> None:
        """Reset a lane.

        Raises:
            EnvError: It returned NaN or infinity.
        """
        raw, _ = self._envs[lane].env.reset(seed=seed)
        take = _Take(raw, self._flat(raw, lane, 0), seed, lane, self.clock)
        self._running[lane] = take
        self._takes.append(take)

    def step(self, actions: NDArray[Any]) -> Step:
        """Step the running lanes; actions (n, A) are clipped to the box and executed as float32.

        Raises:
            DataError: The policy gave NaN or another shape.
            EnvError: An environment returned NaN or infinity, or an episode does not end.
        """
        lanes = sorted(self._running)
        actions = np.asarray(actions)
        if actions.shape != (len(lanes), len(self._low)):
            raise DataError(
                f"the policy gave actions of shape {actions.shape}, expected {(len(lanes), len(self._low))}"
            )
        if not np.isfinite(actions).all():
            raise DataError("the policy gave an action with NaN or infinity: its weights are broken; give another one")
        actions = np.clip(actions, self._low, self._high).astype(np.float32)
        obs = self.obs
        for lane, action in zip(lanes, actions, strict=True):
            self._step_one(lane, action)
        takes = [self._running[lane] for lane in lanes]
        self.clock += 1
        self.steps += len(lanes)
        step = Step(
            obs,
            actions,
            np.array([take.rewards[-1] for take in takes]),
            np.stack([take.flat for take in takes]),
            np.array([take.terminations[-1] for take in takes]),
            np.array([take.truncations[-1] for take in takes]),
        )
        for take in takes:
            if take.over:
                del self._running[take.lane]
                self.finished_steps += len(take)
                take.close()
        while self._whole < len(self._takes) and self._takes[self._whole].over:
            self.whole_steps += len(self._takes[self._whole])
            self._whole += 1
        return step

    def recordings(self) -> list[Recording]:
        """All episodes in the order of their start, running ones too if they have a step."""
        return [take.recording() for take in self._takes if len(take)]

    def first(self, transitions: int) -> list[EpisodeBuffer]:
        """The first episodes, all finished, that together have so many transitions."""
        buffers: list[EpisodeBuffer] = []
        total = 0
        for take in self._takes[: self._whole]:
            if total >= transitions:
                break
            total += len(take)
            buffers.append(take.recording().buffer())
        return buffers

    def _step_one(self, lane: int, action: FloatArray) -> None:
        take = self._running[lane]
        env = self._envs[lane]
        raw, reward, terminated, truncated, _ = env.env.step(action)
        if not np.isfinite(reward):
            raise EnvError(
                f"{self._name(lane)} returned a reward of {reward} in step {len(take) + 1} of an episode in lane "
                f"{lane} (seed {take.seed}, action {action.tolist()})"
            )
        take.flat = self._flat(raw, lane, len(take) + 1)
        take.raw.append(_copy(raw))
        take.actions.append(action)
        take.rewards.append(float(reward))
        take.terminations.append(bool(terminated))
        take.truncations.append(bool(truncated) and not terminated)
        if len(take) >= LONGEST_EPISODE and not take.over:
            raise EnvError(
                f"{self._name(lane)}: no end of an episode after {LONGEST_EPISODE:,} steps; give the environment a "
                f"time limit (max_episode_steps where it is registered)"
            )

    def _flat(self, raw: Any, lane: int, step: int) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            flat = self._flatten(raw)
        if not np.isfinite(flat).all():
            where = "at a reset" if step == 0 else f"in step {step} of an episode"
            raise EnvError(f"{self._name(lane)} returned an observation with NaN or infinity {where} in lane {lane}")
        return flat

    def _name(self, lane: int) -> str:
        spec = self._envs[lane].env.spec
        return "the environment" if spec is None else str(spec.id)


def roll_out(
    envs: Sequence[Env],
    act: Act,
    rng: np.random.Generator,
    *,
    transitions: int,
    flatten: Flatten | None = None,
    progress: Progress | None = None,
) -> list[EpisodeBuffer]:
    """Play whole episodes until they have so many transitions.

    Args:
        envs: Of `make_env`, one a lane; not closed.
        act: The policy.
        rng: Gives the episodes' seeds and is handed to the policy.
        transitions: At least so many; the last episode is whole, so there may be more.
        flatten: What the policy sees; see `Lanes`.
        progress: Called with (transitions of finished episodes, transitions asked for) after every episode.

    Returns:
        Episodes in the order of their start, with the observations of the environment below our wrapper.

    Raises:
        DataError: The policy gave NaN or another shape, or `transitions` is below 1.
        EnvError: An environment returned NaN or infinity, or an episode does not end.
    """
    if transitions < 1:
        raise DataError(f"transitions is {transitions}, expected at least 1")
    lanes = Lanes(envs, flatten)
    reported = 0
    while lanes.whole_steps < transitions:
        for lane in lanes.idle:
            if lanes.steps < transitions:  # else those that have begun are enough
                lanes.begin(lane, int(rng.integers(SEEDS)))
        lanes.step(act(lanes.obs, rng))
        if progress is not None and lanes.finished_steps > reported:
            reported = lanes.finished_steps
            progress(min(reported, transitions), transitions)
    return lanes.first(transitions)


def uniform_policy(low: NDArray[np.float32], high: NDArray[np.float32]) -> Act:
    """Uniformly random actions in a box, low and high (A,)."""

    def act(obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        return rng.uniform(low, high, (len(obs), len(low))).astype(np.float32)

    return act


def interleave(episodes: Sequence[Sequence[EpisodeBuffer]], shares: Sequence[float]) -> list[tuple[int, EpisodeBuffer]]:
    """Merge lists of episodes so that every beginning of the result has about the given shares of transitions.

    Each list keeps its order and is used up.

    Returns:
        Pairs of a list's number and an episode.
    """
    done = [0.0] * len(episodes)
    used = [0] * len(episodes)
    merged: list[tuple[int, EpisodeBuffer]] = []
    while left := [i for i in range(len(episodes)) if used[i] < len(episodes[i])]:
        i = min(left, key=lambda k: done[k] / shares[k])
        episode = episodes[i][used[i]]
        merged.append((i, episode))
        used[i] += 1
        done[i] += len(episode.rewards)
    return merged


def _copy(raw: Any) -> Any:
    """A copy: environments may reuse their own arrays."""
    return {key: np.array(value) for key, value in raw.items()} if isinstance(raw, Mapping) else np.array(raw)


_OF_STEPS = ("actions", "rewards", "terminations", "truncations")
_OF_EPISODES = ("seed", "lane", "start")
_KEYED = "observations."


def write_recordings(file: Path, recordings: Sequence[Recording]) -> None:
    """Write episodes to an .npz, one after the other: `observations` or `observations.KEY` have T + 1 rows each.

    Raises:
        OSError: The file cannot be written; what was there is still there.
    """
    arrays: dict[str, NDArray[Any]] = {n: np.concatenate([getattr(r, n) for r in recordings]) for n in _OF_STEPS}
    arrays |= {name: np.array([getattr(r, name) for r in recordings], dtype=np.int64) for name in _OF_EPISODES}
    arrays["length"] = np.array([len(r) for r in recordings], dtype=np.int64)
    first = recordings[0].observations
    if isinstance(first, dict):
        arrays |= {_KEYED + key: np.concatenate([r.observations[key] for r in recordings]) for key in first}
    else:
        arrays["observations"] = np.concatenate([r.observations for r in recordings])
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as handle:
            np.savez(handle, **arrays)  # type: ignore[arg-type]
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def read_recordings(file: Path) -> list[Recording]:
    """Read what `write_recordings` wrote.

    Raises:
        DataError: The file is absent or broken.
    """
    try:
        arrays = read_arrays(file)
        lengths = arrays["length"]
        stops = np.cumsum(lengths)
        recordings: list[Recording] = []
        for i, (length, stop) in enumerate(zip(lengths.tolist(), stops.tolist(), strict=True)):
            rows, seen = slice(stop - length, stop), slice(stop - length + i, stop + i + 1)  # T + 1 are seen
            keyed = {k.removeprefix(_KEYED): v[seen] for k, v in arrays.items() if k.startswith(_KEYED)}
            observations = keyed or arrays["observations"][seen]
            actions, rewards, terminations, truncations = (arrays[name][rows] for name in _OF_STEPS)
            numbers = (int(arrays[name][i]) for name in _OF_EPISODES)
            recordings.append(Recording(observations, actions, rewards, terminations, truncations, *numbers))
        return recordings
    except Exception as error:  # whatever numpy, zipfile and zlib make of a broken file
        raise DataError(f"{file} is absent or broken ({type(error).__name__})") from error
