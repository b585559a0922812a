"""From a file of weights to parameters of ours.

Every tensor of the file is used or named as left out, every parameter of ours is filled or named as
missing; anything else is an error. Values are those of the file: bfloat16 and float16 widen to
float32 exactly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from xtra_jax.config import model_spec
from xtra_jax.errors import UserError
from xtra_jax.interop import ours
from xtra_jax.interop.containers import Tensors, read_tensors
from xtra_jax.interop.imported import Imported, Report
from xtra_jax.interop.infer import Sizes, make_config, read_sizes
from xtra_jax.interop.layouts import (
    Named,
    class_rows,
    named,
    our_path,
    sincos_positions,
    zero_biases,
)
from xtra_jax.interop.probes import (
    PUBLISHED_HEADS,
    PUBLISHED_LAYERS,
    Probe,
    make_probe,
    probe_names,
)
from xtra_jax.interop.published import (
    parameter_shapes,
    published_names,
    published_shapes,
    tensor_from_published,
)
from xtra_jax.model.variants import XTRASpec

_PROBE = "classifier."
_ALIGNMENT = 64
_PARTS = {"enc": "encoder", "proj": "projection", "predictor": "predictor", "aim_proj": "heads"}


def import_weights(
    path: os.PathLike | str,
    config: ConfigDict | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    leave_out: Iterable[str] = (),
    probe_heads: int = PUBLISHED_HEADS,
    probe_layers: int = PUBLISHED_LAYERS,
) -> Imported:
    """Reads a file of weights into our layout. Nothing that the file names is run.

    Args:
        path: see `read_tensors`.
        config: a pretraining config, loaded or as the command line names it, to hold the tensors
            against; by default what they say.
        overrides: of the config: dotted keys with their values.
        leave_out: patterns (`head.*`) of names in the file to pass over.
        probe_heads, probe_layers: of an attentive probe in the file.

    Raises:
        UserError: the file can't be read, or isn't this architecture: the first tensor that does
            not fit is named with its shapes.
    """
    tensors = read_tensors(path)
    try:
        return _Import(tensors, tuple(leave_out), (probe_heads, probe_layers)).run(
            config, dict(overrides or {})
        )
    except UserError as error:
        said = str(error)
        raise UserError(said if os.fspath(path) in said else f"{path}: {said}") from error
    except MemoryError as error:
        raise UserError(f"{path}: there is not enough memory for its weights") from error


class _Import:
    """One import: what is known of the file, and the report as it grows."""

    def __init__(self, tensors: Tensors, leave_out: tuple[str, ...], probe: tuple[int, int]):
        self.tensors = tensors
        self.probe = probe
        chosen, passed = [], []
        for name in (*tensors, *tensors.unreadable):
            matches = any(fnmatchcase(name, pattern) for pattern in leave_out)
            (passed if matches else chosen).append(name)
        self.named: Named = named(chosen)
        self.report = Report(
            os.fspath(tensors.path),
            tensors.container,
            self.named.layout,
            elsewhere=tensors.elsewhere,
            metadata=_few(tensors.metadata),
        )
        if passed:
            self.report.left_out["as asked for"] = passed
        for name, reason in self.named.left_out.items():
            self.report.left_out.setdefault(reason, []).append(name)

    def run(self, config: ConfigDict | str | None, overrides: dict[str, Any]) -> Imported:
        self._refuse_unknown()
        sources = {k: v for k, v in self.named.sources.items() if not k.startswith(_PROBE)}
        probe = {k: v for k, v in self.named.sources.items() if k.startswith(_PROBE)}
        whole = self._is_whole(sources)
        if not whole:
            sources = {k: v for k, v in sources.items() if k.startswith("enc.")}
        sizes = self._sizes(sources, whole)
        config = make_config(
            sizes,
            given=config,
            overrides=overrides,
            heads=self._heads(),
            carried=self.tensors.metadata.get("config", ""),
            whole=whole,
        )
        spec = model_spec(config)
        self.report.notes += _still_assumed(sizes, config, spec)
        params = self._params(sources, spec, whole)
        return Imported(params, config, self._probe(probe, spec), self.report)

    def _shape(self, name: str) -> tuple[int, ...]:
        if name in self.tensors.unreadable:
            raise UserError(f"{name} cannot be read: {self.tensors.unreadable[name]}")
        return self.tensors.sources[name].shape

    def _refuse_unknown(self) -> None:
        if self.named.unknown:
            name = self.named.unknown[0]
            more = len(self.named.unknown) - 1
            shape = self.tensors.sources.get(name)
            of = f" of shape {list(shape.shape)}" if shape else ""
            hint = "AIM's norm after the patches is one" if "patchifier.norm" in name else ""
            raise UserError(
                f"{name}{of}{f' and {more} more' if more else ''} "
                f"{'have' if more else 'has'} no place in this architecture"
                f"{f' ({hint})' if hint else ''}: if the model is the same without, leave it out "
                f"with --leave_out '{name}'"
            )

    def _is_whole(self, sources: Mapping[str, str]) -> bool:
        """Whether all parts of the model are there; where some are, they are left out and named."""
        there = {part for part in _PARTS if any(name.startswith(f"{part}.") for name in sources)}
        if "enc" not in there:
            raise UserError("it holds no encoder (enc.*), which everything needs")
        if there == set(_PARTS):
            return True
        lacking = [_PARTS[part] for part in _PARTS if part not in there]
        self.report.missing += lacking
        for part in sorted(there - {"enc"}):
            names = [file for name, file in sources.items() if name.startswith(f"{part}.")]
            reason = f"of no use without the {' and the '.join(lacking)}"
            self.report.left_out.setdefault(reason, []).extend(names)
        return False

    def _sizes(self, sources: Mapping[str, str], whole: bool) -> Sizes:
        shapes = {name: self._shape(file) for name, file in sources.items()}
        if self.named.layout == "xtra_jax":
            shapes = {
                name: ours.published_shape(our_path(file), shape)
                for (name, shape), file in zip(shapes.items(), sources.values(), strict=True)
            }
        self.class_token = any(name.endswith("cls_token") for name in self.named.left_out)
        return read_sizes(
            shapes,
            sources,
            layout=self.named.layout,
            whole=whole,
            class_token=self.class_token,
        )

    def _heads(self) -> dict[str, int]:
        if self.named.layout != "xtra_jax":
            return {}
        return ours.head_counts({our_path(name): self._shape(name) for name in self.tensors})

    def _params(self, sources: Mapping[str, str], spec: XTRASpec, whole: bool) -> dict:
        self._check_total(sources.values())
        shapes = published_shapes(spec)
        if not whole:
            shapes = {name: shape for name, shape in shapes.items() if name.startswith("enc.")}
        zeros = zero_biases(self.named.layout, shapes, sources)
        fixed = {"enc.pos_embed"} - set(sources) if self.named.layout == "aim" else set()
        for name in shapes:
            if name not in sources and name not in zeros | fixed:
                raise UserError(f"it lacks {name} of shape {list(shapes[name])}")
        for name, file in sources.items():
            if name not in shapes:
                raise UserError(f"{file} of shape {list(self._shape(file))} has no place in it")
        self._note(zeros, fixed)

        paths = {published: path for path, published in published_names(spec).items()}
        targets = parameter_shapes(spec)
        flat = {}
        for name, shape in shapes.items():
            path = paths[name]
            if name in zeros:
                flat[path] = np.zeros(targets[path], np.float32)
            elif name in fixed:
                table = sincos_positions(spec.grid.tokens_per_side, spec.encoder.width)
                flat[path] = table[0]
            else:
                flat[path] = self._one(name, sources[name], path, shape, targets[path], spec)
        self.report.used += len(sources)
        return unflatten_dict(flat, sep="/")

    def _one(self, name, file, path, shape, target, spec: XTRASpec) -> np.ndarray:
        """One parameter: float32, contiguous, owning its memory. Read when its shape is right."""
        source = self.tensors.sources[file]
        if source.dtype.kind not in "fV":
            raise UserError(f"{file} is of {source.dtype}, and weights are floating-point numbers")
        own = self.named.layout == "xtra_jax"
        first = 0
        if name == "enc.pos_embed" and self.class_token:
            first = class_rows(source.shape[1], True)
        expected = tuple(target if own else shape)
        has = source.shape
        if first:
            has = (has[0], has[1] - first, *has[2:])
        if has != expected:
            raise UserError(f"{file} has shape {list(has)}, and this model needs {list(expected)}")
        tensor = self.tensors[file]
        tensor = tensor[:, first:] if first else tensor
        made = _aligned(target)
        made[...] = tensor if own else tensor_from_published(path, tensor, spec, target)
        return made

    def _check_total(self, files: Iterable[str]) -> None:
        """Many names for one storage would otherwise make a large model of a small file."""
        sources = [self.tensors.sources[file] for file in files]
        total = sum(math.prod(s.shape) * s.dtype.itemsize for s in sources)
        if total > self.tensors.nbytes:
            raise UserError(
                f"its tensors come to {total:,} bytes, and the file has {self.tensors.nbytes:,}: "
                "several share their numbers"
            )

    def _note(self, zeros: set[str], fixed: set[str]) -> None:
        if zeros:
            self.report.filled["zeros, the same as no bias"] = sorted(zeros)
        if fixed:
            self.report.filled["the fixed sine-cosine positions of AIM"] = sorted(fixed)
        if any(name.endswith("fc_norm.weight") for name in self.named.sources.values()):
            self.report.notes.append(
                "its fc_norm is the final norm here, where it comes before pooling and not after"
            )
        if self.class_token:
            self.report.notes.append(
                "its class token is left out, and so is its row of the positions: features of an "
                "encoder that was trained with one come out otherwise than in its own code"
            )

    def _probe(self, sources: Mapping[str, str], spec: XTRASpec) -> Probe | None:
        if not sources:
            return None
        files = {name.removeprefix(_PROBE): file for name, file in sources.items()}
        counters = {name for name in files if name.endswith("num_batches_tracked")}
        for name in counters:
            reason = "counts training steps"
            self.report.left_out.setdefault(reason, []).append(files[name])
        present = set(files) - counters
        names = probe_names(present)
        unknown = sorted(present - set(names.values() if names else ()))
        if unknown:
            raise UserError(
                f"{files[unknown[0]]} of shape {list(self._shape(files[unknown[0]]))} is of no "
                "probe that is known here"
            )
        heads, layers = self.probe
        if self.named.layout == "aim":
            heads = spec.encoder.num_heads  # AIM's own head has as many as its trunk
        self.report.used += len(present)
        return make_probe(
            names,
            lambda name: self.tensors[files[name]],
            {name: self._shape(files[name]) for name in present},
            width=spec.encoder.width,
            depth=spec.encoder.depth,
            num_heads=heads,
            last_layers=layers,
        )


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for float32, aligned so that jax can use it in place on CPUs instead of a copy."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


def _few(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file says of itself, but for its config, cut to what a report can hold."""
    said = [(key[:100], text[:1000]) for key, text in metadata.items() if key != "config"]
    return dict(said[:100])


def _still_assumed(sizes: Sizes, config: ConfigDict, spec: XTRASpec) -> list[str]:
    """The notes on what was assumed, those that the user has decided otherwise left out."""
    heads = {
        "model.num_heads": spec.encoder.num_heads,  # 0 in a config that leaves them to a variant
        "predictor.num_heads": spec.predictor.num_heads,
    }
    kept = []
    for note, (key, value) in zip(sizes.notes, sizes.assumed.items(), strict=True):
        room, name = key.split(".")
        if heads.get(key, config[room][name]) == value:
            kept.append(note)
    return kept
