"""What PyTorch's pickles are made of: tensors that refer to storages, parameters, plain dicts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from xtra_jax.interop.unpickle import BadPickle, Global, as_key

_MAX_KEY = 200  # characters of a storage's name, which PyTorch counts or takes from an address


@dataclasses.dataclass(eq=False)
class Storage:
    """The numbers of one or several tensors, in an entry of their own.

    Attributes:
        kind: name of PyTorch's class, such as "FloatStorage".
        key: names the entry.
        numel: how many numbers it should hold.
    """

    kind: str
    key: str
    numel: int


@dataclasses.dataclass(eq=False)
class TensorRef:
    """Where a tensor's numbers lie in a storage. Offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str = ""  # for storages without one of their own


def storage_of(pid: Any) -> Storage:
    """The storage that a persistent id ("storage", class, key, device, numel, ...) stands for."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
        raise BadPickle("a persistent id that is no storage")
    kind, key, numel = pid[1], pid[2], pid[4]
    if not (isinstance(kind, Global) and kind.module.split(".")[0] == "torch"):
        raise BadPickle("a storage of no class of PyTorch's")
    if not isinstance(key, str | int) or not _is_size(numel):
        raise BadPickle("a storage without key or size")
    key = str(key)
    if len(key) > _MAX_KEY:
        raise BadPickle("a storage with a name that is too long")
    return Storage(kind.name, key, numel)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _tensor(storage, offset, shape, stride, *_, dtype: str = "") -> TensorRef:
    sizes_are_right = (
        isinstance(storage, Storage)
        and isinstance(shape, tuple)
        and isinstance(stride, tuple)
        and len(shape) == len(stride) <= 8
        and all(map(_is_size, (offset, *shape, *stride)))
    )
    if not sizes_are_right:
        raise BadPickle("a tensor without storage, shape or strides")
    # Of no numbers at all, it could still have axes that no array can have.
    if math.prod(max(size, 1) for size in shape) >= 2**48:
        raise BadPickle(f"a tensor of the huge shape {list(shape)}")
    return TensorRef(storage, offset, shape, stride, dtype)


def _tensor_of_dtype(storage, offset, shape, stride, grad, hooks, dtype, *_) -> TensorRef:
    return _tensor(storage, offset, shape, stride, dtype=getattr(dtype, "name", "?"))


def _parameter(data, *_):
    return data


def _with_attributes(of, _, arguments, *__):
    """A tensor of a subclass, or with attributes of its own: the tensor."""
    if str(of) != "torch._utils._rebuild_tensor_v2":
        raise BadPickle(f"a tensor made by {of if isinstance(of, Global) else 'what is no name'}")
    if not isinstance(arguments, tuple) or len(arguments) > 16:
        raise BadPickle("a tensor made of too much")
    return _tensor(*arguments)


def _ordered(pairs=(), *_) -> dict:
    return {as_key(key): value for key, value in pairs}


TABLE: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.Size": lambda sizes=(): sizes,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
}
