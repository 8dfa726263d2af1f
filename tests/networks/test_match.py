import pytest
import torch

from snn_recon_plugin.errors import NetworkError, OptionError
from snn_recon_plugin.networks import inspect_network, plain_forward, resolve_readout
from snn_recon_plugin.networks.match import match_output
from snn_recon_plugin.networks.probes import Probe


def resolve_any(net, inputs, kind="auto", **options):
    net_map = inspect_network(net, inputs, plain_forward)
    return resolve_readout(net, net_map, inputs, plain_forward, kind, **options)


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


@pytest.mark.parametrize(
    ("scores", "kind", "exactness"),
    [
        (lambda out: out[1].mean(0), "membrane_mean", "exact"),
        (lambda out: out[1][2:].sum(0), "custom", "exact"),
        (lambda out: out[1].amax(0), "membrane_max", "majorised"),
        (lambda out: out[0][3:].sum(0), "custom", "surrogate"),
        (lambda out: out[1].square().mean(0), "custom", "surrogate"),
    ],
)
def test_a_function_of_the_user(nets, inputs, scores, kind, exactness):
    net = nets.Mlp()
    readout = resolve_any(net, inputs, scores=scores)
    assert (readout.kind, readout.exactness) == (kind, exactness)
    out = net(inputs)
    assert torch.equal(readout.scores(out), scores(out))
    if exactness == "exact" and kind == "custom":
        impulse = torch.tensor([sum(0.9 ** (s - t) for s in range(max(t, 2), 6)) for t in range(6)])
        assert torch.allclose(readout.filter.float(), impulse, atol=1e-4)


@pytest.mark.parametrize("scores", [lambda out: out[0][3:].sum(0).long(), lambda out: out[0].sum(0) > 1], ids=["int", "bool"])
def test_whole_numbers_become_scores_with_a_mean(nets, inputs, scores):
    net = nets.Mlp()
    found = resolve_any(net, inputs, scores=scores).scores(net(inputs))
    assert torch.equal(found, scores(net(inputs)).float())
    assert found.dtype is torch.float32


@pytest.mark.parametrize("scores", [lambda out: out[1], lambda out: None])
def test_functions_that_give_no_scores(nets, inputs, scores):
    with pytest.raises(NetworkError, match=r"scores of .*\n.*a tensor \[batch, 3\]"):
        resolve_any(nets.Mlp(), inputs, scores=scores)
    with pytest.raises(OptionError, match="'membrane_sum' for a function"):
        resolve_any(nets.Mlp(), inputs, "membrane_sum", scores=lambda out: out[1].mean(0) ** 2)


@pytest.mark.parametrize(
    ("scores", "word"),
    [
        (lambda out: out[1].mean(0) / 0, "NaN or infinite"),
        (lambda out: out[1].mean(0) * float("nan"), "NaN or infinite"),
        (lambda out: out["scores"], "scores(output) raised TypeError"),
    ],
    ids=["infinite", "NaN", "raises"],
)
def test_functions_that_fail(nets, inputs, scores, word):
    with pytest.raises(NetworkError) as caught:
        resolve_any(nets.Mlp(), inputs, scores=scores)
    assert word in caught.value.found
    assert "scores" in caught.value.fix
