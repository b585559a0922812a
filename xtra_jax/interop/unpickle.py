"""Reads the pickles inside of PyTorch's files, and runs nothing that they name.

A pickle is a program for a small stack machine. Python's own machine imports what the program names
and calls it; a file that anyone may have written can so run anything. The machine here has the same
instructions, but a name stays a `Global`: two strings. Calling one gives what a short table says
(see `xtra_jax.interop.torch_objects`) or else a `Record`, an inert note of what would have been
called. Names of the standard library that no weights need are refused on sight.

What a file can cost is bounded too: the length of a pickle, the number of its instructions, the
number of items put into containers, and so the memory that its objects take. No function here
recurses into what it reads.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

MAX_BYTES = 16 << 20  # of a pickle; that of a checkpoint with optimizer state has some 0.2 MB
MAX_INSTRUCTIONS = 2_000_000  # seconds, and below 1 GB even if each one makes an object
MAX_ITEMS = 2_000_000  # put into containers: one list can be named, and copied, again and again
_MAX_ARGUMENTS = 16  # of what the table calls
_MAX_NAME = 1000  # characters of a module, a class or a key; longer ones are slow to compare

# Of the standard library, these may be named; whatever else is, no weights need.
_HARMLESS = {
    "builtins": {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list"),
        *("object", "range", "set", "slice", "str", "tuple"),
    },
    "collections": {"OrderedDict", "defaultdict", "deque", "Counter"},
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "copyreg": {"_reconstructor"},
    "functools": {"partial"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "uuid": {"UUID", "SafeUUID"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "typing": {"Any", "Dict", "List", "Optional", "Tuple", "Union"},
    "_codecs": {"encode"},  # how protocol 2 writes bytes
}
_HARMLESS["pathlib._local"] = _HARMLESS["pathlib"]
_HARMLESS["__builtin__"] = _HARMLESS["builtins"] | {"unicode", "long"}
_HARMLESS["copy_reg"] = _HARMLESS["copyreg"]
_STANDARD = sys.stdlib_module_names | {"__builtin__", "copy_reg", "nt", "posix", "commands"}


Table = Mapping[str, Callable[..., Any]]


class BadPickle(ValueError):
    """A pickle that is damaged, too large, or no checkpoint's."""


class Refused(BadPickle):
    """A pickle that asks for what no weights need; nothing of it was done."""


