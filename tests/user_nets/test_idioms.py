"""Every idiom of the libraries, end to end: solved, written, verified, undone, and nothing else of it touched."""

import copy

import pytest
import torch

from snn_recon_plugin import convex_init_
from snn_recon_plugin.networks.calls.forward import over_time

from ..helpers import assert_as_before, snapshot
from .small_idioms import CASES, CLASSES, FIRST, INPUTS, MULTI_STEP, STEPS, Mixed, loud

OPTIONS = {"hidden": "keep", "strength": 1e-3}
SAMPLES = 60


def data(shape=(INPUTS,)):
    """Three classes that differ in where the input is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    inputs = torch.rand((SAMPLES, *shape), generator=generator)
    for label in range(CLASSES):
        inputs[labels == label, ..., label * 3 : label * 3 + 3] += 1.5
    return inputs, labels


def built(idiom, reading):
    torch.manual_seed(0)
    return loud(idiom.build(reading.output))


def initialised(net, idiom, reading, **options):
    """Run the line, and compare the report with what the catalogue expects."""
    inputs, labels = data(idiom.shape)
    loader = list(zip(inputs.split(25), labels.split(25), strict=True))
    report = convex_init_(net, loader, forward=idiom.forward, readout=reading.kind, strength=1e-3, **options)
    assert (report.readout.name, report.readout.kind, report.exactness.label) == (idiom.readout, reading.kind, reading.exactness)
    if reading.exactness == "exact":
        assert report.exactness.max_difference <= 1e-4 * max(1.0, report.exactness.scale)
    return report


RESCALED = [case for case in CASES.values() if case in FIRST.values() and len(case[0].readings) > 1]  # by the test below
ALIKE = {  # other nets take the same branches of the package
    *("snnTorch, convolutions, loop in forward", "snnTorch, nested", "Norse, multi-step layers", "Norse, lifted Linears"),
    *("Norse, lifted net", "Norse, convolutional cells", "Norse, LSNNRecurrent"),
}
# The last test rebuilds these.
REBUILT = {
    *("snnTorch, loop in forward", "snnTorch, Sequential", "Norse, cells", "Norse, multi-step layers", "Norse, LIFRecurrent"),
    *("SpikingJelly, step mode m", "Norse, convolutional cells"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if case in RESCALED or case[0].name in ALIKE else name
        for name, case in CASES.items()
    ],
)
def test_written_and_undone(name):
    assert all(key.startswith(CASES[name][0].readout) for key in written_and_undone(*CASES[name], hidden="keep"))


@pytest.mark.usefixtures("one_rate")
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in REBUILT else name for name in FIRST])
def test_rescaled_and_undone(name, state_of, at_the_write):
    before = []
    written_and_undone(*FIRST[name], hidden="rescale", watch=lambda net: before.append(state_of(net)))
    assert at_the_write == before


def written_and_undone(idiom, reading, hidden, watch=lambda net: None):
    """Initialise a net with mixed modes and a frozen layer, take it back, and return the parameters that were written."""
    net = built(idiom, reading)
    net.train()
    next(net.parameters()).requires_grad_(False)
    before, again = snapshot(net), snapshot(net)
    watch(net)
    report = initialised(net, idiom, reading, hidden=hidden)
    assert report.accuracy_written > 0.9
    now = snapshot(net)["parameters"]
    changed = [key for key in before["parameters"] if before["parameters"][key][1] != now[key][1]]
    assert any(key.startswith(idiom.readout) for key in changed)
    statistics = [name for name in before["buffers"] if hidden != "keep" and name.endswith(("running_mean", "running_var"))]
    assert_as_before(net, before, written=[*changed, *statistics])
    report.undo()
    assert_as_before(net, again)
    return changed


LONG = {  # other layers of the same library and kind are quicker
    *("Norse, recurrent cells", "RSynaptic", "Norse, LSNNRecurrent", "Norse, lifted net", "Norse, lifted Linears"),
    *("Norse, lifted convolutions", "snnTorch, convolutions, loop in forward", "snnTorch, nested", "batch first, folded"),
}


@pytest.mark.usefixtures("one_rate")
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in FIRST])
def test_hidden_layers_rebuilt_and_undone(name):
    net = built(*FIRST[name])
    before = snapshot(net)
    report = initialised(net, *FIRST[name], hidden="reconstruct", n_candidates=8.0)
    assert report.accuracy_written > 0.85 or "convolutions" in name
    kept = ("recurrent", "the rows of a LeakyParallel can't be replaced", "convolutions keep their weights")
    for layer in report.layers:
        driven = layer.gain != 1.0 and not layer.reason  # a convolution
        assert layer.witnesses is not None or driven or layer.reason.startswith(kept)
    report.undo()
    assert_as_before(net, before)


@pytest.mark.parametrize("title", ["module lists", "Norse, multi-step layers"])
def test_other_nets_of_the_process_are_left_alone(title):
    """snnTorch keeps a list of all neurons of a class, and Norse shares its default parameters between them."""
    idiom, reading = FIRST[title]
    inputs, labels = data()
    net, other = built(idiom, reading), built(idiom, reading)
    idiom.forward(other, inputs)
    before = snapshot(other)
    convex_init_(net, [(inputs, labels)], forward=idiom.forward, strength=1e-3)
    assert_as_before(other, before)


def multi_step(net):
    return convex_init_(net, [data()], forward=over_time(STEPS), **OPTIONS)


def test_a_compiled_net_is_written_through_its_wrapper():
    net = loud(MULTI_STEP.build("LI"))
    report = multi_step(torch.compile(net, backend="eager"))
    plain = copy.deepcopy(net)
    report.undo()
    multi_step(net)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), net.parameters(), strict=True))


# The certificate is of the weights as they were rounded.
@pytest.mark.parametrize(("dtype", "gap"), [(torch.bfloat16, 1e-5), (torch.float16, 1e-6), (torch.float64, 1e-6)])
def test_a_readout_of_another_precision(dtype, gap):
    torch.manual_seed(0)
    net = Mixed(dtype)
    before = bytes_of(net)
    report = convex_init_(net, [data()], **OPTIONS)
    assert (report.exactness.label, net.fc2.weight.dtype) == ("exact", dtype)
    assert report.accuracy_written > 0.9
    assert 0 < report.certificate.relative_gap < gap
    assert bytes_of(net) != before
    report.undo()
    assert bytes_of(net) == before


def bytes_of(net):
    """The bits of all parameters, of whatever precision."""
    return {name: parameter.detach().view(torch.uint8).tolist() for name, parameter in net.named_parameters()}
