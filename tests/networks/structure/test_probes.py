import torch

from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.structure.graph import Pass, injector, observe, run_probe, same
from snn_recon_plugin.networks.structure.inspect import inspect_network

from ..nets import Dense


def test_passes_repeat_exactly_and_an_injection_shows_downstream_alone(inputs):
    net = Dense()
    watched = [net.fc1, net.fc2, net.fc3, net.lif2]
    one, two = (observe(net, inputs, plain_forward, watched) for _ in range(2))
    assert list(one.entered) == [net.fc1, net.fc2, net.lif2, net.fc3]
    assert one.shapes[net.fc2] == [torch.Size([8, 16])] * 6
    assert not any(one.changed(two, module) for module in watched)
    assert same(one.returned, two.returned)
    disturbed = observe(net, inputs, plain_forward, watched, inject=(net.fc2, injector(100.0)))
    assert [disturbed.changed(one, module) for module in watched] == [False, False, True, True]
    assert disturbed.changed(one, net.lif2, first_call=True)
    assert not same(one.returned, disturbed.returned)


def test_spikes_that_trade_places_and_other_numbers_of_calls_are_changes():
    net, a, b = Dense(), torch.zeros(8, 10), torch.zeros(8, 10)
    a[0, 1], b[0, 2] = 1, 1
    one, two = (observe(net, x, plain_forward, [net.fc1]) for x in (a, b))
    assert one.changed(two, net.fc1)
    one, two = Pass({net.fc1: [torch.ones(2)]}), Pass({net.fc1: [torch.ones(2)] * 2})
    assert one.changed(two, net.fc1)
    assert not one.changed(two, net.fc1, first_call=True)


def test_injected_currents_repeat_and_differ_between_draws(inputs):
    out = torch.empty(3, 4, dtype=torch.float64)
    one, two = injector(2.0, shift=-50.0), injector(2.0, shift=-50.0)
    first = one(out)
    assert torch.equal(first, two(out))
    assert not torch.equal(first, one(out))
    assert first.dtype == torch.float64
    assert (first < 0).all()
    net = Dense()
    net_map = inspect_network(net, inputs, plain_forward)
    first, again, other = (run_probe(net, net_map, inputs, plain_forward, draw).currents for draw in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).any()
