import pytest
import torch

from snn_recon_plugin.networks.structure.layers import LAYOUTS, as_typed, fits, time_first

STEPS, BATCH, FEATURES = 4, 3, 2
VALUES = torch.arange(24.0).reshape(STEPS, BATCH, FEATURES)
CALLS = {
    "steps": list(VALUES),
    "time_first": [VALUES],
    "batch_first": [VALUES.movedim(0, 1)],
    "folded": [VALUES.flatten(0, 1)],
    "folded_batch_first": [VALUES.movedim(0, 1).flatten(0, 1)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_brought_to_time_first(layout):
    calls = CALLS[layout]
    assert fits(layout, [call.shape for call in calls], STEPS, BATCH)
    assert torch.equal(time_first(layout, calls, STEPS), VALUES)


def test_shapes_leave_only_the_order_within_a_fold_open():
    fitting = {
        layout: {other for other in LAYOUTS if fits(other, [call.shape for call in calls], STEPS, BATCH)}
        for layout, calls in CALLS.items()
    }
    assert all(fitting[layout] == {layout} for layout in ("steps", "time_first", "batch_first"))
    assert fitting["folded"] == fitting["folded_batch_first"] == {"folded", "folded_batch_first"}


@pytest.mark.parametrize(("name", "typed"), [("", "net"), ("fc", "net.fc"), ("layers.2.fc", "net.layers[2].fc")])
def test_a_name_as_it_is_typed(name, typed):
    assert as_typed(name) == typed
