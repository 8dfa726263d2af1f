"""More outputs: old and new classes decided as by a joint solve, undone bit for bit, and what is refused."""

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, extend_, statistics_of
from snn_recon_plugin.errors import DataError, NetworkError, OptionError, UnsupportedModuleError, WriteError

from ..helpers import batches, lived_in, train_data, untouched
from ..helpers import test_data as unseen
from ..nets import BETA, HIDDEN, Averaged, Loop

OLD = 7  # classes of the nets, out of ten


def part(first, last, count=600):
    """One batch of the training data of some classes."""
    inputs, labels = train_data(count)
    chosen = (labels >= first) & (labels < last)
    return [(inputs[chosen], labels[chosen])]


def old_net(kind=Loop, **options):
    """A net of the first classes, solved on them."""
    torch.manual_seed(0)
    net = kind(outputs=OLD, **options)
    convex_init_(net, part(0, OLD), hidden="keep", progress=False)
    return net


def accuracy(net):
    """Accuracy on test samples of old and of new classes."""
    inputs, labels = unseen()
    with torch.no_grad():
        scores = net(inputs)
    right = (scores.mean(0) if scores.dim() == 3 else scores).argmax(1) == labels
    return float(right[labels < OLD].float().mean()), float(right[labels >= OLD].float().mean())


def joint_net(kind=Loop):
    """The same hidden layers with all outputs, solved on samples of all classes."""
    torch.manual_seed(0)
    net = kind(outputs=10)
    net.fc1.load_state_dict(old_net(kind).fc1.state_dict())
    convex_init_(net, batches(), hidden="keep", progress=False)
    return net


@pytest.mark.parametrize("kind", [Loop, Averaged])
def test_old_and_new_classes_are_decided_as_by_a_joint_solve_of_samples(kind):
    net = old_net(kind)
    result = extend_(net, part(OLD, 10), statistics=statistics_of(net, part(0, OLD)))
    assert net.fc2.out_features == len(net.fc2.weight) == 10
    for own, joint in zip(accuracy(net), accuracy(joint_net(kind)), strict=True):
        assert own > joint - 0.02
    assert result.accuracy_old > 0.85
    assert (result.old_classes, result.new_classes) == (OLD, 3)


def test_classes_one_by_one_are_those_of_one_call():
    at_once, one_by_one = old_net(), old_net()
    kept = statistics_of(at_once, part(0, OLD))
    extend_(at_once, part(OLD, 10), statistics=kept, strength=1e-3)
    for label in range(OLD, 10):
        kept = extend_(one_by_one, part(label, label + 1), statistics=kept, strength=1e-3).statistics
    torch.testing.assert_close(one_by_one.fc2.weight, at_once.fc2.weight, rtol=1e-3, atol=1e-4)


def test_samples_of_old_classes_do_as_well_as_their_statistics():
    first, second = old_net(), old_net()
    extend_(first, part(OLD, 10), part(0, OLD))
    extend_(second, part(OLD, 10), statistics=statistics_of(second, part(0, OLD)))
    assert torch.equal(first.fc2.weight, second.fc2.weight)


def test_a_new_class_of_few_samples_is_found():
    net = old_net()
    inputs, labels = (tensor[:10] for tensor in part(9, 10)[0])
    kept = statistics_of(net, part(0, OLD))
    kept = extend_(net, part(OLD, 9), statistics=kept).statistics
    extend_(net, [(inputs, labels)], statistics=kept)
    inputs, labels = unseen()
    with torch.no_grad():
        right = net(inputs).mean(0).argmax(1) == labels
    assert float(right[labels == 9].float().mean()) > 0.5


def test_undo_and_training_on():
    net = lived_in(old_net())
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    inputs, labels = train_data(600)
    nn.functional.cross_entropy(net(inputs[labels < OLD]).mean(0), labels[labels < OLD]).backward()
    optimizer.step()
    kept = statistics_of(net, part(0, OLD))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = extend_(net, part(OLD, 10), statistics=kept, optimizer=optimizer)
    nn.functional.cross_entropy(net(inputs).mean(0), labels).backward()
    optimizer.step()
    assert accuracy(net)[1] > 0.7
    result.undo()
    assert net.fc2.out_features == OLD
    assert torch.equal(net.fc2.weight, before["fc2.weight"])
    assert torch.equal(net.fc2.bias, before["fc2.bias"])


def test_only_the_readout_is_written():
    net = lived_in(old_net())
    kept = statistics_of(net, part(0, OLD))
    with untouched(net, written=("fc2.weight", "fc2.bias")):
        result = extend_(net, part(OLD, 10), statistics=kept)
        result.undo()


