"""The diagnosis through its public name: agreement with the report, every finding, every error, and that nothing changes."""

import json
import math
import random

import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import nn

from snn_recon_plugin import Diagnosis, convex_init_, diagnose, over_time
from snn_recon_plugin.errors import DataError, NetworkError, OptionError, ReconstructionError

from .faults import LineFault
from .helpers import (
    BETA,
    CLASSES,
    HIDDEN,
    PIXELS,
    Loop,
    TwoHeads,
    assert_as_before,
    batches,
    conv_net,
    data_loader,
    divided,
    lived_in,
    loop_net,
    sequential_net,
    snapshot,
    train_data,
)

STEPS = 12
FEW = 9  # too few to solve a readout, which takes most of the time


def norse_net(seed=0):
    norse = pytest.importorskip("norse.torch")
    torch.manual_seed(seed)
    layers = nn.Linear(PIXELS, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES)
    net = norse.SequentialState(*layers, norse.LICell())
    with torch.no_grad():
        for number in (0, 2):
            net[number].weight.mul_(6)  # at its initialisation the second layer never spikes
    return net


def norse_layers(seed=0):
    norse = pytest.importorskip("norse.torch")
    torch.manual_seed(seed)
    return norse.SequentialState(nn.Linear(PIXELS, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, CLASSES), norse.LI())


class Counts(Loop):
    """Spikes of the output neuron are returned."""

    def forward(self, x):
        mem1, mem2, found = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for _ in range(self.steps):
            spikes, mem1 = self.lif1(self.fc1(x), mem1)
            counted, mem2 = self.lif2(self.fc2(spikes), mem2)
            found.append(counted)
        return torch.stack(found)


def count_net(seed=0):
    torch.manual_seed(seed)
    return Counts(output=snn.Leaky(beta=BETA))


def kinds(found):
    return [finding.kind for finding in found.findings]


def finding(found, kind):
    (one,) = [each for each in found.findings if each.kind == kind]
    assert one.text.strip()
    assert one.fix.strip()
    return one


NETS = {
    "loop": (loop_net, {}),
    "steps outside": (sequential_net, {"forward": over_time(STEPS)}),
    "convolution": (conv_net, {}),
    "spike count": (count_net, {}),
    "norse cells": (norse_net, {"forward": over_time(STEPS)}),
    "norse layers": (norse_layers, {"forward": over_time(STEPS)}),
}


# -- what is measured -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "options"),
    [pytest.param(*net, id=name, marks=[] if name in ("loop", "norse cells") else pytest.mark.slow) for name, net in NETS.items()],
)
def test_figures_are_those_of_the_report(build, options):
    found = diagnose(build(), batches(200, 50), max_samples=100, **options)
    report = convex_init_(build(), batches(200, 50), hidden="keep", max_samples=100, **options)
    assert (found.accuracy_now, found.accuracy_solved) == (report.accuracy_before, report.accuracy_after)
    assert (found.loss_now, found.loss_solved) == pytest.approx((report.loss_before, report.loss_after))
    assert (found.samples, found.fitted, found.heldout) == (100, 80, 20)
    assert found.network.startswith(report.network)
    hidden = [layer for layer in found.layers if not layer.output]
    for layer, other in zip(hidden, report.layers, strict=True):
        assert (layer.name, layer.neuron) == (other.name, other.neuron)
        for name in ("neurons", "firing_rate", "silent", "always_on"):
            assert getattr(layer, name) == pytest.approx(getattr(other.before, name))


def test_firing_against_a_second_opinion():
    net, (inputs, labels) = loop_net(), train_data(90)
    (layer,) = diagnose(net, [(inputs, labels)]).layers
    spikes, mem = [], torch.zeros(90, HIDDEN)
    with torch.no_grad():
        for _ in range(net.steps):
            mem = BETA * mem + net.fc1(inputs) - (mem > 1).float()
            spikes.append((mem > 1).float())
    spikes = torch.stack(spikes)
    assert layer.firing_rate == pytest.approx(float(spikes.mean()))
    assert layer.silent == pytest.approx(float((spikes.sum((0, 1)) == 0).float().mean()))
    assert layer.no_spike == pytest.approx(float((spikes.sum((0, 2)) == 0).float().mean()))
    assert layer.always_on == 0


def test_gradients_against_a_second_opinion():
    """A straight-through surrogate: one step's current reaches the spikes of all later steps by powers of beta."""
    torch.manual_seed(0)
    neuron = snn.Leaky(beta=BETA, spike_grad=surrogate.straight_through_estimator(), reset_mechanism="none")
    net = loop_net(hidden_neuron=neuron)
    neuron.reset_mechanism = "subtract"
    (layer,) = diagnose(net, batches(FEW)).layers
    steps = net.steps
    reached = [sum(BETA ** (later - step) for later in range(step, steps)) for step in range(steps)]
    assert layer.surrogate == pytest.approx(sum(reached) / steps, rel=1e-3)
    assert layer.gradient > 0.1


