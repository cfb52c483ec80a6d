"""From LimitEquations to a Solution: the causal march, the self-consistent fixed point, the kernel regime."""
