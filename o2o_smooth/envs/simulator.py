"""MuJoCo's part of an environment's state.

What the simulation goes on from is `mjSTATE_INTEGRATION`. What it has computed from that, such as the positions of
bodies, is older by part of a step than the state itself, and environments read it before their next step; so all
numbers of fixed size are kept as they are. Contacts are found anew from the positions.

A model may be changed while it is played (the place of a goal, of an object): what differs from the model as it was
made is kept.
"""

from __future__ import annotations

import functools
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.errors import EnvError

_SIZED_BY_CONTACTS = ("efc_", "iefc_", "efm_", "bvh_", "island_", "map_", "iacc", "ifrc_", "flex", "contact")
_PICTURES_AND_SHAPES = ("tex_", "mesh_", "skin_", "bvh_", "oct_")
_OPTIONS = "opt."
Fields = dict[str, NDArray[Any]]


class Pristine(NamedTuple):
    """A model, and its numbers as they were when it was made."""

    model: Any
    fields: Fields


_PRISTINE: dict[int, Fields] = {}  # environments of one task share them


def _names(thing: Any, left_out: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Attributes of an object of MuJoCo's, which are many."""
    kind: Any = type(thing)
    return _class_names(kind, left_out)


@functools.cache
def _class_names(kind: Any, left_out: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if not name.startswith(("_", *left_out)))


def is_data(thing: Any) -> bool:
    """Whether a thing is a simulation."""
    return "mujoco" in sys.modules and isinstance(thing, sys.modules["mujoco"].MjData)


def is_model(thing: Any) -> bool:
    """Whether a thing is a model."""
    return "mujoco" in sys.modules and isinstance(thing, sys.modules["mujoco"].MjModel)


def pristine(env: Any) -> tuple[Pristine, ...]:
    """The models of an environment that was just made, with their numbers."""
    return tuple(Pristine(model, _shared(_model_fields(model))) for model in _parts(env) if is_model(model))


def _parts(env: Any) -> list[Any]:
    """The models and simulations of an environment and those within it."""
    parts: list[Any] = []
    seen: set[int] = set()
    stack = [env]
    while stack:
        thing = stack.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if is_model(thing) or is_data(thing):
            parts.append(thing)
        elif hasattr(type(thing), "reset") and hasattr(thing, "__dict__"):  # environments and wrappers
            stack.extend(vars(thing).values())
    return parts


def windows(env: Any) -> list[tuple[str, NDArray[Any]]]:
    """All arrays that lie in the memory of an environment's models and simulations, by name."""
    found: list[tuple[str, NDArray[Any]]] = []
    for part in _parts(env):
        kind = "model" if is_model(part) else "data"
        for name in _names(part, _PICTURES_AND_SHAPES):
            value = getattr(part, name)
            if isinstance(value, np.ndarray) and value.size:
                found.append((f"{kind}.{name}", value))
    return found


def _shared(fields: Fields) -> Fields:
    digest = 0
    for name, field in sorted(fields.items()):
        digest = zlib.crc32(np.ascontiguousarray(field).tobytes(), zlib.crc32(name.encode(), digest))
    known = _PRISTINE.get(digest)
    if known is not None and known.keys() == fields.keys() and all(_equal(known[n], fields[n]) for n in fields):
        return known
    _PRISTINE[digest] = {name: field.copy() for name, field in fields.items()}
    return _PRISTINE[digest]


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def _model_fields(model: Any) -> Fields:
    """Arrays of a model and its options, as windows on it; single numbers of the options as arrays."""
    fields: Fields = {}
    for name in _names(model, _PICTURES_AND_SHAPES):
        value = getattr(model, name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            fields[name] = value
    for name in _names(model.opt):
        value = getattr(model.opt, name)
        if isinstance(value, np.ndarray | int | float):
            fields[_OPTIONS + name] = np.asarray(value)
    return fields


def model_changes(model: Any, made: Iterable[Pristine]) -> Fields:
    """Arrays of a model that are not as they were made; all of them where that is not known."""
    before = next((p.fields for p in made if p.model is model), {})
    return {
        name: np.array(field)
        for name, field in _model_fields(model).items()
        if name not in before or not _equal(field, before[name])
    }


def set_model(model: Any, changed: Mapping[str, Any], made: Iterable[Pristine], path: str) -> None:
    """Give a model the numbers that `model_changes` gave, and its first ones elsewhere.

    Raises:
        EnvError: The changes are of another model.
    """
    if not is_model(model):
        raise EnvError(f"{path} is no MuJoCo model here")
    fields = _model_fields(model)
    before = next((p.fields for p in made if p.model is model), {})
    for name, value in {**before, **changed}.items():
        value = np.asarray(value)
        if name not in fields or fields[name].shape != value.shape or fields[name].dtype != value.dtype:
            raise EnvError(f"the state is of another MuJoCo model than {path}: {name} does not fit")
        if not name.startswith(_OPTIONS):
            fields[name][...] = value
        elif fields[name].ndim:
            getattr(model.opt, name.removeprefix(_OPTIONS))[...] = value
        elif not _equal(fields[name], value):
            setattr(model.opt, name.removeprefix(_OPTIONS), value.item())


def _computed(data: Any) -> list[tuple[str, NDArray[Any]]]:
    """What a simulation has computed: float64 arrays whose size the model decides."""
    found = []
    for name in _names(data, _SIZED_BY_CONTACTS):
        value = getattr(data, name)
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            found.append((name, value))
    return found


def _layout(fields: Sequence[tuple[str, NDArray[Any]]]) -> int:
    return zlib.crc32(repr([(name, field.shape) for name, field in fields]).encode())


def data_state(data: Any) -> dict[str, Any]:
    """A simulation's state and what it has computed."""
    mujoco = sys.modules["mujoco"]
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(data.model, spec))
    mujoco.mj_getState(data.model, data, state, spec)
    fields = _computed(data)
    return {
        "mujoco": mujoco.__version__,
        "layout": _layout(fields),
        "state": state,
        "computed": np.concatenate([field.ravel() for _, field in fields]),
    }


def set_data(data: Any, node: Mapping[str, Any], path: str) -> None:
    """Bring a simulation into a state that `data_state` gave.

    Raises:
        EnvError: The state is of another model or of another version of MuJoCo.
    """
    if not is_data(data):
        raise EnvError(f"{path} is no MuJoCo simulation here")
    mujoco = sys.modules["mujoco"]
    if node["mujoco"] != mujoco.__version__:
        raise EnvError(
            f"the state was kept with MuJoCo {node['mujoco']}, here is {mujoco.__version__}, which computes other "
            f"numbers; install mujoco=={node['mujoco']}"
        )
    spec = mujoco.mjtState.mjSTATE_INTEGRATION
    state, computed = np.asarray(node["state"], dtype=np.float64), np.asarray(node["computed"], dtype=np.float64)
    fields = _computed(data)
    sizes = [field.size for _, field in fields]
    fits = state.shape == (mujoco.mj_stateSize(data.model, spec),) and computed.shape == (sum(sizes),)
    if not fits or node["layout"] != _layout(fields):
        raise EnvError(f"the state is of another MuJoCo model than {path}")
    mujoco.mj_setState(data.model, data, state, spec)
    mujoco.mj_forward(data.model, data)  # contacts
    for (_, field), part in zip(fields, np.split(computed, np.cumsum(sizes)[:-1]), strict=True):
        field[...] = part.reshape(field.shape)
    mujoco.mj_setState(data.model, data, state, spec)
