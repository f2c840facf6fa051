"""How fast the learner is on this machine: every agent x precision x members x threads, against the measured limit.

Sizes are those of HalfCheetah (17 observations, 6 actions, batch 256) unless told otherwise. What is timed is
`training.learner.Learner`, sampling included; see `speed_limit` for the limit and `speed_slices` for how it is timed.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from o2o_smooth.benchmarks.speed_limit import MATMUL_SIZES, useful_flops
from o2o_smooth.benchmarks.speed_machine import cores, machine
from o2o_smooth.benchmarks.speed_own import agent_config
from o2o_smooth.benchmarks.speed_slices import CpuWatch, Slices, SpeedError, Worker, build, interleave
from o2o_smooth.errors import ConfigError
from o2o_smooth.files import written_whole
from o2o_smooth.training.progress import ProgressSink, Silent

AgentName = Literal["iql", "cql", "td3_bc", "sac", "td3"]
Precision = Literal["fp32", "bf16"]
Axis = Literal["batch", "width", "members", "utd", "buffer"]
PEERS = {"d3rlpy": "yardstick_d3rlpy.py", "jax": "yardstick_jax.py"}
PEER_AGENTS = ("iql", "cql", "td3_bc")
OWN = "o2o_smooth.benchmarks.speed_own"
DEPTH = {"cql": 3}  # hidden layers that the agent's paper or its usual implementation has; others 2
QUICK = {"rounds": 2, "slice_s": 0.1, "limit_s": 10.0}


@dataclass(frozen=True)
class SpeedConfig:
    """Time the learner on this machine and compare it with the machine's limit and with other libraries."""

    agents: tuple[AgentName, ...] = ("iql", "cql", "td3_bc")
    """Agents to time."""
    precision: tuple[Precision, ...] = ("fp32", "bf16")
    """Precisions of the matrix products; what this version or machine does not offer is named and left out."""
    members: tuple[int, ...] = (1, 4)
    """Population sizes: seeds trained at once. An update moves all members."""
    threads: tuple[int, ...] = ()
    """CPU threads; default: as many as there are cores."""
    width: int = 256
    """Width of the hidden layers."""
    depth: tuple[int, ...] = ()
    """Hidden layers; default: 3 for cql, 2 for the others."""
    batch: int = 256
    """Rows an update, for each member."""
    obs_dim: int = 17
    """Features of an observation (HalfCheetah: 17)."""
    action_dim: int = 6
    """Features of an action (HalfCheetah: 6)."""
    rows: int = 100_000
    """Rows in the replay buffer that batches are drawn from."""
    compile: Literal["auto", "on", "off"] = "auto"
    """How the update is compiled: as a long run does by default, torch.compile, or not at all."""
    compile_break_even: bool = False
    """Time every configuration with and without torch.compile, and tell after how many updates compiling has paid."""
    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    rounds: int = 5
    """Clean slices of every configuration; more of them narrow the median."""
    slice_s: float = 0.3
    """Length of a slice in seconds; at least two updates."""
    limit_s: float = 100.0
    """No further round is begun after this many seconds, whatever is still missing."""
    quick: bool = False
    """A look in seconds rather than minutes: 2 rounds of short slices, no run; good to see whether it works."""
    peers: bool = True
    """Also time d3rlpy and a JAX implementation of the same agents where they are installed (fp32, one member)."""
    peers_python: str | None = None
    """Another Python in which the peers are installed: d3rlpy wants an older gymnasium than this package."""
    run: bool = True
    """Also do a short real run and split its time: act, step, write, sample, update, evaluate, log."""
    task: str | None = None
    """Task of that run; default: Hopper-v5, or Pendulum-v1 where MuJoCo is not installed."""
    grow: tuple[Axis, ...] = ()
    """Instead of all that: how the cost of an update grows with these."""
    online: bool = False
    """Instead of all that: interaction and learning together under load: 16 members x 4 environments, UTD 4."""
    json: str | None = None
    """Write everything that was measured to this file."""
    markdown: str | None = None
    """Write the tables to this file as Markdown, with the command, the machine and the versions; only between its
    marks if the file has some, as docs/speed.md does."""
    picture: str | None = "speed.png"
    """Where the picture goes (.png, .pdf or .svg); None: no picture."""

    def __post_init__(self) -> None:
        for name in ("agents", "precision", "members"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} needs at least one value")
        for name in ("members", "threads", "depth"):
            if any(value < 1 for value in getattr(self, name)):
                raise ConfigError(f"--{name} must be at least 1, got {' '.join(map(str, getattr(self, name)))}")
        for name in ("width", "batch", "obs_dim", "action_dim", "rows", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if not 0.0 < self.slice_s <= 60.0:
            raise ConfigError(f"--slice-s must lie in (0, 60], got {self.slice_s}")
        if self.picture is not None and Path(self.picture).suffix not in (".png", ".pdf", ".svg"):
            raise ConfigError(f"--picture {self.picture}: give a file that ends in .png, .pdf or .svg")
        for name in ("json", "markdown", "picture"):
            path = getattr(self, name)
            if path is not None and not Path(path).resolve().parent.is_dir():
                raise ConfigError(f"--{name} {path}: the folder {Path(path).parent} does not exist")

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """The thread counts to time, each once."""
        return tuple(dict.fromkeys(self.threads)) or (cores(),)

    def timing(self) -> dict[str, Any]:
        """Rounds, slice and limit."""
        return dict(QUICK) if self.quick else {k: getattr(self, k) for k in ("rounds", "slice_s", "limit_s")}

    def learner(self, agent: str, hidden_dims: Sequence[int], **rest: Any) -> dict[str, Any]:
        """A configuration of one learner, as the workers read it."""
        settings = {name: getattr(self, name) for name in ("batch", "obs_dim", "action_dim", "rows", "device")}
        return {"kind": "update", "agent": agent, "hidden_dims": list(hidden_dims), **settings, **rest}


def configurations(config: SpeedConfig) -> list[dict[str, Any]]:
    """Every learner that a benchmark times, in order."""
    return [
        config.learner(
            agent,
            [config.width] * depth,
            precision=precision,
            members=members,
            threads=threads,
            compile=compile_,
        )
        for threads in config.thread_counts
        for agent in dict.fromkeys(config.agents)
        for depth in dict.fromkeys(config.depth) or (DEPTH.get(agent, 2),)
        for precision in dict.fromkeys(config.precision)
        for members in dict.fromkeys(config.members)
        for compile_ in (("off", "on") if config.compile_break_even else (config.compile,))
    ]


def measure(config: SpeedConfig, progress: ProgressSink | None = None) -> dict[str, Any]:
    """Time everything but the run.

    Returns:
        `rows` (this package), `peers` (others), `peaks` (GFLOP/s by precision and threads), `missing` (configurations
        that could not be timed, with the reason), `slices` (kept and dropped), `import_s`.
    """
    progress = progress or Silent()
    wanted = configurations(config)
    missing: list[dict[str, Any]] = []
    timed: list[tuple[dict[str, Any], Slices]] = []
    with ExitStack() as stack:
        workers = {t: stack.enter_context(Worker(OWN, threads=t)) for t in config.thread_counts}
        plan = [(workers[c["threads"]], c, "o2o_smooth") for c in [*_matmuls(config), *wanted]]
        peers = _start_peers(config, stack, missing)
        plan += [(peers[key], c, key[0]) for key in peers for c in _peer_configurations(wanted, key[1])]
        for i, (worker, configuration, implementation) in enumerate(plan):
            progress.update("build and first update", i + 1, len(plan), label(configuration, implementation))
            try:
                built = build(worker, f"{i}", configuration)
            except SpeedError as error:
                missing.append({**configuration, "implementation": implementation, "reason": str(error)})
            else:
                timed.append(({**configuration, "implementation": implementation}, built))
        watch = CpuWatch()
        interleave(
            [s for _, s in timed],
            **config.timing(),
            watch=watch,
            on_round=lambda done, total: progress.update("rounds", done, total),
        )
    missing += [{**c, "reason": s.failed} for c, s in timed if s.failed is not None]
    results = [{**c, **s.summary()} for c, s in timed if s.failed is None]
    peaks = peak_gflops(results)
    for result in results:
        _add_limit(result, peaks)
    learners = [r for r in results if r["kind"] == "update"]
    return {
        "rows": [r for r in learners if r["implementation"] == "o2o_smooth"],
        "peers": [r for r in learners if r["implementation"] != "o2o_smooth"],
        "peaks": [{"precision": p, "threads": t, "gflops": g} for (p, t), g in peaks.items()],
        "missing": missing,
        "slices": {
            "kept": sum(r["slices"] for r in results),
            "dropped": sum(r["dropped"] for r in results),
            "filter": watch.works,
        },
        "absent_peers": sorted(set(PEERS) - {peer for peer, _ in peers}) if config.peers else [],
        "import_s": {str(threads): worker.import_s for threads, worker in workers.items()},
    }


def break_even(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """After how many updates torch.compile has paid for each configuration timed with and without it.

    Returns:
        `agent, precision, members, threads, depth, width`, both rates, `costs_s` (what the first update takes longer)
        and `updates`, None where compiling never pays.
    """
    same = ("agent", "precision", "members", "threads", "depth", "width")
    found = []
    for on in rows:
        for off in rows:
            if (on["compile"], off["compile"]) != ("on", "off") or any(on[key] != off[key] for key in same):
                continue
            saved_s = 1 / off["updates_per_s"] - 1 / on["updates_per_s"]
            costs_s = max(0.0, on["first_update_s"] - off["first_update_s"])
            pair = {"eager_updates_per_s": off["updates_per_s"], "compiled_updates_per_s": on["updates_per_s"]}
            updates = math.ceil(costs_s / saved_s) if saved_s > 0 else None
            contended = on["contended"] or off["contended"]
            about = {key: on[key] for key in same}
            found.append({**about, **pair, "costs_s": costs_s, "updates": updates, "contended": contended})
    return found


def label(configuration: Mapping[str, Any], implementation: str) -> str:
    """A configuration in a few words."""
    if configuration["kind"] == "matmul":
        return f"matmul {configuration['precision']}"
    return f"{implementation} {configuration['agent']} {configuration['precision']} x{configuration['members']}"


def peak_gflops(results: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """The faster matmul's GFLOP/s, by precision and threads."""
    peaks: dict[tuple[str, int], float] = {}
    for result in results:
        if result["kind"] == "matmul":
            key = (result["precision"], result["threads"])
            peaks[key] = max(peaks.get(key, 0.0), 2e-9 * result["size"] ** 3 * result["updates_per_s"])
    return peaks


def _add_limit(result: dict[str, Any], peaks: Mapping[tuple[str, int], float]) -> None:
    if result["kind"] != "update":
        return
    hidden = result["hidden_dims"]
    sizes = {name: result[name] for name in ("obs_dim", "action_dim", "batch", "members")}
    flops = useful_flops(agent_config(result["agent"], tuple(hidden)), **sizes)
    peak = peaks.get((result["precision"], result["threads"]))
    result |= {
        "width": hidden[0],
        "depth": len(hidden),
        "gflop_per_update": flops * 1e-9,
        "member_updates_per_s": result["updates_per_s"] * result["members"],
        "limit_updates_per_s": None if peak is None else peak * 1e9 / flops,
        "share_of_limit": None if peak is None else result["updates_per_s"] * flops / (peak * 1e9),
    }


def _matmuls(config: SpeedConfig) -> list[dict[str, Any]]:
    return [
        {"kind": "matmul", "precision": precision, "size": size, "threads": threads, "device": config.device}
        for threads in config.thread_counts
        for precision in dict.fromkeys(config.precision)
        for size in MATMUL_SIZES
    ]


def _peer_configurations(wanted: Sequence[Mapping[str, Any]], threads: int) -> list[dict[str, Any]]:
    """The agents a peer has, once each: it trains one member, in fp32."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for c in wanted:
        if c["threads"] == threads and c["agent"] in PEER_AGENTS:
            found.setdefault((c["agent"], len(c["hidden_dims"])), {**c, "precision": "fp32", "members": 1})
    return list(found.values())


def _start_peers(config: SpeedConfig, stack: ExitStack, missing: list[dict[str, Any]]) -> dict[tuple[str, int], Worker]:
    """A process for each peer that is installed and each thread count."""
    if not config.peers or not set(config.agents) & set(PEER_AGENTS):
        return {}
    python = config.peers_python or sys.executable
    workers = {}
    for peer in installed_peers(config.peers_python):
        for threads in config.thread_counts:
            try:
                workers[peer, threads] = stack.enter_context(Worker(PEERS[peer], threads=threads, python=python))
            except SpeedError as error:
                missing.append({"implementation": peer, "threads": threads, "reason": str(error)})
    return workers


def installed_peers(python: str | None) -> list[str]:
    """Which peers an interpreter has; None: this one.

    Raises:
        ConfigError: It is no Python.
    """
    if python is None:
        return [peer for peer in PEERS if find_spec(peer) is not None]
    code = "import importlib.util, sys; print(*(p for p in sys.argv[1:] if importlib.util.find_spec(p)))"
    try:
        answer = subprocess.run([python, "-c", code, *PEERS], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"--peers-python {python} is no Python that runs: {error}") from error
    return answer.stdout.split()


def speed(config: SpeedConfig, command: str, progress: ProgressSink | None = None) -> dict[str, Any]:
    """The whole benchmark; see `measure`, `speed_run`, `speed_growth`.

    Args:
        config: What to time.
        command: How the user asked for it; kept with the results.
        progress: Where progress goes.

    Returns:
        What --json holds.
    """
    progress = progress or Silent()
    begin = time.perf_counter()
    result: dict[str, Any] = {
        "command": command,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "settings": {name: getattr(config, name) for name in ("obs_dim", "action_dim", "batch", "width", "rows")},
    }
    if config.grow:
        from o2o_smooth.benchmarks.speed_growth import growth

        result["growth"] = growth(config, progress)
    elif config.online:
        result["online"] = _online(config, progress)
    else:
        result |= measure(config, progress)
        if config.compile_break_even:
            result["break_even"] = break_even(result["rows"])
        elif config.run and not config.quick:
            from o2o_smooth.benchmarks.speed_run import split_runs

            with tempfile.TemporaryDirectory() as folder:
                result["runs"] = split_runs(config, Path(folder), progress)
    result["took_s"] = time.perf_counter() - begin
    return result


def _online(config: SpeedConfig, progress: ProgressSink) -> dict[str, Any]:
    from o2o_smooth.benchmarks.online_load import online_load

    progress.note(f"interaction and learning together: {config.agents[0]}, 16 members x 4 environments, UTD 4")
    options: dict[str, Any] = {"agent": config.agents[0], "width": config.width, "batch_size": config.batch}
    if config.task is not None:
        options["task"] = config.task
    if config.quick:
        options |= {"seconds": 2.0, "warmup_updates": 5}
    return online_load(
        device=config.device, members=16, num_envs=4, utd=4.0, threads=max(config.thread_counts), **options
    )


def write_text(text: str, path: Path) -> None:
    """Write a file of results, whole or not at all.

    Raises:
        O2OError: It cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
