"""Solver study behind docs/evidence/solver.md: seconds to a certified gap, the package's solver and its peers."""
