"""Builds resnet_fused. Declarative settings are in pyproject.toml.

RESNET_FUSED_CUDA=auto|0|1   build CUDA kernels: if nvcc is found (auto), never (0), or required (1)
TORCH_CUDA_ARCH_LIST=9.0     GPU architectures, in torch's syntax
CUDA_HOME, CC, CXX           CUDA toolkit and compilers
MAX_JOBS=4                   number of parallel compiler processes
"""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))  # build front ends do not add it

from build_tools.command import EXTENSIONS, BuildLibraries, BuildPython

setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildLibraries, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
