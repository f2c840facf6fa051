"""Everything an environment remembers, as a tree that JSON and arrays can hold, and back into a new environment.

An environment's attributes are followed through its wrappers and the objects they hold. What is of a plain kind is
kept: numbers, strings, arrays, random generators, lists, tuples, dicts and queues of such; MuJoCo's simulator has its
own way (`simulator`). Anything else cannot be kept exactly, so it is refused, with its name.

A class may take care of its own state instead, with `get_state()`, which returns a tree of plain kinds, and
`set_state(state)`. Gymnasium's generator `np_random` is kept besides, and so is a wrapper's inner environment.
"""

from __future__ import annotations

import enum
import inspect
import math
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from o2o_smooth.envs import simulator
from o2o_smooth.errors import EnvError

FIXED = frozenset(
    {
        "metadata",
        "render_mode",
        "mujoco_renderer",
        "pristine",
        "episode_start_time",  # of a clock that another process does not have
        "_cached_spec",
        "_saved_kwargs",
        "_ezpickle_args",
        "_ezpickle_kwargs",
    }
)
"""Attributes that say how an environment was made or is drawn: a new one has its own."""
FIXED_CLASSES = (
    "gymnasium_robotics.envs.maze.maze.Maze",
    "gymnasium_robotics.envs.maze.maze_v4.Maze",
    "gymnasium_robotics.utils.mujoco_utils.MujocoModelNames",
)
"""Objects that stay as they are made."""
KNOWN = ("gymnasium.", "gymnasium_robotics.", "o2o_smooth.")
"""Modules whose sets are known not to decide anything by their order."""
Windows = list[tuple[str, NDArray[Any]]]
_BIT_GENERATORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}


class Unplain(EnvError):
    """Something of an environment that cannot be kept exactly; the text names it."""


def encode(env: gym.Env[Any, Any]) -> dict[str, Any]:
    """The state of an environment and its wrappers; the environment is left as it is.

    Raises:
        Unplain: It holds something that cannot be kept exactly.
    """
    reader = _Reader(getattr(env, "pristine", ()), simulator.windows(env))
    try:
        node = reader.read(env, "env", known=False)
    except RecursionError:
        raise Unplain("it holds things within things, too deeply") from None
    reader.check_views()
    assert isinstance(node, dict)
    return node


def decode(node: dict[str, Any], env: gym.Env[Any, Any]) -> None:
    """Bring an environment of the same task, just made or already played, into a state that `encode` gave.

    Raises:
        EnvError: The state is of another kind of environment, or broken.
    """
    env.reset(seed=0)  # what an environment builds at its first reset must be there
    try:
        _Writer(getattr(env, "pristine", ()), simulator.windows(env)).write(node, env, "env")
    except EnvError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise EnvError(f"the state does not fit this environment: {type(error).__name__}: {error}") from error


def name_of(kind: Any) -> str:
    """Module and name of a class or function."""
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"


def has_protocol(thing: Any) -> bool:
    """Whether an object's class takes care of its own state."""
    kind = type(thing)
    getter, setter = getattr(kind, "get_state", None), getattr(kind, "set_state", None)
    return callable(getter) and callable(setter) and _needs(getter) == 1 and _needs(setter) == 2  # with self


def _needs(function: Callable[..., Any]) -> int:
    """How many arguments a function must have."""
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return -1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.default is p.empty for p in given if p.kind in kinds)


def _is_python_object(thing: Any) -> bool:
    """Whether all an object has is its `__dict__`."""
    for kind in type(thing).__mro__[:-1]:
        if not kind.__flags__ & (1 << 9):  # a class of C code, which may keep anything
            return False
        slots = kind.__dict__.get("__slots__", ())
        if set([slots] if isinstance(slots, str) else slots) - {"__dict__", "__weakref__"}:
            return False
    return hasattr(thing, "__dict__")


