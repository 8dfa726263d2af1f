"""The first steps of a reconstruction, and a record of what they must leave alone."""

from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.capture import ActivityRecorder, capture
from snn_recon_plugin.networks.private.quiet import quiet
from snn_recon_plugin.networks.readout.resolve import resolve_readout
from snn_recon_plugin.networks.structure.inspect import inspect_network

from ..helpers import as_batches, snapshot


def read(net, inputs, kind="auto", forward=plain_forward, **options):
    net_map = inspect_network(net, inputs, forward)
    return net_map, resolve_readout(net, net_map, inputs, forward=forward, kind=kind, **options)


def resolve(net, inputs, kind="auto", forward=plain_forward, **options):
    return read(net, inputs, kind, forward, **options)[1]


def captured(net, loader, inputs, kind="auto", forward=plain_forward, keep=0, **options):
    with quiet(net, seed=0):
        net_map, readout = read(net, inputs, kind, forward)
        recorder = ActivityRecorder(net_map, readout, keep)
        return capture(net, as_batches(loader), recorder, forward=forward, **options), readout, net_map


def explained(linear, found, readout):
    if readout.per_step:
        return found.features @ linear.weight.T + readout.bias_gains.float()[:, None] * linear.bias
    return found.features @ linear.weight.T + readout.bias_gain * linear.bias + readout.constant


def unwritten(net):
    """All of a net and of the process that a pass of a private net must leave alone."""
    taken = snapshot(net)
    return {key: taken[key] for key in ("parameters", "hooks", "torch", "numpy", "python", "gradients on")}


def assert_says(error, words):
    """Check that the message holds all words, which are separated by "|"."""
    assert [word for word in words.split("|") if word not in str(error)] == []
