import pytest
import torch
from torch import nn

from snn_recon_plugin.networks import fast_passes, quiet

from .conftest import CLASSES, HIDDEN, INPUTS, STEPS


@pytest.fixture
def products(monkeypatch):
    """The inputs of every product that a Linear really computes."""
    seen = []
    plain = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, value: seen.append((self, value)) or plain(self, value))
    return seen


def calls_of(products, module):
    return sum(owner is module for owner, _ in products)


def test_a_static_input_costs_one_product_a_batch_and_changes_no_bit(nets, inputs, products, snapshot, assert_unwritten):
    net = nets.Mlp()
    before = snapshot(net)
    with quiet(net, seed=0):
        expected = [net(batch) for batch in (inputs, 2 * inputs)]
        products.clear()
        with fast_passes(net):
            results = [net(batch) for batch in (inputs, 2 * inputs)]
        counts = [calls_of(products, layer) for layer in (net.fc1, net.fc2)]
        products.clear()
        net(inputs)
        after = calls_of(products, net.fc1)
    for one, two in zip(expected, results, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
    assert counts == [2, 2 * STEPS]  # the second layer sees other spikes at each step
    assert after == STEPS
    assert "forward" not in vars(net.fc1)
    assert_unwritten(net, before, snapshot(net))


def test_hooks_fire_at_every_call_and_wrappers_go_on_errors(nets, inputs):
    net, fired = nets.Mlp(), []
    net.fc1.register_forward_hook(lambda *_: fired.append(1))
    with quiet(net, seed=0), fast_passes(net):
        net(inputs)
    assert len(fired) == STEPS
    with pytest.raises(KeyboardInterrupt), fast_passes(net):
        raise KeyboardInterrupt
    assert "forward" not in vars(net.fc1)


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    ["input in place", "another input", "weight in place", "bias replaced", "another type", "output in place"],
)
def test_whatever_changes_is_computed_anew(change):
    layer, x = nn.Linear(INPUTS, HIDDEN), torch.rand(4, INPUTS)
    with fast_passes(layer):
        first = layer(x)
        assert torch.equal(layer(x), first)
        if change == "input in place":
            x[0, 0] += 1
        elif change == "another input":
            x = x + 1
        elif change == "weight in place":
            layer.weight.mul_(2)
        elif change == "bias replaced":
            layer.bias = nn.Parameter(torch.ones(HIDDEN))
        elif change == "another type":
            layer.double()
            x = x.double()
        else:
            first.add_(1)  # what came out before is the net's own
        result = layer(x)
    assert torch.equal(result, layer(x))
    assert result.dtype == layer.weight.dtype


@torch.no_grad()
def test_equal_inputs_in_new_tensors_are_recognised(products):
    layer, x = nn.Linear(INPUTS, CLASSES), torch.rand(4, INPUTS)
    with fast_passes(layer):
        for _ in range(5):
            layer(input=x.clone())
    assert len(products) == 1


@torch.no_grad()
def test_a_layer_that_sees_something_else_each_time_is_left_alone(monkeypatch):
    layer = nn.Linear(INPUTS, CLASSES)
    compared, equal = [], torch.equal
    monkeypatch.setattr(torch, "equal", lambda *pair: compared.append(pair) or equal(*pair))
    with fast_passes(layer):
        for _ in range(6):
            layer(torch.rand(4, INPUTS))
    assert len(compared) == 1


def test_gradients_subclasses_and_forwards_of_their_own():
    class Own(nn.Linear):
        pass

    plain, own, patched = nn.Linear(INPUTS, CLASSES), Own(INPUTS, CLASSES), nn.Linear(INPUTS, CLASSES)
    patched.forward = lambda value: value.sum()
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(INPUTS, CLASSES))
    x = torch.rand(4, INPUTS)
    with fast_passes(nn.ModuleList([plain, own, patched, weighted])):
        assert "forward" in vars(plain)
        assert "forward" not in {**vars(own), **vars(weighted)}
        outputs = [plain(x) for _ in range(2)]
        outputs[0].sum().backward()  # each call has a graph of its own
        outputs[1].sum().backward()
        assert patched(x) == x.sum()
    assert "forward" in vars(patched)
    assert torch.allclose(plain.weight.grad, 2 * x.sum(0).expand(CLASSES, INPUTS))


def test_autocast_is_told_from_the_rest():
    layer, x = nn.Linear(INPUTS, CLASSES), torch.rand(4, INPUTS)
    with torch.no_grad(), fast_passes(layer):
        layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


def test_inputs_of_inference_mode_are_looked_at(products):
    layer = nn.Linear(INPUTS, CLASSES)
    with torch.inference_mode():
        x = torch.rand(4, INPUTS)
    with torch.no_grad(), fast_passes(layer):
        first = layer(x).clone()
        with torch.inference_mode():
            x.add_(1)
        assert not torch.equal(layer(x), first)
    assert len(products) == 2
