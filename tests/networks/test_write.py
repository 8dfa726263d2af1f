import contextlib

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm
from torch.nn.utils import weight_norm as older_weight_norm

from snn_recon_plugin.errors import UnsupportedModuleError, WriteError
from snn_recon_plugin.networks.calls.forward import over_time, plain_forward
from snn_recon_plugin.networks.private.parameters import can_replace
from snn_recon_plugin.networks.structure.inspect import inspect_network
from snn_recon_plugin.networks.write import Transaction, check_writable

from ..faults import LineFault
from ..helpers import assert_as_before, bits, snapshot
from .nets import Dense, Nested
from .reading import assert_says


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def written(net, *writes, error=None, **options):
    """Return a transaction after writes of (module, name, value), ended by an error if one is given."""
    with Transaction(net, **options) as transaction:
        for module, name, value in writes:
            transaction.write(module, name, value)
        if error is not None:
            raise error
    return transaction


def test_a_write_keeps_the_parameter_object(net):
    parameter = net[2].weight
    parameter.grad = torch.full((2, 3), 5.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    written(net, (net[2], "weight", torch.ones(2, 3, dtype=torch.float64)))
    assert net[2].weight is parameter
    assert parameter.requires_grad
    assert torch.equal(parameter, torch.ones(2, 3))
    assert torch.equal(parameter.grad, torch.full((2, 3), 5.0))
    optimizer.step()
    assert torch.equal(net[2].weight, torch.full((2, 3), -4.0))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, WriteError])
def test_an_error_rolls_everything_back(net, error):
    before = snapshot(net)
    writes = [(net[0], "weight", torch.ones(3, 4)), (net[2], "bias", torch.ones(2)), (net[0], "weight", torch.zeros(3, 4))]
    if error is WriteError:  # by a bad last write
        with pytest.raises(error, match=r"shape \[5\] for '2\.bias'"):
            written(net, *writes, (net[2], "bias", torch.ones(5)))
    else:
        with pytest.raises(error):
            written(net, *writes, error=error)
    assert_as_before(net, before)


def test_an_undo_brings_the_old_values_back_once(net):
    before = snapshot(net)
    transaction = written(net, (net[0], "weight", torch.ones(3, 4)), (net[0], "bias", torch.ones(3)))
    with torch.no_grad():
        net[0].bias.add_(1)  # trained since: undone all the same
    transaction.undo()
    assert_as_before(net, before)
    with torch.no_grad():
        net[0].bias.add_(1)
    now = snapshot(net)
    transaction.undo()
    assert_as_before(net, now)


def test_a_transaction_that_is_open_or_rolled_back_cannot_be_undone(net):
    with Transaction(net) as transaction, pytest.raises(WriteError, match="without old values"):
        transaction.undo()
    with contextlib.suppress(ValueError), transaction:
        raise ValueError
    with pytest.raises(WriteError, match="without old values"):
        transaction.undo()


