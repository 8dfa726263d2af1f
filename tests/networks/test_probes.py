import torch

from snn_recon_plugin.networks import plain_forward
from snn_recon_plugin.networks.probes import Pass, injector, observe, same


def test_passes_repeat_exactly(nets, inputs):
    net = nets.Mlp()
    watched = [net.fc1, net.fc2, net.fc3, net.lif1]
    one, two = (observe(net, inputs, plain_forward, watched) for _ in range(2))
    assert list(one.entered) == [net.fc1, net.lif1, net.fc2, net.fc3]
    assert one.shapes[net.fc2] == [torch.Size([8, 16])] * 6
    assert not any(one.changed(two, module) for module in watched)
    assert same(one.returned, two.returned)


def test_an_injection_shows_downstream_alone(nets, inputs):
    net = nets.Mlp()
    watched = [net.fc1, net.fc2, net.fc3, net.lif2]
    plain = observe(net, inputs, plain_forward, watched)
    disturbed = observe(net, inputs, plain_forward, watched, inject=(net.fc2, injector(100.0)))
    assert [disturbed.changed(plain, module) for module in watched] == [False, False, True, True]
    assert disturbed.changed(plain, net.lif2, first_call=True)
    assert not same(plain.returned, disturbed.returned)


def test_spikes_that_trade_places_show(nets, inputs):
    net = nets.Mlp()
    a, b = torch.zeros(8, 10), torch.zeros(8, 10)
    a[0, 1], b[0, 2] = 1, 1
    one, two = (observe(net, x, plain_forward, [net.fc1]) for x in (a, b))
    assert one.changed(two, net.fc1)


def test_another_number_of_calls_is_a_change(nets):
    net = nets.Mlp()
    one, two = Pass({net.fc1: [torch.ones(2)]}), Pass({net.fc1: [torch.ones(2)] * 2})
    assert one.changed(two, net.fc1)
    assert not one.changed(two, net.fc1, first_call=True)
    assert not one.changed(two, net.fc2)


def test_injected_currents_repeat():
    out = torch.empty(3, 4, dtype=torch.float64)
    one, two = injector(2.0, shift=-50.0), injector(2.0, shift=-50.0)
    first = one(out)
    assert torch.equal(first, two(out))
    assert not torch.equal(first, one(out))
    assert first.dtype == torch.float64
    assert (first < 0).all()
