"""What the shapes of a file's tensors say about the model, and the config that describes it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from xtra_jax.config import load, model_spec, validate
from xtra_jax.config_overrides import override
from xtra_jax.errors import UserError
from xtra_jax.interop.layouts import class_rows
from xtra_jax.model.variants import VARIANTS, XTRASpec

# What is believed of a config that comes with a file. All else would be a stranger's settings for
# this machine: what it reads, in how many processes, and where.
_CARRIED_ROOMS = ("model", "predictor", "head", "loss")
_CARRIED_DATA = ("mean", "std", "eval_resize")
_MAX_RESIZE = 4  # times the image size
MAX_DEPTH = 96  # layers; the deepest of the paper has 40
_PUBLISHED = ("configs/pretrain/xtra_b16_in1k.py", "configs/pretrain/xtra_h14_in21k.py")
_SHORT = dict(zip(VARIANTS, ("ViT-Ti", "ViT-S", "ViT-B", "ViT-L", "ViT-H", "ViT-g"), strict=True))
_PUBLISHED_BLOCK = 4  # tokens per block side in all published pretraining
_ASSUMED_IMAGE = 224  # pixels, of encoders whose fixed positions don't tell

Shapes = Mapping[str, tuple[int, ...]]


class Said(NamedTuple):
    """A size, and the tensor that says so: its name in the file and its shape."""

    value: int
    name: str
    shape: tuple[int, ...]


class Sizes(NamedTuple):
    """What the tensors say, by config key; and what had to be assumed, in sentences.

    `model.mlp_hidden` stands for `model.mlp_ratio`, which the config has. `xtra` tells whether the
    names are XTRA's, so that the model may be one of the published ones.
    """

    said: dict[str, Said]
    assumed: dict[str, int]
    notes: list[str]
    xtra: bool


def read_sizes(
    shapes: Shapes, names: Mapping[str, str], *, layout: str, whole: bool, class_token: bool
) -> Sizes:
    """The sizes of a model in published names.

    Args:
        shapes: by published name.
        names: published name to the name in the file.
        layout: see `layouts.Named`.
        whole: whether the predictor is there too.
        class_token: whether the file has one.

    Raises:
        UserError: a tensor that tells a size is missing or has no shape of this architecture.
    """
    reader = _Reader(shapes, names)
    side = reader.read_encoder(layout, class_token)
    if whole:
        reader.read_predictor()
    else:
        reader.assume_block(layout, side)
    return Sizes(reader.said, reader.assumed, reader.notes, layout in ("xtra", "xtra_jax"))


class _Reader:
    """Reads sizes off shapes, and checks those shapes that could otherwise claim large ones."""

    def __init__(self, shapes: Shapes, names: Mapping[str, str]):
        self._shapes, self._names = shapes, names
        self.said: dict[str, Said] = {}
        self.assumed: dict[str, int] = {}
        self.notes: list[str] = []

    def _shape(self, name: str, pattern: str, holds: Callable[..., bool]) -> tuple[int, ...]:
        """A tensor's shape, of as many axes as the pattern has and as `holds` wants it."""
        if name not in self._shapes:
            raise UserError(f"it lacks {name}")
        found = self._shapes[name]
        if len(found) != pattern.count(",") + 1 or not all(found) or not holds(*found):
            stage = "; of a DeepSpeed ZeRO-3 checkpoint, zero_to_fp32.py makes a whole one"
            raise UserError(
                f"{self._names[name]} has shape {list(found)}, and [{pattern}] is expected"
                f"{stage if found and not all(found) else ''}"
            )
        return found

    def _say(self, name: str, **sizes: int) -> None:
        """What a tensor says: sizes by config key, with "__" for the dot."""
        for key, value in sizes.items():
            said = Said(value, self._names[name], tuple(self._shapes[name]))
            self.said[key.replace("__", ".")] = said

    def read_encoder(self, layout: str, class_token: bool) -> int:
        """Returns the tokens per side."""
        kernel = "enc.patch_embed.proj.weight"
        width, _, patch, _ = self._shape(
            kernel, "width, 3, patch, patch", lambda w, c, p, q: c == 3 and p == q
        )
        depth = _depth(self._shapes, "enc")
        self._say(kernel, model__width=width, model__patch_size=patch, model__depth=depth)
        first = "enc.blocks.0.mlp.fc1.weight"
        hidden, _ = self._shape(first, f"hidden, {width}", lambda h, w: w == width)
        self._say(first, model__mlp_hidden=hidden)
        self._check_qkv("enc", width)
        table = "enc.pos_embed"
        if table not in self._shapes and layout == "aim":
            return self._assume_image(patch)
        _, rows, _ = self._shape(
            table, f"1, tokens, {width}", lambda one, n, w: (one, w) == (1, width)
        )
        tokens = rows - class_rows(rows, class_token)
        side = math.isqrt(tokens)
        if side**2 != tokens:
            raise UserError(
                f"{self._names[table]} has shape {list(self._shapes[table])}, and {tokens} tokens "
                "are no square"
            )
        self._say(table, model__image_size=side * patch)
        return side

    def read_predictor(self) -> None:
        width = self.said["model.width"].value
        into, out = "proj.mlp.0.weight", "proj.mlp.2.weight"
        hidden, _ = self._shape(into, f"hidden, {width}", lambda h, w: w == width)
        self._say(into, predictor__hidden=hidden)
        narrow, _ = self._shape(out, f"width, {hidden}", lambda w, h: h == hidden)
        depth = _depth(self._shapes, "predictor")
        self._say(out, predictor__width=narrow, predictor__depth=depth)
        self._check_qkv("predictor", narrow)

        found = [re.match(r"aim_proj\.(\d{1,6})\.", name) for name in self._shapes]
        count = 1 + max(int(match[1]) for match in found if match)
        head = "aim_proj.0.mlp.0.weight"
        pattern = f"hidden, {narrow} * k * k"
        head_hidden, columns = self._shape(head, pattern, lambda h, n: _root(n, narrow) > 0)
        side = _root(columns, narrow)
        self._say(head, head__hidden=head_hidden, head__num_tokens=count, model__block_size=side)
        values = 3 * (side * self.said["model.patch_size"].value) ** 2
        self._shape(
            "aim_proj.0.mlp.2.weight",
            f"{values}, {head_hidden}",
            lambda n, h: (n, h) == (values, head_hidden),
        )

    def _check_qkv(self, part: str, width: int) -> None:
        expected = 3 * width, width
        name = f"{part}.blocks.0.attn.qkv.weight"
        self._shape(name, f"{3 * width}, {width}", lambda *found: found == expected)

    def _assume_image(self, patch: int) -> int:
        side = max(1, _ASSUMED_IMAGE // patch)
        self.assumed["model.image_size"] = side * patch
        self.notes.append(
            f"its positions are fixed, so nothing tells the size of images: {side * patch} is "
            "assumed, and --config.model.image_size says otherwise"
        )
        return side

    def assume_block(self, layout: str, side: int) -> None:
        """The mask of an encoder alone: nothing in its tensors depends on the block size."""
        if layout in ("vit", "aim"):
            block = side
            note = f"no mask: its tokens see each other all, as one block of {side} x {side}"
        else:
            block = _PUBLISHED_BLOCK if side % _PUBLISHED_BLOCK == 0 else 1
            note = f"an encoder alone does not tell its block size: {block} is assumed"
        self.assumed["model.block_size"] = block
        self.notes.append(f"{note}; --config.model.block_size says otherwise")


def _root(columns: int, width: int) -> int:
    """k, where columns = width * k * k; 0 where there is none."""
    side = math.isqrt(columns // width)
    return side if side**2 * width == columns else 0


def _depth(shapes: Shapes, part: str) -> int:
    found = [int(m[1]) for n in shapes if (m := re.match(rf"{part}\.blocks\.(\d{{1,6}})\.", n))]
    depth = 1 + max(found, default=-1)
    if not 1 <= depth <= MAX_DEPTH:
        raise UserError(f"it has {depth} layers under {part}.blocks, and 1 to {MAX_DEPTH} can be")
    return depth


def make_config(
    sizes: Sizes,
    *,
    given: ConfigDict | str | None,
    overrides: Mapping[str, Any],
    heads: Mapping[str, int] = {},
    carried: str = "",
    whole: bool,
) -> ConfigDict:
    """The config of an imported model: the one given, one in the file, or one inferred.

    Args:
        given: as the user names it, or loaded; checked against the tensors.
        overrides: dotted keys with their values.
        heads: attention heads, by config key, where the tensors tell them.
        carried: JSON of a config that the file holds; ignored where it does not fit.

    Raises:
        UserError: a config says otherwise than the tensors, or attention heads are not known.
    """
    if given is not None and given != "":
        named = isinstance(given, str)
        config = load(given, overrides) if named else _overridden(given, overrides)
        if "probe" in config:
            raise UserError("--config names a probe config, and a pretraining config is needed")
        config = _headless(config, whole)
        check_sizes(sizes, config)
        return config
    config = _from_file(carried, sizes, whole, overrides)
    if config is None:
        config = _inferred(sizes, whole, dict(heads) | dict(overrides))
    check_sizes(sizes, config)
    return config


def check_sizes(sizes: Sizes, config: ConfigDict) -> None:
    """UserError that names the first key in which a config differs from the tensors."""
    has = _of_spec(model_spec(config))
    for key, (value, name, shape) in sizes.said.items():
        if has[key] != value:
            key = key.replace("mlp_hidden", "mlp_ratio")
            raise UserError(
                f"{name} of shape {list(shape)} says {_as_told(key, value, sizes)}, and the config "
                f"says {_as_told(key, has[key.replace('mlp_ratio', 'mlp_hidden')], sizes)}"
            )


def _as_told(key: str, value: int, sizes: Sizes) -> str:
    if key == "model.mlp_ratio":
        return f"{key}={value / sizes.said['model.width'].value:g}"
    return f"{key}={value}"


def _of_spec(spec: XTRASpec) -> dict[str, int]:
    encoder, predictor = spec.encoder, spec.predictor
    return {
        "model.width": encoder.width,
        "model.patch_size": spec.grid.patch_size,
        "model.depth": encoder.depth,
        "model.mlp_hidden": encoder.mlp_hidden,
        "model.image_size": spec.grid.image_size,
        "model.block_size": spec.grid.block_size,
        "predictor.hidden": predictor.hidden,
        "predictor.width": predictor.width,
        "predictor.depth": predictor.depth,
        "head.hidden": spec.head.hidden,
        "head.num_tokens": spec.head.num_tokens,
    }


def _overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    config = config.copy_and_resolve_references()
    for key, value in overrides.items():
        override(config, key, value)
    validate(config)
    return config


def _headless(config: ConfigDict, whole: bool) -> ConfigDict:
    """Says in the config of an encoder alone that it is one."""
    config = config.copy_and_resolve_references()
    if not whole:
        config.head.num_tokens = 0
    return config


def _from_file(carried: str, sizes: Sizes, whole: bool, overrides) -> ConfigDict | None:
    """The config that our exports carry; None if there is none, or it isn't that of the tensors.

    It describes the model and how pixels are normalised; the rest is the base's.
    """
    # Without positions in the file, nothing would hold its image size against the tensors.
    if not 0 < len(carried) < 1 << 16 or "model.image_size" not in sizes.said:
        return None
    try:
        config = load("configs/base.py", _believed(_flat(json.loads(carried)), sizes, whole))
        check_sizes(sizes, _headless(config, whole))
    except (UserError, ValueError, TypeError, RecursionError, AttributeError):
        return None
    return _headless(_overridden(config, overrides), whole)


def _believed(values: dict[str, Any], sizes: Sizes, whole: bool) -> dict[str, Any]:
    """Those keys of a file's config that are taken from it.

    An encoder's tensors say nothing of a predictor, so that of its config could be of any size.
    """
    rooms = _CARRIED_ROOMS if whole else ("model", "loss")
    data = [f"data.{key}" for key in _CARRIED_DATA]
    found = {k: v for k, v in values.items() if k.partition(".")[0] in rooms or k in data}
    image, resize = sizes.said["model.image_size"].value, found.get("data.eval_resize")
    if type(resize) is not int or not image <= resize <= _MAX_RESIZE * image:
        found["data.eval_resize"] = _usual_resize(image)
    # A single block is a model only where nothing is predicted.
    alone = {} if whole else {"head.num_tokens": 0}
    return found | {"name": "imported"} | alone


def _usual_resize(image: int) -> int:
    """What images are resized to before the centre crop."""
    return 8 * image // 7


def _flat(values: dict, prefix: str = "") -> dict[str, Any]:
    """Two levels of nested dicts by dotted keys; lists as tuples."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict) and not prefix:
            flat |= _flat(value, f"{key}.")
        else:
            flat[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
    return flat


def _inferred(sizes: Sizes, whole: bool, overrides: Mapping[str, Any]) -> ConfigDict:
    """The published config of these sizes where there is one, otherwise the base's with them."""
    base = load("configs/base.py")
    tried = base.copy_and_resolve_references()
    for key, value in overrides.items():  # a misspelt key is told before what is missing for it
        override(tried, key, value)
    for name in _PUBLISHED if sizes.xtra else ():
        config = load(name)
        published = _of_spec(model_spec(config)) | {"head.num_tokens": config.head.num_tokens}
        if all(published[key] == value for key, (value, *_) in sizes.said.items()):
            config = _headless(config, whole)
            for key, value in sizes.assumed.items():
                override(config, key, value)
            _assume_heads(sizes, overrides, config.model.variant, config if whole else None)
            return _overridden(config, overrides)

    values = {key: said.value for key, said in sizes.said.items()} | sizes.assumed
    width, depth = values["model.width"], values["model.depth"]
    hidden = values.pop("model.mlp_hidden")
    # In two steps: the base is valid with one head, an encoder of one block is not.
    config = _headless(base, whole)
    for name, variant in VARIANTS.items():
        is_it = (width, depth, hidden) == (
            variant.width,
            variant.depth,
            round(variant.width * variant.mlp_ratio),
        )
        if is_it:
            values |= {"model.variant": name, "model.width": 0, "model.depth": 0}
            _assume_heads(sizes, overrides, name)
            break
    else:
        values |= {"model.variant": "custom", "model.mlp_ratio": hidden / width}
        _need(overrides, "model.num_heads", f"an encoder of width {width}")
    if whole:
        _need(overrides, "predictor.num_heads", f"a predictor of width {values['predictor.width']}")
    image = values["model.image_size"]
    values |= {"name": "imported", "data.eval_resize": _usual_resize(image)}
    return _overridden(config, values | dict(overrides))


def _assume_heads(
    sizes: Sizes, known: Mapping[str, Any], variant: str, published: ConfigDict | None = None
) -> None:
    """Notes that attention heads are those of a variant, and of a published whole model."""
    of = f"heads, as {_SHORT[variant]} has,"
    assumed = {"model.num_heads": (VARIANTS[variant].num_heads, of)}
    if published is not None:
        of = "heads of the predictor, as the published one of its sizes has,"
        assumed["predictor.num_heads"] = published.predictor.num_heads, of
    for key, (count, of) in assumed.items():
        if key not in known:
            sizes.assumed[key] = count
            sizes.notes.append(f"{count} {of} are assumed; --config.{key}=N says otherwise")


def _need(overrides: Mapping[str, Any], key: str, whose: str) -> None:
    if key not in overrides:
        raise UserError(
            f"the number of attention heads of {whose} cannot be seen in its tensors: say it with "
            f"--config.{key}=N, or name its --config"
        )
