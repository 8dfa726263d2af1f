"""Solver study behind docs/benchmarks.md: seconds to a certified gap on readout programs, the package's solver and its peers."""
