"""Sweeps: many runs over named parameters, their results kept in a folder under the hash of what they were computed from."""
