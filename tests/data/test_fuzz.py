"""Damaged files of every kind: an error in one line, or exactly what was written; no crash, no hang, no warning.

A server process forks for every damaged file and reads it there, so that a crash is seen and hundreds cost seconds. The
reader that may die is forked as well; only in `test_whole_path` it is started as users have it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from o2o_smooth.data import Transitions, from_arrays, from_hdf5, hdf5, read_path, suspicion, write_hdf5
from o2o_smooth.data.dataset import array_hash
from o2o_smooth.envs import Task
from o2o_smooth.errors import DataError

ROOT = Path(__file__).parents[2]
TASK = Task(id="test", env_id="Pendulum-v1", max_episode_steps=20)
N = 60
SECONDS = 20  # more is a hang
MIB = 400  # more is a bomb
Content = bytes
Damage = tuple[str, Any]


# ---------------------------------------------------------------------------------------------------------- the server


def serve() -> None:
    """Read the paths that come in, each in a fork, and tell what became of it."""
    for line in sys.stdin:
        print(json.dumps(in_a_fork(lambda path=line.strip(): examine(Path(path)))), flush=True)  # type: ignore[misc]


def in_a_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, or the signal that it died of."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.write(writing, json.dumps(work()).encode()[:60_000])
        except BaseException as error:
            os.write(writing, json.dumps({"escaped": repr(error)}).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(told) if told else {"died": os.waitstatus_to_exitcode(status)}
    return found


def examine(path: Path) -> dict[str, Any]:
    """Read a dataset as a user does, but for the start of the reading process."""
    hdf5.survives = forked_survives  # type: ignore[assignment]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            dataset = read_path(path, TASK)
        except DataError as error:
            found: dict[str, Any] = {"error": str(error)}
        else:
            found = {"hash": array_hash(dataset.transitions), "sound": sound(dataset.transitions)}
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if "kB" in line)
    grown = (int(status["VmHWM"].split()[0]) >> 10) - (AT_REST or 0)
    return found | {"warned": [str(w.message) for w in warned], "mib": grown}


AT_REST: int | None = None


def forked_survives(path: Path) -> str | None:
    """`suspicion.survives`, with a fork in the place of a new interpreter."""

    def read() -> dict[str, Any]:
        try:
            suspicion.read(str(path))
        except SystemExit as error:
            return {"said": " ".join(str(error).split())}
        return {}

    found = in_a_fork(read)
    if "died" in found:
        return f"the HDF5 library crashes on it, signal {-found['died']}"
    said: str | None = found.get("said")
    return said


def sound(t: Transitions) -> bool:
    """What every learner may rely on."""
    n = len(t.obs)
    floats = (t.obs, t.action, t.reward, t.next_obs)
    return bool(
        n > 0
        and all(len(x) == n and x.dtype == np.float32 and np.isfinite(x).all() for x in floats)
        and t.obs.shape == t.next_obs.shape
        and all(x.shape == (n,) and x.dtype == np.bool_ for x in (t.terminated, t.truncated))
        and (t.terminated[-1] or t.truncated[-1])
    )


class Server:
    """The other end of `serve`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.data.test_fuzz"],
            cwd=ROOT,
            env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "stderr").open("wb"),
            text=True,
        )

    def outcome(self, path: Path) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def check(self, path: Path, original: str | None) -> None:
        """An error in one line, or arrays with the hash `original`; sound ones where it is None."""
        found = self.outcome(path)
        assert "died" not in found and "escaped" not in found, found
        assert not found["warned"], found
        assert found["mib"] < MIB, found
        assert not (self.folder / "stderr").read_text()  # nothing of HDF5's own
        if "error" in found:
            assert "\n" not in found["error"]
            assert str(path) in found["error"]
            assert "Traceback" not in found["error"]
        elif original is None:
            assert found["sound"], found
        else:
            assert found["hash"] == original, found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not hasattr(os, "fork") or not Path("/proc/self/status").exists():
        pytest.skip("needs fork and /proc")
    running = Server(tmp_path_factory.mktemp("server"))
    try:
        yield running
    finally:
        with contextlib.suppress(OSError):
            running.process.communicate()


# ---------------------------------------------------------------------------------------------------------- the damage

OTHER_NUMBERS = (0, 1, 2, 3, 7, 255, N - 1, N + 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)
place = st.floats(0, 1, exclude_max=True)  # a share of the file, or of what is interesting in it

