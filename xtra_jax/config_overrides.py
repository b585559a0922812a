"""Overrides of a config from the command line: `--config.model.block_size=2`.

ml_collections' own `config_flags` is not used: it defines its flags from `sys.argv` when a command
starts, reports an unknown key as an unknown flag, and a wrong type as a traceback. Here overrides
are a pure function of the arguments, and every mistake is one sentence.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from xtra_jax.errors import UserError

_OVERRIDE = re.compile(r"--?config\.([^=]+)(?:=(.*))?", re.DOTALL)
CUTOFF = 0.6  # of likeness, from 0 to 1, for two spellings to be taken for the same word


def split_overrides(argv: Iterable[str]) -> tuple[dict[str, str | None], list[str]]:
    """Takes `--config.a.b=value` and `--config.a.b value` out of command line arguments.

    Of several for the same key the last one wins. A key that no value follows maps to None, which
    switches on what is true or false.

    Returns:
        The overrides, and the arguments that are left, in order.
    """
    overrides, rest = {}, []
    arguments = iter(argv)
    argument = next(arguments, None)
    while argument is not None:
        following = next(arguments, None)
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            rest.append(argument)
        else:
            key, value = match.groups()
            if value is None and following is not None and not following.startswith("--"):
                value, following = following, next(arguments, None)
            overrides[key] = value
        argument = following
    return overrides, rest


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Changes one value.

    Args:
        config: changed in place.
        key: dotted, such as "model.block_size".
        value: text as on the command line, None for a flag without a value, or the value itself.

    Raises:
        UserError: there is no such key, or the value is not of the type of the present one.
    """
    known = flatten(config)
    if key not in known:
        inside = [other for other in known if other.startswith(f"{key}.")]
        if inside:
            raise UserError(f"config.{key} is a group of keys, not one: {', '.join(inside)}")
        raise unknown_key(key, known)
    config.update_from_flattened_dict({key: _parse(key, value, known[key])})


def flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by their dotted keys."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_types(given: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Checks flat values against flat values of the right types; a whole number is a number too."""
    for key, value in given.items():
        kinds = {float: (float, int), tuple: (tuple, list)}.get(type(expected[key]))
        if type(value) not in (kinds or (type(expected[key]),)):
            raise UserError(
                f"{where}: {key} must be {_TYPES[type(expected[key])][0]}, and not {value!r}"
            )


def unknown_key(key: str, known: Collection[str], where: str = "") -> UserError:
    """The error that names the key probably meant: one spelt alike, in the same group or not."""
    group, _, word = key.rpartition(".")

    def likeness(other: str) -> float:
        other_group, _, other_word = other.rpartition(".")
        spelling = difflib.SequenceMatcher(None, word, other_word).ratio()
        return spelling + (0.1 if group == other_group else 0.0)

    best = max(map(likeness, known))
    if best >= CUTOFF:
        meant = [other for other in known if likeness(other) == best]
        return UserError(f"unknown config key {key!r}{where}{did_you_mean(meant)}")
    siblings = [other for other in known if other.rpartition(".")[0] == group]
    listed = siblings or sorted({other.split(".")[0] for other in known})
    return UserError(f"unknown config key {key!r}{where}: there are {', '.join(listed)}")


def closest(word: str, options: Iterable[str]) -> list[str]:
    """Up to three options spelt most like a word, best first; none if none is similar."""
    return difflib.get_close_matches(word, list(options), n=3, cutoff=CUTOFF)


def did_you_mean(options: list[str]) -> str:
    """The end of a sentence about something that does not exist."""
    return f": did you mean {' or '.join(options)}?" if options else ""


def as_text(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple | list):
        return ",".join(map(as_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse(key: str, value: Any, current: Any) -> Any:
    """The value as the type that the key has now."""
    if value is None and isinstance(current, bool):
        return True
    expected, example, parse = _TYPES[type(current)]
    example = f"--config.{key}={as_text(current) or example}"
    if value is None:
        raise UserError(f"--config.{key} needs a value, as in {example}")
    text = as_text(value).strip()
    try:
        return _elements(text, current) if isinstance(current, tuple) else parse(text)
    except ValueError:
        raise UserError(f"--config.{key}={text} should be {expected}, as in {example}") from None


def _boolean(text: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _elements(text: str, current: tuple) -> tuple:
    """A list like the present one: of numbers, of whole numbers, or of true and false."""
    bracketed = text[:1] + text[-1:] in ("()", "[]")
    parts = (text[1:-1] if bracketed else text).rstrip(", ")
    kind = type(current[0]) if current else float
    parse = _boolean if kind is bool else _number
    values = tuple(parse(part.strip()) for part in parts.split(",")) if parts else ()
    if kind is int:
        values = tuple(int(value) if value == int(value) else value for value in values)
    return values


_TYPES: dict[type, tuple[str, str, Callable[[str], Any]]] = {
    bool: ("true or false", "true", _boolean),
    int: ("a whole number", "1", int),
    float: ("a number", "0.5", _number),
    str: ("text", "text", str),
    tuple: ("a list of numbers (or of true and false) with commas between them", "0.5,1.0", tuple),
}
