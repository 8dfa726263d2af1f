"""Samples that choose the rows of hidden layers: fewer of long sequences, within fixed memory and work."""

import pytest

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.stages import build

from ..helpers import STEPS, batches, sequential_net


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, 800),  # all of them
        ({"_SELECT_SAMPLES": 200}, 200),
        ({"_SELECT_STEPS": 300 * STEPS}, 300),
        ({"_SELECT_BYTES": 4 * 64 * STEPS * 400}, 400),
        ({"_SELECT_STEPS": STEPS}, 100),  # no fewer than the least
    ],
    ids=["all", "samples", "steps", "bytes", "least"],
)
def test_samples_that_choose_rows(bounds, expected, monkeypatch):
    monkeypatch.setattr(build, "_MIN_SELECT_SAMPLES", 100)
    for name, value in bounds.items():
        monkeypatch.setattr(build, name, value)
    seen, whole = [], build.rebuild_layer

    def watched(task, *options):
        seen.append(len(task.targets))
        return whole(task, *options)

    monkeypatch.setattr(build, "rebuild_layer", watched)
    convex_init_(sequential_net(), batches(800), forward=over_time(STEPS), hidden="reconstruct", n_candidates=1.0, progress=False)
    assert seen == [expected]  # of its one hidden layer
