import pytest
import torch

from snn_recon_plugin.errors import NetworkError
from snn_recon_plugin.networks.readout.match import match_output
from snn_recon_plugin.networks.structure.probes import Probe

from ..nets import Dense
from ..reading import resolve


@pytest.mark.parametrize(
    ("kind", "decode"), [("membrane_last", lambda values: values[-1]), ("membrane_max", lambda values: values.amax(0))]
)
def test_readouts_that_agree_by_chance_are_separated_by_another_pass(kind, decode):
    rising = torch.arange(12.0).view(3, 2, 2)

    def matched(sign):
        first, second = (Probe(values, values, values, None, decode(values)) for values in (rising, sign * rising))
        kinds = ("membrane_mean", "membrane_last", "membrane_max")
        return match_output(first, kinds, "auto", spikes_first=False, affine=False, again=lambda draw: second)

    assert matched(-1).source.kind == kind
    with pytest.raises(NetworkError, match="agrees with membrane_last and membrane_max"):
        matched(1)


def test_a_weighted_sum_over_time_is_found_and_exact(inputs):
    net = Dense(returns=lambda spk, mem: (spk, mem[2:].sum(0))[1:])
    readout = resolve(net, inputs)
    assert (readout.kind, readout.exactness, readout.index) == ("custom", "exact", 0)
    assert str(readout) == "weighted sum over time of output[0]"
    out = net(inputs)
    assert torch.equal(readout.scores(out), out[0])
    impulse = torch.tensor([sum(0.9 ** (s - t) for s in range(max(t, 2), 6)) for t in range(6)])
    assert torch.allclose(readout.filter.float(), impulse, atol=1e-4)


@pytest.mark.parametrize("scores", [lambda spk, mem: spk[3:].sum(0), lambda spk, mem: mem.square().mean(0)])
def test_scores_that_are_no_weighted_sum_of_membranes(inputs, scores):
    with pytest.raises(NetworkError, match="whose values are none of"):
        resolve(Dense(returns=scores), inputs)
