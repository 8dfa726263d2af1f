"""Training in a loop of one's own: the guard, and refits between epochs."""

import contextlib

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import prune

from snn_recon_plugin import convex_init_, refit_
from snn_recon_plugin.demo import build_network
from snn_recon_plugin.distributed import SingleProcess
from snn_recon_plugin.errors import DataError, OptionError
from snn_recon_plugin.networks.private.workbench import overwrite
from snn_recon_plugin.training.measure import TEMPERATURES
from snn_recon_plugin.training.watch import Watch

from .runs import DATA, assert_equal, normalised, state

LOADER = [(DATA.train_inputs[:400], DATA.train_labels[:400])]
TEST = DATA.test_inputs, DATA.test_labels
WRONG = (DATA.train_labels + 1) % 10


def dense():
    return build_network(64, 48, 10, 4)


def started(make=dense, **options):
    torch.manual_seed(0)
    net = make()
    return net, convex_init_(net, LOADER, progress=False, **{"strength": 0.01, **options})


def solved_state(net, report):
    """Return the weights with the solved readout, in place of the smaller one that was written."""
    report.write_solved()
    solved = state(net)
    report.write_smaller()
    return solved


def accuracy(net):
    with torch.no_grad():
        return float((net(TEST[0]).mean(0).argmax(1) == TEST[1]).double().mean())


def epoch(net, optimizer, labels=DATA.train_labels):
    for start in range(0, 400, 50):
        part = slice(start, start + 50)
        optimizer.zero_grad()
        F.cross_entropy(net(DATA.train_inputs[part]).mean(0), labels[part]).backward()
        optimizer.step()


def adam(net, rate=1e-3):
    return torch.optim.Adam(net.parameters(), rate)


def test_a_rate_that_destroys_the_net_is_caught_until_the_end():
    net, report = started()
    before, optimizer = accuracy(net), torch.optim.SGD(net.parameters(), 3.0, momentum=0.9)
    with report.protect(optimizer):
        epoch(net, optimizer)
        assert accuracy(net) > 0.5
    assert accuracy(net) >= before - 0.005
    epoch(net, optimizer)
    assert accuracy(net) < 0.5


def test_training_that_goes_well_is_free_and_ends_with_the_better_weights():
    net, report = started(hidden="keep", max_samples=50)
    free, _ = started(hidden="keep", max_samples=50)
    optimizers = [adam(net), adam(free)]
    before = accuracy(net)
    report.write_solved()
    guard = report.protect(optimizers[0], [TEST])
    assert_equal(state(net), state(free))  # the smaller readout, which the call wrote
    for _ in range(4):
        epoch(net, optimizers[0])
        epoch(free, optimizers[1])
        assert_equal(state(net), state(free))
        with guard.evaluated():
            assert accuracy(net) >= before
            shown = state(net)
        assert_equal(state(net), state(free))
    for _ in range(2):  # once more does nothing
        guard.close()
        assert_equal(state(net), shown)
    assert accuracy(net) > before


def test_a_guard_shows_what_it_holds():
    net, report = started()
    optimizer = adam(net, 1e-2)
    guard = report.protect(optimizer, [TEST], damping=0.25)

    def shown():
        first, second, third = str(guard).splitlines()
        weights, loss = second.removeprefix("evaluated weights: ").removesuffix(" when last compared").split(", with a loss of ")
        assert third == "factors: 1 on the length of steps, 0.25 on recurrent gradients"
        return first, weights, float(loss)

    first, weights, begun = shown()
    assert (first, weights) == ("guard of a Net, open", "earlier ones")
    for _ in range(3):
        epoch(net, optimizer)
    with guard.evaluated():
        first, weights, better = shown()
    assert (first, weights) == ("guard of a Net, open", "the trained ones")
    assert better < begun
    guard.close()
    assert shown() == ("guard of a Net, closed", "the trained ones", better)


