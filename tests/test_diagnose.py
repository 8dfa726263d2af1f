"""The diagnosis: its errors, what it leaves alone, what it measures, and what it shows; also of nets that are refused."""

import json
import math

import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from spikingjelly.activation_based import neuron
from torch import nn

from snn_recon_plugin import Diagnosis, convex_init_, diagnose, over_time
from snn_recon_plugin.errors import DataError, NetworkError, OptionError

from .faults import LineFault
from .helpers import batches, data_loader, divided, hidden_spikes, lived_in, train_data, untouched, values
from .nets import BETA, CLASSES, HIDDEN, PIXELS, STEPS, Loop, TwoHeads, loop_net, sequential_net, step_through
from .test_diagnosis import FEW, NORSE, Raises, count_net, deep_norse_net, detached, finding, kinds
from .versions import needs_new_jelly

LATER = [*batches(50, 50), (torch.rand(20, 7), torch.zeros(20).long())]
BLACK = [(torch.zeros(30, PIXELS), y) for _, y in batches(60, 30)]


class Dense(Loop):
    """Takes sparse inputs."""

    def forward(self, x):
        return super().forward(x.to_dense())


@pytest.mark.parametrize(
    ("net", "loader", "options", "error", "word"),
    [
        (loop_net, [], {}, DataError, "an empty loader"),
        (loop_net, LATER, {}, NetworkError, "batch 2"),
        (loop_net, BLACK, {}, DataError, "inputs that are all zero, of 60 samples"),
        (Dense, [(x.to_sparse(), y) for x, y in BLACK], {}, DataError, "inputs that are all zero, of 60 samples"),
        (lambda: "net", batches(50), {}, NetworkError, "str"),
        (loop_net, batches(50), {"max_samples": None}, OptionError, "max_samples"),
        (loop_net, batches(50), {"readout": "spike_count"}, OptionError, "spike_count"),  # the net returns membranes
    ],
    ids=["empty loader", "wrong shape later", "all zero", "all zero, sparse", "no net", "option", "readout"],
)
def test_refusals(net, loader, options, error, word):
    with pytest.raises(error, match=word):
        diagnose(net(), loader, **options)


def layered():
    """A net whose running statistics a pass in training mode would move."""
    net = loop_net()
    net.fc1, net.fc2 = nn.Sequential(net.fc1, nn.BatchNorm1d(HIDDEN)), nn.Sequential(nn.Dropout(0.5), net.fc2)
    return net


@pytest.mark.parametrize("build", [loop_net, sequential_net, layered, TwoHeads, deep_norse_net], ids=lambda build: build.__name__)
def test_a_net_in_the_middle_of_training_is_left_as_found(build):
    net, loader = build(), data_loader(60, 30, shuffle=True, generator=torch.Generator().manual_seed(3))
    norse = build is deep_norse_net
    net.train() if norse else lived_in(net)
    constants = [value for value in net[1].p if isinstance(value, torch.Tensor)] if norse else []
    flags, drawn = [value.requires_grad for value in constants], loader.generator.get_state()
    with untouched(net):
        diagnose(net, loader, forward=over_time(5) if build in (sequential_net, deep_norse_net) else None)
    assert torch.equal(loader.generator.get_state(), drawn)
    assert [value.requires_grad for value in constants] == flags


def test_frozen_parameters_do_not_hide_gradients():
    net = loop_net()
    free = diagnose(net, batches(FEW))
    found = diagnose(net.requires_grad_(False), batches(FEW))
    assert found.layers == free.layers
    assert kinds(found)[0] == "refused"  # nothing could be written
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_an_error_or_an_interrupt_leaves_everything_alone(monkeypatch):
    with untouched(net := lived_in(loop_net())), pytest.raises(NetworkError):
        diagnose(net, LATER)
    monkeypatch.setattr(Raises, "error", KeyboardInterrupt)
    net = lived_in(loop_net(hidden_neuron=snn.Leaky(beta=BETA, spike_grad=Raises.apply)))
    with untouched(net), pytest.raises(KeyboardInterrupt):  # in the backward pass
        diagnose(net, batches(FEW))


def test_an_interrupt_at_some_line():
    files = ("diagnose.py",)
    with LineFault(files) as count:
        diagnose(loop_net(steps=2), batches(20))
    net = lived_in(loop_net(steps=2))
    with untouched(net), pytest.raises(KeyboardInterrupt), LineFault(files, int(0.9 * count.seen)):
        diagnose(net, batches(20))