def tied(data=False):
    """Two layers with one weight, or with two on the same memory."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = nn.Parameter(net[0].weight.data) if data else net[0].weight
    return net


def linear(bias=True, expanded=False, inference=False):
    with torch.inference_mode(inference):
        layer = nn.Linear(3, 3, bias=bias)
    if expanded:
        layer.weight = nn.Parameter(torch.randn(1, 3).expand(3, 3))
    return nn.Sequential(layer)


ONES, DOUBLE = torch.ones(3, 3), torch.ones(3, dtype=torch.float64)
REFUSED = {  # net, name in its last layer, value and message
    "no such parameter": (linear, "beta", DOUBLE, "no parameter '0.beta'"),
    "no bias": (lambda: linear(bias=False), "bias", DOUBLE, "['weight']"),
    **{
        f"{bad}": (linear, "bias", bad * DOUBLE, "'0.bias' that is not finite as torch.float32")
        for bad in (torch.nan, torch.inf, 1e300)
    },
    "tied": (tied, "weight", ONES, "'1.weight' is tied to 0.weight"),
    "tied by memory": (lambda: tied(data=True), "weight", ONES, "tied"),
    "inference": (lambda: linear(inference=True), "weight", ONES, "torch.inference_mode"),
    "expanded": (lambda: linear(expanded=True), "weight", ONES, "'0.weight' can't be written in place"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parameters_and_values_that_are_refused(case):
    make, name, value, words = REFUSED[case]
    net = make()
    before = snapshot(net)
    with pytest.raises((UnsupportedModuleError, WriteError)) as error:
        written(net, (net[-1], name, value))
    assert_says(error.value, words)
    assert_as_before(net, before)


def parametrized(layer, step):
    parametrize.register_parametrization(layer, "weight", step)
    return layer


def own_weight(layer):
    del layer._parameters["weight"]
    layer.weight = lambda: None
    return layer


COMPUTED = {
    "the parametrization SpectralNorm": parametrizations.spectral_norm,  # reading its weight in training changes its buffers
    "the parametrization Tanh": lambda layer: parametrized(layer, nn.Tanh()),
    "the parametrization Orthogonal": parametrizations.orthogonal,
    "the parametrization WeightNorm, Identity": lambda layer: parametrized(parametrizations.weight_norm(layer), nn.Identity()),
    "spectral_norm": spectral_norm,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 2),
    "weight_norm": older_weight_norm,
    "its module": own_weight,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("how", COMPUTED)
def test_computed_parameters_are_refused_by_name(how):
    net = nn.Sequential(COMPUTED[how](nn.Linear(3, 3)))
    before = snapshot(net)
    assert not can_replace(net[0], "weight")
    with pytest.raises(UnsupportedModuleError, match=f"'0.weight' is computed by {how}") as error:
        written(net, (net[0], "weight", ONES))
    if "parametrization" in how:
        assert 'remove_parametrizations(net[0], "weight")' in error.value.fix
    assert_as_before(net, before)


def test_a_module_of_another_net_is_refused(net):
    with pytest.raises(WriteError, match="a Linear that is not part of the net"):
        written(net, (nn.Linear(1, 1), "bias", torch.ones(1)))


@pytest.mark.parametrize("dim", [0, None])
def test_zeros_are_written_through_weight_norm(dim):
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3), dim=dim))
    with torch.no_grad():
        net[0].parametrizations.weight.original1[1] = 0.0
    value = torch.zeros(3, 4)
    value[2] = torch.arange(4.0) if dim == 0 else 0.0
    written(net, (net[0], "weight", value))
    assert torch.equal(net[0].weight, value)
    net[0](torch.ones(2, 4)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_written_rounded_and_taken_back(net, dtype):
    net.to(dtype)
    weight, before = net[0].weight, net[0].weight.detach().clone()
    transaction = written(net, (net[0], "weight", torch.full((3, 4), 1 / 3)))
    assert torch.equal(weight, torch.full((3, 4), 1 / 3).to(dtype))
    transaction.undo()
    assert net[0].weight is weight
    assert torch.equal(weight, before)


def test_tied_parameters_with_consent():
    net = tied()
    before = snapshot(net)
    transaction = written(net, (net[1], "weight", torch.ones(3, 3)), allow_tied=True)
    assert torch.equal(net[0].weight, torch.ones(3, 3))
    transaction.undo()
    assert_as_before(net, before)


def test_sparse_tensors_of_the_net_are_left_alone(inputs):
    net, sparse = Dense(), torch.eye(4).to_sparse()
    net.register_buffer("graph", sparse)
    net.strengths = nn.Parameter(sparse.clone())
    check_writable(net, inspect_network(net, inputs, plain_forward))
    Transaction(net).check(net.lif1, "beta")


def test_frozen_parameters_are_written(net):
    net.requires_grad_(False)
    written(net, (net[0], "bias", torch.ones(3)))
    assert torch.equal(net[0].bias, torch.ones(3))
    assert not net[0].bias.requires_grad


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_frozen_readout_is_refused_with_what_to_type(inputs, name):
    net = Nested()
    getattr(net.body[3], name).requires_grad_(False)
    with pytest.raises(UnsupportedModuleError) as error:
        check_writable(net, inspect_network(net, inputs, over_time(6)))
    assert_says(error.value, f"'body.3' is frozen: its {name} has requires_grad=False|net.body[3].requires_grad_(True)")


def test_rolling_back_goes_on_past_an_error(net):
    """The bias that is written last can't be put back; the weight written before it is."""
    before = net[0].weight.detach().clone()
    transaction = written(net, (net[0], "weight", torch.ones(3, 4)), (net[0], "bias", torch.ones(3)))
    net[0].bias.data = torch.ones(1).expand(3)
    with pytest.raises(WriteError, match="a written parameter that could not be put back"):
        transaction.roll_back()
    assert torch.equal(net[0].weight, before)


