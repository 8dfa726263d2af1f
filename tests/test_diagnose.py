"""The diagnosis: its errors, what it leaves alone, and what it shows."""

import json
import math
import random

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import Diagnosis, diagnose, over_time
from snn_recon_plugin.errors import DataError, NetworkError, OptionError, ReconstructionError

from .diagnose_nets import FEW, Detached, Raises, count_net, kinds, norse_net
from .faults import LineFault
from .helpers import (
    BETA,
    HIDDEN,
    PIXELS,
    Loop,
    TwoHeads,
    assert_as_before,
    batches,
    data_loader,
    divided,
    lived_in,
    loop_net,
    sequential_net,
    snapshot,
    train_data,
)


@pytest.mark.parametrize(
    ("net", "loader", "error", "word"),
    [
        (loop_net, lambda: [], DataError, "an empty loader"),
        (loop_net, lambda: [(torch.zeros(0, PIXELS), torch.zeros(0).long())], DataError, "empty"),
        (loop_net, lambda: 5, DataError, "int"),
        (loop_net, lambda: [(torch.full((20, PIXELS), math.nan), torch.zeros(20).long())], DataError, "NaN"),
        (loop_net, lambda: [torch.rand(20, PIXELS)], DataError, "pair"),
        (loop_net, lambda: [(torch.rand(20, 7), torch.zeros(20).long())], NetworkError, "RuntimeError"),
        (loop_net, lambda: [*batches(50, 50), (torch.rand(20, 7), torch.zeros(20).long())], NetworkError, "batch 2"),
        (lambda: "net", lambda: batches(50), NetworkError, "str"),
    ],
    ids=["empty loader", "empty batch", "no loader", "NaN", "no pairs", "wrong shape", "wrong shape later", "no net"],
)
def test_bad_data_and_nets(net, loader, error, word):
    with pytest.raises(error, match=word) as caught:
        diagnose(net(), loader())
    assert isinstance(caught.value, ReconstructionError)


@pytest.mark.parametrize(
    "options",
    [
        {"max_samples": 9},
        {"max_samples": None},
        {"seed": -1},
        {"readout": "nonsense"},
        {"readout": "spike_count"},  # of a net that returns membranes
        {"loss": "nonsense"},
        {"forward": 3},
        {"classes": 1},
    ],
    ids=str,
)
def test_bad_options(options):
    with pytest.raises(OptionError):
        diagnose(loop_net(), batches(50), **options)


