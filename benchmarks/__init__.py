"""Fused blocks and whole models against what else one could use. README.md has the rules."""
