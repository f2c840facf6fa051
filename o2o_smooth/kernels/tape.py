"""A tape of what an update does on the CPU: every operation with its memory, to be repeated without the way to it.

Between two native kernels an update spends its time on dispatch, autograd and fresh tensors, which for a small network
is a fifth of the whole. The second time that the same step is due its operations are written down, each with the memory
it read and wrote, and from then on they are repeated on that memory: the same operations in the same order, so the same
numbers to the last bit. It is for the CPU what a CUDA graph is for a GPU, and has its conditions: what differs between
two updates must stand in memory that stays where it is, and nothing may depend on numbers that the host looked at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from o2o_smooth.kernels.cpu import CALLS, Workspace, library

# The host looks at numbers, or brings its own: a repetition would not see that they have changed.
_HOST = frozenset(("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "lift_fresh", "lift"))
_RANDOM = frozenset(
    ("normal_", "uniform_", "random_", "bernoulli_", "randn", "rand", "randint", "randperm", "bernoulli")
)
_EMPTY = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"))
_recording = threading.Lock()


class Unrepeatable(Exception):
    """Something in the work cannot be repeated from a tape."""


class Tape:
    """Operations and what they work on."""

    def __init__(self) -> None:
        self.operations: list[Callable[[], object]] = []
        self._kept: list[object] = []

    def keep(self, *things: object) -> None:
        """Memory that operations use must live as long as they do."""
        self._kept += things

    def replay(self) -> None:
        """Do it all again."""
        for operation in self.operations:
            operation()


@contextmanager
def record() -> Iterator[Tape]:
    """Write down what is done within, which is done as well.

    Raises:
        Unrepeatable: The work looked at numbers, drew some, or somebody else is recording.
    """
    if not _recording.acquire(blocking=False):
        raise Unrepeatable("another thread is recording")
    tape = Tape()
    try:
        with _Writer(tape), _native_calls(tape), Workspace.kept_by(tape.keep):
            yield tape
    finally:
        _recording.release()


class _Writer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tensor operations, below autograd: those of backward passes too."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _HOST or name in _RANDOM:
            raise Unrepeatable(f"{name} cannot be repeated")
        out = func(*args, **(kwargs or {}))
        # Aliases without a history: a tape must not keep the graph of the update that was recorded.
        given, named, made = tree_map(_plain, args), tree_map(_plain, kwargs or {}), [_plain(t) for t in _tensors(out)]
        self.tape.keep(*made)
        if func._schema.is_mutable:
            self._write(func, given, named)
        elif name not in _EMPTY and _fresh(made, (given, named)):
            into = _out_variant(func)
            if into is None:
                self.tape.operations.append(lambda: _copy(made, func(*given, **named)))
            else:
                overload, names = into
                self._write(overload, given, {**named, **dict(zip(names, made, strict=True))})
        return out

    def _write(self, func: Any, args: Any, kwargs: Any) -> None:
        call = func._op  # the overload's own checks were done while recording
        self.tape.operations.append(lambda: call(*args, **kwargs))


def _plain(leaf: object) -> object:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _fresh(made: list[Any], given: object) -> bool:
    """Whether an operation made memory of its own; a view of its input needs no repetition."""
    memory = {t.untyped_storage().data_ptr() for t in _tensors(given)}
    return any(t.untyped_storage().data_ptr() not in memory for t in made)


def _copy(into: list[Any], out: object) -> None:
    for old, new in zip(into, _tensors(out), strict=True):
        old.copy_(new)


@cache
def _out_variant(func: Any) -> tuple[Any, tuple[str, ...]] | None:
    """The overload of an operation that writes into given tensors, and how it calls them."""
    mine = [(a.name, str(a.type)) for a in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        overload = getattr(func.overloadpacket, name)
        arguments = overload._schema.arguments
        outs = tuple(a.name for a in arguments if a.is_out)
        if len(outs) == len(func._schema.returns) and mine == [
            (a.name, str(a.type)) for a in arguments if not a.is_out
        ]:
            return overload, outs
    return None


@contextmanager
def _native_calls(tape: Tape) -> Iterator[None]:
    """The kernels' calls of this thread; their arguments are addresses, whose memory is kept by others."""
    lib, own = library(), threading.get_ident()
    originals = {name: getattr(lib, name) for name in CALLS}

    def writing(call: Any) -> Callable[..., None]:
        def written(*args: Any) -> None:
            call(*args)
            if threading.get_ident() == own:
                tape.operations.append(lambda: call(*args))

        return written

    for name, call in originals.items():
        setattr(lib, name, writing(call))
    try:
        yield
    finally:
        for name, call in originals.items():
            setattr(lib, name, call)