damages: st.SearchStrategy[Damage] = st.one_of(
    st.tuples(st.just("truncate"), place),
    st.tuples(st.just("flip"), st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=4)),
    st.tuples(st.just("flip metadata"), st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=4)),
    st.tuples(
        st.just("overwrite"), st.lists(st.tuples(place, st.binary(min_size=1, max_size=16)), min_size=1, max_size=3)
    ),
    st.tuples(
        st.just("overwrite metadata"),
        st.lists(st.tuples(place, st.binary(min_size=1, max_size=8)), min_size=1, max_size=3),
    ),
    st.tuples(st.just("zero"), st.tuples(place, st.integers(1, 600))),
    st.tuples(st.just("lie"), st.tuples(place, st.sampled_from(OTHER_NUMBERS), st.sampled_from((1, 2, 4, 8)))),
    st.tuples(st.just("insert"), st.tuples(place, st.binary(min_size=1, max_size=8))),
    st.tuples(st.just("cut out"), st.tuples(place, st.integers(1, 600))),
)


def damaged(content: Content, damage: Damage) -> Content:
    """The file as a bad disk, a broken download or somebody malicious leaves it."""
    kind, how = damage
    changed = bytearray(content)
    interesting = np.flatnonzero(np.frombuffer(content, np.uint8))  # most of HDF5's own structures are zeros

    def at(share: float) -> int:
        return int(interesting[int(share * len(interesting))] if "metadata" in kind else share * len(content))

    if kind == "truncate":
        del changed[at(how) :]
    elif kind.startswith("flip"):
        for share, bit in how:
            changed[at(share)] ^= 1 << bit
    elif kind.startswith("overwrite"):
        for share, new in how:
            changed[at(share) : at(share) + len(new)] = new
    elif kind == "zero":
        share, length = how
        changed[at(share) : at(share) + length] = bytes(len(changed[at(share) : at(share) + length]))
    elif kind == "lie":  # in the place of a number that stands there
        share, number, size = how
        where = int(interesting[int(share * len(interesting))])
        changed[where : where + size] = struct.pack("<Q", number)[:size]
    elif kind == "insert":
        share, new = how
        changed[at(share) : at(share)] = new
    else:
        share, length = how
        del changed[at(share) : at(share) + length]
    return bytes(changed)


def fuzzed(quick: int, slow: int) -> Any:
    """Run a test for `quick` examples, and for `slow` ones where there is time."""
    return pytest.mark.parametrize("examples", [quick, pytest.param(slow, marks=pytest.mark.slow)])


def each(examples: int, damage: st.SearchStrategy[Any], test: Callable[[Any], None]) -> None:
    """Hypothesis, the same examples every time."""
    decide = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    decide(given(damage)(test))()


# ----------------------------------------------------------------------------------------------------------- the files


def recording(n: int = N) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(n, 3)).astype(np.float32)
    return {
        "observations": obs,
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": np.arange(n) % 13 == 12,
        "timeouts": np.arange(n) % 20 == 19,
        "next_observations": np.roll(obs, -1, axis=0),
    }


def flat_file(path: Path, number: int) -> None:
    """One of the ways in which D4RL's and other people's files are laid out."""
    arrays = recording()
    ways: list[tuple[tuple[str, ...], dict[str, Any], Any]] = [
        (("next_observations",), {}, None),
        (("next_observations", "timeouts"), {"compression": "gzip"}, None),
        ((), {"chunks": 16, "compression": "gzip", "shuffle": True, "fletcher32": True}, None),
        ((), {"chunks": 7, "compression": "lzf"}, "latest"),
        (("next_observations",), {"chunks": 25}, "latest"),
    ]
    absent, options, version = ways[number]
    with h5py.File(path, "w", libver=version) as file:
        for name, array in arrays.items():
            if name not in absent:
                chunks = {"chunks": (options["chunks"], *array.shape[1:])} if "chunks" in options else {}
                file.create_dataset(name, data=array, **(options | chunks))
        file["infos/goal"] = np.zeros((N, 2))


def minari_folder(root: Path) -> Path:
    rng = np.random.default_rng(0)
    episodes = [
        EpisodeBuffer(
            observations={key: rng.normal(size=(steps + 1, width)) for key, width in (("a", 2), ("b", 1))},
            actions=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            rewards=rng.normal(size=steps),
            terminations=np.zeros(steps, np.bool_),
            truncations=np.arange(steps) == steps - 1,
            infos={},
        )
        for steps in (5, 9, 3)
    ]
    boxes: dict[str, gym.Space[Any]] = {
        key: gym.spaces.Box(-10, 10, (width,), np.float64) for key, width in (("a", 2), ("b", 1))
    }
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        minari.create_dataset_from_buffers(
            "test/real-v0",
            episodes,
            observation_space=gym.spaces.Dict(boxes),
            action_space=gym.spaces.Box(-1, 1, (2,), np.float32),
            description="eine Übung",
        )
    return root / "test" / "real-v0"


