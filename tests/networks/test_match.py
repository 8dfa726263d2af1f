import pytest
import torch

from snn_recon_plugin.errors import NetworkError
from snn_recon_plugin.networks.match import match_output
from snn_recon_plugin.networks.probes import Probe


def probe_of(values, decode):
    return Probe(values, values, values, None, decode(values))


@pytest.mark.parametrize(
    ("kind", "decode"), [("membrane_last", lambda values: values[-1]), ("membrane_max", lambda values: values.amax(0))]
)
def test_readouts_that_agree_by_chance_are_separated_by_another_pass(kind, decode):
    rising = torch.arange(12.0).view(3, 2, 2)

    def matched(sign):
        again = lambda draw: probe_of(sign * draw * rising, decode)  # noqa: E731
        kinds = ("membrane_mean", "membrane_last", "membrane_max")
        return match_output(probe_of(rising, decode), kinds, "auto", spikes_first=False, again=again)

    assert matched(-1).source.kind == kind
    with pytest.raises(NetworkError, match="agrees with membrane_last and membrane_max"):
        matched(1)
