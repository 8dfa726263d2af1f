"""Faster training steps of a user's net."""
