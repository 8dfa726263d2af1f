"""Validation data: what they choose and judge, what is refused, and that a net is left alone by any error."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import ConvexInitializer, convex_init_, over_time, refit_
from snn_recon_plugin.demo import build_network, load_digits_data
from snn_recon_plugin.errors import DataError, OptionError

from .test_padding import build, spike_trains

DATA = load_digits_data()
TRAIN, VAL = (DATA.train_inputs[:400], DATA.train_labels[:400]), (DATA.train_inputs[400:600], DATA.train_labels[400:600])
QUICK = {"strength": 1e-2, "hidden": "keep", "progress": False}
FINISH = {"strength": 1e-2, "progress": False}


def net_of(seed=0, outputs=10):
    torch.manual_seed(seed)
    return build_network(inputs=64, hidden=48, outputs=outputs, steps=4)


def loader_of(data, size=50, **options):
    return DataLoader(TensorDataset(*data), size, **options)


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_unchanged(net, before):
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def train(net, data=TRAIN, epochs=1):
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(epochs):
        for inputs, labels in loader_of(data):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs).mean(0), labels).backward()
            optimizer.step()
    return optimizer


# -- what they are for ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [lambda: loader_of(VAL), lambda: [VAL], lambda: iter(loader_of(VAL)), lambda: loader_of(VAL, 64, shuffle=True)],
    ids=["loader", "list", "iterator", "shuffled"],
)
def test_a_val_loader_of_any_kind_judges_and_joins_the_last_fit(make):
    net = net_of()
    report = convex_init_(net, loader_of(TRAIN), val_loader=make(), **QUICK)
    assert report.judged_on == "validation samples"
    assert report.after.samples == 200
    assert report.program.samples == 600
    assert "200 validation samples, before these were fitted too" in " ".join(str(report).split())
    with torch.no_grad():
        own = float((net(VAL[0]).mean(0).argmax(1) == VAL[1]).double().mean())
    assert own >= report.after.accuracy  # they were fitted since


def test_validation_samples_that_are_not_fitted_show_the_reported_accuracy():
    """With one strength no half chooses anything, so the written net's own accuracy is the reported one."""
    net = net_of()
    report = convex_init_(net, loader_of(TRAIN), val_loader=loader_of(VAL), fit_val=False, fit_loss="same", **QUICK)
    assert (report.fit_val, report.program.samples) == (False, 400)
    with torch.no_grad():
        own = float((net(VAL[0]).mean(0).argmax(1) == VAL[1]).double().mean())
    assert report.after.accuracy == pytest.approx(own)


def test_reported_samples_chose_nothing():
    """With labels at random the report is at chance on the average, whatever was tried."""
    draw, found = torch.Generator().manual_seed(0), []
    for seed in range(12):
        data = [(torch.rand(60, 64, generator=draw), torch.randint(2, (60,), generator=draw)) for _ in range(2)]
        options = {"progress": False, "write": "always", "seed": seed}
        found.append(convex_init_(net_of(seed, 2), [data[0]], val_loader=[data[1]], **options).after)
    mean = sum(each.accuracy for each in found) / len(found)
    error = (0.25 / sum(each.samples for each in found)) ** 0.5
    assert abs(mean - 0.5) < 3 * error


def test_some_validation_samples_judge_rebuilt_layers_and_the_others_the_result():
    report = convex_init_(net_of(), loader_of(TRAIN), val_loader=loader_of(VAL), progress=False)
    assert any(layer.witnesses for layer in report.layers)
    assert 100 <= report.after.samples < 200


def test_batches_of_dictionaries_are_read_by_the_step():
    def batches(data):
        return [{"x": inputs, "y": labels} for inputs, labels in loader_of(data)]

    def step(net, batch):
        return nn.functional.cross_entropy(net(batch["x"]).mean(0), batch["y"])

    report = convex_init_(net_of(), batches(TRAIN), val_loader=batches(VAL), step=step, **QUICK)
    assert report.after.samples == 200


