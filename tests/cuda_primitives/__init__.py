"""Every hardware instruction that kernels use, alone in a small kernel, against its definition.

cases.py lists the calls, definitions.py says in numpy what the PTX ISA says that they compute; neither knows the
emulator. The same kernels run on the emulator (emulator.py) and on a GPU (gpu.py, which writes a golden file).
"""
