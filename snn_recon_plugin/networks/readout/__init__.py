"""Readouts: how scores are decoded from the last layer."""
