"""Shared by tests of emulated CUDA kernels: inputs, geometries, eager references, checks against float64."""
