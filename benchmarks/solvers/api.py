"""All that the solver study uses of the package: one place to follow its names.

Of a solution the study reads weight, bias and certificate; of a problem with_strength, zero_loss, certify and accuracy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from snn_recon_plugin import ReconstructionError
from snn_recon_plugin.convex import Features, HeldOutRows, PathSettings, Problem, solve, solve_path, strengths_below

__all__ = [
    "HeldOutRows",
    "PathSettings",
    "Problem",
    "ReconstructionError",
    "make_problem",
    "solve",
    "solve_path",
    "strengths_below",
]


def make_problem(features: np.ndarray, labels: np.ndarray, **options: Any) -> Problem:
    """Return the program on features (n, P), used as they are, and labels (n,)."""
    return Problem(Features(torch.from_numpy(features)), torch.from_numpy(labels), **options)
