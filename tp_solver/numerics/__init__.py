"""Arrays only: Gaussian sampling and bases, quadrature, Gaussian expectations (jax, scipy)."""