def test_a_single_large_batch_costs_no_more_than_its_first_samples():
    sizes = []

    def forward(net, x):
        sizes.append(len(x))
        return net(x)

    inputs, labels = train_data(600)
    found = diagnose(loop_net(), [(inputs, labels)], forward=forward, max_samples=100)
    assert max(sizes) == found.samples == 100
    same = diagnose(loop_net(), [(inputs[:100], labels[:100])])
    assert found.layers == same.layers
    assert found.accuracy_solved == same.accuracy_solved


def test_nothing_is_drawn_from_the_loader_behind_the_samples():
    drawn = []

    def loader():
        for number, pair in enumerate(batches(600, 50)):
            drawn.append(number)
            yield pair

    assert diagnose(loop_net(), loader(), max_samples=100).samples == 100
    assert drawn == [0, 1]


# -- findings ---------------------------------------------------------------------------------------------------------------


def test_a_gain_and_nothing_to_gain_after_it_is_taken():
    net = loop_net()
    before = diagnose(net, batches(300))
    gain = finding(before, "gain")
    assert kinds(before) == ["gain"]
    assert gain.text == (
        f"a readout solved on 240 samples scores {100 * before.accuracy_solved:.1f} % on 60 held-out ones; "
        f"the net scores {100 * before.accuracy_now:.1f} %"
    )
    assert gain.fix == "convex_init_(net, loader)"
    convex_init_(net, batches(300))
    after = diagnose(net, batches(300))
    assert kinds(after) == ["nothing_to_gain"]
    assert after.findings[0].text.startswith("nothing to gain by the readout alone: ")


def test_layers_come_first_if_a_readout_gains_nothing_on_them():
    net, (inputs, labels) = loop_net(), train_data(100)
    with torch.no_grad():
        net.fc1.weight[:30] = 0
        net.fc1.bias[:30] = 0
    found = diagnose(net, [(inputs, labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))])])
    assert kinds(found) == ["silent", "nothing_to_gain"]
    assert found.findings[1].fix.startswith("mend the layers first")


def test_the_call_names_the_options_that_were_given():
    found = diagnose(sequential_net(), batches(100), forward=over_time(8), loss=nn.CrossEntropyLoss())
    assert finding(found, "gain").fix == "convex_init_(net, loader, loss=..., forward=...)"


def test_values_have_a_loss_and_no_accuracy():
    inputs, labels = train_data(200)
    values = nn.functional.one_hot(labels, CLASSES).float()
    found = diagnose(loop_net(), [(inputs, values)], loss="squared")
    assert math.isnan(found.accuracy_now)
    assert found.loss_solved < found.loss_now
    assert "held-out loss of" in finding(found, "gain").text
    assert "held-out accuracy" not in str(found)


@pytest.mark.parametrize("build", [loop_net, norse_net], ids=["snntorch", "norse"])
def test_a_dead_layer(build):
    net = build()
    with torch.no_grad():
        for parameter in list(net.parameters())[:2]:
            parameter.div_(100)
    found = diagnose(net, batches(100), forward=None if build is loop_net else over_time(STEPS))
    first = found.layers[0]
    assert (first.firing_rate, first.silent, first.no_spike) == (0, 1, 1)
    silent = finding(found, "silent")  # the layers above, dead too, are its consequence
    assert silent.text == f"layer {first.name!r}: 100 % of {HIDDEN} neurons never spike on 100 samples"
    assert silent.layer == first.name
    assert silent.fix.startswith("convex_init_(net, loader")
    assert "threshold" in silent.fix
    assert "silent" in finding(found, "not_solved").text
    assert "rebuilds" in finding(found, "not_solved").fix
    assert math.isnan(found.accuracy_now)
    assert "gain" not in kinds(found)


def test_a_saturated_layer():
    net = loop_net()
    with torch.no_grad():
        net.fc1.weight.abs_()
        net.fc1.weight[:20] *= 500
        net.fc1.weight[20:] *= 0.2
    found = diagnose(net, batches(200))
    text = finding(found, "saturated").text
    assert text.startswith("layer 'fc1': ")
    assert "spike at every step of all 200 samples (saturated)" in text
    assert found.layers[0].always_on == pytest.approx(20 / HIDDEN, abs=0.03)
    assert "raise the threshold" in finding(found, "saturated").fix


def test_samples_that_reach_the_readout_without_a_spike():
    net, (inputs, labels) = loop_net(), train_data(200)
    nn.init.zeros_(net.fc1.bias)
    inputs[::4] = 0
    found = diagnose(net, [(inputs, labels)])
    assert finding(found, "no_spike").text.startswith("25 % of 200 samples reach the readout without a spike")
    assert found.layers[0].no_spike == 0.25


def test_samples_without_a_spike_in_a_refused_net():
    torch.manual_seed(0)
    net, (inputs, labels) = TwoHeads(), train_data(100)
    nn.init.zeros_(net.fc1.bias)
    inputs[::2] = 0
    found = diagnose(net, [(inputs, labels)])
    assert finding(found, "no_spike").text == "50 % of 100 samples cause no spike in layer 'lif1'"