@pytest.mark.parametrize(("build", "options"), [(loop_net, {}), (deep_norse_net, NORSE)], ids=["loop", "norse cells"])
def test_figures_are_those_of_the_report(build, options):
    found = diagnose(build(), batches(200, 50), max_samples=100, **options)
    report = convex_init_(build(), batches(200, 50), hidden="keep", max_samples=100, **options)
    assert (found.accuracy_now, found.accuracy_solved) == (report.accuracy_before, report.solved.accuracy)
    assert (found.loss_now, found.loss_solved) == pytest.approx((report.before.loss, report.solved.loss))
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
    spikes = hidden_spikes(net.fc1, inputs)
    assert layer.firing_rate == pytest.approx(float(spikes.mean()))
    assert layer.silent == pytest.approx(float((spikes.sum((0, 1)) == 0).float().mean()))
    assert layer.no_spike == pytest.approx(float((spikes.sum((0, 2)) == 0).float().mean()))
    assert layer.always_on == 0


def test_gradients_against_a_second_opinion():
    """A straight-through surrogate: one step's current reaches the spikes of all later steps by powers of beta."""
    neuron = snn.Leaky(beta=BETA, spike_grad=surrogate.straight_through_estimator(), reset_mechanism="none")
    net = loop_net(hidden_neuron=neuron)
    neuron.reset_mechanism = "subtract"
    (layer,) = diagnose(net, batches(FEW)).layers
    reached = [sum(BETA ** (later - step) for later in range(step, net.steps)) for step in range(net.steps)]
    assert layer.surrogate == pytest.approx(sum(reached) / net.steps, rel=1e-3)
    assert layer.gradient > 0.1


def test_no_more_than_the_first_samples_are_computed_or_drawn():
    sizes, drawn = [], []

    def forward(net, x):
        sizes.append(len(x))
        return net(x)

    def loader():
        for number, pair in enumerate(batches(600)):
            drawn.append(number)
            yield pair

    inputs, labels = train_data(600)
    found = diagnose(loop_net(), [(inputs, labels)], forward=forward, max_samples=100)
    assert max(sizes) == found.samples == 100
    same = diagnose(loop_net(), loader(), max_samples=100)
    assert drawn == [0]
    assert repr(found.layers) == repr(same.layers)  # NaN is not equal to itself
    assert found.accuracy_solved == same.accuracy_solved


class Noisy(Loop):
    """Random numbers that no seed fixes."""

    def forward(self, x):
        return super().forward(x * float(0.5 + np.random.default_rng().random()))


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
    assert layer.name == ("lif1" if net is Noisy else "fc1")  # what feeds a neuron is not known if passes differ
    assert layer.firing_rate > 0
    assert layer.gradient > 0
    assert (found.readout, found.fitted, found.heldout) == ("", 0, 0)
    assert math.isnan(found.accuracy_solved)
    assert not any("convex_init_(" in each.fix for each in found.findings)
    assert "readout_layer" in refused.fix or net is Noisy
    if net is TwoHeads:  # with the option that the refusal asks for
        found = diagnose(net(), batches(100), readout_layer="fc2", forward=lambda net, x: net(x)[0].mean(0))
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


@pytest.mark.parametrize("fault", ["labels that the loss does not take", "too few samples to solve"])
def test_layers_are_measured_where_no_readout_is_solved(fault):
    inputs, labels = train_data(100)
    labelled = fault.startswith("labels")
    found = diagnose(loop_net(), [(inputs, labels + 5)] if labelled else batches(9))
    assert found.layers[0].firing_rate > 0
    assert found.samples == (100 if labelled else 9)
    assert kinds(found) == ["refused"] if labelled else "9 samples" in finding(found, "not_solved").text


def test_a_neuron_whose_calls_differ_in_shape():
    class Shared(Loop):
        def forward(self, x):
            self.lif1(x)
            return super().forward(x)

    torch.manual_seed(0)
    found = diagnose(Shared(), batches(100))
    layer = next(layer for layer in found.layers if layer.neuron == "Leaky")
    assert 0 < layer.firing_rate < 1
    assert math.isnan(layer.silent)
    assert "n/a" in str(found)


def test_fresh_batch_norms_get_statistics_of_the_data_before_anything_is_measured():
    torch.manual_seed(0)
    net = loop_net()
    net.fc1 = nn.Sequential(net.fc1, nn.BatchNorm1d(HIDDEN))
    with torch.no_grad():
        net.fc1[0].weight /= 20
    before = values(net)
    found = diagnose(net, batches(200))
    assert found.layers[0].silent < 0.5
    assert "silent" not in kinds(found)
    assert values(net) == before


