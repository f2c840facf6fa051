"""torch.compile for a step, without what its first call wastes on a CPU.

Before it writes vector code, torch's compiler builds and loads a test program for every set of vector instructions
that the processor names: 5 to 10 of 19 seconds on two cores. Where the native kernels could be built, the C compiler
is known to keep up with the processor, and that is skipped.

Its own headers, which a machine compiles once, take another 6 seconds, and torch asks for them only when it has
traced the step. Here they are begun with the agent, and grow on another core while data are read and steps are traced.
"""

from __future__ import annotations

import contextvars
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from o2o_smooth.kernels.cpu import unavailable

_log = logging.getLogger(__name__)
_headers_begun = threading.Event()
_alone = threading.RLock()  # what is replaced in torch has to be put back by whoever replaced it
_UNFINISHED = b"gpcWrite"  # the GNU compiler's mark, until a header is whole
_LONGER_THAN_IT_TAKES_S = 120.0
_ANY_KERNEL = '#include <torch/csrc/inductor/cpp_prefix.h>\nextern "C" void kernel(float* out) { out[0] = 0.0f; }\n'


def compile_step(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` for fixed shapes; everything is compiled in the first call."""
    compiled = torch.compile(function, dynamic=False)
    begun = False

    def step(*arguments: Any) -> Any:
        nonlocal begun
        if begun:
            return compiled(*arguments)
        with _trusting():
            result = compiled(*arguments)
        begun = True
        return result

    return step


@contextmanager
def _trusting() -> Iterator[None]:
    """Within it the compiler believes what the processor says of itself; a choice of the user's own stays."""
    from torch._inductor import config

    if unavailable() is not None or getattr(config.cpp, "vec_isa_ok", True) is not None:
        yield
        return
    with _alone, config.patch({"cpp.vec_isa_ok": True}), _without_probes():
        yield


@contextmanager
def _without_probes() -> Iterator[None]:
    """The programs that try bf16 and VNNI count as built: every compiler that reads torch's C++20 headers knows both.

    Those of newer instructions (AMX) are built and tried as ever.
    """
    try:
        from torch._inductor.cpu_vec_isa import VecAVX512, VecAVX512VNNI, VecISA

        known = {VecAVX512._avx512_bf16_code, VecAVX512VNNI._avx512_vnni_code}
        probe = VecISA.check_build
    except (ImportError, AttributeError) as problem:  # not public: another version of torch may have it otherwise
        _log.debug("torch probes the vector instructions: %s", problem)
        yield
        return

    def check_build(isa: VecISA, code: str) -> bool:
        return code in known or probe(isa, code)

    VecISA.check_build = check_build  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        VecISA.check_build = probe  # type: ignore[method-assign]


def begin_headers() -> None:
    """Have torch's headers compiled in the background, once a process; torch waits for them where it needs them.

    A thread that imports what its caller is importing can get half a module: what it needs is imported before.
    What it calls is not public: where a version of torch has it otherwise, nothing is begun and nothing is lost.
    """
    if _headers_begun.is_set() or unavailable() is not None:
        return
    _headers_begun.set()
    try:
        import torch.utils._filelock
        import torch.utils.cpp_extension  # noqa: F401
        from torch._inductor import codecache
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        with _trusting():
            pick_vec_isa()  # keeps what it found, and is not made for two threads at once
            run = contextvars.copy_context().run  # settings of torch's compiler are the thread's own: it gets these
        load, folder = codecache.CppPythonBindingsCodeCache.load_pybinding_async, Path(codecache._HEADER_DIR)
    except Exception as problem:  # no C++ compiler, no folder for its cache: the first compilation says so
        _log.debug("torch's headers are not compiled ahead: %s", problem)
        return
    threading.Thread(target=run, args=(_compile_headers, load, folder), name="torch-headers", daemon=True).start()


def _compile_headers(load: Callable[..., Any], folder: Path) -> None:
    try:
        remove_unfinished(folder)
        load(["float*"], _ANY_KERNEL)  # compiles the headers that this kernel would need, not the kernel
    except Exception as problem:  # torch, which will try the same, says what is wrong
        _log.debug("torch's headers could not be compiled ahead: %s", problem)


def remove_unfinished(folder: Path) -> None:
    """Remove headers that a killed compiler has left.

    It writes where torch looks for them, torch takes what is there for whole, and the compiler would then read the
    text of thousands of headers again for every kernel, for good.
    """
    if not (found := list(folder.glob("*.gch"))):
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        now = os.fstat(file.fileno()).st_mtime  # by the clock that the headers' times are from
    for header in found:
        with header.open("rb") as file:
            begun = file.read(len(_UNFINISHED)) == _UNFINISHED
        if begun and now - header.stat().st_mtime > _LONGER_THAN_IT_TAKES_S:
            header.unlink(missing_ok=True)