def test_outputs_that_never_spike():
    net = count_net()
    with torch.no_grad():
        net.fc2.weight[:4] = -1
    found = diagnose(net, batches(100))
    assert found.layers[1].output
    silent = finding(found, "silent")
    assert silent.text.startswith("output 'fc2': ")
    assert "convex_init_(net, loader) solves the output's weights" in silent.fix


def test_vanishing_gradients():
    net = divided(loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=surrogate.fast_sigmoid(slope=200))))
    found = diagnose(net, batches(FEW))
    assert found.layers[0].gradient < 0.01
    vanishing = finding(found, "vanishing")
    assert vanishing.text.startswith("gradients vanish below layer 'fc1'")
    assert "surrogate" in vanishing.fix


def test_no_gradient_at_all():
    """A spike function without a surrogate."""
    net = loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=lambda x: (x > 0).float()))
    found = diagnose(net, batches(FEW))
    assert (found.layers[0].surrogate, found.layers[0].gradient) == (0, 0)
    assert "vanishing" in kinds(found)


def test_gradients_that_are_not_finite():
    """snnTorch's sigmoid surrogate divides infinity by infinity far below the threshold."""
    net = loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=surrogate.sigmoid(slope=200)))
    found = diagnose(net, batches(FEW))
    assert math.isnan(found.layers[0].surrogate)
    assert "not finite" in finding(found, "not_finite").text
    assert "vanishing" not in kinds(found)


class Raises(torch.autograd.Function):
    error = ValueError

    @staticmethod
    def forward(ctx, x):
        return (x > 0).float()

    @staticmethod
    def backward(ctx, gradient):
        raise Raises.error("no way back\nand more")


class Detached(Loop):
    def forward(self, x):
        return super().forward(x).detach()


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (lambda: loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=Raises.apply)), "ValueError: no way back"),
        (Detached, "does not depend on the layers"),
    ],
    ids=["backward raises", "no graph"],
)
def test_gradients_that_can_not_be_measured(net, reason):
    found = diagnose(net(), batches(100))
    text = finding(found, "not_measured").text
    assert text.startswith("gradients were not measured: ")
    assert reason in text
    assert "more" not in text
    assert math.isnan(found.layers[0].surrogate)
    assert "n/a" in str(found)
    assert "gain" in kinds(found)


# -- refused nets -----------------------------------------------------------------------------------------------------------


class Noisy(Loop):
    """Random numbers that no seed fixes."""

    def forward(self, x):
        return super().forward(x * torch.as_tensor(np.random.default_rng().random(), dtype=torch.float32).add(0.5))


@pytest.mark.parametrize(("net", "word"), [(Noisy, "other values each time"), (TwoHeads, "could be the readout")])
def test_a_refused_net_is_measured_all_the_same(net, word):
    torch.manual_seed(0)
    found = diagnose(net(), batches(100))
    assert kinds(found)[0] == "refused"
    refused = found.findings[0]
    assert refused.text.startswith("convex_init_ refuses this net: ")
    assert word in refused.text
    assert "needed: " in refused.text
    (layer, *_) = found.layers
    assert layer.name == "lif1"  # what feeds it is not known
    assert layer.firing_rate > 0
    assert layer.gradient > 0
    assert (found.readout, found.fitted, found.heldout) == ("", 0, 0)
    assert math.isnan(found.accuracy_solved)
    assert not any("convex_init_(" in each.fix for each in found.findings)
    assert "readout_layer" in refused.fix or net is Noisy


def test_an_option_that_the_refusal_asks_for():
    torch.manual_seed(0)
    found = diagnose(TwoHeads(), batches(100), readout_layer="fc2", scores=lambda output: output[0].mean(0))
    assert "refused" not in kinds(found)
    assert found.readout.startswith("'fc2'")


def test_a_net_without_neurons():
    found = diagnose(nn.Sequential(nn.Linear(PIXELS, CLASSES)), batches(100))
    assert kinds(found) == ["refused"]
    assert "no spiking neuron" in found.findings[0].text
    assert found.layers == ()
    assert "firing rate" not in str(found)
    with pytest.raises(OptionError, match="without spiking layers"):
        found.plot()


def test_labels_that_the_loss_does_not_take():
    inputs, labels = train_data(100)
    found = diagnose(loop_net(), [(inputs, labels + 5)])
    assert kinds(found) == ["refused"]
    assert found.layers[0].firing_rate > 0


def test_too_few_samples_to_solve():
    found = diagnose(loop_net(), batches(9))
    assert "9 samples" in finding(found, "not_solved").text
    assert found.samples == 9
    assert found.layers[0].firing_rate > 0


def test_a_neuron_whose_calls_differ_in_shape():
    class Shared(Loop):
        def forward(self, x):
            self.lif1(x)
            return super().forward(x)

    torch.manual_seed(0)
    found = diagnose(Shared(), batches(100))
    layer = next(layer for layer in found.layers if layer.neuron == "Leaky")
    assert math.isnan(layer.firing_rate)
    assert "n/a" in str(found)


# -- errors -----------------------------------------------------------------------------------------------------------------


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


# -- nothing changes --------------------------------------------------------------------------------------------------------


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


# -- what is shown ----------------------------------------------------------------------------------------------------------


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