@pytest.mark.parametrize("leaks", [[0.9] * OLD, [0.6, 0.95, 0.7, 0.8, 0.85, 0.9, 0.75]])
def test_an_output_neuron_with_a_leak_for_each_class_gets_more(leaks):
    net = old_net(output=snn.Leaky(beta=torch.tensor(leaks), threshold=torch.ones(OLD), reset_mechanism="none"))
    result = extend_(net, part(OLD, 10), part(0, OLD))
    middle = sorted(leaks)[OLD // 2]
    assert net.lif2.beta.tolist() == pytest.approx([*leaks, *[middle] * 3])
    assert len(net.lif2.threshold) == 10
    assert min(accuracy(net)) > 0.7
    result.undo()
    assert net.lif2.beta.tolist() == pytest.approx(leaks)


def test_norse_and_no_bias_and_scores_at_every_step():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif = nn.Linear(64, HIDDEN), norse.LIFCell()
            self.fc2, self.li = nn.Linear(HIDDEN, OLD, bias=False), norse.LICell()

        def forward(self, x):
            state, out, membranes = None, None, []
            for _ in range(10):
                spikes, state = self.lif(10 * self.fc1(x), state)
                membrane, out = self.li(self.fc2(spikes), out)
                membranes.append(membrane)
            return torch.stack(membranes)

    torch.manual_seed(0)
    net = Net()
    extend_(net, part(OLD, 10), part(0, OLD))
    assert min(accuracy(net)) > 0.6
    per_step = Loop(outputs=OLD)
    extend_(per_step, part(OLD, 10, 200), part(0, OLD, 200), readout="membrane_per_step")
    assert min(accuracy(per_step)) > 0.6


def test_the_report_counts():
    net = old_net()
    result = extend_(net, part(OLD, 10), part(0, OLD))
    assert result.footprint[1] - result.footprint[0] == 4 * 3 * (HIDDEN + 1)
    assert result.operations[1] / result.operations[0] == pytest.approx(10 / OLD)
    assert result.kept_old + result.kept_new == len(result.statistics.kept) > 0
    assert "new classes" in str(result)


# -- refusals -----------------------------------------------------------------------------------------------------------------


def renamed(labels):
    inputs, own = part(OLD, 10)[0]
    return [(inputs, torch.tensor(labels)[own - OLD])]


@pytest.mark.parametrize(
    ("new", "options", "error", "message"),
    [
        (renamed([0, 1, 2]), {}, DataError, r"pass labels=\[0, 1, 2\]"),
        (renamed([7, 8, 10]), {}, DataError, r"no samples of the new classes \[9\]"),
        (renamed([7, 8, 10**6]), {}, DataError, "labels that count on from 7"),
        (renamed([0, 1, 2]), {"labels": [0, 1]}, DataError, r"which are not in labels=\[0, 1\]"),
        (renamed([0, 1, 2]), {"labels": [0, 1, 2, 3]}, DataError, r"no samples of the new classes \[10\]"),
        (renamed([0, 1, 2]), {"labels": [0, 0]}, OptionError, "each once"),
        (part(OLD, 10), {"old": "frozen"}, OptionError, "all outputs are solved together"),
        (part(OLD, 10), {"fit_loss": "squared"}, OptionError, "the squared hinge is better"),
        (part(OLD, 10), {"strength": -1}, OptionError, "strength=-1"),
        (part(OLD, 10), {"hidden": "auto"}, OptionError, "an option hidden"),
        (part(OLD, 10), {"forwards": None}, OptionError, "pass forward="),
        ([(torch.rand(3, 64), torch.rand(3))], {}, DataError, "one class index a sample"),
    ],
)
def test_what_is_refused_leaves_the_net_as_it_was(new, options, error, message):
    net = old_net()
    kept = statistics_of(net, part(0, OLD))
    with untouched(net), pytest.raises(error, match=message):
        extend_(net, new, statistics=kept, **options)


def test_labels_that_the_loader_numbers_anew():
    first, second = old_net(), old_net()
    extend_(first, renamed([2, 0, 1]), part(0, OLD), labels=[2, 0, 1])
    extend_(second, part(OLD, 10), part(0, OLD))
    assert torch.equal(first.fc2.weight, second.fc2.weight)


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


@pytest.mark.parametrize(
    "output", [snn.Leaky(beta=BETA, threshold=0.1, reset_mechanism="subtract"), snn.Leaky(beta=BETA, threshold=0.1)]
)
def test_a_readout_that_is_not_linear(output):
    net = Loop(outputs=OLD, output=output)
    with untouched(net), pytest.raises(UnsupportedModuleError, match="not linear in sums over samples"):
        extend_(net, part(OLD, 10), part(0, OLD))


def test_undo_after_the_parameter_was_replaced():
    net = old_net()
    result = extend_(net, part(OLD, 10), part(0, OLD))
    net.fc2.weight = nn.Parameter(net.fc2.weight.detach().clone())
    with pytest.raises(WriteError, match="removed or replaced"):
        result.undo()
