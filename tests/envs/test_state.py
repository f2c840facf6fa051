"""A captured state brings a new environment to where the old one was: the rest of its life is the same to the bit."""

from __future__ import annotations

import contextlib
import copy
import enum
import json
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from o2o_smooth.envs import Task, TaskEnv, find_task, make_vector_env, snapshot
from o2o_smooth.envs.inline import InlineVectorEnv
from o2o_smooth.envs.make import Vector
from o2o_smooth.envs.state import EnvState, capture, restore, why_not
from o2o_smooth.envs.supervision import Supervision
from o2o_smooth.errors import EnvError
from tests.envs.misbehaving import misbehaving

ROBOTICS = ("D4RL/pointmaze", "antmaze", "pen", "door", "hammer", "relocate", "kitchen")
QUICK = (
    "hopper-medium-v2",
    "Hopper-v5",
    "Pendulum-v1",
    "MountainCarContinuous-v0",
    "corridor-mixed-v0",
    "D4RL/pointmaze/umaze-dense-v2",
)
SLOW = (
    "halfcheetah-medium-v2",
    "Walker2d-v5",
    "ant-medium-v2",
    "Humanoid-v4",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
    "Pusher-v5",
    "Swimmer-v5",
    "D4RL/pointmaze/large-v2",
    "antmaze-umaze-v2",
    "antmaze-large-diverse-v2",
    "D4RL/antmaze/medium-play-v1",
    "pen-human-v1",
    "door-human-v1",
    "hammer-human-v1",
    "relocate-human-v1",
    "kitchen-mixed-v0",
)
Steps = list[tuple[Any, ...]]


def task_of(name: str, limit: int | None) -> Task:
    """A task whose episodes end soon, so that new ones begin too."""
    pytest.importorskip("gymnasium_robotics" if name.startswith(ROBOTICS) else "mujoco")
    task = find_task(name)
    return task if limit is None else Task(**{**vars(task), "max_episode_steps": limit})


def play(envs: Vector, actions: NDArray[np.float32]) -> Steps:
    return [envs.step(action) for action in actions]


def random_actions(envs: Vector, steps: int, seed: int = 5) -> NDArray[np.float32]:
    low, high = envs.single_action_space.low, envs.single_action_space.high  # type: ignore[attr-defined]
    rng = np.random.default_rng(seed)
    return rng.uniform(low, high, (steps, envs.num_envs, len(low))).astype(np.float32)


