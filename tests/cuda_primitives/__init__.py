"""Tests every hardware instruction that kernels use, each in a small kernel of its own, against its definition.

cases.py lists the calls; definitions.py implements in numpy what the PTX ISA specifies. Neither depends on the
emulator. The same kernels run on the emulator (emulator.py) and on a GPU (gpu.py, which writes a golden file).
"""
