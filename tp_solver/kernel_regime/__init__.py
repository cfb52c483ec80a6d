"""The kernel regime: kernels of any program, training in function space, uncertainty, depth."""