def test_a_guard_shows_how_much_it_shortens_steps():
    net, report = started()
    optimizer = torch.optim.SGD(net.parameters(), 3.0)
    with report.protect(optimizer) as guard:
        epoch(net, optimizer, WRONG)
        factor = float(str(guard).partition("factors: ")[2].split()[0])
    assert factor in (0.25, 0.062, 0.016)


@pytest.mark.parametrize(("make", "within"), [(dense, False), (normalised, True)])
def test_training_that_goes_wrong_is_evaluated_as_it_was_solved(make, within):
    """With its running statistics; also in a test within a test, and if the guard is closed within one."""
    net, report = started(make)
    solved, optimizer = solved_state(net, report), adam(net, 1e-2)
    guard = report.protect(optimizer)
    net.train()
    epoch(net, optimizer, WRONG)
    trained = state(net)
    with guard.evaluated():
        assert_equal(state(net), solved)
        with guard.evaluated():
            assert_equal(state(net), solved)
        assert_equal(state(net), solved)
    assert_equal(state(net), trained)
    with guard.evaluated() if within else contextlib.nullcontext():
        guard.close()
    assert_equal(state(net), solved)


def test_after_an_error_the_trained_net_stays():
    net, report = started()
    optimizer, trained = adam(net), {}

    def fails():
        with report.protect(optimizer):
            epoch(net, optimizer)
            trained.update(state(net))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails()
    assert_equal(state(net), trained)


def test_an_exchange_that_is_interrupted_leaves_the_trained_net(monkeypatch):
    net, report = started()
    optimizer, writes, trained = adam(net), [], {}

    def interrupted(tensor, value):
        writes.append(tensor)
        if len(writes) == 2:
            raise KeyboardInterrupt
        overwrite(tensor, value)

    def train():
        with report.protect(optimizer, [TEST]) as guard:
            epoch(net, optimizer, WRONG)
            with guard.evaluated():
                pass
            trained.update(state(net))
            monkeypatch.setattr(Watch, "choose", lambda watch: None)  # what was chosen is to be exchanged
            monkeypatch.setattr("snn_recon_plugin.training.protect.overwrite", interrupted)
            with guard.evaluated():
                pass

    with pytest.raises(KeyboardInterrupt):
        train()
    assert len(writes) > 2
    assert_equal(state(net), trained)


def test_a_guard_that_is_made_later_leaves_what_was_trained():
    net, report = started()
    optimizer = adam(net)
    epoch(net, optimizer)
    trained, moments = state(net), optimizer.state[net.fc2.weight]["exp_avg"].clone()
    report.protect(optimizer, [TEST]).close()
    assert_equal(state(net), trained)
    assert torch.equal(optimizer.state[net.fc2.weight]["exp_avg"], moments)


def test_judging_that_fails_leaves_the_trained_net():
    net, report = started()
    optimizer, batches = adam(net), [TEST]
    guard = report.protect(optimizer, batches)
    epoch(net, optimizer)
    trained = state(net)
    batches[0] = (TEST[0] * torch.nan, TEST[1])
    with pytest.raises(DataError, match="NaN"), guard.evaluated():
        pass
    assert_equal(state(net), trained)
    with pytest.raises(DataError, match="NaN"):
        guard.close()
    assert_equal(state(net), trained)
    guard.close()  # nothing is left to end
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_what_cannot_be_protected_or_refitted_is_refused():
    net, report = started()
    optimizer, again = adam(net), refit_(net, LOADER)
    for given, error, text in [
        ({"optimizer": adam(net.fc1)}, OptionError, "do not hold written parameters"),
        ({"optimizer": net}, OptionError, "an optimizer of type"),
        ({"optimizer": [optimizer]}, OptionError, "an optimizer of type"),
        ({"fast": 2}, OptionError, "fast=2"),
        ({"average": 0.9}, OptionError, "(?s)an option average.*To fix: leave it out$"),
        ({"dampnig": 0.5}, OptionError, "(?s)an option dampnig.*To fix: pass damping="),
        ({"validation": iter([TEST])}, DataError, r"validation batches of type list_iterator.*read once"),
    ]:
        with pytest.raises(error, match=text):
            report.protect(**{"optimizer": optimizer, **given})
    with pytest.raises(OptionError, match="the report of a refit"):
        again.protect(optimizer)
    report.undo()
    with pytest.raises(OptionError, match="undone"):
        report.protect(optimizer)