@dataclasses.dataclass(frozen=True)
class Global:
    """The name of a function or class; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module[:80]}.{self.name[:80]}"


class Record:
    """An object that was not built: what would have been called, with what.

    Attributes:
        of: what would have made it; None where that is no name.
        arguments: of that call.
        state: what would have been put into the object.
        values, entries: what would have been appended to it, or set in it by key.
    """

    __slots__ = ("arguments", "entries", "of", "state", "values")

    def __init__(self, of: Global | None, arguments: tuple = ()):
        self.of = of
        self.arguments = arguments
        self.state = None
        self.values: list = []
        self.entries: list[tuple[Any, Any]] = []


def unpickle(stream: io.BytesIO, table: Table, persistent: Callable[[Any], Any]) -> Any:
    """Reads one pickle and leaves the stream behind it.

    Args:
        stream: the whole pickle in memory.
        table: "module.name" to what calling it gives. Its functions get what the pickle says, so
            they must stand anything; whatever TypeError or ValueError they raise is the pickle's.
        persistent: makes what a persistent id stands for.

    Returns:
        Dicts, lists, tuples, numbers, strings, `Global`, `Record`, and what table and `persistent`
        make. Sets are records; so is what cannot be a key where it is used as one.

    Raises:
        BadPickle: see there.
    """
    try:
        return _Machine(table, persistent).run(stream)
    except BadPickle:
        raise
    except (IndexError, EOFError):
        raise BadPickle("it ends too early or takes what is not there") from None
    except (ValueError, TypeError, struct.error, OverflowError, AttributeError, KeyError) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise BadPickle(f"{type(error).__name__}: {reason}") from None


class _Machine:
    """The stack machine; one method per instruction that does more than push its argument."""

    def __init__(self, table: Table, persistent: Callable[[Any], Any]):
        self._table = table
        self._persistent = persistent
        self._stack: list = []
        self._below: list[list] = []  # what lies under each mark
        self._memo: dict[int, Any] = {}
        self._items = 0

    def run(self, stream: io.BytesIO) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_INSTRUCTIONS:
                raise BadPickle(f"more than {MAX_INSTRUCTIONS:,} instructions")
            name = opcode.name
            if name in _PUSHES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name == "STOP":
                return self._stack.pop()
            elif name not in _IGNORED:
                run = getattr(self, f"_{name.lower()}", None)
                if run is None:
                    raise Refused(f"has the instruction {name}, which no weights need")
                run(argument)
        raise BadPickle("it has no end")

    def _charge(self, count: int) -> None:
        """Counts items that are put into a container, before they are."""
        self._items += count
        if self._items > MAX_ITEMS:
            raise BadPickle(f"more than {MAX_ITEMS:,} items")

    def _to_mark(self) -> list:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _mark(self, _):
        self._below.append(self._stack)
        self._stack = []

    def _pop(self, _):
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _pop_mark(self, _):
        self._to_mark()

    def _dup(self, _):
        self._stack.append(self._stack[-1])

    # Containers.

    def _empty_list(self, _):
        self._stack.append([])

    def _empty_dict(self, _):
        self._stack.append({})

    def _empty_set(self, _):
        self._stack.append(Record(Global("builtins", "set")))

    def _list(self, _):
        items = self._to_mark()
        self._stack.append(items)

    def _tuple(self, _):
        items = self._to_mark()
        self._stack.append(tuple(items))

    def _tuple1(self, _):
        self._last_as_tuple(1)

    def _tuple2(self, _):
        self._last_as_tuple(2)

    def _tuple3(self, _):
        self._last_as_tuple(3)

    def _last_as_tuple(self, count: int):
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _dict(self, _):
        made: dict = {}
        items = self._to_mark()
        self._charge(len(items))
        _set_items(made, items)
        self._stack.append(made)

    def _frozenset(self, _):
        made = Record(Global("builtins", "frozenset"))
        made.values = self._to_mark()
        self._stack.append(made)

    def _append(self, _):
        item = self._stack.pop()
        self._charge(1)
        _extend(self._stack[-1], [item])

    def _appends(self, _):
        items = self._to_mark()
        self._charge(len(items))
        _extend(self._stack[-1], items)

    _additems = _appends

    def _setitem(self, _):
        value = self._stack.pop()
        key = self._stack.pop()
        self._charge(1)
        _set_items(self._stack[-1], [key, value])

    def _setitems(self, _):
        items = self._to_mark()
        self._charge(len(items))
        _set_items(self._stack[-1], items)

    # The memo, through which an object is used several times.

    def _get(self, index):
        self._stack.append(self._memo[index])

    _binget = _long_binget = _get

    def _put(self, index):
        if not 0 <= index < 2**32:  # numbers of any size could be made to collide
            raise BadPickle("a memo of a number that is too large")
        self._memo[index] = self._stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _):
        self._memo[len(self._memo)] = self._stack[-1]

    # Names, and what would call them.

    def _global(self, names):
        module, _, name = names.partition(" ")
        self._stack.append(_named(module, name))

    def _stack_global(self, _):
        name = self._stack.pop()
        module = self._stack.pop()
        self._stack.append(_named(module, name))

    def _call(self, of: Any, arguments: Any) -> Any:
        if not isinstance(of, Global):
            raise Refused("calls what is not a name")
        if not isinstance(arguments, tuple):
            raise Refused(f"calls {of} without arguments")
        build = self._table.get(str(of))
        if build is None:
            return Record(of, arguments)
        if len(arguments) > _MAX_ARGUMENTS:
            raise BadPickle(f"a call of {of} with {len(arguments):,} arguments")
        self._charge(sum(len(a) for a in arguments if isinstance(a, list | tuple | dict)))
        return build(*arguments)

    def _reduce(self, _):
        arguments = self._stack.pop()
        self._stack[-1] = self._call(self._stack[-1], arguments)

    _newobj = _reduce

    def _newobj_ex(self, _):
        self._stack.pop()  # arguments by name, which nothing in the table takes
        self._reduce(None)

    def _inst(self, names):
        module, _, name = names.partition(" ")
        arguments = tuple(self._to_mark())
        self._stack.append(self._call(_named(module, name), arguments))

    def _obj(self, _):
        of, *arguments = self._to_mark()
        self._stack.append(self._call(of, tuple(arguments)))

    def _build(self, _):
        state = self._stack.pop()
        made = self._stack[-1]
        if isinstance(made, Record):  # what a state dict carries beside its items is not needed
            made.state = state

    def _binpersid(self, _):
        self._stack[-1] = self._persistent(self._stack[-1])

    def _persid(self, pid):
        self._stack.append(self._persistent(pid))


_IGNORED = {"PROTO", "FRAME"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PUSHES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def _named(module: Any, name: Any) -> Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise BadPickle("a name that is no text")
    if max(len(module), len(name)) > _MAX_NAME:
        raise BadPickle("a name that is too long")
    if module.split(".")[0] in _STANDARD and name not in _HARMLESS.get(module, ()):
        raise Refused(f"names {module[:80]}.{name[:80]}, which no weights need")
    return Global(module, name)


def _extend(target: Any, items: list) -> None:
    if isinstance(target, Record):
        target.values.extend(items)
    elif isinstance(target, list):
        target.extend(items)
    else:
        raise BadPickle("it appends to what is no list")


def _set_items(target: Any, items: list) -> None:
    if len(items) % 2:
        raise BadPickle("a key without a value")
    pairs = list(zip(items[::2], items[1::2], strict=True))
    if isinstance(target, Record):
        target.entries.extend(pairs)
    elif isinstance(target, dict):
        target.update((as_key(key), value) for key, value in pairs)
    else:
        raise BadPickle("it sets items of what is no dict")


def as_key(key: Any) -> Any:
    """A key that is quick to hash and compare and can't be made to collide; others are records."""
    if key is None or isinstance(key, float | Global):
        return key
    if isinstance(key, str | bytes) and len(key) <= _MAX_NAME:
        return key
    if isinstance(key, int) and -(2**63) <= key < 2**63:
        return key
    return Record(None, (key,))
