"""Is this machine ready: what is installed, what the processor and the GPU can do, what room there is.

Every check is a line with a status: `ok`; `missing`, with what to install for which use; `warning`, something that
works and could be better; `broken`, something that is there and does not work.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import torch

import o2o_smooth
from o2o_smooth.data.d4rl_files import d4rl_folder, import_d4rl
from o2o_smooth.data.installed import installed_ids, minari_root
from o2o_smooth.data.room import PROC, free_disk, lies_in_memory, memory_left, scratch_folder
from o2o_smooth.data.store import MEMORY_VARIABLE, memory_limit
from o2o_smooth.envs import known_tasks
from o2o_smooth.envs.tasks import TASKS_VARIABLE
from o2o_smooth.errors import O2OError
from o2o_smooth.kernels.build import cache_folder, compiler
from o2o_smooth.kernels.cpu import HalfWay, half_way, unavailable

GIB = 2**30
LITTLE_MEMORY, LITTLE_DISK = 2 * GIB, 1 * GIB
AMPERE = (8, 0)

# module, distribution, what it is for, what brings it; None where o2o_smooth cannot be without it
PACKAGES: tuple[tuple[str, str, str, str | None], ...] = (
    ("numpy", "numpy", "arrays", None),
    ("gymnasium", "gymnasium", "environments", None),
    ("h5py", "h5py", "D4RL's files", None),
    ("minari", "minari", "Minari's sets", None),
    ("safetensors", "safetensors", "checkpoints", None),
    ("matplotlib", "matplotlib", "pictures", None),
    ("mujoco", "mujoco", "Hopper, HalfCheetah, Walker2d, Ant", "pip install 'o2o_smooth[mujoco]'"),
    (
        "gymnasium_robotics",
        "gymnasium-robotics",
        "PointMaze, AntMaze, Adroit, Kitchen",
        "pip install 'o2o_smooth[robotics]'",
    ),
    ("huggingface_hub", "huggingface_hub", "downloads of Minari's sets", "pip install 'o2o_smooth[download]'"),
    ("d4rl", "d4rl", "downloads of D4RL's files; its files are read without it", "pip install 'o2o_smooth[d4rl]'"),
    ("wandb", "wandb", "--wandb", "pip install 'o2o_smooth[wandb]'"),
    ("wandb_workspaces", "wandb-workspaces", "o2o-smooth dashboard", "pip install 'o2o_smooth[wandb]'"),
    ("tensorboard", "tensorboard", "--tensorboard", "pip install 'o2o_smooth[tensorboard]'"),
    ("envpool", "envpool", "--vectorizer envpool", "pip install 'o2o_smooth[envpool]'"),
)
IMPORTED = ("numpy", "gymnasium", "h5py", "minari", "safetensors", "mujoco")
"""Packages that are tried out; the others are slow to import, or talk."""

VARIABLES: dict[str, str] = {
    TASKS_VARIABLE: "files with tasks of your own",
    MEMORY_VARIABLE: "GiB of memory for a dataset, beyond which it is mapped from disk (default: half of the free)",
    "O2O_SMOOTH_SCRATCH": "folder of mapped datasets (default: the temporary folder)",
    "O2O_SMOOTH_KERNELS": "0 leaves the native kernels out",
    "O2O_SMOOTH_CACHE": "folder of built kernels and of bench's pretrainings (default: in the user's cache)",
    "MINARI_DATASETS_PATH": "Minari's folder (default: ~/.minari/datasets)",
    "MINARI_REMOTE": "where Minari's sets are downloaded from",
    "D4RL_DATASET_DIR": "D4RL's folder (default: ~/.d4rl/datasets)",
    "HF_ENDPOINT": "server of the downloads",
    "HF_HUB_OFFLINE": "1 forbids downloads",
    "HF_TOKEN": "key for downloads",
    "WANDB_MODE": "offline keeps W&B's files here",
    "WANDB_API_KEY": "key for W&B",
    "WANDB_ENTITY": "W&B user or team of o2o-smooth dashboard",
    "XDG_CACHE_HOME": "the user's cache",
    "TMPDIR": "the temporary folder",
    "CC": "the C compiler",
    "OMP_NUM_THREADS": "CPU threads of torch (--threads goes first)",
    "CUDA_VISIBLE_DEVICES": "GPUs that may be used",
    "MUJOCO_GL": "how MuJoCo draws; nothing is drawn in a run",
}
SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
"""Of these only whether they are set is shown."""


@dataclass(frozen=True)
class Check:
    """One line."""

    section: str
    name: str
    status: str
    """ok, missing, warning or broken."""
    text: str

    def to_dict(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


def checkup() -> Iterator[Check]:
    """Look at the machine and the installation, line by line."""
    yield from _installation()
    yield from _processor()
    yield from _gpu()
    yield from _packages()
    yield from _room()
    yield from _variables()


def _installation() -> Iterator[Check]:
    section = "installation"
    yield Check(section, "python", "ok", f"{platform.python_version()}, {sys.executable}")
    where = Path(o2o_smooth.__file__).parent
    yield Check(section, "o2o_smooth", "ok", f"{o2o_smooth.__version__}, {where}")
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU"
    yield Check(
        section,
        "torch",
        "ok",
        f"{torch.__version__} {built}, {torch.get_num_threads()} threads, CPU capability "
        f"{torch.backends.cpu.get_cpu_capability()}",
    )
    cc = compiler()
    if cc is None:
        yield Check(section, "C compiler", "missing", "needed for the native kernels: apt install gcc (or dnf, conda)")
    else:
        yield Check(section, "C compiler", "ok", cc)
    why = unavailable()
    text = "built and loaded" if why is None else f"the learner runs in plain torch, slower: {why}"
    yield Check(section, "native kernels", "ok" if why is None else "warning", text)
    cxx = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if cxx is None:
        yield Check(section, "C++ compiler", "missing", "needed for --compile on the CPU: apt install g++")
    else:
        yield Check(section, "C++ compiler", "ok", f"{cxx}, for --compile")


def _processor() -> Iterator[Check]:
    section = "processor"
    flags, model = cpu_info()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = f"{usable} of {os.cpu_count()} cores" if usable != os.cpu_count() else f"{usable} cores"
    yield Check(section, "CPU", "ok", f"{model or platform.processor() or platform.machine()}, {cores}")
    sets = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX512-BF16": "avx512_bf16", "AMX-BF16": "amx_bf16"}
    if flags:
        there = [name for name, flag in sets.items() if flag in flags]
        absent = [name for name, flag in sets.items() if flag not in flags]
        text = f"has {', '.join(there) or 'none of these'}" + (f"; not {', '.join(absent)}" if absent else "")
        yield Check(section, "instruction sets", "ok", text)
    yield Check(section, "precision", "ok", precision_advice(flags, half_way() if unavailable() is None else None))
    if torch.get_num_threads() > usable:
        text = (
            f"torch uses {torch.get_num_threads()} threads on {usable} cores, which is slow: OMP_NUM_THREADS={usable}"
        )
        yield Check(section, "threads", "warning", text)


def cpu_info(proc: Path = PROC) -> tuple[frozenset[str], str]:
    """Instruction sets and model of the CPU; nothing where the system does not tell them."""
    try:
        lines = (proc / "cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset(), ""
    fields = [line.partition(":") for line in lines]
    named = {name.strip(): value.strip() for name, _, value in reversed(fields)}
    return frozenset(named.get("flags", named.get("Features", "")).split()), named.get("model name", "")


def precision_advice(flags: frozenset[str], way: HalfWay | None, capability: tuple[int, int] | None = None) -> str:
    """Which precision to learn in, and why.

    Args:
        flags: The CPU's instruction sets.
        way: How the native kernels multiply bfloat16; None: there are no kernels.
        capability: The GPU's compute capability; None asks torch.
    """
    if capability is None and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
    texts = []
    if capability is not None:
        gpu = "GPU {}.{}".format(*capability)
        good = capability >= AMPERE
        texts.append(f"{gpu}: bf16 pays" if good else f"{gpu}: fp32; bf16 needs Ampere (8.0) or newer")
    if way == "blas":
        texts.append("CPU: bf16 matmuls pay (AMX; not measured)")
    elif way == "dots":
        texts.append("CPU: bf16 updates are 1.5 to 2 times as fast (AVX512-BF16), and round matrices to 8 bits")
    elif way == "rounded" and "avx512_bf16" in flags:
        texts.append("CPU: fp32; it has AVX512-BF16, but the C compiler does not know that (gcc 10 and clang 9 do)")
    elif way is None and flags & {"amx_bf16", "avx512_bf16"}:
        texts.append("CPU: fp32; bf16 pays with the native kernels alone")
    else:
        texts.append("CPU: fp32; without units for bf16 (AMX) it would only round to 8 bits")
    return "; ".join(texts)


def _gpu() -> Iterator[Check]:
    section = "GPU"
    if not torch.cuda.is_available():
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        text = "none seen by torch: the driver, or CUDA_VISIBLE_DEVICES" if built else "none used: torch is for the CPU"
        yield Check(section, "device", "warning" if built else "missing", text)
        return
    for i in range(torch.cuda.device_count()):
        try:
            found = torch.cuda.get_device_properties(i)
            free, total = torch.cuda.mem_get_info(i)
        except RuntimeError as error:
            yield Check(section, f"cuda:{i}", "broken", " ".join(str(error).split())[:200])
            continue
        text = f"{found.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, compute capability"
        yield Check(section, f"cuda:{i}", "ok", f"{text} {found.major}.{found.minor}")


def _packages() -> Iterator[Check]:
    for module, distribution, use, cure in PACKAGES:
        if importlib.util.find_spec(module) is None:
            status = "broken" if cure is None else "missing"
            yield Check("packages", distribution, status, f"for {use}: {cure or f'pip install {distribution}'}")
            continue
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "of unknown version"
        error = _import_error(module)
        if error is not None:
            status = "warning" if module == "d4rl" else "broken"
            yield Check("packages", distribution, status, f"{version} does not import: {error}")
        else:
            yield Check("packages", distribution, "ok", f"{version}, for {use}")


def _import_error(module: str) -> str | None:
    """Why a package does not import; None where it does, or is not tried."""
    if module == "d4rl":
        return None if import_d4rl() is not None else "it needs MuJoCo 2.1; its files are read without it"
    if module not in IMPORTED:
        return None
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a broken installation raises
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _room() -> Iterator[Check]:
    section = "room"
    room = memory_left()
    if room.free is None:
        yield Check(section, "memory", "warning", "how much is free cannot be told here: runs are not checked")
    else:
        status = "ok" if room.free >= LITTLE_MEMORY else "warning"
        yield Check(section, "memory", status, f"{room.free / GIB:.1f} GiB can be had; the narrowest is {room.limit}")
    places = {"working folder": Path.cwd(), "scratch": scratch_folder(), "Minari": minari_root()}
    for name, folder in places.items():
        free = free_disk(folder)
        text = f"{folder}: " + ("free space cannot be told" if free is None else f"{free / GIB:.1f} GiB free")
        status = "ok" if free is None or free >= LITTLE_DISK else "warning"
        if name == "scratch" and lies_in_memory(folder):
            status, text = "warning", f"{text}, but it lies in memory (tmpfs): O2O_SMOOTH_SCRATCH names a disk"
        if name == "working folder" and not os.access(folder, os.W_OK):
            status, text = "warning", f"{text}, but cannot be written: give runs an --out elsewhere"
        if name == "Minari":
            text += f"; {len(installed_ids())} sets installed"
        yield Check(section, name, status, text)
    yield Check(section, "D4RL", "ok", f"{d4rl_folder()}" + ("" if d4rl_folder().is_dir() else " (not there)"))
    yield Check(section, "kernel cache", "ok", str(cache_folder()))


def _variables() -> Iterator[Check]:
    for name, meaning in VARIABLES.items():
        value = os.environ.get(name)
        if value is None:
            if name.startswith("O2O_SMOOTH_"):
                yield Check("environment", name, "ok", f"not set: {meaning}")
            continue
        shown = "set (not shown)" if name in SECRETS else without_password(value)
        error = _variable_error(name)
        text = f"{shown}: {meaning}" if error is None else f"{shown}: {error}"
        yield Check("environment", name, "ok" if error is None else "broken", text)


def _variable_error(name: str) -> str | None:
    """What is wrong with the value of one of ours."""
    checks: dict[str, Any] = {MEMORY_VARIABLE: memory_limit, TASKS_VARIABLE: known_tasks}
    try:
        if name in checks:
            checks[name]()
    except O2OError as error:
        return " ".join(str(error).split())
    if name == "O2O_SMOOTH_SCRATCH" and not scratch_folder().is_dir():
        return "there is no such folder"
    return None


def without_password(value: str) -> str:
    """A value as it may be shown: an address loses its user and password."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return value
    if "@" not in parts.netloc:
        return value
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))
