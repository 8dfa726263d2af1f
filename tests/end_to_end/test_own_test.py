"""Warnings where the report may differ from the user's own test; tests/user_nets/test_user_nets.py compares both."""

import warnings

import pytest
import snntorch.functional as SF
import torch

from snn_recon_plugin import ReadoutWarning, convex_init_
from snn_recon_plugin.errors import OptionError
from snn_recon_plugin.stages.stream import split_samples
from snn_recon_plugin.text_table import rate

from ..helpers import TRAIN, assert_as_before, batches, snapshot, train_data
from ..user_nets.snntorch_nets import sequential
from .own_tests import SIZES, STEPS, loop_of, loud

OPTIONS = {"hidden": "keep", "strength": 1e-3}


def test_target_counts_that_tell_no_classes_apart_are_refused():
    """Over one step snnTorch rounds 0.8 and 0.2 spikes down to none."""
    net = loop_of(steps=1)
    before = snapshot(net)
    with pytest.raises(OptionError, match="target is 0 for the right class and for all others") as caught:
        convex_init_(net, batches(), loss=SF.mse_count_loss(0.8, 0.2), **OPTIONS)
    assert "correct_rate=1.0" in caught.value.fix
    assert_as_before(net, before)


def one_step(**options):
    torch.manual_seed(0)
    net = loud(loop_of(steps=1))
    return net, lambda: convex_init_(net, batches(), **OPTIONS, **options)


def test_another_value_that_decides_differently_is_warned_of():
    net, call = one_step()
    with pytest.warns(ReadoutWarning, match="decided by the spike count of output") as caught:
        report = call()
    (other,) = report.readout.others
    inputs, labels = train_data()
    with torch.no_grad():
        spikes, membranes = (values[:, split_samples(TRAIN, 0.2, 0).heldout].sum(0).argmax(1) for values in net(inputs))
    assert other.differing == pytest.approx(float((spikes != membranes).double().mean()))
    held = labels[split_samples(TRAIN, 0.2, 0).heldout]
    assert other.accuracy == pytest.approx(float((membranes == held).double().mean()))
    assert other.own_accuracy == pytest.approx(float((spikes == held).double().mean()))
    assert other.differing > 0.02
    assert "readout='membrane_mean' if your test reads it, readout='spike_count' if not" in str(caught[0].message)
    lines = report.details().splitlines()
    assert any(line.startswith("test it") and line.endswith("the spike count of output[0]") for line in lines)
    assert any(f"membrane mean of output[1] decides {rate(other.differing, other.samples)} differently" in line for line in lines)
    assert report.to_dict()["readout"]["others"][0]["option"] == "membrane_mean"


@pytest.mark.parametrize("said", [{"readout": "spike_count"}, {"readout": "membrane_mean"}, {"loss": SF.mse_count_loss()}])
def test_what_was_said_is_not_warned_of(said):
    _, call = one_step(**said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = call()
    assert report.readout.others[0].notable
    assert "differently" not in report.details()


def test_spikes_drawn_in_forward_are_drawn_anew_for_the_report():
    """On the draws that it was fitted on a net is several points better than its user ever sees."""
    torch.manual_seed(0)
    net, run = loud(loop_of()), over_time_of_rates
    report = convex_init_(net, batches(), forward=run, **OPTIONS)
    inputs, labels = train_data()
    with torch.no_grad():
        own = [float((run(net, inputs)[0].sum(0).argmax(1) == labels).double().mean()) for _ in range(10)]
    assert report.accuracy_written == pytest.approx(sum(own) / 10, abs=0.03)


def over_time_of_rates(net, inputs):
    return net(torch.bernoulli(inputs.clamp(0, 1)))


@pytest.mark.parametrize("fresh", [1.0, 0.0], ids=["spiking", "silent"])
def test_a_net_that_keeps_its_membranes_between_calls(fresh):
    """Its user must reset it as the package does: a warning says so, and the report is right for who does."""

    class Keeps(torch.nn.Sequential):
        def forward(self, x):
            return torch.stack([super(Keeps, self).forward(x)[0] for _ in range(STEPS)])

    torch.manual_seed(0)
    net = Keeps(*sequential("subtract", SIZES))
    with torch.no_grad():
        for parameter in net[2].parameters():
            parameter.mul_(fresh)
    with pytest.warns(ReadoutWarning, match="keeps its membranes from one call to the next") as caught:
        report = convex_init_(net, batches(), **OPTIONS)
    assert caught[0].filename == __file__
    inputs, labels = train_data()
    for module in net.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()
    with torch.no_grad():
        own = float((net(inputs).sum(0).argmax(1) == labels).double().mean())
    assert report.accuracy_written == pytest.approx(own)