def test_a_maximum_over_time_is_calibrated_by_halves():
    options = {"readout": "membrane_max", **QUICK}
    report = convex_init_(net_of(), loader_of(TRAIN), val_loader=loader_of(VAL), **options)
    assert report.exactness.label == "majorised"
    assert report.after.samples == 200
    assert report.after.accuracy > 0.5


@pytest.mark.parametrize("readout", ["membrane_mean", "membrane_max"])
def test_validation_samples_that_judged_layers_are_not_reported_though_they_are_few(readout):
    """Twelve are too few to choose scale and shift, so fitted samples choose these."""
    few = [(VAL[0][:12], VAL[1][:12])]
    report = convex_init_(net_of(), loader_of(TRAIN), val_loader=few, readout=readout, progress=False)
    assert (report.before.samples, report.after.samples) == (6, 6)


@pytest.mark.parametrize("hidden", ["keep", "auto"])
@pytest.mark.parametrize("readout", ["membrane_mean", "spike_count"])
def test_validation_sequences_may_have_other_lengths(readout, hidden):
    batches, net = spike_trains(), build("subtract" if readout == "spike_count" else "none")
    options = {"forward": over_time(), "readout": readout, "hidden": hidden, "strength": 1e-3, "progress": False}
    report = convex_init_(net, batches[:3], val_loader=batches[3:], **options)
    assert (report.num_steps, report.least_steps, report.program.samples) == (12, 6, 180)
    assert report.after.samples == (90 if hidden == "keep" else 45)


def test_padded_validation_sequences_are_read_with_their_lengths():
    def unpack(batch):
        return batch["x"], batch["y"], batch["steps"]

    draw = torch.Generator().manual_seed(0)
    batches = [
        {"x": (torch.rand(30, steps, 10, generator=draw) < 0.5).float(), "y": torch.arange(30) % 3, "steps": lengths}
        for steps, lengths in ((9, torch.arange(30) % 4 + 6), (12, torch.arange(30) % 7 + 6))
    ]
    options = {"unpack": unpack, "forward": over_time(time_dim=1), "hidden": "keep", "strength": 1e-3, "progress": False}
    report = convex_init_(build(), batches[:1], val_loader=iter(batches[1:]), **options)
    assert (report.num_steps, report.least_steps, report.after.samples) == (12, 6, 30)


def test_the_generator_of_a_val_loader_goes_on_as_without_the_call():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    convex_init_(net_of(), loader_of(TRAIN), val_loader=loader_of(VAL, shuffle=True, generator=generator), **QUICK)
    assert torch.equal(generator.get_state(), before)


# -- the finish -------------------------------------------------------------------------------------------------------------


def test_the_finish_solves_the_readout_of_a_trained_net_and_can_be_undone():
    net = net_of()
    optimizer = train(net)
    before = state(net)
    report = refit_(net, loader_of(TRAIN), loader_of(VAL), optimizer=optimizer, **FINISH)
    assert report.solved.loss < report.before.loss
    assert torch.equal(net.fc1.weight, before["fc1.weight"])
    assert not torch.equal(net.fc2.weight, before["fc2.weight"])
    assert net.fc2.weight not in optimizer.state
    assert net.fc1.weight in optimizer.state
    report.undo()
    assert_unchanged(net, before)


def test_a_finish_that_is_no_better_writes_nothing():
    net = net_of()
    refit_(net, loader_of(TRAIN), loader_of(VAL), **FINISH)
    before, optimizer = state(net), train(net, epochs=0)
    optimizer.state[net.fc2.weight] = {"step": torch.ones(())}
    report = refit_(net, loader_of(TRAIN), loader_of(VAL), optimizer=optimizer, fit_val=False, strength=1e2, progress=False)
    assert report.kept_old
    assert report.parameters == []
    assert net.fc2.weight in optimizer.state
    assert_unchanged(net, before)


