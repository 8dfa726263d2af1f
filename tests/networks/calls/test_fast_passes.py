import pytest
import torch
from torch import nn

from snn_recon_plugin.networks.calls.fast_passes import fast_passes
from snn_recon_plugin.networks.private.quiet import quiet

from ..nets import CLASSES, HIDDEN, INPUTS, STEPS, Dense
from ..reading import unwritten


@pytest.fixture
def products(monkeypatch):
    """Layers whose product is really computed, one entry a product."""
    seen, plain = [], nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, value: seen.append(self) or plain(self, value))
    return seen


def test_a_static_input_costs_one_product_a_batch_and_changes_no_bit(inputs, products):
    net, fired = Dense(), []
    net.fc1.register_forward_hook(lambda *_: fired.append(1))
    before, function = unwritten(net), net.lif1.spike_grad
    with quiet(net, seed=0), torch.no_grad():
        expected = [net(batch) for batch in (inputs, 2 * inputs)]
        products.clear()
        fired.clear()
        with fast_passes(net):
            results = [net(batch) for batch in (inputs, 2 * inputs)]
        counts = [products.count(layer) for layer in (net.fc1, net.fc2)]
        assert len(fired) == 2 * STEPS  # hooks fire at every call
        products.clear()
        net(inputs)
        assert products.count(net.fc1) == STEPS
    assert all(torch.equal(*pair) for one, two in zip(expected, results, strict=True) for pair in zip(one, two, strict=True))
    assert counts == [2, 2 * STEPS]  # the second layer sees other spikes at each step
    with pytest.raises(KeyboardInterrupt), fast_passes(net):
        raise KeyboardInterrupt
    assert "forward" not in vars(net.fc1)
    assert net.lif1.spike_grad is function
    assert not {"fire", "mem_reset"} & set(vars(net.lif1))
    assert unwritten(net) == before


CHANGES = [
    "input in place",
    "input in place in inference mode",
    "another input",
    "weight in place",
    "bias replaced",
    "another type",
    "output in place",
]


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_computed_anew(change):
    with torch.inference_mode("inference" in change):
        x = torch.rand(4, INPUTS)
    layer = nn.Linear(INPUTS, HIDDEN)
    with fast_passes(layer):
        first = layer(x)
        assert torch.equal(layer(x), first)
        if change.startswith("input in place"):
            with torch.inference_mode("inference" in change):
                x.add_(1)
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


def test_gradients_subclasses_and_forwards_of_their_own():
    plain, own, patched = nn.Linear(INPUTS, CLASSES), type("Own", (nn.Linear,), {})(INPUTS, CLASSES), nn.Linear(INPUTS, CLASSES)
    patched.forward = lambda value: value.sum()
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(INPUTS, CLASSES))
    x = torch.rand(4, INPUTS)
    with fast_passes(nn.ModuleList([plain, own, patched, weighted])):
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
