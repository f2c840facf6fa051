"""How much memory a run will take at its peak, told from its settings before it begins.

Rows, networks, moments and gradients are counted to the byte. What an update needs besides, an environment, the
libraries: these are the numbers of the tables below, which `python -m o2o_smooth.training.memory --measure` measures
anew on any machine.

A run has three moments at which it may peak: `loading` (the dataset is read), `updates` (learning, with environments
and evaluation), `saving` (checkpoint, online data and picture at the end). The peak is the largest of their sums.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from o2o_smooth.agents import AGENTS, CQLConfig
from o2o_smooth.data.extent import Extent
from o2o_smooth.data.room import own_memory
from o2o_smooth.data.store import memory_limit, row_width
from o2o_smooth.kernels.cpu import MAX_LAYERS, StackedNet, unavailable
from o2o_smooth.smoothing.objective import COMPONENTS
from o2o_smooth.training.compiling import decide
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.threads import default_threads

MIB, GIB = 2**20, 2**30
FLOAT = 4
PHASES = ("loading", "updates", "saving")
LEARNING = ("updates", "saving")


@dataclass(frozen=True)
class Cost:
    """Peak bytes of an update per byte of the activations of all its passes.

    Arrays below `MALLOC_THRESHOLD` come from malloc's heap, which fragments, so they cost more and stay afterwards;
    larger ones go back at once.
    """

    small: float
    large: float


@dataclass(frozen=True)
class Workspace:
    """What one update of an objective computes, in passes of all rows of a batch, and what it costs in memory."""

    critic: int
    """Passes through all critics; of CQL besides those of its tried actions."""
    value: int
    actor: int
    native: Cost
    """With the native CPU kernels."""
    plain: Cost
    """In plain torch; of `large`, what a GPU needs."""


@dataclass(frozen=True)
class Simulator:
    """Bytes of environments: `first` with the libraries behind them, `each` for every further one in a process."""

    first: int
    each: int


WORKSPACE = {
    "iql": Workspace(critic=2, value=2, actor=1, native=Cost(1.0, 0.8), plain=Cost(2.4, 1.0)),
    "sac": Workspace(critic=3, value=0, actor=2, native=Cost(1.1, 0.8), plain=Cost(2.3, 1.0)),
    "td3": Workspace(critic=3, value=0, actor=2, native=Cost(1.0, 0.7), plain=Cost(1.8, 0.8)),
    "td3_bc": Workspace(critic=3, value=0, actor=2, native=Cost(1.1, 0.7), plain=Cost(1.5, 0.8)),
    "cql": Workspace(critic=3, value=0, actor=4, native=Cost(1.0, 0.9), plain=Cost(4.0, 1.7)),
}
SIMULATORS = {
    "other": Simulator(2 * MIB, MIB // 4),
    "mujoco": Simulator(24 * MIB, 5 * MIB // 4),
    "pointmaze": Simulator(47 * MIB, 13 * MIB),
    "antmaze": Simulator(26 * MIB, 5 * MIB // 4),
    "adroit": Simulator(55 * MIB, 9 * MIB),
    "kitchen": Simulator(240 * MIB, 65 * MIB),
}
LIBRARIES = 240 * MIB
"""Python with torch and all that a run imports, where the memory of this process cannot be told."""
KERNELS = 8 * MIB
"""Code and buffers that the first updates bring in."""
PICTURE = 50 * MIB
"""matplotlib, at the end."""
READER = 60 * MIB
"""The process that reads an HDF5 file first."""
WORKER, WORKER_TORCH = 18 * MIB, 155 * MIB
"""An environment's own process; one that imports torch, because the user's script does."""
COMPILER, COMPILER_PROCESSES = 200 * MIB, 550 * MIB
"""torch.compile in this process, and the C++ compilers that it starts: one for headers, then two for its graphs."""
CUDA_HOST, CUDA_DEVICE = 600 * MIB, 600 * MIB
"""Driver, context and libraries of a GPU. Not measured by `--measure`."""
SINKS = {"wandb": 120 * MIB, "tensorboard": 60 * MIB}
SAVING_ONE, SAVING_MORE = 2.2, 3.2
"""Peak of writing a member's online data, in sizes of its rows: of a single member, and of several in turn."""
MALLOC_THRESHOLD = 32 * MIB
"""glibc maps larger arrays and gives them back at once (M_MMAP_THRESHOLD's upper bound on 64-bit systems)."""


