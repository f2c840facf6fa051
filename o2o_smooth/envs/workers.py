"""Environments in processes of their own, watched: one that raises, hangs or is killed is made anew.

Actions, observations, rewards and ends of episodes travel through shared memory, all else through a pipe. A process
leads a process group, so that Ctrl-C does not reach it and whatever it starts ends with it; it ends itself when its
parent is gone, however that came.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import CloudpickleWrapper, batch_space, clear_mpi_env_vars
from numpy.typing import NDArray

from o2o_smooth.envs.supervision import DROPPED, Failure, Gone, Supervision, Supervisor, lane_seeds
from o2o_smooth.errors import EnvError

Env = gym.Env[NDArray[np.float32], NDArray[Any]]
StepResult = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]

STARTING_S = 600.0
"""Seconds a process may take to start and make its environment; many that import at once on few cores take long."""
ENDING_S = 5.0
"""Seconds a process may take to close its environment."""
_SLICE_S = 1.0  # of waiting; what the whole program sleeps in between does not count
_UNSAID = "its process ended with exit code 1"
_STEP = b"step"
_OTHER = b"other"


class _Shared(NamedTuple):
    """Memory that all processes see, as `multiprocessing` hands it over, and the widths of its rows."""

    obs: Any
    final: Any
    action: Any
    reward: Any
    ends: Any
    obs_dim: int
    action_dim: int

    def arrays(self) -> _Arrays:
        """As arrays, without a copy."""
        n = len(self.reward)
        return _Arrays(
            np.frombuffer(self.obs, dtype=np.float32).reshape(n, self.obs_dim),
            np.frombuffer(self.final, dtype=np.float32).reshape(n, self.obs_dim),
            np.frombuffer(self.action, dtype=np.float32).reshape(n, self.action_dim),
            np.frombuffer(self.reward, dtype=np.float64),
            np.frombuffer(self.ends, dtype=np.bool_).reshape(n, 2),
        )


class _Arrays(NamedTuple):
    obs: NDArray[np.float32]  # (n, O)
    final: NDArray[np.float32]  # (n, O): what ended an episode
    action: NDArray[np.float32]  # (n, A)
    reward: NDArray[np.float64]  # (n,)
    ends: NDArray[np.bool_]  # (n, 2): terminated, truncated


class _Refused(NamedTuple):
    """What was asked of a working environment raised; it works on."""

    failure: Failure
    known: bool  # whether it is an error of ours, whose text is enough


class WorkerVectorEnv(VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """Environments that step at the same time and reset in the step that ends an episode (SAME_STEP).

    A step in which an environment fails is told as `InlineVectorEnv` tells it.

    Args:
        maker: Makes an environment with flat float32 observations and actions.
        num_envs: How many.
        supervision: What failing is borne.

    Raises:
        EnvError: An environment cannot be made, or its process does not start.
    """

    def __init__(self, maker: Callable[[], Env], num_envs: int, supervision: Supervision) -> None:
        self.num_envs = num_envs
        self.supervisor = Supervisor(num_envs, supervision)
        self._maker = CloudpickleWrapper(maker)
        looked_at = maker()
        self.metadata = {**looked_at.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = looked_at.render_mode
        self.single_observation_space, self.single_action_space = looked_at.observation_space, looked_at.action_space
        looked_at.close()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        self._shared = self._share()
        self._arrays = self._shared.arrays()
        self._pipes: list[Connection] = []
        self._polls: list[Any] = []  # of the pipes; None where the system has none
        self.processes: list[Any] = []
        self._waiting: set[int] = set()
        self._answers: dict[int, Any] = {}
        self._busy = ""  # what the environments are at
        for i in range(num_envs):
            pipe, process = self._launch(i)
            self._pipes.append(pipe)
            self._polls.append(_poll_of(pipe))
            self.processes.append(process)
        self._begin(range(num_envs))
        try:
            for i, answer in self._finish(STARTING_S).items():
                if isinstance(answer, Failure) and answer.cause == _UNSAID:
                    raise EnvError(
                        "the environment processes ended while they started; a script that asks for the async "
                        "vectorizer needs `if __name__ == '__main__':` around its work"
                    )
                if isinstance(answer, Failure):
                    raise EnvError(f"environment {i} cannot be made in a process of its own: {answer.cause}")
        except BaseException:
            self.close(terminate=True)
            raise

    def _share(self) -> _Shared:
        n, raw = self.num_envs, self._context.RawArray
        obs_dim, action_dim = (
            int(np.prod(space.shape or ())) for space in (self.single_observation_space, self.single_action_space)
        )
        return _Shared(
            raw("f", n * obs_dim),
            raw("f", n * obs_dim),
            raw("f", n * action_dim),
            raw("d", n),
            raw("b", 2 * n),
            obs_dim,
            action_dim,
        )

    # Steps

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode everywhere.

        Raises:
            EnvError: An environment failed, and failed again when it was made anew.
        """
        self._must_be_idle("reset")
        seeds = lane_seeds(seed, self.num_envs)
        for i, own in enumerate(seeds):
            if own is not None:
                self.supervisor.seeds[i] = own
            self._order(i, _reset, (own, options))
        self._begin(range(self.num_envs))
        infos: dict[str, Any] = {}
        for i, answer in sorted(self._finish(self.supervisor.settings.timeout_s).items()):
            info = self._revive(i, answer, seeds[i]) if isinstance(answer, Failure) else answer
            infos = self._add_info(infos, info, i)
        return self._arrays.obs.copy(), infos

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Step all; see `step_wait`."""
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Begin a step."""
        self._must_be_idle("step")
        self._last = self._arrays.obs.copy()
        self._arrays.action[...] = actions
        for i, pipe in enumerate(self._pipes):
            try:
                pipe.send_bytes(_STEP)
            except OSError:
                self._answers[i] = self._gone(i)
        self._begin(range(self.num_envs), "step")

    def step_wait(self) -> StepResult:
        """Finish it.

        Raises:
            EnvError: An environment failed once too often.
        """
        if self._busy != "step":
            raise RuntimeError("step_wait() without step_async()")
        arrays, n = self._arrays, self.num_envs
        infos: dict[str, Any] = {}
        failed: list[int] = []
        answers = self._finish(self.supervisor.settings.timeout_s)
        for i in range(n):
            info = answers[i]
            if isinstance(info, Failure):
                failed.append(i)
                infos = self._add_info(infos, {"final_obs": self._last[i]}, i)
                info = self._revive(i, info, None)
                arrays.reward[i], arrays.ends[i] = 0.0, (False, True)
            elif arrays.ends[i].any():
                final = {"final_obs": arrays.final[i].copy(), "final_info": info.pop("final_info")}
                infos = self._add_info(infos, final, i)
            if info:
                infos = self._add_info(infos, info, i)
        if failed:
            infos[DROPPED] = np.isin(np.arange(n), failed)
        self.supervisor.stepped(failed)
        terminated, truncated = arrays.ends[:, 0].copy(), arrays.ends[:, 1].copy()
        return arrays.obs.copy(), arrays.reward.copy(), terminated, truncated, infos

    # Everything else

    def ask(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Call a function of a module with every environment, in its process, and further arguments of its own.

        Raises:
            Gone: A process is gone, or did not answer in time and was ended; the next step makes it anew.
            EnvError: The function raised somewhere.
        """
        self._must_be_idle("ask")
        for i in range(self.num_envs):
            self._order(i, function, () if arguments is None else arguments[i])
        self._begin(range(self.num_envs))
        answers = self._finish(self.supervisor.settings.timeout_s)
        gone = {i: answer for i, answer in sorted(answers.items()) if isinstance(answer, Failure)}
        for i in gone:
            self._kill(i)  # what it may still answer would be taken for that of its next step
        for i, failure in gone.items():
            raise Gone(f"environment {i} failed: {failure.cause}")
        for i, answer in sorted(answers.items()):
            if isinstance(answer, _Refused) and answer.known:
                raise EnvError(answer.failure.cause.partition(": ")[2])
            if isinstance(answer, _Refused):
                raise EnvError(f"environment {i} failed: {answer.failure.cause}")
        return [answers[i] for i in range(self.num_envs)]

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or read an attribute."""
        return tuple(self.ask(_call, [(name, args, kwargs)] * self.num_envs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Read an attribute of every environment."""
        return self.call(name)

    def close_extras(self, *, terminate: bool = False, **kwargs: Any) -> None:
        """End the processes, also in the middle of a step; one that does not end in a few seconds is killed."""
        if not terminate:
            for pipe in self._pipes:
                with contextlib.suppress(OSError):
                    pipe.send_bytes(_OTHER)
                    pipe.send((None, ()))
            end = time.monotonic() + ENDING_S
            for process in self.processes:
                process.join(max(0.0, end - time.monotonic()))
        for i in range(len(self.processes)):
            self._kill(i)
        for pipe in self._pipes:
            pipe.close()

    # One process

    def _launch(self, i: int) -> tuple[Connection, Any]:
        """Start a process; it tells when its environment is made."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(i, self._maker, theirs, self._shared), name=f"o2o-smooth-env-{i}", daemon=True
        )
        with clear_mpi_env_vars():
            process.start()
        theirs.close()
        return ours, process

    def _revive(self, i: int, failure: Failure, seed: int | None) -> dict[str, Any]:
        """Start a process anew and begin an episode in it; the info of the reset."""
        while True:
            self._kill(i)
            self.supervisor.failed(i, failure)
            self._pipes[i].close()
            self._pipes[i], self.processes[i] = self._launch(i)
            self._polls[i] = _poll_of(self._pipes[i])
            self._begin([i])
            answer = self._finish(STARTING_S)[i]
            if not isinstance(answer, Failure):
                self._order(i, _reset, (self.supervisor.seed(i) if seed is None else seed, None))
                self._begin([i])
                answer = self._finish(self.supervisor.settings.timeout_s)[i]
            if not isinstance(answer, Failure):
                return dict(answer)
            failure = answer

    def _kill(self, i: int) -> None:
        """End a process and what it has started, whatever they do."""
        process = self.processes[i]
        if process.is_alive():
            with contextlib.suppress(OSError):
                if os.getpgid(process.pid) == process.pid:
                    os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                process.kill()
        process.join()

    def _gone(self, i: int) -> Failure:
        """Why a process is no longer there."""
        self.processes[i].join(ENDING_S)
        code = self.processes[i].exitcode
        if code is not None and code < 0:
            memory = ", perhaps by the system for want of memory" if code == -9 else ""
            return Failure(f"its process was killed by signal {-code}{memory}")
        return Failure(f"its process ended with exit code {code}")

    # Orders and answers

    def _must_be_idle(self, what: str) -> None:
        if self.closed:
            raise RuntimeError(f"{what}() after close()")
        if self._busy:
            raise RuntimeError(f"{what}() while the environments are at a {self._busy}")

    def _order(self, i: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self._pipes[i].send_bytes(_OTHER)
            self._pipes[i].send((function, arguments))
        except OSError:
            self._answers[i] = self._gone(i)

    def _begin(self, envs: Iterable[int], what: str = "call") -> None:
        """Wait for these from now on; some may have been found gone when they got their orders."""
        self._busy = what
        self._waiting = {i for i in envs if i not in self._answers}

    def _finish(self, limit_s: float) -> dict[int, Any]:
        """The answers of all that are waited for; in place of one that does not come there is a `Failure`."""
        patience = limit_s
        for i in sorted(self._waiting):  # in turn: to be woken for each of them would only disturb those at work
            while not self._ready(i, min(_SLICE_S, patience)):
                patience -= _SLICE_S  # counted so, the program may itself have been stopped for hours in between
                if patience <= 0:
                    self._answers[i] = Failure(f"no answer for {limit_s:g} s")
                    break
            else:
                self._answers[i] = self._receive(i)
            self._waiting.discard(i)
        answers, self._answers, self._busy = self._answers, {}, ""
        return answers

    def _ready(self, i: int, seconds: float) -> bool:
        """Whether an environment has something to say, or is gone; waits for so many seconds."""
        poll = self._polls[i]
        if poll is None:
            return bool(wait([self._pipes[i]], seconds))
        return bool(poll.poll(max(0, round(1000 * seconds))))

    def _receive(self, i: int) -> Any:
        try:
            return self._pipes[i].recv()
        except (EOFError, OSError):
            return self._gone(i)


def _poll_of(pipe: Connection) -> Any:
    """What waits for a pipe at little cost, where the system has it."""
    if not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(pipe.fileno(), select.POLLIN)
    return poll


def _work(index: int, maker: CloudpickleWrapper, pipe: Connection, shared: _Shared) -> None:
    """A process: makes its environment and does what it is told, until it is told to end or nobody is there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    env: Any = None
    try:
        env = maker.fn()
        pipe.send({})
        _obey(env, index, pipe, shared.arrays())
    except (EOFError, ConnectionError):
        pass
    except Exception as error:
        with contextlib.suppress(OSError):
            pipe.send(Failure.of(error))
    finally:
        with contextlib.suppress(Exception):
            env.close()


def _obey(env: Env, index: int, pipe: Connection, arrays: _Arrays) -> None:
    while True:
        if pipe.recv_bytes() == _STEP:
            obs, reward, terminated, truncated, info = env.step(arrays.action[index].copy())
            if terminated or truncated:
                arrays.final[index] = obs
                obs, begun = env.reset()
                info = {"final_info": info, **begun}
            arrays.obs[index], arrays.reward[index], arrays.ends[index] = obs, reward, (terminated, truncated)
            pipe.send(info)
            continue
        function, arguments = pipe.recv()
        if function is None:
            return
        if function is _reset:
            arrays.obs[index], info = _reset(env, *arguments)
            pipe.send(info)
            continue
        try:
            answer = function(env, *arguments)
        except Exception as error:
            answer = _Refused(Failure.of(error), isinstance(error, EnvError))
        pipe.send(answer)


def _reset(env: Env, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    return env.reset(seed=seed, options=options)


def _call(env: Env, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    found = env.get_wrapper_attr(name)
    return found(*args, **kwargs) if callable(found) else found


def _end_with_parent() -> None:
    """End at once when the parent is gone, also in the middle of a step, with all that was started here."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
