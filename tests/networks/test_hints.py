"""What to type for outputs that no readout explains."""

from dataclasses import dataclass

import pytest
import torch

from snn_recon_plugin.errors import NetworkError
from snn_recon_plugin.networks import inspect_network, plain_forward, resolve_readout


@dataclass
class Out:
    loss: object
    other: torch.Tensor
    logits: torch.Tensor


def steps_of(mem):
    """Values of step 3 for the first sample, of the last one for the others."""
    return torch.cat([mem[3, :1], mem[-1, 1:]])


HINTS = {
    "softmax": (lambda spk, mem: mem.mean(0).softmax(1), "return the scores in place of net(inputs), which is their softmax"),
    "softmax in a tuple": (lambda spk, mem: (spk, mem[-1].softmax(1))[1:], "return the scores in place of net(inputs)[0]"),
    "attribute": (lambda spk, mem: Out(None, spk[0], mem.mean(0)), "forward=lambda net, inputs: net(inputs).logits"),
    "attribute over time": (lambda spk, mem: Out(None, mem[0] * 2, mem), "forward=lambda net, inputs: net(inputs).logits"),
    "unknown attribute": (lambda spk, mem: Out(None, mem.mean(0) * 2, mem[0]), "forward=lambda net, inputs: net(inputs).other"),
    "another step for each": (lambda spk, mem: steps_of(mem), "read at another step are not supported"),
    "anything else": (lambda spk, mem: mem.mean(0) ** 2, "forward=lambda net, inputs: net(inputs)[...]"),
}


def resolve(net, inputs, forward=plain_forward, **options):
    return resolve_readout(net, inspect_network(net, inputs, forward), inputs, forward, **options)


@pytest.mark.parametrize("name", HINTS)
def test_what_to_type(nets, inputs, name):
    returns, fix = HINTS[name]
    net = nets.Mlp(returns=returns)
    with pytest.raises(NetworkError) as caught:
        resolve(net, inputs)
    assert fix in caught.value.fix
    assert "over_time" not in caught.value.fix
    if fix.startswith("forward=") and "other" not in fix and "..." not in fix:
        assert resolve(net, inputs, eval(fix.removeprefix("forward="))).exactness == "exact"


def test_samples_of_the_pass_are_not_taken_for_the_users_batch(nets, inputs):
    with pytest.raises(NetworkError, match=r"tensor \[8, 3\] for 8 samples") as caught:
        resolve(nets.Mlp(returns=lambda spk, mem: mem.mean(0) ** 2), inputs)
    assert "[6, batch, 3] or [batch, 6, 3] over time, or [batch, 3]" in caught.value.needed
