"""A tape of what an update does on the CPU: every operation with its memory, to be repeated without the way to it.

Between two native kernels an update spends its time on dispatch, autograd and fresh tensors, which for a small network
is a fifth of the whole. The second time that the same step is due its operations are written down, each with the memory
it read and wrote, and from then on they are repeated on that memory: the same operations in the same order, so the same
numbers to the last bit. It is for the CPU what a CUDA graph is for a GPU, and has its conditions: what differs between
two updates must stand in memory that stays where it is, and nothing may depend on numbers that the host looked at.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple, cast

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from o2o_smooth.kernels.calls import SIGNATURES, Call, Joined
from o2o_smooth.kernels.cpu import Pool, Workspace, library
from o2o_smooth.kernels.small import small

# The host looks at numbers, or brings its own: a repetition would not see that they have changed.
_HOST = frozenset(("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "lift_fresh", "lift"))
_RANDOM = frozenset(
    ("normal_", "uniform_", "random_", "bernoulli_", "randn", "rand", "randint", "randperm", "bernoulli")
)
_EMPTY = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"))
_CONSTANT = frozenset(("ones_like", "full_like"))
_recording = threading.Lock()


class Unrepeatable(Exception):
    """Something in the work cannot be repeated from a tape."""


class _Operation(NamedTuple):
    call: Callable[[], object] | Call
    reads: frozenset[int]  # addresses of the memory that tensor operations read
    makes: Mapping[int, int]  # fresh memory that it fills, address -> bytes, where that is all that it does
    writes: frozenset[int]  # memory that was there before
    constant: bool
    addresses: tuple[int, ...]  # arguments of native calls


class Tape:
    """Operations and what they work on."""

    def __init__(self) -> None:
        self.operations: list[_Operation] = []
        self._calls: list[Callable[[], object]] | None = None
        self._kept: list[object] = []

    def keep(self, *things: object) -> None:
        """Memory that operations use must live as long as they do."""
        self._kept += things

    def prune(self, results: Sequence[Tensor]) -> None:
        """Leave out what makes the same at every repetition, and what nobody reads.

        Args:
            results: What is read after a repetition; gradients of one and sums of losses usually are not.
        """
        written = frozenset(at for one in self.operations for at in one.writes)
        native = sorted({at for one in self.operations for at in one.addresses})
        wanted = {_memory(tensor) for tensor in results} | written
        kept: list[_Operation] = []
        for one in reversed(self.operations):
            if one.makes:
                constant = one.constant and not written.intersection(one.makes)
                read = wanted.intersection(one.makes) or any(_within(native, at, n) for at, n in one.makes.items())
                if constant or not read:
                    continue
            wanted |= one.reads
            kept.append(one)
        self.operations, self._calls = kept[::-1], None

    def replay(self) -> None:
        """Do it all again."""
        if self._calls is None:
            self._calls = list(_merged([one.call for one in self.operations]))
        for call in self._calls:
            call()


def _merged(calls: Sequence[Callable[[], object] | Call]) -> Iterator[Callable[[], object]]:
    """Kernels that follow each other are done by one call."""
    for native, group in groupby(calls, lambda call: isinstance(call, Call)):
        if native:
            yield Joined(library(), cast("list[Call]", list(group)))
        else:
            yield from cast("Iterator[Callable[[], object]]", group)


@contextmanager
def record(pool: Pool | None = None) -> Iterator[Tape]:
    """Write down what is done within, which is done as well.

    Args:
        pool: Memory of the native kernels' passes that tapes share; for tapes that are never repeated at the same time.
            Default: nobody shares it.

    Raises:
        Unrepeatable: The work looked at numbers, drew some, or somebody else is recording.
    """
    if not _recording.acquire(blocking=False):
        raise Unrepeatable("another thread is recording")
    tape = Tape()
    try:
        with _Writer(tape), _native_calls(tape), Workspace.kept_by(tape.keep, {} if pool is None else pool):
            yield tape
    finally:
        _recording.release()


class _Writer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tensor operations, below autograd: those of backward passes too."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape

    def take_down(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _HOST or name in _RANDOM:
            raise Unrepeatable(f"{name} cannot be repeated")
        out = func(*args, **(kwargs or {}))
        # Aliases without a history: a tape must not keep the graph of the update that was recorded.
        given, named, made = tree_map(_plain, args), tree_map(_plain, kwargs or {}), [t.detach() for t in _tensors(out)]
        self.tape.keep(*made)
        reads = frozenset(_memory(t) for t in _tensors((given, named)))
        fresh = {_memory(t): t.untyped_storage().nbytes() for t in made if _memory(t) not in reads}
        if func._schema.is_mutable:
            self._write(_Operation(_bound(func, given, named), reads, {}, reads, False, ()))
        elif name not in _EMPTY and fresh:  # a view of its input needs no repetition
            for call in _calls(func, given, named, made):
                self._write(_Operation(call, reads, fresh, frozenset(), name in _CONSTANT, ()))
        return out

    def _write(self, operation: _Operation) -> None:
        self.tape.operations.append(operation)


# Given here because torch wraps one given in the class, so that the first operation imports torch's compiler and sympy:
# a second and 70 MB. Compiled steps have no tapes.
_Writer.__torch_dispatch__ = _Writer.take_down  # type: ignore[method-assign, assignment]


def _calls(func: Any, args: Any, kwargs: Any, made: list[Any]) -> Sequence[Callable[[], object] | Call]:
    """What does an operation again, into the memory that it made."""
    native = small(func, args, kwargs, made[0]) if len(made) == 1 else None
    if native is not None:
        return native
    into = _out_variant(func)
    if into is None:
        return [lambda: _copy(made, func(*args, **kwargs))]
    overload, names = into
    return [_bound(overload, args, {**kwargs, **dict(zip(names, made, strict=True))})]


def _bound(func: Any, args: Any, kwargs: Any) -> Callable[[], object]:
    call = func._op  # the overload's own checks were done while recording
    return lambda: call(*args, **kwargs)


def _plain(leaf: object) -> object:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _within(addresses: Sequence[int], start: int, count: int) -> bool:
    """Whether one of the sorted addresses lies in a piece of memory."""
    at = bisect_left(addresses, start)
    return at < len(addresses) and addresses[at] < start + count


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
    originals = {name: getattr(lib, f"o2o_{name}") for name in SIGNATURES}

    def writing(name: str, call: Any) -> Callable[..., None]:
        def written(*args: Any) -> None:
            call(*args)
            if threading.get_ident() == own:
                addresses = tuple([a for a in args if isinstance(a, int)])
                tape.operations.append(_Operation(Call(name, args), frozenset(), {}, frozenset(), False, addresses))

        return written

    for name, call in originals.items():
        setattr(lib, f"o2o_{name}", writing(name, call))
    try:
        yield
    finally:
        for name, call in originals.items():
            setattr(lib, f"o2o_{name}", call)
