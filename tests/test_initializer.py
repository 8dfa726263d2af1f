import random

import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import ConvexInitializer, Report, convex_init_, over_time
from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.witnesses import choose_gains

from .helpers import (
    CLASSES,
    HIDDEN,
    STEPS,
    TRAIN,
    Loop,
    TwoHeads,
    accuracy,
    assert_as_before,
    batches,
    conv_net,
    copy_of,
    data_loader,
    divided,
    features,
    hidden_spikes,
    lived_in,
    loop_net,
    mean_filter,
    mean_membrane,
    opinion_on,
    sequential_net,
    snapshot,
    test_data,
    train_data,
    values,
)

READOUT = ("fc2.weight", "fc2.bias")


def check_certificate(report, net, penalty="ridge", count=TRAIN):
    """Check the reported certificate against one that was computed elsewhere, from the parameters that were written."""
    inputs, labels = train_data(count)
    solved = copy_of(net)
    with torch.no_grad():
        for parameter in solved.fc2.parameters():
            parameter.div_(report.exactness.weight_scale)
    primal, dual, zero = opinion_on(solved, inputs, labels, loss=report.fit_loss, penalty=penalty, strength=report.strength)
    certificate = report.certificate
    assert certificate.primal == pytest.approx(primal, abs=2e-7 * zero)
    # A lower bound may come from elsewhere than the written point: better than its own, but never above the optimum.
    assert dual - 2e-7 * zero <= certificate.dual <= primal + 2e-7 * zero
    assert certificate.gap == certificate.primal - certificate.dual
    assert certificate.relative_gap == pytest.approx(certificate.gap / zero, rel=1e-9)
    assert -1e-12 <= certificate.relative_gap <= certificate.tol
    assert certificate.reached


# -- end to end -----------------------------------------------------------------------------------------------------------


