"""Solvers of readout programs, one algorithm a file; a new one is a class in its file, and an entry of ``_ALL`` in solve.py."""