def _is_static(thing: Any) -> bool:
    """Whether a thing never changes: code, modules, specifications."""
    if isinstance(thing, EnvSpec | type | types.ModuleType | np.ufunc | np.dtype):
        return True
    if isinstance(thing, types.FunctionType):
        return thing.__closure__ is None
    if isinstance(thing, types.BuiltinFunctionType):
        return thing.__self__ is None or isinstance(thing.__self__, types.ModuleType)
    return name_of(type(thing)) in FIXED_CLASSES


def _attributes(thing: Any) -> list[str]:
    """Names of the attributes that are followed, in order."""
    if has_protocol(thing):
        wanted = {"_np_random", "_np_random_seed"} if isinstance(thing, gym.Env) else set()
        wanted |= {"env"} if isinstance(thing, gym.Wrapper) else set()
        return sorted(wanted & set(vars(thing)))
    return sorted(set(vars(thing)) - FIXED)


class _Reader:
    """Turns objects into nodes. What is met a second time becomes a reference to the path where it was met first."""

    def __init__(self, pristine: Any, windows: Windows) -> None:
        self._pristine, self._windows = pristine, windows
        self._met: dict[int, tuple[str, Any]] = {}  # the object too, so that its id stays its own
        self._arrays: list[tuple[str, NDArray[Any]]] = []

    def read(self, thing: Any, path: str, *, known: bool, direct: bool = True) -> Any:
        """One node. `known`: the holder's class is; `direct`: the thing is an attribute, not a part of a container."""
        kind = type(thing)
        if thing is None or kind in (bool, int, str):
            return thing
        if kind is float:
            return thing if math.isfinite(thing) else {"#": "float", "value": repr(thing)}
        if kind is np.str_:
            return {"#": "text", "value": str(thing)}
        if isinstance(thing, np.generic):
            return {"#": "scalar", "value": _plain_array(np.asarray(thing), path)}
        if kind is bytes:
            return {"#": "bytes", "value": thing.hex()}
        if isinstance(thing, enum.Enum):
            return {"#": "enum", "class": name_of(kind), "value": thing.name}
        if _is_static(thing):
            return {"#": "static", "name": name_of(thing if hasattr(thing, "__qualname__") else kind)}
        if kind is tuple or (isinstance(thing, tuple) and hasattr(thing, "_fields")):
            items = [self.read(x, f"{path}[{i}]", known=known, direct=False) for i, x in enumerate(thing)]
            return {"#": "tuple", "items": items} if kind is tuple else {"#": "fields", "items": items}
        if id(thing) in self._met:
            return {"#": "again", "path": self._met[id(thing)][0]}
        self._met[id(thing)] = (path, thing)
        if isinstance(thing, np.ndarray):
            return self._array(thing, path)
        if kind in (list, deque):
            items = [self.read(x, f"{path}[{i}]", known=known, direct=False) for i, x in enumerate(thing)]
            return items if kind is list else {"#": "deque", "longest": thing.maxlen, "items": items}
        if kind in (dict, OrderedDict):
            return {"#": "dict", "items": self._pairs(thing, path, known)}
        if kind in (set, frozenset) and known:
            items = sorted((self.read(x, path, known=known, direct=False) for x in thing), key=repr)
            return {"#": "set", "frozen": kind is frozenset, "items": items}
        generator = _generator_node(thing)
        if generator is not None:
            return generator
        if isinstance(thing, gym.Space):
            return {"#": "space", "random": self.read(_space_generators(thing), path, known=True)}
        if simulator.is_data(thing):
            return {"#": "data", **simulator.data_state(thing)}
        if simulator.is_model(thing):
            return {"#": "model", "changed": simulator.model_changes(thing, self._pristine)}
        if isinstance(thing, types.MethodType) and id(thing.__self__) in self._met:
            return {"#": "static", "name": name_of(thing)}
        if direct and _is_python_object(thing):
            return self._object(thing, path)
        raise Unplain(f"{path} is {_described(thing)}")

    def _object(self, thing: Any, path: str) -> dict[str, Any]:
        """An object in its own right: a wrapper, an environment, or a part of one."""
        known = name_of(type(thing)).startswith(KNOWN)
        node: dict[str, Any] = {"#": "object", "class": name_of(type(thing))}
        if has_protocol(thing):
            node["own"] = self.read(thing.get_state(), f"{path}.get_state()", known=False, direct=False)
        names = _attributes(thing)
        held = vars(thing)
        node["attributes"] = {n: self.read(held[n], f"{path}.{n}", known=known) for n in names}
        return node

    def _pairs(self, thing: dict[Any, Any], path: str, known: bool) -> list[Any]:
        pairs = []
        for key, value in thing.items():
            spot = f"{path}[{key!r}]"
            kept = self.read(key, spot, known=known, direct=False)
            pairs.append([kept, self.read(value, spot, known=known, direct=False)])
        return pairs

    def _array(self, array: NDArray[Any], path: str) -> Any:
        field = _window(array, self._windows)
        if field is not None:
            return {"#": "window", "field": field}
        self._arrays.append((path, array))
        if array.dtype.kind == "U":
            return {"#": "strings", "dtype": array.dtype.str, "value": array.tolist()}
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        kept = _plain_array(array, path)
        return kept if order == "C" else {"#": "fortran", "value": kept}

    def check_views(self) -> None:
        """Refuse arrays that are windows on one another: apart from each other they would go their own ways."""
        for path, array in self._arrays:
            if array.base is None:
                continue
            for other_path, other in self._arrays:
                if other is not array and np.may_share_memory(array, other):
                    raise Unplain(f"{path} shares its memory with {other_path}")