def test_one_line_on_the_digits():
    net = loop_net()
    before = accuracy(net)
    report = convex_init_(net, data_loader(), hidden="keep")
    assert isinstance(report, Report)
    assert before <= 0.3
    assert accuracy(net) >= 0.86
    assert report.accuracy_before <= 0.3
    assert report.accuracy_after >= 0.85
    assert report.accuracy_written >= report.accuracy_after
    assert report.loss_after < 0.5 < report.loss_before
    assert report.exactness.label == "exact"
    assert report.exactness.max_difference <= 1e-4
    assert (report.samples, report.heldout, report.heldout_before) == (TRAIN, TRAIN // 5, TRAIN // 5)
    assert report.certificate.tol == 1e-6
    check_certificate(report, net)


def test_the_network_computes_the_programs_scores():
    net = loop_net()
    report = convex_init_(net, data_loader(), hidden="keep")
    inputs, labels = test_data()
    gain = float(mean_filter().sum())
    promised = features(net.fc1, inputs) @ net.fc2.weight.detach().double().T + gain * net.fc2.bias.detach().double()
    assert float((mean_membrane(net, inputs).double() - promised).abs().max()) <= 1e-4
    # The report's own figures are those of the written network on the training data.
    inputs, labels = train_data()
    scores = mean_membrane(net, inputs)
    assert report.accuracy_written == pytest.approx(float((scores.argmax(1) == labels).double().mean()), abs=1e-12)
    assert report.exactness.scale == pytest.approx(float(scores.abs().max()), rel=1e-5)
    assert report.exactness.samples == TRAIN


def test_accuracy_before_is_that_of_the_network_as_it_was():
    net = divided(loop_net(), 3)
    inputs, labels = train_data()
    scores = mean_membrane(net, inputs).double()
    right, losses = scores.argmax(1) == labels, nn.functional.cross_entropy(scores, labels, reduction="none")
    held = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(4))[: TRAIN // 5]
    report = convex_init_(net, data_loader(), hidden="rescale", seed=4)
    assert report.layers[0].gain != 1.0
    assert report.accuracy_before == pytest.approx(float(right[held].double().mean()), abs=1e-12)
    assert report.loss_before == pytest.approx(float(losses[held].mean()), rel=1e-5)


def test_a_sequential_net_stepped_from_outside():
    net, forward = sequential_net(), over_time(STEPS)
    before = lived_in(net) and snapshot(net)
    report = convex_init_(net, data_loader(), hidden="keep", forward=forward)
    assert_as_before(net, before, written=("2.weight", "2.bias"))
    assert accuracy(net, forward) >= 0.85
    assert (report.readout, report.readout_kind, report.num_steps) == ("2", "membrane_mean", STEPS)
    # The same weights in the net with an explicit loop give the same program.
    twin = Loop()
    for ours, theirs in ((twin.fc1, net[0]), (twin.fc2, net[2])):
        ours.load_state_dict(theirs.state_dict())
    check_certificate(report, twin)


def test_a_convolutional_net():
    net = conv_net()
    report = convex_init_(net, data_loader(400))
    assert accuracy(net) >= 0.8
    assert report.exactness.max_difference <= 1e-4
    assert report.certificate.reached
    assert report.hidden_neurons == 36
    assert [layer.name for layer in report.layers] == ["conv"]


def test_a_net_without_a_readout_bias():
    net = loop_net(bias=False)
    report = convex_init_(net, data_loader(), hidden="keep")
    assert accuracy(net) >= 0.85
    check_certificate(report, net)


@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_what_is_written_and_what_is_left_alone(hidden):
    net = lived_in(divided(loop_net(), 3))
    before = snapshot(net)
    report = convex_init_(net, data_loader(), hidden=hidden)
    hidden_layer = ("fc1.weight", "fc1.bias") if hidden == "rescale" else ()
    assert_as_before(net, before, written=READOUT + hidden_layer)
    assert (report.layers[0].gain == 1.0) is (hidden == "keep")


def test_rescaling_multiplies_weight_and_bias_by_the_reported_gain():
    net = divided(loop_net())
    own = copy_of(net)
    report = convex_init_(net, data_loader(), hidden="rescale")
    gain = report.layers[0].gain
    assert gain > 5
    for name in ("weight", "bias"):
        assert torch.equal(getattr(net.fc1, name), getattr(own.fc1, name) * gain)
    check_certificate(report, net)


def test_rescaling_revives_a_silent_net():
    healthy, silent = loop_net(), divided(loop_net())
    inputs, _ = train_data()
    assert not hidden_spikes(silent.fc1, inputs).any()
    convex_init_(healthy, data_loader(), hidden="keep")
    report = convex_init_(silent, data_loader())
    (layer,) = report.layers
    rate = float(hidden_spikes(silent.fc1, inputs).mean())
    assert layer.before.firing_rate == 0.0
    assert layer.before.silent == 1.0
    assert 0.005 < rate < 0.5
    assert layer.stats.firing_rate == pytest.approx(rate, rel=1e-6)
    assert accuracy(silent) >= accuracy(healthy) - 0.04


def test_rescaling_keeps_a_healthy_layer_bit_for_bit():
    # Scaled once to where it is best; asked again, the layer's own weights tie with the best.
    net = divided(loop_net())
    convex_init_(net, data_loader(), strength=1e-2)
    before = values(net)
    report = convex_init_(net, data_loader(), strength=1e-2)
    after = values(net)
    assert report.layers[0].gain == 1.0
    assert {name for name in before if before[name] != after[name]} <= set(READOUT)


# -- options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["ridge", "group_l1", "l1"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "logistic"])
def test_every_loss_with_every_penalty(loss, penalty):
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="keep", loss=loss, penalty=penalty, strength=2e-3)
    assert (report.loss, report.penalty, report.strength, report.path) == (loss, penalty, 2e-3, None)
    assert accuracy(net) >= 0.75
    assert report.fit_loss == loss
    check_certificate(report, net, penalty, count=300)


@pytest.mark.parametrize("penalty", ["group_l1", "l1"])
def test_active_neurons_are_those_with_a_weight(penalty):
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="keep", penalty=penalty, strength=2e-2)
    active = int((net.fc2.weight != 0).any(0).sum())
    assert 0 < active < HIDDEN
    assert (report.active_neurons, report.hidden_neurons) == (active, HIDDEN)
    sizes = net.fc2.weight.detach()
    sizes = sizes.norm(dim=0) if penalty == "group_l1" else sizes.abs().sum(0)
    assert (torch.tensor(report.neuron_sizes) > 0).tolist() == (sizes > 0).tolist()


def test_one_standard_error_uses_a_larger_strength():
    reports = [convex_init_(loop_net(), batches(), hidden="keep", penalty="group_l1", strength=kind) for kind in ("auto", "one_se")]
    best, sparser = reports
    assert [point.strength for point in best.path.points] == [point.strength for point in sparser.path.points]
    assert sparser.strength == sparser.path.chosen.strength >= best.strength
    limit = best.path.chosen.heldout_loss + best.path.chosen.heldout_error
    assert sparser.path.chosen.heldout_loss <= limit
    above = [point for point in sparser.path.points if point.strength > sparser.strength]
    assert all(point.heldout_loss > limit for point in above)
    assert "strength='one_se'" in repr(ConvexInitializer(strength="one_se"))


