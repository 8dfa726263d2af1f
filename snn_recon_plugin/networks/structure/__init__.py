"""Layers of a network, found by running it."""