@dataclass(frozen=True)
class Part:
    """One line of the prediction; bytes."""

    name: str
    host: int = 0
    device: int = 0
    detail: str = ""
    phases: tuple[str, ...] = PHASES
    elsewhere: bool = False
    """In other processes than the run's own."""


@dataclass(frozen=True)
class Prediction:
    """What a run needs, part by part; bytes."""

    parts: tuple[Part, ...]
    held: int
    """What this process has already, and is among the parts."""
    dataset_known: bool = True

    def host_in(self, phase: str, *, own: bool = False) -> int:
        """Host memory at one of `PHASES`; `own` leaves other processes out."""
        return sum(part.host for part in self.parts if phase in part.phases and not (own and part.elsewhere))

    @property
    def phase(self) -> str:
        """Where the host's memory peaks."""
        return max(PHASES, key=self.host_in)

    @property
    def host(self) -> int:
        """Peak of the host's memory, all processes."""
        return self.host_in(self.phase)

    @property
    def own(self) -> int:
        """Peak of the run's own process: what the system will show as its resident memory."""
        return max(self.host_in(phase, own=True) for phase in PHASES)

    @property
    def more(self) -> int:
        """What is needed beyond what this process holds."""
        return self.host - self.held

    @property
    def device(self) -> int:
        """Peak of the GPU's memory."""
        return max(sum(part.device for part in self.parts if phase in part.phases) for phase in PHASES)


@dataclass(frozen=True)
class Shape:
    """What the settings do not tell and the task does."""

    obs_dim: int
    action_dim: int
    domain: str


def predict(
    config: RunConfig[Any],
    shape: Shape,
    data: Extent | None = None,
    *,
    held: int | None = None,
    members: int | None = None,
) -> Prediction:
    """Predict the peak memory of a run.

    Args:
        config: The settings.
        shape: Widths of observations and actions, and the task's domain.
        data: The offline dataset; None without one.
        held: Bytes that this process has now; default: measured.
        members: Of the population; default: the number of seeds.
    """
    held = (own_memory() or LIBRARIES) if held is None else held
    members = len(config.seeds) if members is None else members
    on_device = uses_gpu(config)
    parts = [Part("interpreter and libraries", held, detail="what this process has now")]
    parts += _dataset(config, shape, data, on_device)
    parts += _online_rows(config, shape, members, on_device)
    parts += _networks(config, shape, members, on_device)
    workspace = _workspace(config, shape, members, on_device)
    parts += [workspace, _checkpoint(config, shape, members, workspace)]
    parts += _environments(config, shape, members)
    parts += _rest(config, on_device)
    known = data is None or data.rows is not None
    return Prediction(tuple(p for p in parts if p.host or p.device or p.detail), held, known)


def uses_gpu(config: RunConfig[Any]) -> bool:
    """Whether the learner and its rows live on a GPU."""
    return not config.device.startswith("cpu")