@pytest.mark.parametrize("way", ["third", "fourth", "named"])
def test_a_report_is_answered_with_what_to_type(way):
    net = net_of()
    report = convex_init_(net, [TRAIN], **QUICK)
    calls = {
        "third": lambda: refit_(net, [TRAIN], report),
        "fourth": lambda: refit_(net, [TRAIN], None, report),
        "named": lambda: refit_(net, [TRAIN], report=report),
    }
    with pytest.raises(OptionError, match=r"a report in refit_") as caught:
        calls[way]()
    assert "refit_(net, loader, val_loader=val_loader" in caught.value.fix


def test_hidden_layers_are_no_option_of_the_finish():
    with pytest.raises(OptionError, match="hidden= in refit_"):
        refit_(net_of(), [TRAIN], hidden="auto")
    with pytest.raises(OptionError, match="4 arguments without a name"):
        refit_(net_of(), [TRAIN], [VAL], 3)
    with pytest.raises(OptionError, match="fit_val=1"):
        ConvexInitializer().initialize(net_of(), [TRAIN], val_loader=[VAL], fit_val=1)


@pytest.mark.parametrize(("epochs", "judged", "known"), [(1, False, True), (0, False, False), (1, True, False)])
def test_a_report_says_first_that_its_samples_were_trained_on(epochs, judged, known):
    net = net_of()
    train(net, epochs=6 * epochs)
    report = refit_(net, loader_of(TRAIN), loader_of(VAL) if judged else None, **FINISH)
    assert report.trained_on == known
    assert (str(report).split()[:8] == ["note", "accuracies", "are", "of", "samples", "that", "the", "net"]) == known


def test_trained_layers_are_kept_together_unless_rebuilt_ones_are_better():
    net = net_of()
    train(net, epochs=30)
    report = convex_init_(net, loader_of(TRAIN), val_loader=loader_of(VAL), progress=False)
    (layer,) = report.layers
    assert "validation samples, loss" in layer.reason or layer.witnesses


# -- what is refused --------------------------------------------------------------------------------------------------------

BAD = {
    "empty": ([], "an empty loader, of val_loader"),
    "few": ([(VAL[0][:9], VAL[1][:9])], "9 samples in val_loader"),
    "wide": ([(torch.rand(20, 65), VAL[1][:20])], "val_loader gives inputs"),
    "images": ([(torch.rand(20, 1, 8, 8), VAL[1][:20])], "val_loader gives inputs"),
    "values": ([(VAL[0], VAL[1].float())], "targets of batch 1 of val_loader"),
    "classes": ([(VAL[0], (VAL[1] + 5) % 10)], "labels in val_loader that the loader does not have"),
    "no loader": (3, "a loader of type int"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("call", [convex_init_, refit_])
def test_bad_validation_data_are_refused_and_change_nothing(name, call):
    net, (loader, found) = net_of(), BAD[name]
    few = TRAIN[1] < 5
    before = state(net)
    with pytest.raises(DataError, match=found) as caught:
        call(net, [(TRAIN[0][few], TRAIN[1][few])], val_loader=loader, **FINISH) if name == "classes" else call(
            net, [TRAIN], val_loader=loader, **FINISH
        )
    assert caught.value.fix
    assert_unchanged(net, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_while_validation_data_are_read_changes_nothing(error):
    class Broken(list):
        def __iter__(self):
            yield self[0]
            raise error

    net = net_of()
    before = state(net)
    with pytest.raises(error):
        refit_(net, [TRAIN], Broken([VAL, VAL]), **FINISH)
    assert_unchanged(net, before)


@pytest.mark.filterwarnings("error:(?s).*samples of val_loader")
def test_validation_samples_that_are_in_the_loader_are_named():
    mixed = torch.cat([TRAIN[0][:100], VAL[0][:100]]), torch.cat([TRAIN[1][:100], VAL[1][:100]])
    with pytest.warns(UserWarning, match="of the first 32 samples of val_loader are in the loader too"):
        convex_init_(net_of(), loader_of(TRAIN, shuffle=True), val_loader=loader_of(mixed), **QUICK)
    convex_init_(net_of(), loader_of(TRAIN), val_loader=loader_of(VAL), **QUICK)
