"""Damaged files of every kind: an error in one line, or exactly what was written; no crash, no hang, no warning.

A server process forks for every damaged file and reads it there, so that a crash is seen and hundreds cost seconds.
There the reader that may die goes first, in the same fork; only `test_whole_path` starts it as users have it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile
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
Tell = Callable[..., None]


# ---------------------------------------------------------------------------------------------------------- the server


def serve() -> None:
    """Read the paths that come in, each in a fork, and tell what became of it."""
    at_rest = peak_mib()
    for line in sys.stdin:
        print(json.dumps(in_a_fork(functools.partial(examine, Path(line.strip()), at_rest))), flush=True)


def in_a_fork(work: Callable[[Tell], object]) -> dict[str, Any]:
    """All that `work` tells, and the signal that it died of."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:

        def tell(**found: Any) -> None:
            os.write(writing, json.dumps(found).encode() + b"\n")

        try:
            faulthandler.disable()  # pytest's would talk of every crash
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            work(tell)
        except BaseException as error:
            tell(escaped=repr(error))
        finally:
            os._exit(0)
    os.close(writing)
    found: dict[str, Any] = {}
    with os.fdopen(reading) as pipe:
        for line in pipe:
            found |= json.loads(line)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return found | ({"died": status} if status else {})


def examine(path: Path, at_rest: int, tell: Tell) -> None:
    """Read a dataset as a user does: by the reader that may die, and by us if it has survived."""
    vars(hdf5)["survives"] = functools.partial(survives, tell)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            dataset = read_path(path, TASK)
        except DataError as error:
            tell(error=str(error)[:5000])
        else:
            tell(hash=array_hash(dataset.transitions), sound=sound(dataset.transitions))
    tell(warned=[str(w.message) for w in warned], mib=peak_mib() - at_rest)


def survives(tell: Tell, path: Path) -> str | None:
    """`suspicion.survives` in this process: where it dies, it has told that users are told of a crash."""
    tell(error=f"{path} is broken (crash)", warned=[], mib=0)
    try:
        suspicion.read(str(path))
    except SystemExit as error:
        return " ".join(str(error).split())
    tell(error=None, survived=True)
    return None


def peak_mib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10


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
        with (folder / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.data.test_fuzz"],
                cwd=ROOT,
                env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
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
        assert "escaped" not in found, found
        assert found.get("died") != -signal.SIGALRM, found  # a hang
        assert "died" not in found or "survived" not in found, found
        assert not found["warned"], found
        assert found["mib"] < MIB, found
        assert not (self.folder / "stderr").read_text()  # nothing of HDF5's own
        if found.get("error") is not None:
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


def fuzzed(quick: int, slow: int) -> pytest.MarkDecorator:
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


@fuzzed(60, 600)
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


@fuzzed(60, 600)
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


@fuzzed(50, 400)
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


@fuzzed(50, 500)
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


@fuzzed(150, 1500)
def test_damaged_npz_is_refused_or_exactly_what_was_written(tmp_path: Path, examples: int) -> None:
    path, contents = tmp_path / "a.npz", []
    original = array_hash(from_arrays(recording()).transitions)
    for save in (np.savez, np.savez_compressed):
        save(path, allow_pickle=False, **recording())
        contents.append(path.read_bytes())
        assert read_path(path).sha256 == original

    def test(case: tuple[int, Damage]) -> None:
        number, damage = case
        path.write_bytes(damaged(contents[number], damage))
        with warnings.catch_warnings(action="error"):
            try:
                found = read_path(path)
            except DataError as error:
                assert "\n" not in str(error)
                assert str(path) in str(error)
            else:
                assert found.sha256 == original

    each(examples, st.tuples(st.integers(0, 1), damages), test)


def members(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_whose_arrays_are_said_to_be_shorter_is_refused(tmp_path: Path, compressed: bool) -> None:
    """Headers are within the checksums, which count only once a member is read to its end."""
    n = 20_000
    (np.savez_compressed if compressed else np.savez)(tmp_path / "a.npz", allow_pickle=False, **recording(n))
    shorter = [(name, content.replace(b"(20000,", b"(10000,")) for name, content in members(tmp_path / "a.npz")]
    content = bytearray((tmp_path / "a.npz").read_bytes())
    if not compressed:
        assert content.count(b"(20000,") == 6
        (tmp_path / "a.npz").write_bytes(content.replace(b"(20000,", b"(10000,"))
    else:  # with good checksums: an array that ends before its member does
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, member in shorter:
                archive.writestr(name, member)
    with pytest.raises(DataError, match=r"CRC|goes on after its array"):
        read_path(tmp_path / "a.npz")


def test_npz_of_python_2_is_read_without_a_warning(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", allow_pickle=False, **recording())
    with zipfile.ZipFile(tmp_path / "old.npz", "w") as archive:
        for name, member in members(tmp_path / "a.npz"):
            archive.writestr(name, member.replace(b"(60, ", b"(60L,"))
    assert read_path(tmp_path / "old.npz").sha256 == read_path(tmp_path / "a.npz").sha256


@fuzzed(8, 60)
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


def test_server_sees_crashes_escapes_hangs_and_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail."""

    def crash(path: str) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def warn(path: str) -> None:
        warnings.warn("careful", stacklevel=1)

    def outcome() -> dict[str, Any]:
        return in_a_fork(functools.partial(examine, tmp_path / "a.hdf5", peak_mib()))

    flat_file(tmp_path / "a.hdf5", 0)
    assert outcome()["sound"]
    with monkeypatch.context() as patch:
        patch.setattr(suspicion, "read", crash)
        found = outcome()
        assert found["died"] == -signal.SIGSEGV
        assert "survived" not in found
        patch.setattr(suspicion, "read", warn)
        assert outcome()["warned"] == ["careful"]
        patch.setattr(suspicion, "read", lambda path: None)
        patch.setattr(f"{__name__}.sound", lambda t: os.kill(os.getpid(), signal.SIGSEGV))
        found = outcome()
        assert (found["died"], found["survived"]) == (-signal.SIGSEGV, True)
        patch.setattr(f"{__name__}.sound", lambda t: 1 / 0)
        assert outcome()["escaped"].startswith("ZeroDivisionError")
        patch.setattr(f"{__name__}.SECONDS", 1)
        patch.setattr(suspicion, "read", lambda path: time.sleep(60))
        assert outcome()["died"] == -signal.SIGALRM


if __name__ == "__main__":
    serve()