def through_files(tree: Any) -> Any:
    """A tree after JSON (strict, sorted) and arrays' files, as a checkpoint keeps it."""
    files: list[bytes] = []

    def out(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            file = BytesIO()
            np.save(file, x, allow_pickle=False)
            files.append(file.getvalue())
            return {"file": len(files) - 1}
        if isinstance(x, dict):
            assert all(type(key) is str for key in x)
            return {key: out(value) for key, value in x.items()}
        return [out(value) for value in x] if isinstance(x, list) else x

    def back(x: Any) -> Any:
        if isinstance(x, dict):
            if x.keys() == {"file"}:
                return np.load(BytesIO(files[x["file"]]), allow_pickle=False)
            return {key: back(value) for key, value in x.items()}
        return [back(value) for value in x] if isinstance(x, list) else x

    return back(json.loads(json.dumps(out(tree), allow_nan=False, sort_keys=True)))


def assert_same(a: Any, b: Any, where: str = "", *, across: bool = False) -> None:
    """Equal to the bit; `across` vectorizers, one of which may leave out what ended an episode besides its obs."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        left_out = {"final_info", "_final_info"} if across else set()
        assert a.keys() - left_out == b.keys() - left_out, where
        for key in a.keys() & b.keys():
            assert_same(a[key], b[key], f"{where}.{key}", across=across)
    elif isinstance(a, list | tuple):
        if all(isinstance(x, str) for x in [*a, *b]):  # names in the order of a set, which is the process's own
            a, b = sorted(a), sorted(b)
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]", across=across)
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), where
        if a.dtype == object:
            assert_same(a.tolist(), b.tolist(), where, across=across)
        else:
            assert a.tobytes() == b.tobytes(), where
    else:
        assert a == b or (a != a and b != b), where


def check(task: Task, *, before: int, after: int, ways: tuple[str, str] = ("sync", "sync"), ends: bool = False) -> None:
    envs = make_vector_env(task, 2, vectorizer=ways[0])
    news: list[Vector] = []
    try:
        envs.reset(seed=[3, 4])  # type: ignore[arg-type]
        actions = random_actions(envs, before + after)
        play(envs, actions[:before])
        assert why_not(envs) is None
        states = capture(envs)
        expected = play(envs, actions[before:])
        assert not ends or any((step[2] | step[3]).any() for step in expected)
        states = through_files(states)
        for played in (False, True):
            news.append(new := make_vector_env(task, 2, vectorizer=ways[1]))
            if played:
                new.reset(seed=9)
                play(new, actions[:3])
            restore(new, states)
            assert_same(expected, play(new, actions[before:]), across=ways[0] != ways[1])
    finally:
        for one in (envs, *news):
            one.close()


@pytest.mark.parametrize("name", QUICK)
def test_the_rest_is_the_same(name: str) -> None:
    """Of this episode and those that follow."""
    check(task_of(name, 20), before=7, after=40, ends=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_rest_is_the_same_on_every_domain(name: str) -> None:
    kitchen = name.startswith("kitchen")  # 40 simulator steps a step
    check(task_of(name, 8 if kitchen else 20), before=3 if kitchen else 7, after=8 if kitchen else 40, ends=True)


@pytest.mark.slow
@pytest.mark.parametrize("ways", [("sync", "async"), ("async", "sync"), ("async", "async")])
@pytest.mark.parametrize("name", ["hopper-medium-v2", "corridor-mixed-v0"])
def test_a_state_goes_from_one_way_of_stepping_to_another(name: str, ways: tuple[str, str]) -> None:
    check(task_of(name, 20), before=7, after=40, ways=ways, ends=True)


@pytest.mark.parametrize("before", [0, 1, 19, 20, 21])
def test_a_state_can_be_taken_around_an_episodes_end(before: int) -> None:
    check(task_of("Pendulum-v1", 20), before=before, after=30)


def test_capturing_changes_nothing() -> None:
    task = task_of("D4RL/pointmaze/umaze-dense-v2", 20)
    runs = []
    for captured in (False, True):
        envs = make_vector_env(task, 2)
        envs.reset(seed=3)
        steps = []
        for action in random_actions(envs, 30):
            if captured:
                capture(envs)
            steps.append(envs.step(action))
        envs.close()
        runs.append(steps)
    assert_same(runs[0], runs[1])


def test_a_state_is_a_copy() -> None:
    envs = make_vector_env(task_of("hopper-medium-v2", None), 1)
    envs.reset(seed=3)
    states = capture(envs)
    kept = through_files(states)
    play(envs, random_actions(envs, 5))
    assert_same(states, kept)
    restore(envs, states)
    play(envs, random_actions(envs, 5))
    assert_same(states, kept)
    envs.close()


def test_restarts_are_counted_on() -> None:
    """The seed of the next restart is the one that it would have been."""
    task = misbehaving("raise")
    envs, new = (make_vector_env(task, 1, supervision=Supervision(max_restarts=5)) for _ in range(2))
    envs.reset(seed=3)
    still = np.zeros((6, 1, 1), np.float32)  # its third step fails
    play(envs, still[:4])
    states = through_files(capture(envs))
    expected = play(envs, still)
    restore(new, states)
    assert_same(expected, play(new, still))
    assert new.supervisor.restarts.tolist() == envs.supervisor.restarts.tolist() == [3]  # type: ignore[attr-defined]


# Environments of users


class Point(NamedTuple):
    x: float
    y: float


class Mood(enum.Enum):
    CALM = 1
    WILD = 2


@dataclass(frozen=True)
class Place:
    name: str
    at: tuple[float, float]


START = Place("start", (0.0, 0.0))


class Arm:
    def __init__(self, owner: PlainEnv) -> None:
        self.owner = owner
        self.angles = np.zeros(2)


class PlainEnv(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """Holds a thing of every plain kind, all of which decide about what is seen."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.queue: deque[float] = deque(maxlen=3)
        self.table = {1: "one", (2, 3): [0.5, None, True], "big": 2**70}
        self.place = START
        self.here = START  # the same object at first, and another later
        self.old = np.random.RandomState(1)
        self.older = random.Random(1)
        self.matrix = np.asfortranarray(np.arange(6.0).reshape(2, 3))
        self.mood = Mood.CALM
        self.worst = float("inf")
        self.single = np.float32(0.1)
        self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.child = self.np_random.spawn(1)[0]
        self.arm = Arm(self)
        self.point = Point(0.0, 1.0)
        self.angles = self.arm.angles  # one array, two names
        self.shared = self.queue
        return self._obs(), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.arm.angles += self.np_random.normal(size=2) + self.child.normal()
        self.child = self.child.spawn(1)[0] if self.steps % 5 == 0 else self.child
        self.queue.append(float(self.old.normal()) + self.older.random() + self.action_space.sample()[0])
        self.point = Point(self.point.x + 1.0, sum(self.shared))
        self.here = Place(f"step {self.steps}", (self.point.x, 0.0))
        self.mood = Mood.WILD if self.point.y > 0 else Mood.CALM
        self.worst = min(self.worst, self.point.y)
        self.single *= np.float32(1.1)
        self.matrix[0] += self.single
        self.table[(2, 3)].append(self.steps)  # type: ignore[attr-defined]
        return self._obs(), float(self.matrix.sum()), False, self.steps % 9 == 0, {"here": self.here.name}

    def _obs(self) -> NDArray[np.float32]:
        both = float(self.place is self.here) + float(self.mood is Mood.WILD)
        texts = len(str(self.table)) + len(self.place.name)
        return np.array([*self.angles, self.point.y + both, texts], dtype=np.float32)


class OwnEnv(PlainEnv):
    """Takes care of its own state, since it holds something that nobody else can keep."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = object()
        self.counted: Iterator[int] = iter(range(10_000))
        self.count = 0

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.count = next(self.counted)
        obs = np.array([self.count, self.np_random.normal(), 0, 0], dtype=np.float32)
        return obs, 0.0, False, self.count % 9 == 8, {}

    def get_state(self) -> dict[str, Any]:
        return {"count": self.count}

    def set_state(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.counted = iter(range(self.count + 1, 10_000))


def vector_of(make: Callable[[], gym.Env[Any, Any]], count: int = 2) -> InlineVectorEnv:
    return InlineVectorEnv(lambda: TaskEnv(gym.wrappers.RecordEpisodeStatistics(make())), count, Supervision())


@pytest.mark.parametrize("make", [PlainEnv, OwnEnv])
@pytest.mark.parametrize("before", [1, 7])
def test_a_users_environment(make: type[PlainEnv], before: int) -> None:
    envs, new, other = (vector_of(make) for _ in range(3))
    envs.reset(seed=[3, 4])
    other.reset(seed=9)
    actions = random_actions(envs, 30)
    play(envs, actions[:before])
    assert why_not(envs) is None
    states = through_files(capture(envs))
    expected = [step[:4] for step in play(envs, actions)]  # the infos hold times
    for one in (new, other):
        restore(one, states)
        assert_same(expected, [step[:4] for step in play(one, actions)])
        assert Place("start", (0.0, 0.0)) == START


def nested(levels: int) -> Any:
    """A list in a list, and so on."""
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def with_attribute(value: Any) -> Callable[[], gym.Env[Any, Any]]:
    def make() -> gym.Env[Any, Any]:
        env = PlainEnv()
        env.odd = value(env) if callable(value) else value  # type: ignore[attr-defined]
        return env

    return make


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a", "b"}, "env.env.env.odd is a set"),
        (lambda env: lambda: env, "odd is a function"),
        (lambda env: iter([1]), "odd is a list_iterator"),
        (lambda env: [Arm(env)], r"odd\[0\] is a tests.envs.test_state.Arm"),
        (np.array([object()]), "odd is an array of object"),
        (lambda env: env.matrix[0], "odd shares its memory with env.env.env.matrix"),
        (memoryview(b"x"), "odd is a memoryview"),
        (lambda env: nested(5000), "within things, too deeply"),
    ],
)
def test_what_cannot_be_kept_exactly_is_named(value: Any, words: str) -> None:
    envs = vector_of(with_attribute(value))
    envs.reset(seed=0)
    reason = why_not(envs)
    assert reason is not None
    with pytest.raises(EnvError, match=words):
        capture(envs)


def test_an_array_of_the_simulator_stays_one() -> None:
    """As an environment that writes to `data.qpos` through a name of its own."""
    pytest.importorskip("mujoco")

    def make() -> gym.Env[Any, Any]:
        env = gym.make("Hopper-v5", disable_env_checker=True)
        env.unwrapped.own = env.unwrapped.data.qpos[:2]  # type: ignore[attr-defined]
        return env

    envs, new = vector_of(make, 1), vector_of(make, 1)
    envs.reset(seed=0)
    play(envs, random_actions(envs, 5))
    restore(new, capture(envs))
    bare: Any = new.envs[0].unwrapped
    assert np.shares_memory(bare.own, bare.data.qpos)
    np.testing.assert_array_equal(bare.own, envs.envs[0].unwrapped.own)  # type: ignore[attr-defined]


def test_a_changed_model_is_kept_and_an_unchanged_one_is_not() -> None:
    pytest.importorskip("mujoco")
    envs, new = (make_vector_env(find_task("Hopper-v5"), 1) for _ in range(2))
    envs.reset(seed=0)
    assert models(capture(envs)) == [{}]
    model: Any = envs.envs[0].unwrapped.model  # type: ignore[attr-defined]
    model.opt.gravity[2] = -5.0
    model.opt.timestep = 0.003
    model.body_mass[1] *= 2
    states = through_files(capture(envs))
    assert models(states)[0].keys() == {"opt.gravity", "opt.timestep", "body_mass"}
    restore(new, states)
    actions = random_actions(envs, 10)
    assert_same(play(envs, actions), play(new, actions))
    model.opt.gravity[2], model.opt.timestep = -9.81, 0.002
    model.body_mass[1] /= 2
    restore(new, capture(envs))  # back to the model as it was made
    assert_same(play(envs, actions), play(new, actions))


def models(states: list[EnvState]) -> list[dict[str, Any]]:
    """What the states say of models."""
    found = []
    stack: list[Any] = [state["env"] for state in states]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if node.get("#") == "model":
                found.append(node["changed"])
            stack.extend(node.values())
    return found


# States that do not fit


def test_a_state_of_something_else_is_refused() -> None:
    pytest.importorskip("mujoco")
    hopper, ant, pendulum = (make_vector_env(find_task(n), 1) for n in ("Hopper-v5", "Walker2d-v5", "Pendulum-v1"))
    for envs in (hopper, ant, pendulum):
        envs.reset(seed=0)
    with pytest.raises(EnvError, match="of another environment"):
        restore(ant, capture(hopper))
    with pytest.raises(EnvError, match="of another environment"):
        restore(pendulum, capture(hopper))
    with pytest.raises(EnvError, match="2 states for 1 environments"):
        restore(hopper, capture(hopper) * 2)
    with pytest.raises(EnvError, match="environment 0 is broken: restarts"):
        restore(hopper, [{**capture(hopper)[0], "restarts": {"seed": "x"}}])
    for other in ({}, {"format": 99, "env": {}}, None, {"format": 1, "env": []}):
        with pytest.raises(EnvError, match="environment 0 is broken"):
            restore(hopper, [other])  # type: ignore[list-item]


def test_another_version_of_the_simulator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mujoco = pytest.importorskip("mujoco")
    envs = make_vector_env(find_task("Hopper-v5"), 1)
    envs.reset(seed=0)
    states = capture(envs)
    monkeypatch.setattr(mujoco, "__version__", "9.9.9")
    with pytest.raises(EnvError, match=r"here is 9\.9\.9"):
        restore(envs, states)


def test_broken_states_are_refused_and_execute_nothing() -> None:
    """Every node of a state, left out or replaced by something odd, gives an error of ours or does no harm."""
    envs = vector_of(PlainEnv, 1)
    envs.reset(seed=0)
    play(envs, random_actions(envs, 5))
    good = through_files(capture(envs))[0]
    odd: list[Any] = [None, -1, "os.system", [], {}, {"#": "object"}, {"#": "__class__"}, {"#": "again", "path": "x"}]
    places = list(paths(good["env"]))
    assert len(places) > 150
    for k, path in enumerate(places):
        broken = copy.deepcopy(good)
        holder = broken["env"]
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = odd[k % len(odd)]
        with contextlib.suppress(EnvError):
            restore(vector_of(PlainEnv, 1), [broken])


def paths(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*at, key)
        if len(at) < 12 and key not in ("keys", "key", "state"):
            yield from paths(value, (*at, key))


def test_envpool_says_why_not() -> None:
    from o2o_smooth.envs.pool import PoolVectorEnv

    envs = object.__new__(PoolVectorEnv)
    reason = why_not(envs)
    assert reason is not None
    assert "--vectorizer sync or async" in reason


def test_only_a_whole_protocol_counts() -> None:
    """MuJoCo's environments have a `set_state(qpos, qvel)`, which is another thing."""
    assert snapshot.has_protocol(OwnEnv())
    assert not snapshot.has_protocol(PlainEnv())

    class Half(PlainEnv):
        def set_state(self, qpos: Any, qvel: Any) -> None: ...

        def get_state(self) -> None: ...

    assert not snapshot.has_protocol(Half())