def test_strength_auto_is_the_best_of_its_path():
    net = loop_net()
    report = convex_init_(net, batches(), hidden="keep")
    losses = [point.heldout_loss for point in report.path.points]
    assert len(losses) >= 4
    assert report.path.chosen.heldout_loss == min(losses)
    assert report.loss_after == pytest.approx(min(losses), rel=1e-12)  # the same numbers, added up in another order
    assert report.strength == report.path.chosen.strength
    # Typed in by hand, that strength gives the same program, and a solution as good.
    again = loop_net()
    given = convex_init_(again, batches(), hidden="keep", strength=report.strength)
    assert given.certificate.primal == pytest.approx(report.certificate.primal, rel=1e-5)
    assert torch.allclose(again.fc2.weight, net.fc2.weight, atol=0.05 * float(net.fc2.weight.detach().abs().max()))


@pytest.mark.parametrize("solver", ["clarabel", "scs"])
def test_reference_solvers_write_the_same_readout(solver):
    options = {"hidden": "keep", "penalty": "ridge", "strength": 3e-2, "loss": "squared", "tol": 1e-7}
    native, reference = loop_net(hidden=8), loop_net(hidden=8)
    first = convex_init_(native, batches(60, 20), **options)
    second = convex_init_(reference, batches(60, 20), solver=solver, **options)
    assert (first.solver, second.solver) == ("newton", solver)
    assert second.certificate.reached
    assert second.certificate.primal == pytest.approx(first.certificate.primal, rel=1e-6)
    assert torch.allclose(native.fc2.weight, reference.fc2.weight, atol=2e-3)


@pytest.mark.parametrize("kind", ["membrane_mean", "membrane_sum", "membrane_last"])
def test_readouts_by_name(kind):
    net = loop_net()
    report = convex_init_(net, batches(300), hidden="keep", readout=kind, strength=1e-2)
    assert report.readout_kind == kind
    with torch.no_grad():
        membranes = net(test_data()[0])
    scores = {"membrane_mean": membranes.mean(0), "membrane_sum": membranes.sum(0), "membrane_last": membranes[-1]}[kind]
    assert float((scores.argmax(1) == test_data()[1]).double().mean()) >= 0.8
    weight, bias = net.fc2.weight.detach().double(), net.fc2.bias.detach().double()
    loss = nn.functional.cross_entropy(_decoded(net, kind).double(), train_data(300)[1])
    assert report.certificate.primal == pytest.approx(float(loss + 0.5e-2 * weight.square().sum()), rel=1e-5)
    assert bias.abs().max() > 0


def _decoded(net, kind):
    with torch.no_grad():
        membranes = net(train_data(300)[0])
    return {"membrane_mean": membranes.mean(0), "membrane_sum": membranes.sum(0), "membrane_last": membranes[-1]}[kind]


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_the_gap_that_was_asked_for(tol):
    report = convex_init_(loop_net(), batches(300), hidden="keep", strength=1e-3, tol=tol)
    assert report.certificate.tol == tol
    # A network in float32 holds 7 digits: what rounding costs is in the certificate, and it is said where that is too much.
    assert report.certificate.reached is (report.certificate.relative_gap <= tol)
    assert report.certificate.relative_gap <= max(tol, 1e-7)


@pytest.mark.parametrize("holdout", [0.1, 0.5])
def test_holdout(holdout):
    report = convex_init_(loop_net(), batches(200), hidden="keep", holdout=holdout, strength=1e-3)
    assert (report.samples, report.heldout) == (200, 200 * holdout)


def test_a_readout_that_rests_above_zero():
    """The constant of an output neuron is taken up by the bias, and must be."""

    class Offset(snn.Leaky):
        def forward(self, input_, mem=None):
            return super().forward(input_ + 0.5, mem)

    def output():
        return Offset(beta=0.9, reset_mechanism="none")

    net, plain = loop_net(output=output()), loop_net()
    report = convex_init_(net, batches(300), hidden="keep", strength=1e-3)
    convex_init_(plain, batches(300), hidden="keep", strength=1e-3)
    assert report.exactness.max_difference <= 1e-4
    assert torch.allclose(net.fc2.bias + 0.5, plain.fc2.bias, atol=2e-3)
    with pytest.raises(UnsupportedModuleError, match="bias=True"):
        convex_init_(loop_net(output=output(), bias=False), batches(300), hidden="keep")


def test_regression_targets():
    net = loop_net(outputs=2)
    inputs, labels = train_data(300)
    targets = torch.stack([labels / 10.0, inputs.mean(1)], dim=1)
    loader = list(zip(inputs.split(100), targets.split(100), strict=True))
    report = convex_init_(net, loader, hidden="keep", loss="squared")
    assert report.loss_after < 0.5 * report.loss_before
    assert all(np.isnan(value) for value in (report.accuracy_before, report.accuracy_after, report.accuracy_written))
    assert report.certificate.reached


