import contextlib

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from snn_recon_plugin.errors import UnsupportedModuleError, WriteError
from snn_recon_plugin.networks import Transaction, check_writable, inspect_network, over_time, plain_forward

from ..faults import LineFault
from ..helpers import bits


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def write_all(transaction, writes, error=None):
    """Write inside the transaction, and end it by an error if one is given."""
    with transaction:
        for module, name, value in writes:
            transaction.write(module, name, value)
        if error is not None:
            raise error


def values(net):
    return {name: (id(parameter), parameter.detach().clone()) for name, parameter in net.named_parameters()}


def assert_values(net, expected):
    for name, parameter in net.named_parameters():
        assert id(parameter) == expected[name][0]
        assert torch.equal(parameter, expected[name][1])


def test_a_write_keeps_the_parameter_object(net):
    parameter = net[2].weight
    parameter.grad = torch.full((2, 3), 5.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with Transaction(net) as transaction:
        transaction.write(net[2], "weight", torch.ones(2, 3, dtype=torch.float64))
    assert net[2].weight is parameter
    assert parameter.requires_grad
    assert torch.equal(parameter, torch.ones(2, 3))
    assert torch.equal(parameter.grad, torch.full((2, 3), 5.0))
    optimizer.step()
    assert torch.equal(net[2].weight, torch.full((2, 3), -4.0))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_rolls_everything_back(net, error):
    before, transaction = values(net), Transaction(net)
    writes = [
        (net[0], "weight", torch.ones(3, 4)),
        (net[2], "bias", torch.ones(2)),
        (net[0], "weight", torch.zeros(3, 4)),
    ]
    with pytest.raises(error):
        write_all(transaction, writes, error)
    assert_values(net, before)
    with pytest.raises(WriteError, match="without old values"):
        transaction.undo()


def test_a_bad_second_write_takes_the_first_back(net):
    before = values(net)
    writes = [(net[2], "weight", torch.ones(2, 3)), (net[2], "bias", torch.ones(5))]
    with pytest.raises(WriteError, match=r"shape \[5\] for '2\.bias'"):
        write_all(Transaction(net), writes)
    assert_values(net, before)


def test_a_second_undo_does_nothing(net):
    before = values(net)
    with Transaction(net) as transaction:
        transaction.write(net[0], "weight", torch.ones(3, 4))
        transaction.write(net[0], "bias", torch.ones(3))
    with torch.no_grad():
        net[0].bias.add_(1)  # trained since: undone all the same
    transaction.undo()
    assert_values(net, before)
    with torch.no_grad():
        net[0].bias.add_(1)
    now = values(net)
    transaction.undo()
    assert_values(net, now)


def test_an_open_transaction_cannot_be_undone(net):
    with Transaction(net) as transaction, pytest.raises(WriteError, match="without old values"):
        transaction.undo()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite(net, bad):
    before = values(net)
    with pytest.raises(WriteError, match=r"'0\.bias' that is not finite as torch.float32"):
        write_all(Transaction(net), [(net[0], "bias", torch.full((3,), bad, dtype=torch.float64))])
    assert_values(net, before)


def refused(net, module, name, value, error, match):
    before = values(net)
    with pytest.raises(error, match=match), Transaction(net) as transaction:
        transaction.write(module, name, value)
    assert_values(net, before)


def test_parameters_that_are_not_there(net):
    refused(net, net[0], "beta", torch.ones(3), WriteError, r"no parameter '0\.beta'")
    refused(net, nn.Linear(1, 1), "bias", torch.ones(1), WriteError, "a Linear that is not part of the net")
    bare = nn.Sequential(nn.Linear(2, 2, bias=False))
    refused(bare, bare[0], "bias", torch.ones(2), WriteError, r"\['weight'\]")


def test_computed_parameters():
    cases = {
        "the parametrization SpectralNorm": parametrizations.spectral_norm(nn.Linear(4, 3)),
        "the parametrization Tanh": nn.Linear(4, 3),
        "spectral_norm": spectral_norm(nn.Linear(4, 3)),
        "pruning": prune.l1_unstructured(nn.Linear(4, 3), "weight", 2),
    }
    parametrize.register_parametrization(cases["the parametrization Tanh"], "weight", nn.Tanh())
    cases["weight_norm"] = nn.Linear(4, 3)
    weight = cases["weight_norm"].weight
    del cases["weight_norm"]._parameters["weight"]
    cases["weight_norm"].weight_g, cases["weight_norm"].weight_v = nn.Parameter(weight.norm()), nn.Parameter(weight)
    cases["its module"] = nn.Linear(4, 3)
    del cases["its module"]._parameters["weight"]
    cases["its module"].weight = lambda: None
    for how, layer in cases.items():
        net = nn.Sequential(layer)
        refused(net, layer, "weight", torch.ones(3, 4), UnsupportedModuleError, f"'0.weight' is computed by {how}")


@pytest.mark.parametrize("dim", [0, None])
def test_weight_norm_is_written_through(net, dim):
    layer = parametrizations.weight_norm(net[0], dim=dim)
    before, pointers = values(net), [p.data_ptr() for p in net.parameters()]
    old, new = layer.weight.detach().clone(), torch.randn(3, 4) * 5
    with Transaction(net) as transaction:
        transaction.write(layer, "weight", new)
    assert torch.allclose(layer.weight, new, rtol=1e-5)
    assert [p.data_ptr() for p in net.parameters()] == pointers
    assert parametrize.is_parametrized(layer, "weight")
    transaction.undo()
    assert_values(net, before)
    assert torch.equal(layer.weight, old)


def test_other_parametrizations_are_refused_by_name(net):
    orthogonal = nn.Sequential(parametrizations.orthogonal(nn.Linear(3, 3)))
    before = orthogonal[0].weight.detach().clone()
    with (
        pytest.raises(UnsupportedModuleError, match=r"'0\.weight' is computed by the parametrization Orthogonal") as error,
        Transaction(orthogonal) as transaction,
    ):
        transaction.write(orthogonal[0], "weight", torch.ones(3, 3))
    assert 'remove_parametrizations(net[0], "weight")' in error.value.fix
    assert torch.equal(orthogonal[0].weight, before)
    parametrize.register_parametrization(parametrizations.weight_norm(net[0]), "weight", nn.Identity())
    refused(net, net[0], "weight", torch.ones(3, 4), UnsupportedModuleError, "the parametrization WeightNorm, Identity")


def test_tied_parameters_with_consent():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    before = values(tied)
    with Transaction(tied, allow_tied=True) as transaction:
        transaction.write(tied[1], "weight", torch.ones(3, 3))
    assert torch.equal(tied[0].weight, torch.ones(3, 3))
    transaction.undo()
    assert_values(tied, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(net, dtype):
    net.to(dtype)
    before = values(net)
    with Transaction(net) as transaction:
        transaction.write(net[0], "weight", torch.full((3, 4), 1 / 3))
    assert torch.equal(net[0].weight, torch.full((3, 4), 1 / 3).to(dtype))
    transaction.undo()
    assert_values(net, before)


def test_tied_parameters(net):
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    refused(tied, tied[1], "weight", torch.ones(3, 3), UnsupportedModuleError, r"'1\.weight' is tied to 0\.weight")
    shared = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with torch.no_grad():
        shared[1].weight = nn.Parameter(shared[0].weight.detach())  # another object on the same memory
    refused(shared, shared[1], "weight", torch.ones(3, 3), UnsupportedModuleError, "tied")


def test_sparse_tensors_of_the_net_are_left_alone(nets, inputs):
    net, sparse = nets.Mlp(), torch.eye(4).to_sparse()
    net.register_buffer("graph", sparse)
    net.strengths = nn.Parameter(sparse.clone())
    check_writable(net, inspect_network(net, inputs, plain_forward))
    Transaction(net).check(net.lif1, "beta")


def test_inference_parameters():
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(2, 2))
    refused(net, net[0], "weight", torch.ones(2, 2), UnsupportedModuleError, "torch.inference_mode")


def test_frozen_parameters_are_written(net):
    net.requires_grad_(False)
    with Transaction(net) as transaction:
        transaction.write(net[0], "bias", torch.ones(3))
    assert torch.equal(net[0].bias, torch.ones(3))
    assert not net[0].bias.requires_grad


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_frozen_readout_is_refused_with_what_to_type(nets, inputs, name):
    net = nets.Nested()
    getattr(net.body[3], name).requires_grad_(False)
    net_map = inspect_network(net, inputs, over_time(6))
    with pytest.raises(UnsupportedModuleError, match=rf"'body\.3' is frozen: its {name} has requires_grad=False") as error:
        check_writable(net, net_map)
    assert "net.body[3].requires_grad_(True)" in error.value.fix


def test_a_parameter_without_memory_of_its_own(net):
    net[2].weight = nn.Parameter(torch.randn(1, 3).expand(2, 3))
    refused(net, net[2], "weight", torch.ones(2, 3), UnsupportedModuleError, r"'2\.weight' can't be written in place")


def test_rolling_back_goes_on_past_an_error(net):
    """The bias that is written last can't be put back; the weight written before it is."""
    before, transaction = net[0].weight.detach().clone(), Transaction(net)
    with transaction:
        transaction.write(net[0], "weight", torch.ones(3, 4))
        transaction.write(net[0], "bias", torch.ones(3))
    net[0].bias.data = torch.ones(1).expand(3)
    with pytest.raises(WriteError, match="a written parameter that could not be put back"):
        transaction.roll_back()
    assert torch.equal(net[0].weight, before)


CHANGES = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "parametrized": parametrizations.weight_norm,
    "replaced": lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(3, 4))),
    "taken": lambda layer: layer.register_parameter("weight", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_undo_of_a_parameter_that_is_not_the_modules_any_more(net, change):
    with Transaction(net) as transaction:
        transaction.write(net[0], "weight", torch.full((3, 4), 0.5))
        transaction.write(net[2], "bias", torch.ones(2))
    parameter = net[0].weight
    CHANGES[change](net[0])
    with pytest.raises(WriteError, match=r"'0\.weight', which was removed or replaced"):
        transaction.undo()
    assert torch.equal(net[2].bias, torch.ones(2))  # nothing is undone
    assert [written for written, _ in transaction.replaced] == [parameter, net[2].bias]


def test_undo_after_a_parametrization_was_removed(net):
    parametrizations.weight_norm(net[0])
    with Transaction(net) as transaction:
        transaction.write(net[0], "weight", torch.ones(3, 4))
    parametrize.remove_parametrizations(net[0], "weight")
    with pytest.raises(WriteError, match=r"'0\.parametrizations\.weight\.original0', which was removed or replaced"):
        transaction.undo()


def test_undo_after_a_module_was_replaced(net):
    with Transaction(net) as transaction:
        transaction.write(net[2], "bias", torch.ones(2))
    net[2] = nn.Linear(3, 2)
    with pytest.raises(WriteError, match=r"'2\.bias', which was removed or replaced"):
        transaction.undo()


def test_undo_once_pruning_was_made_permanent(net):
    before = values(net)
    with Transaction(net) as transaction:
        transaction.write(net[0], "weight", torch.full((3, 4), 0.5))
    prune.l1_unstructured(net[0], "weight", 0.3)
    prune.remove(net[0], "weight")
    transaction.undo()
    assert torch.equal(net[0].weight, before["0.weight"][1])


def test_an_undo_interrupted_at_any_line_is_finished_or_not_begun(net):
    before = values(net)

    def written():
        with Transaction(net) as transaction:
            transaction.write(net[0], "weight", torch.ones(3, 4))
            transaction.write(net[2], "bias", torch.ones(2))
        return transaction

    with LineFault(["write.py"]) as lines:
        written().undo()
    begun, transaction = set(), written()
    for number in range(1, lines.seen + 1):
        with contextlib.suppress(KeyboardInterrupt), LineFault(["write.py"], number):
            transaction.undo()
        begun.add(torch.equal(net[0].weight, before["0.weight"][1]))
        if not torch.equal(net[0].weight, before["0.weight"][1]):
            assert torch.equal(net[2].bias, torch.ones(2))
            transaction.undo()
        assert_values(net, before)
        assert torch.is_grad_enabled()
        transaction = written()
    assert begun == {True, False}


@pytest.mark.parametrize("dim", [0, None])
def test_zeros_are_written_through_weight_norm(dim):
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3), dim=dim))
    with torch.no_grad():
        net[0].parametrizations.weight.original1[1] = 0.0
    value = torch.zeros(3, 4)
    value[2] = torch.arange(4.0) if dim == 0 else 0.0
    write_all(Transaction(net), [(net[0], "weight", value)])
    assert torch.equal(net[0].weight, value)
    net[0](torch.ones(2, 4)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


# -- a leak that becomes one for each unit -----------------------------------------------------------------------------------


def leaky_net(learned):
    return nn.Sequential(nn.Linear(4, 3), snn.Leaky(beta=0.9, learn_beta=learned))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("ending", ["undo", ValueError, KeyboardInterrupt])
def test_a_shared_leak_becomes_one_for_each_unit_and_comes_back(learned, ending):
    net = leaky_net(learned)
    beta, before = net[1].beta, bits(net[1].beta)
    if learned:
        beta.grad = torch.tensor(5.0)
    transaction, leaks = Transaction(net), torch.tensor([0.5, 0.7, 0.9])
    with contextlib.suppress(ValueError, KeyboardInterrupt), transaction:
        transaction.write(net[1], "beta", leaks)
        assert net[1].beta is beta
        assert torch.equal(beta, leaks)
        assert beta.grad is None
        if ending != "undo":
            raise ending
    if ending == "undo":
        transaction.undo()
    assert net[1].beta is beta
    assert bits(beta) == before
    assert beta.grad == (5.0 if learned else None)


def test_gradients_have_the_new_shape_while_an_earlier_graph_is_alive():
    net = leaky_net(learned=True)
    inputs = torch.ones(1, 4)
    _, membrane = net[1](net[0](inputs), torch.ones(1, 3))  # keeps its graph
    with Transaction(net) as transaction:
        transaction.write(net[1], "beta", torch.tensor([0.5, 0.7, 0.9]))
    _, after = net[1](net[0](inputs), torch.ones(1, 3))
    (after * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert net[1].beta.grad.tolist() == [1.0, 2.0, 3.0]
    assert membrane.grad_fn is not None


@pytest.mark.parametrize("name", ["threshold", "graded_spikes_factor"])
def test_other_values_keep_their_shape(name):
    net = leaky_net(learned=False)
    with pytest.raises(WriteError, match="shape"), Transaction(net) as transaction:
        transaction.write(net[1], name, torch.ones(3))
    with pytest.raises(WriteError, match="shape"), Transaction(net) as transaction:
        transaction.write(net[1], "beta", torch.ones(3, 2))
