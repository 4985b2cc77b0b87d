"""What the backends `cudagraph` and `compile` are made of: a cache that stays in place, captures, kernels."""
