"""Where every random number of a run comes from: named streams derived from the run's seeds.

Streams never collide: training environments, evaluation environments and the learner draw from different spawn keys of
one SeedSequence per seed.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from o2o_smooth.draws import mix64


class Stream(IntEnum):
    """What the numbers are for."""

    TRAIN_ENV = 1
    EVAL_ENV = 2
    RANDOM_ACTIONS = 3
    ONLINE_DRAWS = 4


def env_seeds(seed: int, stream: Stream, count: int, index: int = 0) -> list[int]:
    """Seeds for `count` environments of one run, 31 bits each; `index` tells evaluations apart."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), index))
    return [int(x) >> 1 for x in sequence.generate_state(count, np.uint32)]


def resumed_index(stream: int, env_steps: int) -> int:
    """The `index` of `env_seeds` for environments that begin anew after so many steps; no other use has it."""
    return mix64(stream, env_steps) | (1 << 63)


def generator(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """A numpy generator of one run; `index` tells several of one stream apart."""
    key = (int(stream), index) if index else (int(stream),)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def online_seed(seed: int, online_stream: int) -> int:
    """What a member's named draws are seeded with after the switch; stream 0 goes on with the seed itself."""
    return mix64(seed, int(Stream.ONLINE_DRAWS), online_stream) >> 1 if online_stream else seed