# ----------------------------------------------------------------------------------------------------------- the tests


@fuzzed(100, 1500)
def test_damaged_file_of_ours_is_refused_or_exactly_what_was_written(
    server: Server, tmp_path: Path, examples: int
) -> None:
    t = from_arrays(recording()).transitions
    path = tmp_path / "a.hdf5"
    write_hdf5(path, t, {"provenance": "generated"})
    content, original = path.read_bytes(), array_hash(t)
    server.check(path, original)

    def test(damage: Damage) -> None:
        path.write_bytes(damaged(content, damage))
        server.check(path, original)

    each(examples, damages, test)


@fuzzed(100, 1500)
def test_damaged_d4rl_file_is_refused_or_sound(server: Server, tmp_path: Path, examples: int) -> None:
    path, contents = tmp_path / "a.hdf5", []
    for number in range(5):
        flat_file(path, number)
        contents.append(path.read_bytes())
        assert server.outcome(path)["sound"]

    def test(case: tuple[int, Damage]) -> None:
        number, damage = case
        path.write_bytes(damaged(contents[number], damage))
        server.check(path, None)

    each(examples, st.tuples(st.integers(0, 4), damages), test)


@fuzzed(60, 800)
def test_damaged_minari_part_is_refused_or_sound(server: Server, tmp_path: Path, examples: int) -> None:
    folder = minari_folder(tmp_path)
    part = folder / "data" / "main_data.hdf5"
    content = part.read_bytes()
    assert server.outcome(folder)["sound"]

    def test(damage: Damage) -> None:
        part.write_bytes(damaged(content, damage))
        server.check(folder, None)

    each(examples, damages, test)


junk: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["Box", "Dict", "float32", "nonsense", "0.5.0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@fuzzed(80, 1000)
def test_damaged_minari_metadata_are_refused_or_the_data_sound(server: Server, tmp_path: Path, examples: int) -> None:
    folder = minari_folder(tmp_path)
    file = folder / "data" / "metadata.json"
    content = file.read_bytes()
    metadata = json.loads(content)
    space = json.loads(metadata["observation_space"])

    def lie(case: tuple[str, Any]) -> Content:
        key, value = case
        if key in space["subspaces"]["a"]:  # inside of a space
            subspace = space["subspaces"]["a"] | {key: value}
            changed = metadata | {"observation_space": json.dumps({"type": "Dict", "subspaces": {"a": subspace}})}
        else:
            changed = metadata | {key: value}
        return json.dumps(changed).encode()

    bytewise = damages.map(lambda damage: damaged(content, damage))
    keys = st.sampled_from([*metadata, *space["subspaces"]["a"], "env_spec", "eval_env_spec", "o2o_smooth"])

    def test(new: Content) -> None:
        file.write_bytes(new)
        server.check(folder, None)

    each(examples, bytewise | st.tuples(keys, junk).map(lie), test)


@fuzzed(120, 2000)
def test_damaged_npz_is_refused_or_exactly_what_was_written(server: Server, tmp_path: Path, examples: int) -> None:
    path, contents, original = tmp_path / "a.npz", [], ""
    for save in (np.savez, np.savez_compressed):
        save(path, **recording())  # type: ignore[operator]
        contents.append(path.read_bytes())
        original = server.outcome(path)["hash"]

    def test(case: tuple[int, Damage]) -> None:
        number, damage = case
        path.write_bytes(damaged(contents[number], damage))
        server.check(path, original)

    each(examples, st.tuples(st.integers(0, 1), damages), test)


@fuzzed(12, 150)
def test_whole_path(tmp_path: Path, examples: int) -> None:
    """Without the server: the reading process as users have it, and no crash of this one."""
    t = from_arrays(recording()).transitions
    path = tmp_path / "a.hdf5"
    write_hdf5(path, t, {})
    content = path.read_bytes()

    def test(damage: Damage) -> None:
        path.write_bytes(damaged(content, damage))
        try:
            found = from_hdf5([path])
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert found.sha256 == array_hash(t)

    each(examples, damages, test)


def test_server_sees_crashes_hangs_bombs_and_warnings() -> None:
    """The tests above can fail."""

    def warn() -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            warnings.warn("careful", stacklevel=1)
        return {"warned": [str(w.message) for w in warned]}

    assert in_a_fork(lambda: {"a": os.kill(os.getpid(), signal.SIGSEGV)}) == {"died": -signal.SIGSEGV}
    assert in_a_fork(warn) == {"warned": ["careful"]}
    assert "escaped" in in_a_fork(lambda: {"a": {}["b"]})


if __name__ == "__main__":
    usage = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if "kB" in line)
    AT_REST = int(usage["VmHWM"].split()[0]) >> 10
    serve()
