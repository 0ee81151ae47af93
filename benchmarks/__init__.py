"""Benchmarks of fused blocks and whole models against their alternatives. README.md has the rules."""