def test_old_weights_that_a_start_kept_are_evaluated_until_others_are_better():
    net, first = started(fit_loss="same")
    first.write_solved()
    kept, report = state(net), convex_init_(net, LOADER, hidden="keep", progress=False)
    assert report.kept_old
    optimizer = adam(net, 1e-2)
    with report.protect(optimizer):
        epoch(net, optimizer, WRONG)
        assert not torch.equal(net.fc2.weight, kept["fc2.weight"])
    assert_equal(state(net), kept)


def test_a_refit_is_kept_and_evaluated_if_it_is_better():
    """By the loss of the readout that is written, also without a step after weights were chosen."""
    net, report = started(hidden="keep")
    optimizer = adam(net, 3e-3)
    guard = report.protect(optimizer, [TEST])
    for _ in range(3):
        epoch(net, optimizer)
    with guard.evaluated():
        before = accuracy(net)
    net.fc2.weight.data.mul_(-1)  # a readout that a refit improves on
    found = refit_(net, LOADER, optimizer=optimizer)
    assert found.solved.loss < found.before.loss
    assert found.factor == 1.0
    assert_equal(found.solved_weights, {name: value for name, value in state(net).items() if name in found.solved_weights})
    assert accuracy(net) > before
    assert net.fc2.weight not in optimizer.state
    assert net.fc1.weight in optimizer.state
    kept = state(net)
    again = refit_(net, LOADER, optimizer=optimizer)
    assert not again.solved.loss < again.before.loss
    assert again.parameters == []
    assert_equal(state(net), kept)
    with guard.evaluated():
        assert_equal(state(net), kept)
    guard.close()
    assert_equal(state(net), kept)


def shrink(layer):
    prune.l1_unstructured(layer, "weight", 0.2)


@pytest.mark.parametrize(("change", "early"), [(lambda layer: layer.requires_grad_(False), True), (shrink, True), (shrink, False)])
def test_a_readout_that_cannot_be_written_is_still_measured(change, early):
    """Frozen or pruned, before training or during it."""
    net, report = started()
    optimizer = torch.optim.Adam([*net.fc1.parameters(), *net.fc2.parameters()], 1e-3)
    if early:
        change(net.fc2)
    with report.protect(optimizer) as guard:
        epoch(net, optimizer)
        if not early:
            change(net.fc2)
        epoch(net, optimizer)
        with guard.evaluated():
            assert accuracy(net) > 0.8


class OtherRank(SingleProcess):
    """One of two processes; ``sums`` are the measurements of the other one."""

    sums = torch.zeros(1, 3 + len(TEMPERATURES), dtype=torch.float64)

    def gather(self, value):
        return [value, self.sums] if isinstance(value, torch.Tensor) and value.shape == self.sums.shape else [value]


def test_processes_that_shared_a_start_decide_together():
    """The other one's loss is far too high: steps are taken back in both.  A refit is shared as well."""
    shards = OtherRank()
    net, report = started(shards=shards)
    optimizer = adam(net)
    guard = report.protect(optimizer)
    begun = state(net)
    shards.sums = shards.sums.clone()
    shards.sums[0, 0], shards.sums[0, 2] = 1.0, 1e9
    F.cross_entropy(net(DATA.train_inputs[:50]).mean(0), DATA.train_labels[:50]).backward()
    optimizer.step()
    assert_equal(state(net), begun)
    guard.close()
    assert refit_(net, LOADER, shards=shards).live.processes is shards