CHANGES = {
    "parametrization removed": lambda net: parametrize.remove_parametrizations(net[0], "weight"),
    "pruned": lambda net: prune.l1_unstructured(net[0], "weight", 0.3),
    "parametrized": lambda net: parametrizations.weight_norm(net[0]),
    "replaced": lambda net: setattr(net[0], "weight", nn.Parameter(torch.ones(3, 4))),
    "taken": lambda net: net[0].register_parameter("weight", None),
    "module replaced": lambda net: net.__setitem__(0, nn.Linear(4, 3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_undo_of_a_parameter_that_is_not_the_modules_any_more(net, change):
    if change == "parametrization removed":
        parametrizations.weight_norm(net[0])
    transaction = written(net, (net[0], "weight", torch.full((3, 4), 0.5)), (net[2], "bias", torch.ones(2)))
    old = [parameter for parameter, _ in transaction.replaced]
    CHANGES[change](net)
    with pytest.raises(WriteError, match=r"'0\..*weight.*', which was removed or replaced"):
        transaction.undo()
    assert torch.equal(net[2].bias, torch.ones(2))  # nothing is undone
    assert all(one is other for (one, _), other in zip(transaction.replaced, old, strict=True))


def test_undo_once_pruning_was_made_permanent(net):
    before = bits(net[0].weight)
    transaction = written(net, (net[0], "weight", torch.full((3, 4), 0.5)))
    prune.l1_unstructured(net[0], "weight", 0.3)
    prune.remove(net[0], "weight")
    transaction.undo()
    assert bits(net[0].weight) == before


def test_an_undo_interrupted_at_any_line_is_finished_or_not_begun(net):
    before, begun = snapshot(net), set()
    writes = (net[0], "weight", torch.ones(3, 4)), (net[2], "bias", torch.ones(2))
    with LineFault(["write.py"]) as lines:
        written(net, *writes).undo()
    for number in range(1, lines.seen + 1):
        transaction = written(net, *writes)
        with contextlib.suppress(KeyboardInterrupt), LineFault(["write.py"], number):
            transaction.undo()
        begun.add(not torch.equal(net[0].weight, torch.ones(3, 4)))
        if torch.equal(net[0].weight, torch.ones(3, 4)):
            assert torch.equal(net[2].bias, torch.ones(2))
            transaction.undo()
        assert_as_before(net, before)
    assert begun == {True, False}


def leaky_net(learned):
    return nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.9, learn_beta=learned))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("ending", ["undo", ValueError, KeyboardInterrupt])
def test_a_shared_leak_becomes_one_for_each_unit_and_comes_back(learned, ending):
    net = leaky_net(learned)
    beta, leaks = net[1].beta, torch.tensor([0.5, 0.7, 0.9])
    if learned:
        beta.grad = torch.tensor(5.0)
    before, transaction = snapshot(net), Transaction(net)
    with contextlib.suppress(ValueError, KeyboardInterrupt), transaction:
        transaction.write(net[1], "beta", leaks)
        assert net[1].beta is beta
        assert torch.equal(beta, leaks)
        assert beta.grad is None
        if ending != "undo":
            raise ending
    if ending == "undo":
        transaction.undo()
    assert_as_before(net, before)


def test_gradients_have_the_new_shape_while_an_earlier_graph_is_alive():
    net = leaky_net(learned=True)
    inputs = torch.ones(1, 4)
    _, membrane = net[1](net[0](inputs), torch.ones(1, 3))  # keeps its graph
    written(net, (net[1], "beta", torch.tensor([0.5, 0.7, 0.9])))
    _, after = net[1](net[0](inputs), torch.ones(1, 3))
    (after * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert net[1].beta.grad.tolist() == [1.0, 2.0, 3.0]
    assert membrane.grad_fn is not None


@pytest.mark.parametrize(("name", "shape"), [("threshold", (3,)), ("graded_spikes_factor", (3,)), ("beta", (3, 2))])
def test_other_values_keep_their_shape(name, shape):
    net = leaky_net(learned=False)
    with pytest.raises(WriteError, match="shape"):
        written(net, (net[1], name, torch.ones(shape)))
