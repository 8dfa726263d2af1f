"""Shares of samples with their interval."""

import math

import pytest
from scipy.stats import binomtest

from snn_recon_plugin.text_table import margin, percent, rate


@pytest.mark.parametrize(("right", "samples"), [(0, 1), (1, 1), (22, 25), (100, 200), (199, 200), (0, 60), (9700, 10_000)])
def test_the_margin_reaches_to_the_farther_end_of_wilsons_interval(right, samples):
    ends = binomtest(right, samples).proportion_ci(0.95, method="wilson")
    share = right / samples
    assert margin(share, samples) == pytest.approx(max(share - ends.low, ends.high - share), abs=1e-6)


@pytest.mark.parametrize(
    ("share", "samples", "text"),
    [
        (22 / 25, 25, "88 ± 18 %"),
        (0.98, 269, "98.0 ± 2.5 %"),
        (1.0, 1000, "100.0 ± 0.4 %"),
        (0.5, 0, "50.0 %"),
        (math.nan, 40, "n/a"),
    ],
)
def test_digits_follow_the_margin(share, samples, text):
    assert rate(share, samples) == text


def test_a_percentage_alone():
    assert (percent(0.1234), percent(math.nan)) == ("12.3 %", "n/a")
