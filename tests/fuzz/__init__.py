"""Fuzzing: random calls of the CPU ops, blocks and networks, checked against float64.

``python -m tests.fuzz --problems 5000 --seed 1`` solves problems 1 to 5000. A problem is all that its number says: what
is called, shapes, layouts, values, engine, instruction set and threads. Inputs lie in read-only memory against pages
without access rights, so an access out of bounds ends the process; the parent says which problem it was.
"""