def test_the_table_and_the_figure(tmp_path):
    found = diagnose(count_net(), batches(200))
    shown = str(found).splitlines()
    assert max(map(len, shown)) <= 100
    assert shown[1].split() == ["network", "Loop", "(snntorch),", "8", "steps"]
    assert [line.split()[0] for line in shown if line.startswith("'fc")] == ["'fc1'", "'fc2'"]
    for each in found.findings:
        assert each.text[:40] in str(found)
        assert each.fix[:40] in str(found)

    rates, shares, gradients = found.plot(tmp_path / "diagnosis.png").axes
    assert (tmp_path / "diagnosis.png").stat().st_size > 5000
    assert [bar.get_width() for bar in rates.containers[0]] == [layer.firing_rate for layer in found.layers]
    assert [text.get_text() for text in rates.get_yticklabels()] == ["fc1", "fc2\n(output)"]
    assert [bar.get_width() for bar in shares.containers[0]] == [layer.silent for layer in found.layers]
    assert [bar.get_width() for bar in shares.containers[1]] == [layer.always_on for layer in found.layers]
    assert [line.get_xdata()[0] for line in gradients.get_lines()] == [layer.gradient for layer in found.layers]
    assert gradients.get_xscale() == "log"
    for axes in (rates, shares, gradients):
        assert all((axes.get_title(), axes.get_xlabel()))
        assert axes.get_legend() is None


def test_plain_values():
    found = diagnose(divided(detached()), batches(100))
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["accuracy_now"] is None
    assert values["layers"][0]["silent"] == 1
    first = found.findings[0]
    assert values["findings"][0] == {"kind": "silent", "text": first.text, "fix": first.fix, "layer": "fc1"}
    assert repr(found) == f"<Diagnosis of {found.network}: {', '.join(kinds(found))}>"
    assert str(first) == f"{first.text} -> {first.fix}"
    assert isinstance(found, Diagnosis)
    with pytest.raises(AttributeError):
        found.samples = 3
    figure = found.plot()  # without gradients or scores
    assert figure.get_suptitle() == found.network
    assert "n/a" in [text.get_text() for text in figure.axes[2].texts]


@needs_new_jelly
@pytest.mark.parametrize("batch", [200, 1])
def test_an_output_that_is_a_membrane_is_no_spike(batch):
    class Membrane(neuron.SimpleLIFNode):
        """Returns its membrane, as the output of SpikingJelly's DQN example does."""

        def single_step_forward(self, x):
            self.neuronal_charge(x)
            return self.v

    torch.manual_seed(0)
    layers = nn.Linear(PIXELS, HIDDEN), neuron.IFNode(), nn.Linear(HIDDEN, CLASSES)
    spiking, net = (nn.Sequential(*layers, last) for last in (neuron.LIFNode(), Membrane(tau=2.0, decay_input=False)))
    own, few = [], batches(20, batch)
    for each in (spiking, net):
        found = diagnose(each, few, forward=over_time(STEPS))
        own.append([layer.name for layer in found.layers])
        assert "saturated" not in kinds(found)
    assert own == [["0", "2"], ["0"]]


def test_spikes_of_another_size_are_spikes():
    net = loop_net(hidden_neuron=snn.Leaky(beta=BETA, graded_spikes_factor=2.5))
    assert [layer.name for layer in diagnose(net, batches(FEW)).layers] == ["fc1"]


class TimeFirst(Loop):
    def forward(self, x):
        return step_through(x, [self.fc1, self.fc2], [self.lif1, self.lif2])[1]


@pytest.mark.parametrize("samples", [96, 100], ids=["equal batches", "a smaller last one"])
def test_targets_whose_time_comes_first_are_named(samples):
    """The last batch's targets have another shape, but what makes them so is named, not the collate function."""
    inputs = torch.rand(20, samples, 1, generator=torch.Generator().manual_seed(0))
    loader = list(zip(inputs.split(32, 1), inputs.sqrt().split(32, 1), strict=True))
    net, options = TimeFirst(inputs=1, outputs=1), {"loss": nn.MSELoss(), "readout": "membrane_per_step"}
    if samples == 100:
        with pytest.raises(DataError, match=r"unpack=lambda batch: \(batch\[0\], batch\[1\].transpose\(0, 1\)\)"):
            diagnose(net, loader, **options)
    else:
        assert "axis 1 holds the 32 samples" in finding(diagnose(net, loader, **options), "refused").text
    right = diagnose(net, loader, **options, unpack=lambda batch: (batch[0], batch[1].transpose(0, 1)))
    assert "refused" not in kinds(right)