class _Writer:
    """Puts nodes into an environment. Objects stay the ones that are there; plain values are new ones."""

    def __init__(self, pristine: Any, windows: Windows) -> None:
        self._pristine, self._windows = pristine, windows
        self._made: dict[str, Any] = {}  # by path
        self._taken: set[int] = set()  # objects that have been written to

    def write(self, node: Any, there: Any, path: str) -> Any:
        """What a node stands for; `there` is what the new environment has in its place."""
        if isinstance(node, list):
            made: list[Any] = []
            self._made[path] = made
            made += [self.write(x, _at(there, i), f"{path}[{i}]") for i, x in enumerate(node)]
            return made
        if isinstance(node, np.ndarray):
            self._made[path] = node.copy()
            return self._made[path]
        if not isinstance(node, dict):
            return node
        method = getattr(self, f"_write_{node['#']}", None)
        if method is None:
            raise EnvError(f"the state of {path} is of an unknown kind, {node['#']!r}")
        return method(node, there, path)

    def _write_float(self, node: dict[str, Any], there: Any, path: str) -> float:
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[node["value"]]

    def _write_scalar(self, node: dict[str, Any], there: Any, path: str) -> Any:
        return np.asarray(node["value"])[()]

    def _write_text(self, node: dict[str, Any], there: Any, path: str) -> np.str_:
        return np.str_(node["value"])

    def _write_bytes(self, node: dict[str, Any], there: Any, path: str) -> bytes:
        return bytes.fromhex(node["value"])

    def _write_enum(self, node: dict[str, Any], there: Any, path: str) -> Any:
        self._same(node["class"], name_of(type(there)), path)
        return type(there)[node["value"]]

    def _write_static(self, node: dict[str, Any], there: Any, path: str) -> Any:
        self._same(node["name"], name_of(there if hasattr(there, "__qualname__") else type(there)), path)
        return there

    def _write_tuple(self, node: dict[str, Any], there: Any, path: str) -> Any:
        return tuple(self.write(x, _at(there, i), f"{path}[{i}]") for i, x in enumerate(node["items"]))

    def _write_fields(self, node: dict[str, Any], there: Any, path: str) -> Any:
        if not hasattr(there, "_fields"):
            raise EnvError(f"{path} is {_described(there)} here, the state holds a named tuple")
        return type(there)(*self._write_tuple(node, there, path))

    def _write_again(self, node: dict[str, Any], there: Any, path: str) -> Any:
        return self._made[node["path"]]

    def _write_fortran(self, node: dict[str, Any], there: Any, path: str) -> Any:
        self._made[path] = np.asfortranarray(node["value"]).copy(order="F")
        return self._made[path]

    def _write_strings(self, node: dict[str, Any], there: Any, path: str) -> Any:
        self._made[path] = np.array(node["value"], dtype=node["dtype"])
        return self._made[path]

    def _write_window(self, node: dict[str, Any], there: Any, path: str) -> Any:
        self._same(node["field"], _window(there, self._windows) if isinstance(there, np.ndarray) else None, path)
        self._made[path] = there
        return there

    def _write_deque(self, node: dict[str, Any], there: Any, path: str) -> Any:
        made: deque[Any] = deque(maxlen=node["longest"])
        self._made[path] = made
        made.extend(self.write(x, None, f"{path}[{i}]") for i, x in enumerate(node["items"]))
        return made

    def _write_dict(self, node: dict[str, Any], there: Any, path: str) -> Any:
        made: dict[Any, Any] = OrderedDict() if type(there) is OrderedDict else {}
        self._made[path] = made
        for key_node, value in node["items"]:
            key = self.write(key_node, None, path)
            made[key] = self.write(value, there.get(key) if isinstance(there, dict) else None, f"{path}[{key!r}]")
        return made

    def _write_set(self, node: dict[str, Any], there: Any, path: str) -> Any:
        items = (self.write(x, None, path) for x in node["items"])
        self._made[path] = frozenset(items) if node["frozen"] else set(items)
        return self._made[path]

    def _write_generator(self, node: dict[str, Any], there: Any, path: str) -> Any:
        self._made[path] = _generator(node)
        return self._made[path]

    def _write_legacy(self, node: dict[str, Any], there: Any, path: str) -> Any:
        kind, keys, position, has_gauss, gauss = node["state"]
        self._made[path] = made = np.random.RandomState()
        made.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, float(gauss)))
        return made

    def _write_python(self, node: dict[str, Any], there: Any, path: str) -> Any:
        version, numbers, gauss = node["state"]
        self._made[path] = made = random.Random()
        made.setstate((version, tuple(numbers), gauss))
        return made

    def _write_space(self, node: dict[str, Any], there: Any, path: str) -> Any:
        spaces = _spaces(there)
        generators = self.write(node["random"], None, path)
        self._same(len(generators), len(spaces), path)
        for space, generator in zip(spaces, generators, strict=True):
            space._np_random = generator
        self._made[path] = there
        return there

    def _write_data(self, node: dict[str, Any], there: Any, path: str) -> Any:
        simulator.set_data(there, node, path)
        self._made[path] = there
        return there

    def _write_model(self, node: dict[str, Any], there: Any, path: str) -> Any:
        simulator.set_model(there, node["changed"], self._pristine, path)
        self._made[path] = there
        return there

    def _write_object(self, node: dict[str, Any], there: Any, path: str) -> Any:
        self._same(node["class"], name_of(type(there)), path)
        thing = there
        if id(there) in self._taken or _is_frozen(there):  # one object there, two of them in the state
            thing = object.__new__(type(there))
            vars(thing).update(vars(there))
        self._taken.add(id(thing))
        self._made[path] = thing
        held = vars(thing)
        if has_protocol(thing):
            inner = node["attributes"].get("env")
            if inner is not None:
                self.write(inner, held["env"], f"{path}.env")
            thing.set_state(self.write(node["own"], None, f"{path}.get_state()"))
        else:
            for name in sorted(set(_attributes(thing)) - set(node["attributes"])):
                if isinstance(held[name], gym.Env | gym.Space):
                    raise EnvError(f"the state does not fit this environment: it lacks {path}.{name}")
                del held[name]
        for name in sorted(node["attributes"]):
            if not (name == "env" and has_protocol(thing)):
                held[name] = self.write(node["attributes"][name], held.get(name), f"{path}.{name}")
        return thing

    def _same(self, kept: Any, here: Any, path: str) -> None:
        if kept != here:
            raise EnvError(f"the state is of another environment: {path} is {kept} there, {here} here")