def test_a_single_output_for_two_classes():
    net = loop_net(outputs=1)
    inputs, labels = train_data(300)
    binary = (labels >= 5).long()
    report = convex_init_(net, [(inputs, binary)], hidden="keep", loss="logistic")
    predicted = mean_membrane(net, inputs)[:, 0] > 0
    assert float((predicted == binary.bool()).double().mean()) >= 0.8
    assert report.accuracy_after >= 0.65


@pytest.mark.usefixtures("one_rate")
def test_several_hidden_layers():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc0, self.lif0 = nn.Linear(64, HIDDEN), snn.Leaky(beta=0.9)
            self.rest = Loop(inputs=HIDDEN)

        def forward(self, x):
            mems, membranes = [neuron.reset_mem() for neuron in (self.lif0, self.rest.lif1, self.rest.lif2)], []
            for _ in range(STEPS):
                spikes, mems[0] = self.lif0(self.fc0(x), mems[0])
                spikes, mems[1] = self.rest.lif1(self.rest.fc1(spikes), mems[1])
                _, mems[2] = self.rest.lif2(self.rest.fc2(spikes), mems[2])
                membranes.append(mems[2])
            return torch.stack(membranes)

    torch.manual_seed(0)
    net = Deep()
    with torch.no_grad():
        for layer in (net.fc0, net.rest.fc1):
            layer.weight.div_(20)
            layer.bias.div_(20)
    report = convex_init_(net, batches(300), hidden="rescale")
    assert [layer.name for layer in report.layers] == ["fc0", "rest.fc1"]
    assert all(layer.gain > 1 and layer.stats.firing_rate > 0.003 for layer in report.layers)
    assert accuracy(net) >= 0.6


def test_readout_layer_picks_one_of_several():
    torch.manual_seed(0)
    net = TwoHeads()
    before = values(net)
    loader = [(inputs, labels % 3) for inputs, labels in batches(200)]
    report = convex_init_(net, loader, hidden="keep", readout_layer="fc3", strength=1e-3)
    after = values(net)
    assert report.readout == "fc3"
    assert {name for name in before if before[name] != after[name]} == {"fc3.weight", "fc3.bias"}


# -- loaders --------------------------------------------------------------------------------------------------------------


def one_shot(pairs):
    yield from pairs


@pytest.mark.usefixtures("one_rate")
@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_loaders_of_all_kinds_give_the_same_bits(hidden):
    written = []
    kinds = [batches(200), tuple(batches(200)), one_shot(batches(200)), data_loader(200), iter(data_loader(200))]
    for loader in kinds if hidden == "keep" else kinds[1:4]:
        net = divided(loop_net(), 3)
        report = convex_init_(net, loader, hidden=hidden, strength=1e-2)
        assert report.samples == 200
        written.append(values(net))
    assert all(other == written[0] for other in written)


@pytest.mark.usefixtures("one_rate")
def test_a_one_shot_loader_is_read_once_and_to_its_end():
    drawn = []

    def counting():
        for number, batch in enumerate(batches(300, 30)):
            drawn.append(number)
            yield batch

    report = convex_init_(loop_net(), counting())
    assert drawn == list(range(10))
    assert report.samples == 300


def test_pairs_may_be_lists_and_labels_of_any_integer_dtype():
    written = []
    for kind in (lambda y: y, lambda y: y.to(torch.uint8), lambda y: y.to(torch.int32), lambda y: y.tolist()):
        net = loop_net()
        convex_init_(net, [[inputs, kind(labels)] for inputs, labels in batches(200)], hidden="keep", strength=1e-3)
        written.append(values(net))
    assert all(other == written[0] for other in written)


@pytest.mark.usefixtures("one_rate")
@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_max_samples_reads_no_more_than_needed(hidden):
    drawn = []

    def counting():
        for number, batch in enumerate(batches(600, 60)):
            drawn.append(number)
            yield batch

    report = convex_init_(loop_net(), counting(), hidden=hidden, max_samples=150)
    assert (report.samples, report.heldout, report.exactness.samples) == (150, 30, 150)
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize("hidden", ["keep", "rescale"])
def test_samples_beyond_max_samples_play_no_part(hidden):
    inputs, labels = train_data(300)
    other = labels.clone()
    other[100:] = other[100:].flip(0)
    written = []
    for target in (labels, other):
        net = divided(loop_net(seed=3))
        if hidden == "keep":
            divided(net, 0.05)
        convex_init_(net, [(inputs, target)], hidden=hidden, max_samples=100, strength=1e-3)
        written.append(values(net))
    assert written[0] == written[1]


