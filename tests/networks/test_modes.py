import pytest
import torch
from torch import nn

from snn_recon_plugin.errors import UnsupportedModuleError
from snn_recon_plugin.networks import inspect_network, plain_forward, preserved, resolve_readout, unwrap
from snn_recon_plugin.networks.modes import autocast_rounding, drop_autocast, full_precision, keep_autocast, run_eagerly

needs_stances = pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6 can't run them uncompiled")


def test_unwrap(nets):
    net = nets.Mlp()
    compiled = torch.compile(net, backend="eager")
    assert unwrap(compiled) is net
    assert unwrap(net) is net


@pytest.mark.filterwarnings("ignore")
@needs_stances
def test_a_net_compiled_in_place_is_read(nets, inputs):
    net = nets.Mlp()
    net.compile(backend="eager")
    net_map = inspect_network(net, inputs, plain_forward)
    assert net_map.readout.name == "fc3"
    assert resolve_readout(net, net_map, inputs, plain_forward).kind == "membrane_mean"


@pytest.mark.filterwarnings("ignore")
@needs_stances
def test_compiled_parts_run_uncompiled(nets, inputs):
    net = nets.Mlp()
    net.fc2 = torch.compile(net.fc2, backend="eager")
    calls = []
    net.fc2._orig_mod.register_forward_hook(lambda *_: calls.append(torch.compiler.is_compiling()))
    with preserved(net, seed=0):
        net(inputs)
    assert calls == [False] * 6


def test_other_nets_are_left_alone(nets, monkeypatch):
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)
    run_eagerly(nets.Mlp())()
    compiled = nn.Sequential(nn.Linear(1, 1))
    compiled[0]._orig_mod = nn.Linear(1, 1)
    with pytest.raises(UnsupportedModuleError, match="a compiled module '0'"):
        run_eagerly(compiled)


def test_autocast_is_kept_dropped_and_suspended():
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    plain = keep_autocast(plain_forward)
    assert plain is plain_forward
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = keep_autocast(plain_forward)
        assert autocast_rounding(x.device) == torch.finfo(torch.bfloat16).eps
        assert drop_autocast(kept)(layer, x).dtype == torch.float32
        assert drop_autocast(plain_forward)(layer, x).dtype == torch.float32
        with full_precision():
            assert layer(x).dtype == torch.float32
    assert kept(layer, x).dtype == torch.bfloat16
    assert autocast_rounding(x.device) == 0.0


def test_tensors_made_in_full_precision_can_be_trained():
    with torch.inference_mode(), full_precision():
        assert not torch.ones(1).is_inference()
