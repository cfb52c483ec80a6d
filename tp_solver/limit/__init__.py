"""N -> infinity happens here and nowhere else: transposition, power counting, the master theorem (sympy only)."""