def test_max_samples_above_what_there_is():
    report = convex_init_(loop_net(), data_loader(200), hidden="keep", max_samples=10_000, strength=1e-3)
    assert report.samples == 200


@pytest.mark.usefixtures("one_rate")
def test_a_shuffling_loader():
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    net, again = loop_net(), loop_net()
    report = convex_init_(net, data_loader(300, shuffle=True, generator=generator), strength=1e-3)
    assert torch.equal(generator.get_state(), state)
    convex_init_(again, data_loader(300, shuffle=True, generator=generator), strength=1e-3)
    assert values(net) == values(again)
    assert report.exactness.max_difference <= 1e-4
    assert accuracy(net) >= 0.8


# -- determinism ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_rate")
def test_the_same_seed_gives_the_same_bits_whatever_the_generators_were_at():
    written, reports = [], []
    for stir in (0, 1, 99):
        net = divided(loop_net(), 3)
        torch.manual_seed(stir)
        np.random.seed(stir)
        random.seed(stir)
        report = convex_init_(net, data_loader(200, shuffle=True))
        written.append(values(net))
        told = report.to_dict()
        del told["seconds"], told["trace"]
        reports.append(told)
    assert written[0] == written[1] == written[2]
    assert reports[0] == reports[1] == reports[2]


def test_another_seed_holds_out_other_samples():
    reports = [convex_init_(loop_net(), batches(300), hidden="keep", strength=1e-3, seed=seed) for seed in (0, 1)]
    assert [report.seed for report in reports] == [0, 1]
    assert reports[0].loss_after != reports[1].loss_after
    assert reports[0].certificate.primal == pytest.approx(reports[1].certificate.primal, rel=1e-5)


def test_seed_and_loss_reach_the_choice_of_gains(monkeypatch):
    seen = {}

    def record(task):
        seen.update(loss=task.loss.name, seed=task.seed)
        return choose_gains(task)

    monkeypatch.setattr("snn_recon_plugin.pipeline.hidden.choose_gains", record)
    convex_init_(loop_net(), batches(100), hidden="rescale", loss="squared", seed=6, strength=1e-2)
    assert seen == {"loss": "squared", "seed": 6}


def test_the_users_generators_are_as_found():
    net = lived_in(loop_net())
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)
    before = snapshot(net)
    convex_init_(net, data_loader(200, shuffle=True), hidden="keep")
    assert_as_before(net, before, written=READOUT)


# -- the initializer itself -----------------------------------------------------------------------------------------------


def test_an_initializer_can_be_used_again():
    init = ConvexInitializer(hidden="keep", strength=1e-3)
    nets = [loop_net(), loop_net()]
    for net in nets:
        init.initialize(net, batches(200))
    assert values(nets[0]) == values(nets[1])


def test_defaults_and_repr():
    expected = "ConvexInitializer(hidden='auto', loss='cross_entropy', penalty='ridge', strength='auto', readout='auto', tol=1e-06)"
    assert repr(ConvexInitializer()) == expected
    shown = repr(ConvexInitializer(hidden="keep", strength=0.5, tol=1e-7))
    assert shown == expected.replace("hidden='auto'", "hidden='keep'").replace("strength='auto'", "strength=0.5").replace(
        "1e-06", "1e-07"
    )


def test_a_silent_progress_bar_and_a_shown_one(capsys):
    convex_init_(loop_net(), batches(100), hidden="keep", strength=1e-3, progress=False)
    assert capsys.readouterr().err == ""
    convex_init_(loop_net(), batches(100), hidden="keep", strength=1e-3, progress=True)
    shown = capsys.readouterr().err
    assert all(stage in shown for stage in ("inspect", "capture", "solve", "write and verify"))


def test_training_goes_on_from_there():
    net = loop_net()
    report = convex_init_(net, data_loader(), hidden="keep", strength=1e-3)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    inputs, labels = train_data()
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs).mean(0), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert losses[0] == pytest.approx(report.certificate.primal, rel=0.5)
    assert losses[-1] < 0.5 * np.log(CLASSES)


# -- undo -----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_rate")
@pytest.mark.parametrize("build", [loop_net, lambda: divided(loop_net())])
def test_undo_bit_for_bit(build):
    net = lived_in(build())
    before = snapshot(net)
    report = convex_init_(net, data_loader(200), strength=1e-3)
    assert values(net)["fc2.weight"] != before["parameters"]["fc2.weight"][1]
    report.undo()
    assert_as_before(net, before)
