"""What a pickle holds beside its weights, in a few words; every object is looked at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from xtra_jax.interop.torch_objects import TensorRef
from xtra_jax.interop.unpickle import Record

MAX_TOLD = 24  # entries that are named, and the others counted
_MAX_KEY = 80  # characters of a key that are shown

_Holder = dict | list | tuple | Record


def tensors_in(value: Any, walked: set[int] | None = None) -> Iterator[TensorRef]:
    """Every tensor in what was unpickled, each once; without recursion, however deep it nests.

    Args:
        walked: ids of containers that were looked through before and are passed over; grows.
    """
    walked = set() if walked is None else walked
    waiting, found = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, TensorRef):
            if id(item) not in found:
                found.add(id(item))
                yield item
        elif isinstance(item, _Holder) and id(item) not in walked:
            walked.add(id(item))
            waiting.extend(_parts(item))


def told(top: dict, state: dict, where: str) -> tuple[str, ...]:
    """What isn't read of a file: a few words for each key, at most `MAX_TOLD` of them.

    Args:
        top: the whole that was unpickled.
        state: the dict in it whose tensors are read.
        where: its key; "" where it is `top` itself.

    Returns:
        All that lies beside the state dict; and in it, whatever holds tensors and isn't one. Where
        two keys hold the same container, its tensors count for the first.
    """
    words, more = [], 0
    walked, with_tensors = set(), set()
    for name, value, always in _unread(top, state, where):
        count = sum(1 for _ in tensors_in(value, walked))
        if count:
            with_tensors.add(id(value))
        if not always and id(value) not in with_tensors:
            continue
        if len(words) == MAX_TOLD:
            more += 1
        else:
            words.append(f"{name} ({count} tensor{'s' * (count > 1)})" if count else name)
    return (*words, f"and {more} more") if more else tuple(words)


def _unread(top: dict, state: dict, where: str) -> Iterable[tuple[str, Any, bool]]:
    """Name, value, and whether it is told even if it holds no tensors."""
    if where:
        for key, value in top.items():
            if key != where:
                yield _shown(key), value, True
    for key, value in state.items():
        if not isinstance(key, str):
            yield f"{where}[{_shown(key)}]", value, not where
        elif not isinstance(value, TensorRef | Record):
            yield f"{where}.{_shown(key)}" if where else _shown(key), value, not where


def _shown(key: Any) -> str:
    if isinstance(key, str):
        return "".join(c if c.isprintable() else "?" for c in key[:_MAX_KEY])
    return str(key) if isinstance(key, int) else type(key).__name__


def _parts(item: _Holder) -> list:
    if isinstance(item, Record):
        pairs = [part for pair in item.entries for part in pair]
        return [*item.arguments, item.state, *item.values, *pairs]
    return list(item.values()) if isinstance(item, dict) else list(item)
