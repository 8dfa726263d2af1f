"""More outputs: old and new classes decided as by a joint solve, undone bit for bit, and what is refused."""

import copy
from functools import cache

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from snn_recon_plugin import convex_init_, extend_, over_time, statistics_of
from snn_recon_plugin.errors import DataError, NetworkError, OptionError, UnsupportedModuleError, WriteError

from ..helpers import batches, lived_in, train_data, untouched, values
from ..helpers import test_data as unseen
from ..nets import BETA, HIDDEN, Averaged, Loop, Looped

OLD = 7  # classes of the nets, out of ten


def part(first, last, count=600):
    """One batch of the training data of some classes."""
    inputs, labels = train_data(count)
    chosen = (labels >= first) & (labels < last)
    return [(inputs[chosen], labels[chosen])]


def solved(net, data, **options):
    convex_init_(net, data, hidden="keep", progress=False, **options)
    return net


@cache
def seen_classes(kind):
    torch.manual_seed(0)
    return solved(kind(outputs=OLD), part(0, OLD))


def old_net(kind=Loop):
    return copy.deepcopy(seen_classes(kind))


def accuracy(net):
    inputs, labels = unseen()
    with torch.no_grad():
        scores = net(inputs)
    right = (scores.mean(0) if scores.dim() == 3 else scores).argmax(1) == labels
    return float(right[labels < OLD].float().mean()), float(right[labels >= OLD].float().mean())


def joint_net(kind=Loop):
    """The same hidden layers with all outputs, solved on samples of all classes."""
    net = kind(outputs=10)
    net.fc1.load_state_dict(old_net(kind).fc1.state_dict())
    return solved(net, batches())


@pytest.mark.parametrize("kind", [Loop, Averaged])
def test_old_and_new_classes_are_decided_as_by_a_joint_solve_of_samples(kind):
    net = old_net(kind)
    result = extend_(net, part(OLD, 10), statistics=statistics_of(net, part(0, OLD)))
    assert net.fc2.out_features == len(net.fc2.weight) == 10
    for own, joint in zip(accuracy(net), accuracy(joint_net(kind)), strict=True):
        assert own > joint - 0.02
    assert result.accuracy_old > 0.85
    assert (result.old_classes, result.new_classes) == (OLD, 3)


def test_classes_one_by_one_and_numbered_anew_are_those_of_one_call_with_samples():
    at_once, one_by_one, anew = old_net(), old_net(), old_net()
    kept = statistics_of(at_once, part(0, OLD))
    extend_(at_once, part(OLD, 10), statistics=kept, strength=1e-3)
    for label in range(OLD, 10):
        kept = extend_(one_by_one, part(label, label + 1), statistics=kept, strength=1e-3).statistics
    torch.testing.assert_close(one_by_one.fc2.weight, at_once.fc2.weight, rtol=1e-3, atol=1e-4)
    extend_(anew, renamed([2, 0, 1]), part(0, OLD), labels=[2, 0, 1], strength=1e-3)
    assert torch.equal(anew.fc2.weight, at_once.fc2.weight)


def test_a_new_class_of_few_samples_is_found():
    net = old_net()
    inputs, labels = (tensor[:10] for tensor in part(9, 10)[0])
    kept = statistics_of(net, part(0, OLD))
    kept = extend_(net, part(OLD, 9), statistics=kept, strength=1e-2).statistics
    extend_(net, [(inputs, labels)], statistics=kept)
    inputs, labels = unseen()
    with torch.no_grad():
        right = net(inputs).mean(0).argmax(1) == labels
    assert float(right[labels == 9].float().mean()) > 0.5


