"""What the user defines: programs, parameterizations, training rules, losses and tasks (sympy only)."""
