"""The pickle machine builds plain values, and nothing that a pickle names is imported or called."""

import io
import os
import pickle
import pickletools
import sys
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import pytest

from xtra_jax.interop import unpickle as machine
from xtra_jax.interop.torch_objects import TABLE, storage_of
from xtra_jax.interop.unpickle import BadPickle, Global, Record, unpickle


def read(data: bytes):
    return unpickle(io.BytesIO(data), TABLE, storage_of)


class Calls:
    """Pickles to a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


PLAIN = [
    {"a": 1, "b": [2.5, None, True, False], "c": ("x", b"y", (), (1,), (1, 2), (1, 2, 3, 4))},
    {"long": 2**70, "negative": -(2**40), "text": "é\n" * 300, 3: 4, -1.5: None, (): 0},
    [bytearray(b"z"), {}, [], "", [[[]]]],
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", PLAIN[:1] + PLAIN[2:], ids=["dict", "list"])
def test_plain_values_come_out_as_python_reads_them(value, protocol):
    if protocol < 5 and isinstance(value, list):
        value = value[1:]  # older protocols make a bytearray by calling its class
    if protocol < 3 and isinstance(value, dict):
        value = value | {"c": None}  # and bytes by calling an encoder
    assert read(pickle.dumps(value, protocol)) == value


def test_numbers_and_texts_of_every_size():
    value = PLAIN[1] | {(): None}
    read_back = read(pickle.dumps(value, 4))
    assert {k: v for k, v in read_back.items() if not isinstance(k, Record)} == {
        k: v for k, v in value.items() if k != ()
    }


def test_an_object_used_twice_is_one_object():
    shared = [1]
    first, second = read(pickle.dumps((shared, shared)))
    assert first is second


def test_an_ordered_dict_is_a_dict():
    value = OrderedDict(b=1, a=2)
    value.extra = "kept elsewhere"
    for protocol in (2, 4):
        assert read(pickle.dumps(value, protocol)) == {"b": 1, "a": 2}


def test_objects_of_unknown_classes_are_records_of_what_they_were_made_of():
    path = read(pickle.dumps({"path": Path("/a"), "seen": {1, 2}}))
    assert str(path["path"].of).endswith("Path") and path["path"].arguments
    assert path["seen"].of == Global("builtins", "set")


def test_a_class_of_another_package_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "elsewhere_package.py").write_text("open('imported', 'w')\nclass Thing: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    data = b"celsewhere_package\nThing\n)\x81}X\x01\x00\x00\x00aK\x01sb."
    thing = read(data)
    assert isinstance(thing, Record) and thing.state == {"a": 1}
    assert "elsewhere_package" not in sys.modules and not (tmp_path / "imported").exists()
    pickle.loads(data)
    assert (tmp_path / "imported").exists()  # so the file would have been there


HOSTILE = {
    "os.system": Calls(os.system, "touch ran"),
    "eval": Calls(eval, "open('ran', 'w')"),
    "exec": Calls(exec, "open('ran', 'w')"),
    "import": Calls(__import__, "antigravity"),
    "open": Calls(open, "ran", "w"),
    "getattr": Calls(getattr, "x", "upper"),
    "inside of a list": [1, {"a": Calls(os.system, "touch ran")}],
    "an argument of another call": Calls(Fraction, Calls(os.system, "touch ran")),
    "the standard library": Calls(Fraction, 1, 2),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("what", HOSTILE)
def test_calls_are_refused_and_not_made(what, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadPickle, match="which no weights need"):
        read(pickle.dumps(HOSTILE[what], protocol))
    assert not list(tmp_path.iterdir())


BY_HAND = {
    "a reducer's result is called": b"cevil\nmake\n)R)R.",
    "a record is made anew": b"cevil\nmake\n)R)\x81.",
    "an instance by name": b"(S'touch ran'\nios\nsystem\n.",
    "an instance of what is no name": b"(S'os'\nS'touch ran'\no.",
    "a name put together": b"\x80\x04X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.",
    "a name of numbers": b"\x80\x04K\x01K\x02\x93.",
    "posix": b"cposix\nsystem\n.",
    "Python 2": b"c__builtin__\neval\n.",
    "a module of the standard library's": b"cimportlib.util\nfind_spec\n.",
    "the registry of extensions": b"\x80\x02\x82\x01.",
    "a buffer out of the pickle": b"\x80\x05\x97.",
    "a call without arguments": b"cevil\nmake\nNR.",
    "a persistent id that is no storage": b"X\x01\x00\x00\x00aQ.",
    "a tensor of nothing": b"ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    "a tensor of numbers": b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00)))tR.",
    "a tensor of another's making": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cevil\nmake\nN)NtR."
    ),
    "an empty stack": b"R.",
    "no mark": b"t.",
    "a memo that is empty": b"h\x07.",
    "a key without a value": b"(K\x01d.",
    "items of a number": b"K\x01K\x02K\x03s.",
    "no end": b"]",
    "nothing": b"",
    "no instruction": b"\xff.",
    "a text that goes on": b"X\xff\xff\xff\x7fabc.",
    "bytes that go on": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "a call with many arguments": b"ccollections\nOrderedDict\n(" + b")" * 17 + b"tR.",
    "a long name": b"c" + b"m" * 1001 + b"\nmake\n.",
    "a memo of a huge number": b"]p99999999999\n.",
    "a storage with a long name": (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\xff\x00\x00\x00"
        + b"k" * 255
        + b"NK\x01tQ."
    ),
    "a tensor of another's making of a list": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nN]NtR."
    ),
    "a number without end": b"L" + b"9" * 100_000 + b"L\n.",
}


@pytest.mark.parametrize("what", BY_HAND)
def test_what_is_no_checkpoint_is_one_error(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadPickle) as raised:
        read(BY_HAND[what])
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_no_instruction_is_forgotten():
    handled = machine._PUSHES | machine._IGNORED | set(machine._CONSTANTS) | {"STOP"}
    refused = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
    names = {opcode.name for opcode in pickletools.opcodes}
    methods = {n for n in names if hasattr(machine._Machine, f"_{n.lower()}")}
    assert methods | handled == names - refused and not methods & handled


def test_the_number_of_instructions_is_bounded(monkeypatch):
    monkeypatch.setattr(machine, "MAX_INSTRUCTIONS", 1000)
    assert read(b"]" + b"0]" * 400 + b".") == []
    with pytest.raises(BadPickle, match="more than 1,000 instructions"):
        read(b"]" * 1001 + b".")


def test_what_is_put_into_containers_again_and_again_is_bounded(monkeypatch):
    monkeypatch.setattr(machine, "MAX_ITEMS", 1000)
    pairs = b"](" + b"".join(b"K" + bytes([i]) + b"N\x86" for i in range(100)) + b"e\x85q\x00"
    ordered = b"0ccollections\nOrderedDict\nq\x01("
    assert len(read(pairs + ordered + b"h\x01h\x00R" * 8 + b"t.")) == 8
    with pytest.raises(BadPickle, match="more than 1,000 items"):
        read(pairs + ordered + b"h\x01h\x00R" * 10 + b"t.")
    for more in (
        b"](" + b"N" * 1001 + b"e.",
        b"}(" + b"K\x01N" * 501 + b"u.",
        b"(" + b"N" * 1002 + b"d.",
    ):
        with pytest.raises(BadPickle, match="more than 1,000 items"):
            read(more)


def test_nesting_of_any_depth_is_read_without_recursion():
    deep = read(b"]" + b"]" * 200_000 + b"a" * 200_000 + b".")
    for _ in range(200_000):
        (deep,) = deep
    assert deep == []


def test_a_deep_key_is_never_hashed():
    tuples = b"}" + b")" + b"\x85" * 200_000 + b"K\x01s."
    (key,) = read(tuples)
    assert isinstance(key, Record)


def test_a_pickle_that_holds_itself_is_read():
    itself = read(b"]q\x00h\x00a.")
    assert itself[0] is itself
