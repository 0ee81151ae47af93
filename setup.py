"""Builds resnet_fused; everything that can be said as data is in pyproject.toml.

RESNET_FUSED_CUDA=auto|0|1   with CUDA kernels where nvcc is found (auto), never, or not without
TORCH_CUDA_ARCH_LIST=9.0     GPUs to compile for, in torch's syntax
CUDA_HOME, CC, CXX           which toolkit and compilers
MAX_JOBS=4                   how many compilers at a time
"""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))  # a build front end does not put it there

from build_tools.command import EXTENSIONS, BuildLibraries, BuildPython

setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildLibraries, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
