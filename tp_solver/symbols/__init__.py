"""Words of the theory: activations, stable special functions, and printable equations (sympy only)."""
