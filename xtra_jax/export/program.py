"""The encoder as a compiled program's source: StableHLO, which runs wherever jax does.

Written by `jax.export`, it takes uint8 images, any number at a time, and gives features. It holds
the encoder's weights, as constants; where they are too many for one such file, they lie beside it
and are its first argument.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import textwrap
import zipfile
from collections.abc import Iterator

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from xtra_jax.errors import UserError
from xtra_jax.export.folder import Folder
from xtra_jax.interop.open_checkpoint import OpenCheckpoint
from xtra_jax.interop.writers import DTYPES, cast
from xtra_jax.model.xtra import bind_encoder
from xtra_jax.probing.features import FeatureSpec, encoder_features, model_input

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, WEIGHTS, SCRIPT = "features.jaxexport", "weights.npz", "run.py"
COMPUTES_IN = ("float32", "bfloat16")

# The file is a flatbuffer, which has 2 GiB at most; the rest is for the program itself.
_MOST_INSIDE = 2**31 - 2**26


def write_program(
    folder: Folder, opened: OpenCheckpoint, features: FeatureSpec, dtype: str
) -> export.Exported:
    """Writes the program, the script that runs it and, where they are too many, the weights."""
    weights = program_weights(opened.params["encoder"], dtype)
    inside = sum(array.nbytes for array in weights.values()) <= _MOST_INSIDE
    program = export_program(opened, weights, features, dtype, inside=inside)
    folder.write(PROGRAM, _serialized(program))
    if not inside:
        with folder.open(WEIGHTS) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in weights.items():
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(array))
    size = opened.spec.grid.image_size
    folder.write(SCRIPT, script(size, inside=inside, dtype=dtype))
    return program


def program_weights(encoder_params: dict, dtype: str) -> dict[str, np.ndarray]:
    """The encoder's parameters by name ("layers/00/mlp/fc1/kernel").

    Kernels have the dtype that the program computes in, as the model rounds them anyway; all else
    is float32, as the model has it.
    """
    if dtype not in COMPUTES_IN:
        raise UserError(f"--dtype={dtype}: a program computes in {' or '.join(COMPUTES_IN)}")
    return {
        name: cast(name, array, dtype if name.endswith("kernel") else "float32")
        for name, array in flatten_dict(encoder_params, sep="/").items()
    }


def export_program(
    opened: OpenCheckpoint,
    weights: dict[str, np.ndarray],
    features: FeatureSpec,
    dtype: str,
    *,
    inside: bool,
) -> export.Exported:
    """Lowers the features of images for all platforms.

    Args:
        weights: as from `program_weights`.
        features: which ones.
        dtype: that it computes in. float32 means float32 everywhere, and not what TPUs and GPUs
            make of its matrix products for speed.
        inside: hold the weights; otherwise they are the first argument.

    Returns:
        Takes uint8 [batch, size, size, 3], gives float32 features.
    """
    features.check(opened.spec.encoder.depth)
    spec = dataclasses.replace(opened.spec, dtype=dtype)
    data, size = opened.config.data, spec.grid.image_size
    mean, std = tuple(data.mean), tuple(data.std)

    def of_weights(weights, images):
        encoder = bind_encoder(spec, unflatten_dict(weights, sep="/"))
        patches = model_input(images, spec.grid, mean, std)
        return encoder_features(encoder, patches, features)

    def of_images(images):
        return of_weights(weights, images)

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)
    abstract = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in weights.items()}
    function, arguments = (of_images, (images,)) if inside else (of_weights, (abstract, images))
    precision = "highest" if dtype == "float32" else "default"
    with jax.default_matmul_precision(precision), _without_paths():
        return export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Lowered programs tell of the files that each operation comes from; here without folders."""
    name = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, name)
    jax.config.update(name, ".*/")
    try:
        yield
    finally:
        jax.config.update(name, before)


def _serialized(program: export.Exported) -> bytearray:
    try:
        return program.serialize()
    except ImportError as error:  # jax does not install what it needs for this
        raise UserError(f"a program cannot be written: {error}; pip install flatbuffers") from error


def script(image_size: int, *, inside: bool, dtype: str) -> str:
    """A program in Python that runs the exported one, and imports jax and numpy only."""
    read, arguments = "", "images"
    if not inside:
        # NumPy's files don't know bfloat16, and keep its bytes.
        view = '{n: a.view("bfloat16") if a.dtype.kind == "V" else a for n, a in file.items()}'
        read = f"""
            with np.load(here / "{WEIGHTS}") as file:
                weights = {"dict(file)" if dtype == "float32" else view}"""
        arguments = "weights, images"
    return textwrap.dedent(
        f'''\
            """Features of images: python {SCRIPT} IMAGES.npy FEATURES.npy"""

            import sys
            from pathlib import Path

            import jax.export
            import numpy as np

            here = Path(__file__).parent
            program = jax.export.deserialize(bytearray((here / "{PROGRAM}").read_bytes())){read}
            images = np.load(sys.argv[1])  # uint8 [batch, {image_size}, {image_size}, 3], RGB
            np.save(sys.argv[2], jax.jit(program.call)({arguments}))
        '''
    )


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    plain = array if array.dtype == DTYPES["float32"] else array.view("V2")
    np.lib.format.write_array(content, plain, allow_pickle=False)
    return content.getvalue()
