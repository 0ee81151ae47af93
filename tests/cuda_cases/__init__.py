"""What the tests of the emulated CUDA kernels share: inputs, geometries, eager twins, and checks against float64."""
