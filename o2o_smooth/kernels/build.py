"""Compiling the native kernels, once per machine, into the user's cache.

The library is built on first use (about three seconds) with the C compiler that is there, for the processor that is
there, and found again by the hash of everything that it depends on. Where it cannot be built the learner goes on in
plain torch, slower, and `unavailable` says why.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

import torch

from o2o_smooth.kernels import calls

SWITCH = "O2O_SMOOTH_KERNELS"  # 0 leaves the kernels out
CACHE = "O2O_SMOOTH_CACHE"
SOURCES = ("pool", "half", "cpu", "heads", "pushed", "rows", "small")
FLAGS = (
    *("-O3", "-march=native", "-std=c11", "-fPIC", "-fopenmp"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)


class BuildError(Exception):
    """The kernels cannot be had here; the text says why."""


def compiler() -> str | None:
    """The C compiler: $CC, cc, gcc or clang."""
    return next(
        (found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None
    )


def cache_folder() -> Path:
    """Where built libraries lie: $O2O_SMOOTH_CACHE, else o2o_smooth in the user's cache."""
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "o2o_smooth"


@cache
def load() -> ctypes.CDLL:
    """Build the library if need be, and load it.

    Raises:
        BuildError: It is switched off, or the platform, the compiler or torch's BLAS are not as it needs them.
    """
    if os.environ.get(SWITCH, "1").strip().lower() in ("0", "off", "false", "no"):
        raise BuildError(f"switched off by {SWITCH}={os.environ[SWITCH]}")
    if not sys.platform.startswith("linux"):
        raise BuildError(f"they are built on Linux only, this is {platform.system()}")
    _share_openmp()
    folder = resources.files("o2o_smooth.kernels")
    source = "\n".join(
        [*(folder.joinpath(f"{part}.c").read_text(encoding="utf-8") for part in SOURCES), calls.source()]
    )
    cc = compiler()
    if cc is None:
        raise BuildError("there is no C compiler; install gcc (apt install gcc, dnf install gcc, conda install gcc)")
    key = hashlib.sha256("\0".join([source, *FLAGS, cc, _version(cc), processor()]).encode()).hexdigest()[:16]
    path = cache_folder() / f"kernels-{key}.so"
    check_folder(path.parent)
    if not path.is_file():
        try:
            _build(cc, source, path)
        except OSError as error:
            raise BuildError(f"{path.parent} cannot be written ({error}); set {CACHE} to a folder that can") from None
    check_owner(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded ({error}); remove it to have it built anew") from None


def check_owner(path: Path) -> None:
    """A library is code: it must be ours, and nobody else may have written it.

    Raises:
        BuildError: Otherwise.
    """
    status = path.stat()
    if status.st_uid not in (os.getuid(), 0):
        raise BuildError(f"{path} belongs to another user; set {CACHE} to a folder of your own")
    if status.st_mode & 0o022:
        raise BuildError(f"{path} can be written by others; remove it, or set {CACHE} to a folder of your own")


def check_folder(folder: Path) -> None:
    """Who can write to the folder could put another library there between the look at it and its loading.

    Raises:
        BuildError: Somebody else can. (With the sticky bit, as /tmp has it, nobody can replace what is ours.)
    """
    try:
        status = folder.stat()
    except OSError:  # it is made, for us alone
        return
    if status.st_uid not in (os.getuid(), 0):
        raise BuildError(f"the folder {folder} belongs to another user; set {CACHE} to a folder of your own")
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        raise BuildError(
            f"the folder {folder} can be written by others: chmod go-w {folder}, or set {CACHE} to another"
        )


def _share_openmp() -> None:
    """The kernels use the threads that torch's OpenMP already has; a second set would fight them for the cores."""
    try:
        ctypes.CDLL(None).GOMP_parallel  # noqa: B018  # torch puts its runtime among the global symbols
    except AttributeError:
        library = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
        if not library.is_file():
            raise BuildError("torch brings no GNU OpenMP runtime (libgomp) to share") from None
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _version(cc: str) -> str:
    return subprocess.run([cc, "--version"], capture_output=True, text=True, check=False).stdout


def processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _build(cc: str, source: str, path: Path) -> None:
    """Compile and put in place at once, so that processes that build together do not meet half a library."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        code, built = Path(folder) / "kernels.c", Path(folder) / "kernels.so"
        code.write_text(source, encoding="utf-8")
        # Linked without -fopenmp: the linker would name a runtime of its own beside torch's.
        steps = [
            [cc, *FLAGS, "-c", str(code), "-o", f"{code}.o"],
            [cc, "-shared", f"{code}.o", "-o", str(built), "-lm", "-lpthread"],
        ]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                lines = done.stderr.strip().splitlines()
                raise BuildError(f"{cc} cannot compile them: {lines[0] if lines else f'exit code {done.returncode}'}")
        built.chmod(0o700)
        built.replace(path)
