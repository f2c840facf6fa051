"""What the kernels are given, and many of their calls in one by `o2o_replay`, which is made from the same table."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SIGNATURES: Mapping[str, str] = {
    "forward": "ppiiippn",
    "backward": "ppiiippppppppnn",
    "pushed": "ppiipippiiiipppn",
    "pushed_back": "ppipppppnn",
    "adam": "piifffn",
    "encode": "ppppiiiippppfpp",
    "td_error": "ppiiipp",
    "expectile": "pppiipp",
    "advantage_weighted": "pppiipp",
    "log_prob": "pppiiippn",
    "sample": "ppiiiippn",
    "sample_back": "pppppiiiipn",
    "least": "piiip",
    "td_target": "pppppiiip",
    "scale": "ppiip",
    "smoothed": "ppppiip",
    "policy_value": "ppiippp",
    "mean_square": "ppiipp",
    "soft_value": "pppiiipppp",
    "tanh": "pip",
    "tanh_back": "ppip",
    "entropy_gap": "ppiip",
    "half_product": "iiipiipiipin",
    "small": "p",
}
"""Kernels that compute something, without their o2o_: p a pointer, i an int64, f a float, n an int."""

_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float, "n": ctypes.c_int}
_WORDS = 16  # as many arguments as any of them has
_READ = {"p": "w[{}].p", "i": "w[{}].i", "f": "w[{}].f", "n": "(int)w[{}].i"}


class _Word(ctypes.Union):
    _fields_ = (("i", ctypes.c_int64), ("p", ctypes.c_void_p), ("f", ctypes.c_float))


class _Call(ctypes.Structure):
    _fields_ = (("kernel", ctypes.c_int64), ("words", _Word * _WORDS))


class Call(NamedTuple):
    """A kernel with its arguments; the memory that they point at is `kept`, or kept by others."""

    kernel: str
    arguments: Sequence[Any]
    kept: object = None


def source() -> str:
    """C: a list of calls, one after the other."""
    cases = []
    for number, (name, kinds) in enumerate(SIGNATURES.items()):
        arguments = ", ".join(_READ[kind].format(i) for i, kind in enumerate(kinds))
        cases.append(f"        case {number}: o2o_{name}({arguments}); break;")
    return "\n".join(
        (
            "typedef union { int64_t i; void *p; float f; } Word;",
            f"typedef struct {{ int64_t kernel; Word w[{_WORDS}]; }} Call;",
            "void o2o_replay(const Call *calls, int64_t count) {",
            "    for (int64_t k = 0; k < count; k++) {",
            "        const Word *w = calls[k].w;",
            "        switch (calls[k].kernel) {",
            *cases,
            "        }",
            "    }",
            "}",
        )
    )


def declare(lib: ctypes.CDLL) -> None:
    """Tell ctypes the signatures."""
    for name, kinds in SIGNATURES.items():
        function = getattr(lib, f"o2o_{name}")
        function.argtypes, function.restype = [_TYPES[kind] for kind in kinds], None
    lib.o2o_replay.argtypes, lib.o2o_replay.restype = [ctypes.c_void_p, ctypes.c_int64], None


class Joined:
    """Calls that are done by one.

    Args:
        lib: The kernels.
        calls: In their order.
    """

    def __init__(self, lib: ctypes.CDLL, calls: Sequence[Call]) -> None:
        numbers = {name: i for i, name in enumerate(SIGNATURES)}
        self._calls = list(calls)
        self._block = (_Call * len(self._calls))()
        self._replay, self._at = lib.o2o_replay, ctypes.addressof(self._block)
        for entry, call in zip(self._block, self._calls, strict=True):
            entry.kernel = numbers[call.kernel]
            for i, (kind, argument) in enumerate(zip(SIGNATURES[call.kernel], call.arguments, strict=True)):
                word = entry.words[i]
                if kind == "p":
                    by_address = isinstance(argument, (ctypes.Array, ctypes.Structure))
                    word.p = ctypes.addressof(argument) if by_address else argument
                elif kind == "f":
                    word.f = argument
                else:
                    word.i = argument

    def __call__(self) -> None:
        """Do them."""
        self._replay(self._at, len(self._calls))
