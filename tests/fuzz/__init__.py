"""Fuzzing: random calls of the CPU ops, blocks and networks, checked against float64.

``python -m tests.fuzz --problems 5000 --seed 1`` runs problems 1 to 5000. A problem's number determines everything: op,
shapes, layouts, values, engine, instruction set and threads. Inputs are in read-only memory next to guard pages, so an
out-of-bounds access kills the process; the parent prints the problem's number.
"""