class Layered(Loop):
    """Dropout and a batch norm, whose running statistics a pass in training mode would move."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(HIDDEN), nn.Dropout(0.5)

    def forward(self, x):
        mem1, mem2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.norm(self.fc1(x)), mem1)
            _, mem2 = self.lif2(self.fc2(self.drop(spikes)), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


def seed_all():
    torch.manual_seed(21)
    np.random.seed(22)
    random.seed(23)


@pytest.mark.parametrize("build", [loop_net, sequential_net, Layered, TwoHeads], ids=lambda build: build.__name__)
def test_a_net_in_the_middle_of_training_is_left_as_found(build):
    torch.manual_seed(0)
    net, loader = lived_in(build()), data_loader(60, 30, shuffle=True, generator=torch.Generator().manual_seed(3))
    seed_all()
    before, drawn = snapshot(net), loader.generator.get_state()
    diagnose(net, loader, forward=over_time(5) if build is sequential_net else None)
    assert_as_before(net, before)
    assert torch.equal(loader.generator.get_state(), drawn)


def test_norse_constants_are_left_as_found():
    net = norse_net()
    net.train()
    seed_all()
    before, p = snapshot(net), net[1].p
    flags = [value.requires_grad for value in p if isinstance(value, torch.Tensor)]
    diagnose(net, batches(60), forward=over_time(5))
    assert_as_before(net, before)
    assert [value.requires_grad for value in net[1].p if isinstance(value, torch.Tensor)] == flags


def test_frozen_parameters_do_not_hide_gradients():
    net = loop_net()
    free = diagnose(net, batches(FEW))
    found = diagnose(net.requires_grad_(False), batches(FEW))
    assert found.layers == free.layers
    assert kinds(found)[0] == "refused"  # nothing could be written
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_a_graph_of_the_user_is_left_alone():
    net, (inputs, labels) = loop_net(), train_data(40)
    loss = nn.functional.cross_entropy(net(inputs).mean(0), labels)
    diagnose(net, batches(FEW))
    loss.backward()
    assert net.fc1.weight.grad is not None


def test_an_error_in_the_middle_leaves_everything_alone():
    net, pairs = lived_in(loop_net()), batches(100, 50)
    pairs.append((torch.rand(20, 7), torch.zeros(20).long()))
    seed_all()
    before = snapshot(net)
    with pytest.raises(NetworkError):
        diagnose(net, pairs)
    assert_as_before(net, before)


def test_an_interrupt_in_the_backward_pass(monkeypatch):
    monkeypatch.setattr(Raises, "error", KeyboardInterrupt)
    net = lived_in(loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=Raises.apply)))
    seed_all()
    before = snapshot(net)
    with pytest.raises(KeyboardInterrupt):
        diagnose(net, batches(FEW))
    assert_as_before(net, before)


@pytest.mark.parametrize("share", [0.02, 0.4, 0.9])
def test_an_interrupt_at_some_line(share):
    files = "diagnose.py", "diagnose_measure.py"
    with LineFault(files) as count:
        diagnose(loop_net(), batches(60))
    net = lived_in(loop_net())
    seed_all()
    before = snapshot(net)
    with pytest.raises(KeyboardInterrupt), LineFault(files, max(1, int(share * count.seen))):
        diagnose(net, batches(60))
    assert_as_before(net, before)


def test_the_table():
    net = count_net()
    shown = str(diagnose(net, batches(200))).splitlines()
    assert max(map(len, shown)) <= 100
    assert set(shown[0]) == set(shown[-1]) == {"-"}
    assert shown[1].split() == ["network", "Counts", "(snntorch),", "8", "steps"]
    (header,) = [line for line in shown if line.startswith("layer")]
    rows = [line for line in shown if line.startswith("'fc")]
    assert [len(row) for row in rows] == [len(header)] * 2
    assert rows[1].startswith("'fc2' (output)  Leaky")
    assert "1. " in "\n".join(shown)
    assert any(line.strip().startswith("-> ") for line in shown)
    assert not any(line != line.rstrip() for line in shown)


def test_plain_values():
    found = diagnose(divided(loop_net()), batches(100))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["accuracy_now"] is None
    assert values["layers"][0]["silent"] == 1
    assert values["findings"][0] == {
        "kind": "silent",
        "text": found.findings[0].text,
        "fix": found.findings[0].fix,
        "layer": "fc1",
    }
    assert repr(found) == f"<Diagnosis of {found.network}: {', '.join(kinds(found))}>"
    assert str(found.findings[0]) == f"{found.findings[0].text} -> {found.findings[0].fix}"
    assert isinstance(found, Diagnosis)
    with pytest.raises(AttributeError):
        found.samples = 3


def test_the_figure(tmp_path):
    found = diagnose(count_net(), batches(100))
    rates, shares, gradients = found.plot(tmp_path / "diagnosis.png").axes
    assert (tmp_path / "diagnosis.png").stat().st_size > 5000
    assert [bar.get_width() for bar in rates.containers[0]] == [layer.firing_rate for layer in found.layers]
    assert [text.get_text() for text in rates.get_yticklabels()] == ["fc1", "fc2\n(output)"]
    assert [bar.get_width() for bar in shares.containers[0]] == [layer.silent for layer in found.layers]
    assert [bar.get_width() for bar in shares.containers[1]] == [layer.always_on for layer in found.layers]
    assert [line.get_xdata()[0] for line in gradients.get_lines()] == [layer.gradient for layer in found.layers]
    assert gradients.get_xscale() == "log"
    for axes in (rates, shares, gradients):
        assert axes.get_title()
        assert axes.get_xlabel()
        assert axes.get_legend() is None


def test_a_figure_without_gradients_or_scores():
    found = diagnose(divided(Detached()), batches(100))
    figure = found.plot()
    assert figure.get_suptitle() == found.network
    assert "n/a" in [text.get_text() for text in figure.axes[2].texts]
