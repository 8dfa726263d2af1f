"""Calls of a network: the only runs of a user's code."""
