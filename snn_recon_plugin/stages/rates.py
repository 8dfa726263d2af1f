"""Shares of samples as text, with their 95 % interval."""

from __future__ import annotations

import math

_QUANTILE = 1.959964  # of the standard normal distribution, for a two-sided interval of 95 %
_COARSE = 0.1  # margin from which decimals of a percentage mean nothing
FEW_SAMPLES = 200  # held-out samples below which an accuracy near 90 % has a margin above 4 points


def percent(value: float) -> str:
    """Return a share as a percentage, "n/a" for NaN."""
    return "n/a" if math.isnan(value) else f"{100 * value:.1f} %"


def margin(share: float, samples: int) -> float:
    """Return the distance from a share of samples to the farther end of its 95 % interval, 0 to 1.

    The interval is Wilson's score interval (1927).  It has a width also for a share of 0 or 1, where the normal one has none.
    """
    shrink = 1 / (1 + _QUANTILE**2 / samples)
    centre = shrink * (share + _QUANTILE**2 / (2 * samples))
    half = shrink * _QUANTILE * math.sqrt(share * (1 - share) / samples + (_QUANTILE / (2 * samples)) ** 2)
    return abs(share - centre) + half


def rate(share: float, samples: int) -> str:
    """Return a share of samples as a percentage with its margin, such as "98.1 ± 2.4 %"; "n/a" for NaN."""
    if math.isnan(share) or not samples:
        return percent(share)
    uncertain = margin(share, samples)
    digits = 0 if uncertain >= _COARSE else 1
    return f"{100 * share:.{digits}f} ± {100 * uncertain:.{digits}f} %"