def online_rows(config: RunConfig[Any]) -> int:
    """Rows per member of the online buffer."""
    steps = -(-config.online_steps // config.num_envs) * config.num_envs
    return min(config.buffer_size, steps)


def _dataset(config: RunConfig[Any], shape: Shape, data: Extent | None, on_device: bool) -> list[Part]:
    if data is None:
        return []
    if data.rows is None:
        return [Part("dataset", detail=f"{data.source}: not known ({data.note})".removeprefix(": "))]
    width = row_width(shape.obs_dim, shape.action_dim)
    size = data.rows * width * FLOAT
    flags = 8 * data.rows  # both flags, and what is derived of them
    slices = 5 * min(data.rows, 65_536) * (shape.obs_dim + shape.action_dim) * FLOAT
    mapped = size > memory_limit() if data.mapped is None else data.mapped
    text = f"{data.rows:,} rows of {width} floats" + (f", {data.note}" if data.note else "")
    parts = [
        Part("dataset", flags if mapped else size + flags, detail=text + (", mapped from disk" if mapped else "")),
        Part("reading it", data.unpacked + slices, detail="slices and unpacked arrays", phases=("loading",)),
        Part("reader", READER, detail="a process that reads it first", phases=("loading",), elsewhere=True),
    ]
    if on_device:
        parts.append(Part("offline rows", device=size, detail="the dataset on the device", phases=LEARNING))
    return parts


def _online_rows(config: RunConfig[Any], shape: Shape, members: int, on_device: bool) -> list[Part]:
    if config.online_steps == 0:
        return []
    rows, width = online_rows(config), row_width(shape.obs_dim, shape.action_dim)
    ring = rows * width * FLOAT
    text = f"{members} x {rows:,} rows of {width} floats"
    parts = [Part("online buffer", *_place(members * ring, on_device), detail=text, phases=LEARNING)]
    if config.save_online:
        factor = SAVING_ONE if members == 1 else SAVING_MORE
        text = "copies of a member's rows at the end; --no-save-online does without"
        size = int(factor * ring)
        parts.append(Part("keeping online data", size, ring if on_device else 0, text, phases=("saving",)))
    return parts


def _networks(config: RunConfig[Any], shape: Shape, members: int, on_device: bool) -> list[Part]:
    trained, targets = parameters(config, shape)
    both = mixes(config) or (config.online_steps > 0 and config.switch.audit)
    gradients = members * trained * FLOAT * (3 if both else 1)  # each objective's own are measured as well
    networks = members * (trained + targets) * FLOAT
    moments = 2 * members * trained * FLOAT
    counts = f"{members} x {trained:,} trained, {targets:,} of targets"
    found = [
        Part("networks and targets", *_place(networks, on_device), detail=counts),
        Part("optimiser moments", *_place(moments, on_device), detail="two per trained parameter", phases=LEARNING),
        Part("gradients", *_place(gradients, on_device), phases=LEARNING),
    ]
    if copies := config.anchors.copies + config.averaging.copies:
        size = copies * members * trained * FLOAT
        found.append(Part("anchors and averages", *_place(size, on_device), f"at most {copies} copies", LEARNING))
    if config.online_steps > 0 and config.switch.audit:
        size = members * _audit(config, shape)
        found.append(Part("audit", *_place(size, on_device), detail="--no-audit does without", phases=LEARNING))
    return found


def _checkpoint(config: RunConfig[Any], shape: Shape, members: int, workspace: Part) -> Part:
    """The copy of networks and moments that is written: between updates, in the room that an update leaves."""
    trained, targets = parameters(config, shape)
    size = members * (3 * trained + targets) * FLOAT
    room = workspace.host if "saving" in workspace.phases else 0
    return Part("checkpoint", max(0, size - room), detail="a copy, while it is written", phases=("saving",))


def _audit(config: RunConfig[Any], shape: Shape) -> int:
    """Bytes of one member's audit: the policy at the switch, rows, what units say of them, their inner products."""
    hyper, rows, o, a = config.hyper, config.switch.audit_rows, shape.obs_dim, shape.action_dim
    copies = int(hyper.num_critics) + 1 + (config.agent == "iql")
    units = copies * int(sum(hyper.hidden_dims)) * rows
    products = copies * rows * rows * 3  # at the switch, now, and while they are made
    policy = _mlp(o, 2 * a, hyper.hidden_dims, hyper.actor_layer_norm)
    return policy * FLOAT + 2 * rows * row_width(o, a) * FLOAT + (3 * units + products) * 2 * FLOAT


def parameters(config: RunConfig[Any], shape: Shape) -> tuple[int, int]:
    """Trained parameters and those of target networks, of one member."""
    hyper, o, a = config.hyper, shape.obs_dim, shape.action_dim
    objectives = live_objectives(config)
    deterministic = config.agent in ("td3", "td3_bc")
    actor = _mlp(o, a if deterministic else 2 * a, hyper.hidden_dims, hyper.actor_layer_norm)
    critics = hyper.num_critics * _mlp(o + a, 1, hyper.hidden_dims, hyper.critic_layer_norm)
    value = _mlp(o, 1, hyper.hidden_dims, hyper.critic_layer_norm) if config.agent == "iql" else 0
    target_actor = actor if {"td3", "td3_bc"} & set(objectives) else 0
    return actor + critics + value, critics + target_actor


def _mlp(inputs: int, outputs: int, hidden: Sequence[int], layer_norm: bool) -> int:
    sizes = [inputs, *hidden, outputs]
    weights = sum(i * j + j for i, j in pairwise(sizes))
    return weights + (2 * sum(hidden) if layer_norm else 0)


def live_objectives(config: RunConfig[Any]) -> tuple[str, str]:
    """The objectives before and after the switch, by the names of `WORKSPACE`."""
    online = config.online or AGENTS[config.agent].online_choices[0]
    return config.agent, config.agent if online == "same" else online


def mixes(config: RunConfig[Any]) -> bool:
    """Whether both objectives are ever computed in one update."""
    smoothing = config.smoothing
    overrides = [getattr(smoothing, f"{name}_schedule") for name in COMPONENTS]
    return config.online_steps > 0 and (smoothing.schedule != "jump" or any(overrides))


def activations(objective: str, config: RunConfig[Any], shape: Shape, members: int, *, native: bool) -> tuple[int, int]:
    """Bytes of all activations of one update, and of its largest array.

    Args:
        objective: By its name in `WORKSPACE`.
        config: The settings.
        shape: Of the task.
        members: Of the population.
        native: Whether the kernels take CQL's tried actions.
    """
    hyper, o, a, space = config.hyper, shape.obs_dim, shape.action_dim, WORKSPACE[objective]
    rows = members * config.batch_size
    critic = hyper.num_critics * _features(o + a, 1, hyper.hidden_dims, hyper.critic_layer_norm)
    value = _features(o, 1, hyper.hidden_dims, hyper.critic_layer_norm)
    actor = _features(o, 2 * a, hyper.hidden_dims, hyper.actor_layer_norm)
    tried = passed = rest = 0
    if objective == "cql" and isinstance(hyper, CQLConfig):
        tried = 3 * hyper.cql_actions
        # The kernels leave gradients behind and not what all tried actions have been on their way (agents/pushed.py).
        native = native and len(hyper.hidden_dims) < MAX_LAYERS
        passed = (0 if native else tried) + (hyper.cql_actions if hyper.max_target_backup else 0)
        if native:
            threads = config.threads or default_threads(config, members) or torch.get_num_threads()
            sizes, norm = (o + a, *hyper.hidden_dims, 1), hyper.critic_layer_norm
            critics = StackedNet(members, hyper.num_critics, sizes, layer_norm=norm)
            half = config.precision == "bf16"
            rest = critics.soft_maximum_floats(config.batch_size, tried, a, threads, half=half)
    floats = (space.critic + passed) * critic + space.value * value + space.actor * actor + tried * (a + 2)
    batch = 3 * row_width(o, a)
    largest = rows * max(max(1, passed) * hyper.num_critics * max(hyper.hidden_dims), tried * a)
    return (rows * (floats + batch) + rest) * FLOAT, largest * FLOAT


def _features(inputs: int, outputs: int, hidden: Sequence[int], layer_norm: bool) -> int:
    """Floats that one row leaves behind in a network."""
    return inputs + sum(hidden) * (3 if layer_norm else 1) + outputs


def _workspace(config: RunConfig[Any], shape: Shape, members: int, on_device: bool) -> Part:
    before, after = live_objectives(config)
    needed: dict[str, tuple[int, bool]] = {}
    for name in {before, after}:
        native = native_kernels() and not on_device
        # A compiled step passes all tried actions at once, through the kernels too.
        size, largest = activations(name, config, shape, members, native=native and not compiles(config))
        small = largest < MALLOC_THRESHOLD and not on_device
        cost = WORKSPACE[name].native if native else WORKSPACE[name].plain
        needed[name] = (int(size * (cost.small if small else cost.large)), small)
    both = mixes(config)
    peak = needed[before][0] + needed[after][0] if both else max(size for size, _ in needed.values())
    # Of plain torch the large arrays go back at once; the kernels' own stay for the next update.
    stays = all(small for _, small in needed.values()) or (native_kernels() and not on_device)
    text = f"{before}, then {after}" if before != after else before
    text = f"{text}; both at once while the weight moves" if both else text
    phases = LEARNING if stays else ("updates",)
    return Part("activations of an update", *_place(peak, on_device), detail=text, phases=phases)


def compiles(config: RunConfig[Any]) -> bool:
    """Whether the run will use torch.compile."""
    updates = config.offline_updates + int(config.online_steps * config.utd)
    return decide(config.compile, torch.device("cuda" if uses_gpu(config) else "cpu"), updates)


def native_kernels() -> bool:
    """Whether the learner has the native CPU kernels here."""
    return unavailable() is None


def _environments(config: RunConfig[Any], shape: Shape, members: int) -> list[Part]:
    simulator = SIMULATORS.get(shape.domain, SIMULATORS["other"])
    evaluation = config.evaluation
    evaluated = members * min(evaluation.eval_envs, evaluation.eval_episodes)
    parts = [
        Part("evaluation", evaluated * simulator.each, detail=f"{evaluated} environments", phases=LEARNING),
    ]
    n = members * config.num_envs if config.online_steps else 0
    if config.vectorizer == "async":
        each = simulator.first + (WORKER_TORCH if _script_imports_torch() else WORKER)
        parts.append(
            Part("environments", n * each, detail=f"{n} processes", phases=LEARNING, elsewhere=True),
        )
    else:
        parts.append(Part("environments", n * simulator.each, detail=f"{n} in this process", phases=LEARNING))
    return parts


def _script_imports_torch() -> bool:
    """Whether the main module, which every worker imports again, is a user's that has torch."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if file is None or Path(file).parent.name == "o2o_smooth":
        return False
    named = {getattr(value, "__module__", None) or getattr(value, "__name__", "") for value in vars(main).values()}
    return any(str(name).startswith(("torch", "o2o_smooth.agents", "o2o_smooth.training")) for name in named)


def _rest(config: RunConfig[Any], on_device: bool) -> list[Part]:
    parts = [
        Part("kernels and threads", KERNELS, detail="come with the first updates", phases=LEARNING),
        Part("picture", PICTURE, detail="matplotlib at the end", phases=("saving",)),
    ]
    if compiles(config):
        parts += [
            Part("torch.compile", COMPILER, phases=LEARNING),
            Part(
                "C++ compilers",
                COMPILER_PROCESSES,
                detail="until first updates are done",
                phases=("loading", "updates"),
                elsewhere=True,
            ),
        ]
    for name, size in SINKS.items():
        if getattr(config, name):
            parts.append(Part(name, size, phases=LEARNING, elsewhere=name == "wandb"))
    if on_device:
        parts.append(Part("CUDA", CUDA_HOST, CUDA_DEVICE, "driver, context, libraries"))
    return parts


def _place(size: int, on_device: bool) -> tuple[int, int]:
    """Host and device bytes."""
    return (0, size) if on_device else (size, 0)


if __name__ == "__main__":
    from o2o_smooth.training.memory_measure import main

    sys.exit(main(sys.argv[1:]))