def _window(array: NDArray[Any], windows: Windows) -> str | None:
    """Which of the simulator's arrays an array is a window on; None where it is none."""
    if array.base is None or not array.size:
        return None
    return next((name for name, field in windows if np.may_share_memory(array, field)), None)


def _at(things: Any, i: int) -> Any:
    return things[i] if isinstance(things, list | tuple) and i < len(things) else None


def _is_frozen(thing: Any) -> bool:
    return is_dataclass(thing) and bool(getattr(type(thing), "__dataclass_params__").frozen)  # noqa: B009


def _described(thing: Any) -> str:
    kind = name_of(type(thing)).removeprefix("builtins.")
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _plain_array(array: NDArray[Any], path: str) -> NDArray[Any]:
    """A copy, if numbers are all that it holds."""
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or not array.dtype.isnative:
        raise Unplain(f"{path} is an array of {array.dtype}")
    return np.array(array, order="C")


def _spaces(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    """A space and all within it."""
    inner = getattr(space, "spaces", ())
    parts = list(inner.values()) if isinstance(inner, dict) else list(inner)
    return [space, *(found for part in parts for found in _spaces(part))]


def _space_generators(space: gym.Space[Any]) -> list[Any]:
    return [part._np_random for part in _spaces(space)]


def _generator_node(thing: Any) -> dict[str, Any] | None:
    """A random generator's node; None for anything else."""
    if type(thing) is np.random.Generator:
        bits = thing.bit_generator
        if type(bits).__name__ not in _BIT_GENERATORS:
            return None
        return {"#": "generator", "state": _plain_state(bits.state), "seed": _seed_node(bits.seed_seq)}
    if type(thing) is np.random.RandomState:
        kind, keys, position, has_gauss, gauss = thing.get_state(legacy=True)
        if kind != "MT19937":
            return None
        return {"#": "legacy", "state": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(gauss)]}
    if type(thing) is random.Random:
        version, numbers, gauss = thing.getstate()
        return {"#": "python", "state": [version, list(numbers), gauss]}
    return None