def test_training_goes_on_and_undo_brings_the_readout_back():
    net = lived_in(old_net())
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    inputs, labels = train_data(600)
    nn.functional.cross_entropy(net(inputs[labels < OLD]).mean(0), labels[labels < OLD]).backward()
    optimizer.step()
    kept = statistics_of(net, part(0, OLD))
    before = values(net)
    with untouched(net, written=("fc2.weight", "fc2.bias")):
        extend_(net, part(OLD, 10), statistics=kept, strength=1e-2).undo()
    assert values(net) == before
    result = extend_(net, part(OLD, 10), statistics=kept, strength=1e-2, optimizer=optimizer)
    nn.functional.cross_entropy(net(inputs).mean(0), labels).backward()
    optimizer.step()
    assert accuracy(net)[1] > 0.7
    result.undo()
    assert net.fc2.out_features == OLD
    assert all(values(net)[name] == before[name] for name in ("fc2.weight", "fc2.bias"))
    nn.functional.cross_entropy(net(inputs[labels < OLD]).mean(0), labels[labels < OLD]).backward()
    optimizer.step()  # of the old shapes again


def by_step(net, batch):
    return nn.functional.cross_entropy(net(batch["image"]).mean(0), batch["label"])


def test_a_step_gets_labels_that_the_net_has_no_output_for():
    plain, read = old_net(), old_net()
    extend_(plain, part(OLD, 10), part(0, OLD), strength=1e-2)
    new, old = ([{"image": inputs, "label": labels} for inputs, labels in part(*bounds)] for bounds in ((OLD, 10), (0, OLD)))
    extend_(read, new, old, step=by_step, strength=1e-2)
    assert torch.equal(read.fc2.weight, plain.fc2.weight)


def test_a_readout_with_weight_norm_grows_and_comes_back():
    net, plain = old_net(), old_net()
    nn.utils.parametrizations.weight_norm(net.fc2)
    before = net.fc2.weight.detach().clone()
    result = extend_(net, part(OLD, 10), part(0, OLD), strength=1e-2)
    extend_(plain, part(OLD, 10), part(0, OLD), strength=1e-2)
    torch.testing.assert_close(net.fc2.weight, plain.fc2.weight)
    result.undo()
    assert torch.equal(net.fc2.weight, before)


def test_old_samples_may_come_from_a_loader_without_a_length():
    class Old(IterableDataset):
        def __iter__(self):
            yield from zip(*part(0, OLD)[0], strict=True)

    net, plain = old_net(), old_net()
    extend_(net, part(OLD, 10), DataLoader(Old(), batch_size=1000), strength=1e-2)
    extend_(plain, part(OLD, 10), part(0, OLD), strength=1e-2)
    assert torch.equal(net.fc2.weight, plain.fc2.weight)


def test_generators_of_both_loaders_are_left_as_they_were():
    draws = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    loaders = [
        DataLoader(TensorDataset(*batch), 64, shuffle=True, generator=draw)
        for draw, ((*batch,),) in zip(draws, (part(OLD, 10), part(0, OLD)), strict=True)
    ]
    before = [draw.get_state() for draw in draws]
    extend_(old_net(), *loaders, strength=1e-2)
    assert all(map(torch.equal, before, [draw.get_state() for draw in draws]))


def test_an_output_neuron_with_as_many_leaks_as_classes_gets_more():
    torch.manual_seed(0)
    output = snn.Leaky(beta=torch.full((OLD,), 0.8), threshold=torch.ones(OLD), reset_mechanism="none")
    net = solved(Loop(outputs=OLD, output=output), part(0, OLD), strength=1e-2)
    result = extend_(net, part(OLD, 10), part(0, OLD), strength=1e-2)
    assert net.lif2.beta.tolist() == pytest.approx([0.8] * 10)
    assert len(net.lif2.threshold) == 10
    assert min(accuracy(net)) > 0.7
    result.undo()
    assert net.lif2.beta.tolist() == pytest.approx([0.8] * OLD)


