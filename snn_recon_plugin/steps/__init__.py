"""Faster training steps of a user's net."""

from .fast_steps import FastSteps, fast_steps

__all__ = ["FastSteps", "fast_steps"]