def _plain_state(state: Any) -> Any:
    """A bit generator's state: dicts of numbers and arrays of numbers."""
    if isinstance(state, dict):
        return {key: _plain_state(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return state.tolist()
    return state if isinstance(state, str) else int(state)


def _seed_node(seeds: Any) -> dict[str, Any] | None:
    """What a generator needs to spawn the children that it would have spawned."""
    if type(seeds) is not np.random.SeedSequence:
        return None
    entropy = seeds.entropy
    return {
        "entropy": entropy if entropy is None or isinstance(entropy, int) else [int(x) for x in np.atleast_1d(entropy)],
        "spawn_key": [int(x) for x in seeds.spawn_key],
        "pool_size": int(seeds.pool_size),
        "spawned": int(seeds.n_children_spawned),
    }


def _generator(node: dict[str, Any]) -> np.random.Generator:
    """The generator of a node."""
    kind = node["state"]["bit_generator"]
    if kind not in _BIT_GENERATORS:
        raise EnvError(f"the state holds a generator of an unknown kind, {kind!r}")
    seed = node["seed"]
    if seed is None:
        bits = _BIT_GENERATORS[kind](0)
    else:
        bits = _BIT_GENERATORS[kind](
            np.random.SeedSequence(
                seed["entropy"],
                spawn_key=tuple(seed["spawn_key"]),
                pool_size=seed["pool_size"],
                n_children_spawned=seed["spawned"],
            )
        )
    bits.state = _numpy_state(node["state"])
    return np.random.Generator(bits)


def _numpy_state(state: Any) -> Any:
    """A bit generator's state as numpy takes it."""
    if isinstance(state, dict):
        return {key: _numpy_state(value) for key, value in state.items()}
    return np.asarray(state, dtype=np.uint64 if len(state) < 100 else np.uint32) if isinstance(state, list) else state