def test_norse_and_no_bias_and_scores_at_every_step():
    torch.manual_seed(0)
    first, last = nn.Linear(64, HIDDEN), nn.Linear(HIDDEN, OLD, bias=False)
    nn.init.normal_(first.weight)  # large enough for spikes
    net = Looped(over_time(10), first, norse.LIFCell(), last, norse.LICell())
    extend_(net, part(OLD, 10), part(0, OLD), strength=1e-2)
    assert min(accuracy(net)) > 0.6
    per_step = Loop(outputs=OLD)
    result = extend_(per_step, part(OLD, 10, 200), part(0, OLD, 200), readout="membrane_per_step", strength=1e-2)
    assert result.kept_new == sum(int(0.2 * count) for count in torch.bincount(part(OLD, 10, 200)[0][1])[OLD:].tolist())
    assert min(accuracy(per_step)) > 0.6


def test_the_report_counts():
    net = old_net()
    result = extend_(net, part(OLD, 10), part(0, OLD), strength=1e-2)
    assert result.footprint[1] - result.footprint[0] == 4 * 3 * (HIDDEN + 1)
    assert result.operations[1] / result.operations[0] == pytest.approx(10 / OLD)
    assert result.kept_old + result.kept_new == len(result.statistics.kept) > 0
    assert "new classes" in str(result)


def renamed(labels):
    inputs, own = part(OLD, 10)[0]
    return [(inputs, torch.tensor(labels)[own - OLD])]


@pytest.mark.parametrize(
    ("new", "options", "error", "message"),
    [
        (renamed([0, 1, 2]), {}, DataError, r"pass labels=\[0, 1, 2\]"),
        (renamed([7, 8, 10]), {}, DataError, r"no samples of the new classes \[9\]"),
        (renamed([0, 1, 2]), {"labels": [0, 1]}, DataError, r"which are not in labels=\[0, 1\]"),
        (renamed([0, 1, 2]), {"labels": [0, 0]}, OptionError, "each once"),
        (part(OLD, 10), {"old": "frozen"}, OptionError, "all outputs are solved together"),
        (part(OLD, 10), {"fit_loss": "squared"}, OptionError, "the squared hinge is better"),
        (part(OLD, 10), {"hidden": "auto"}, OptionError, "an option hidden"),
        (part(OLD, 10), {"optimizer": [torch.optim.Adam(nn.Linear(2, 2).parameters())]}, OptionError, "optimizer= of type list"),
        ([(torch.rand(3, 64), torch.rand(3))], {}, DataError, "one class index a sample"),
    ],
)
def test_what_is_refused_leaves_the_net_as_it_was(new, options, error, message):
    net = old_net()
    kept = statistics_of(net, part(0, OLD))
    with untouched(net), pytest.raises(error, match=message):
        extend_(net, new, statistics=kept, **options)


def test_old_classes_are_given_once_and_all():
    net = old_net()
    kept = statistics_of(net, part(0, OLD))
    with pytest.raises(OptionError, match="neither of loader_old and statistics"):
        extend_(net, part(OLD, 10))
    with pytest.raises(OptionError, match="both of loader_old and statistics"):
        extend_(net, part(OLD, 10), part(0, OLD), statistics=kept)
    with pytest.raises(DataError, match=r"no samples of the old classes \[5, 6\]"):
        extend_(net, part(OLD, 10), part(0, 5))


def test_a_forward_that_counts_its_outputs():
    net = old_net(Averaged)
    forward = lambda net, x: net(x).reshape(len(x), OLD)  # noqa: E731
    with untouched(net), pytest.raises(NetworkError, match="does not run with 10 outputs"):
        extend_(net, part(OLD, 10), part(0, OLD), forward=forward)


def test_a_readout_that_is_not_linear():
    net = Loop(outputs=OLD, output=snn.Leaky(beta=BETA, threshold=0.1))
    with untouched(net), pytest.raises(UnsupportedModuleError, match="not linear in sums over samples"):
        extend_(net, part(OLD, 10), part(0, OLD))


def test_undo_after_the_parameter_was_replaced():
    net = old_net()
    result = extend_(net, part(OLD, 10, 200), part(0, OLD, 200), strength=1e-2)
    net.fc2.weight = nn.Parameter(net.fc2.weight.detach().clone())
    with pytest.raises(WriteError, match="removed or replaced"):
        result.undo()
