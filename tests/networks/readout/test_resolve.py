import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin.errors import NetworkError, OptionError, UnsupportedModuleError
from snn_recon_plugin.networks.readout.match import match_output
from snn_recon_plugin.networks.structure.graph import Probe

from ..nets import HIDDEN, Dense, Logits, readout_neuron, sequential
from ..reading import assert_says, resolve, unwritten

DECODERS = {"membrane_mean": lambda mem: mem.mean(0), "membrane_sum": lambda mem: mem.sum(0), "membrane_last": lambda mem: mem[-1]}


def spiking(returns=lambda spk, mem: (spk, mem), **options):
    return Dense(returns, **{"output": snn.Leaky(beta=0.9), **options})


def voters(returns, outputs=12):
    net = spiking(returns)
    net.fc3 = nn.Linear(HIDDEN, outputs)
    return net


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_of_membranes(inputs, kind):
    net = Dense(returns=lambda spk, mem: DECODERS[kind](mem))
    readout = resolve(net, inputs)
    assert (readout.kind, readout.exactness, readout.index) == (kind, "exact", None)
    out = net(inputs)
    assert torch.equal(readout.scores(out), out)
    for readout in (resolve(net, inputs, kind), resolve(Dense(), inputs, kind)):
        assert readout.kind == kind
        impulse = [[0.9 ** (s - t) if s >= t else 0.0 for t in range(6)] for s in range(6)]
        expected = DECODERS[kind](torch.tensor(impulse, dtype=torch.float64))
        assert torch.allclose(readout.filter, expected, atol=1e-6)
        assert readout.bias_gain == pytest.approx(float(expected.sum()), rel=1e-6)
        assert readout.constant == 0.0


@pytest.mark.parametrize(
    ("returns", "index", "time_dim"),
    [
        (lambda spk, mem: mem, None, 0),
        (lambda spk, mem: (spk, mem), 1, 0),
        (lambda spk, mem: [mem, spk], 0, 0),
        (lambda spk, mem: {"spikes": spk, "membranes": mem}, "membranes", 0),
        (lambda spk, mem: mem.movedim(0, 1), None, 1),
        (lambda spk, mem: list(mem), None, 0),
        (lambda spk, mem: (list(spk), list(mem), None), 1, 0),
        (lambda spk, mem: (spk.sum(0), mem), 1, 0),
    ],
)
def test_where_the_membranes_are(inputs, returns, index, time_dim):
    net = Dense(returns=returns)
    mean, each = resolve(net, inputs), resolve(net, inputs, "membrane_per_step")
    assert (mean.kind, mean.index, mean.time_dim) == ("membrane_mean", index, time_dim)
    assert (each.kind, each.index, each.time_dim) == ("membrane_per_step", index, time_dim)
    net.returns = lambda spk, mem: (returns(spk, mem), mem)
    out, mem = net(inputs)
    assert torch.allclose(mean.scores(out), mem.mean(0))
    assert torch.equal(each.scores(out), mem.movedim(0, 1))


class Cut(snn.Leaky):
    """Gets the current of the last step alone: then the sum of membranes without a leak is the last one."""

    def forward(self, input_, mem=None):
        self.step = getattr(self, "step", 0) + 1
        return super().forward(input_ * (self.step % 6 == 0), mem)


def cut():
    return Dense(returns=lambda spk, mem: mem[-1], output=Cut(beta=0.0, reset_mechanism="none"))


def silent():
    net = Dense(returns=lambda spk, mem: mem[-1])
    nn.init.zeros_(net.fc3.weight)
    nn.init.zeros_(net.fc3.bias)
    return net


class Forgetful(nn.Module):
    """A time loop around a net that nobody resets."""

    def __init__(self):
        super().__init__()
        self.body = sequential()

    def forward(self, x):
        return torch.stack([self.body(x)[1] for _ in range(5)])


class Once(nn.Module):
    """A net of a single step, without a time loop."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(10, 16), snn.Leaky(beta=0.8)
        self.fc2, self.lif2 = nn.Linear(16, 3), snn.Leaky(beta=0.8)

    def forward(self, x):
        z, _ = self.lif1(3 * self.fc1(x), self.lif1.reset_mem())
        return self.lif2(self.fc2(z), self.lif2.reset_mem())


def zeroing(returns):
    return spiking(returns, output=readout_neuron(reset_mechanism="zero"))


AUTO = {  # net, kind, exactness, index
    "decoded scores beside something else": (lambda: Dense(lambda spk, mem: (spk, mem[-1])), "membrane_last", "exact", 1),
    "weights of zero": (silent, "membrane_last", "exact", None),
    "one step has one mean": (lambda: Dense(lambda spk, mem: mem.sum(0), steps=1), "membrane_mean", "exact", None),
    "a net that forgets to reset": (Forgetful, "membrane_mean", "exact", None),
    "a threshold out of reach": (lambda: spiking(output=snn.Leaky(0.9, threshold=1e9)), "membrane_mean", "exact", 1),
    "a maximum": (lambda: Dense(lambda spk, mem: mem.amax(0)), "membrane_max", "majorised", None),
    "spikes without a reset": (lambda: Dense(lambda spk, mem: spk), "spike_count", "surrogate", None),
    "both": (spiking, "spike_count", "surrogate", 0),
    "batch first": (lambda: zeroing(lambda spk, mem: spk.movedim(0, 1)), "spike_count", "surrogate", None),
    "membranes": (lambda: spiking(lambda spk, mem: mem), "membrane_mean", "surrogate", None),
    "the largest of them": (lambda: spiking(lambda spk, mem: mem.amax(0)), "membrane_max", "surrogate", None),
    "counts": (lambda: spiking(lambda spk, mem: spk.sum(0)), "spike_count", "surrogate", None),
    "rates": (lambda: spiking(lambda spk, mem: spk.mean(0)), "spike_rate", "surrogate", None),
    "the last membrane and spikes": (lambda: spiking(lambda spk, mem: (mem[-1], spk)), "spike_count", "surrogate", 1),
    "spikes and the last membrane": (lambda: spiking(lambda spk, mem: (spk, mem[-1])), "spike_count", "surrogate", 0),
    "counts and the last membrane": (lambda: spiking(lambda spk, mem: (spk.sum(0), mem[-1])), "spike_count", "surrogate", 0),
    "counts and rates": (lambda: spiking(lambda spk, mem: (spk.sum(0), spk.mean(0))), "spike_count", "surrogate", 0),
    "one step in a loop": (lambda: spiking(steps=1), "spike_count", "surrogate", 0),
    "one step without a loop": (Once, "spike_count", "surrogate", 0),
}


@pytest.mark.parametrize("name", AUTO)
def test_what_auto_reads(inputs, name):
    make, *expected = AUTO[name]
    net = make()
    net(inputs)  # leaves states behind
    before = unwritten(net)
    readout = resolve(net, inputs)
    assert unwritten(net) == before
    assert [readout.kind, readout.exactness, readout.index] == expected
    if isinstance(net, Dense):  # below the threshold the neuron leaks by 0.9 a step
        leaks = [0.9 ** (net.steps - 1 - step) for step in range(net.steps)]
        assert readout.response.matrix[-1].tolist() == pytest.approx(leaks, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "kinds"),
    [
        (lambda: Dense(returns=lambda spk, mem: (mem.mean(0), mem[-1])), "membrane_mean and membrane_last"),
        (cut, "membrane_sum and membrane_last"),
    ],
    ids=["two items", "two decoders that agree"],
)
def test_one_of_several_is_asked_for(inputs, make, kinds):
    with pytest.raises(NetworkError, match=f"agrees with {kinds}"):
        resolve(make(), inputs)
    assert resolve(make(), inputs, "membrane_last").kind == "membrane_last"


@pytest.mark.parametrize("factor", [1e-3, -2.0])
def test_a_factor_before_the_neuron_hides_no_spikes(inputs, factor):
    net = spiking()
    net.lif3.register_forward_pre_hook(lambda _module, args: (factor * args[0], *args[1:]))
    readout = resolve(net, inputs)
    assert (readout.kind, readout.exactness) == ("spike_count", "surrogate")
    assert torch.allclose(readout.scale.factor, torch.full((3,), factor, dtype=torch.float64))


def clamped():
    net = Dense()
    net.lif3.register_forward_pre_hook(lambda _module, args: (args[0].clamp(-1, 1), *args[1:]))
    return net


class Warm(Dense):
    """Its output membrane starts at 1."""

    def reset(self):
        super().reset()
        self.lif3.mem = torch.ones(8, 3)


UNREAD = {  # what the net returns, the kind asked for, and the message
    "another function": (
        lambda spk, mem: mem.mean(0).square(),
        "auto",
        "tensor [8, 3]|membrane_mean, membrane_sum, membrane_last|[time, batch, classes]|softmax|pass step=",
    ),
    "an offset at every step": (
        lambda spk, mem: mem + 1,
        "membrane_per_step",
        "an offset or a negative factor of the output neuron's values|membrane_mean",
    ),
    "a negative factor of a maximum": (lambda spk, mem: -2 * mem.amax(0), "membrane_max", "a negative factor|mean over time"),
    "logits of a neuron": (lambda spk, mem: mem, "linear_mean", "'linear_mean' for a net with an output neuron"),
    "the same, per step": (lambda spk, mem: mem, "linear_per_step", "'linear_per_step' for a net with an output neuron"),
    "decoded": (lambda spk, mem: mem[-1], "membrane_sum", "'membrane_sum' for a net that returns membrane_last"),
    "decoded, per step": (
        lambda spk, mem: mem.sum(0),
        "membrane_per_step",
        "'membrane_per_step' for a net that returns membrane_sum",
    ),
    "spikes": (lambda spk, mem: spk, "membrane_sum", "'membrane_sum' for a net that returns spikes"),
}
UNSOLVABLE = {  # net, error and message
    "logits": (lambda: Logits(decode=lambda v: v.square().mean(0)), NetworkError, "none of linear_mean, linear_sum, linear_last"),
    "between": (clamped, UnsupportedModuleError, "between the readout layer and its neuron 'lif3'"),
    "warm start": (Warm, NetworkError, "'lif3' does not start from rest|pass step="),
    "at rest": (lambda: spiking(output=snn.Leaky(beta=0.9, threshold=-1.0)), UnsupportedModuleError, "spikes without an input"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_outputs_that_are_no_such_readout(inputs, name):
    returns, kind, words = UNREAD[name]
    output = snn.Leaky(beta=0.9) if name == "spikes" else None
    expected = UnsupportedModuleError if "factor" in words else NetworkError if kind == "auto" else OptionError
    with pytest.raises(expected) as error:
        resolve(Dense(returns, output), inputs, kind)
    assert_says(error.value, words)


@pytest.mark.parametrize("name", UNSOLVABLE)
def test_nets_whose_scores_do_not_follow_from_the_readout(inputs, name):
    make, kind, words = UNSOLVABLE[name]
    with pytest.raises(kind) as error:
        resolve(make(), inputs)
    assert_says(error.value, words)


ZEROS = torch.zeros(6, 8, 3)


@pytest.mark.parametrize(
    ("returns", "kind", "later", "found"),
    [
        (lambda spk, mem: mem, "auto", torch.zeros(2, 3, 4, 5), r"tensor \[2, 3, 4, 5\]"),
        (lambda spk, mem: mem, "membrane_per_step", torch.zeros(8, 3), r"tensor \[8, 3\]"),
        *((lambda spk, mem: (spk, mem), "auto", later, "a net that returns") for later in (ZEROS, (ZEROS,), {"mem": ZEROS})),
    ],
)
def test_an_output_of_another_structure_later(inputs, returns, kind, later, found):
    readout = resolve(Dense(returns=returns), inputs, kind)
    with pytest.raises(NetworkError, match=found):
        readout.scores(later)


@pytest.mark.parametrize("layout", ["time_first", "steps"])
@pytest.mark.parametrize(
    ("kind", "decode", "expected"),
    [
        ("linear_mean", lambda v: v.mean(0), [0.2] * 5),
        ("linear_sum", lambda v: v.sum(0), [1.0] * 5),
        ("linear_last", lambda v: v[-1], [0.0] * 4 + [1.0]),
        ("linear_mean", lambda v: v, [0.2] * 5),
    ],
)
def test_plain_logits(inputs, layout, kind, decode, expected):
    readout = resolve(Logits(layout, decode, steps=5), inputs)
    assert readout.kind == kind
    assert readout.filter.tolist() == expected


def test_a_linear_layer_on_mean_spikes(inputs):
    class MeanFirst(Logits):
        def forward(self, x):
            return self.fc2(torch.stack(self.spikes(x)).mean(0))

    readout = resolve(MeanFirst(), inputs)
    assert readout.kind == "linear_mean"
    assert readout.filter.tolist() == [1.0]


@pytest.mark.parametrize("reset", ["subtract", "none"])
def test_the_loss_decides_between_spikes_and_membranes(inputs, reset):
    net = spiking(output=readout_neuron(reset_mechanism=reset))
    kinds = {prefer: resolve(net, inputs, signal=prefer).kind for prefer in ("spikes", "membranes")}
    assert kinds == {"spikes": "spike_count", "membranes": "membrane_mean"}
    # No spike can be counted where the threshold is out of reach.
    still = spiking(output=readout_neuron(reset_mechanism=reset, threshold=1e9))
    assert resolve(still, inputs, signal="spikes").kind == "membrane_mean"


def test_the_other_item_of_the_output_is_named(inputs):
    net = spiking()
    readout, out = resolve(net, inputs), net(inputs)
    assert str(readout) == "spike count of output[0]"
    (other,) = readout.others
    assert str(other) == "membrane mean of output[1]"
    assert torch.equal(other.scores(out), out[1].mean(0))
    assert resolve(Dense(returns=lambda spk, mem: mem), inputs).others == ()
    by_name = resolve(Dense(returns=lambda spk, mem: {"s": spk, "m": mem}), inputs)
    assert [str(source) for source in (by_name, *by_name.others)] == ["membrane mean of output['m']", "spike count of output['s']"]


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
    assert str(readout) == "weighted sum over time (steps 3 to 6) of output[0]"
    out = net(inputs)
    assert torch.equal(readout.scores(out), out[0])
    impulse = torch.tensor([sum(0.9 ** (s - t) for s in range(max(t, 2), 6)) for t in range(6)])
    assert torch.allclose(readout.filter.float(), impulse, atol=1e-4)


FADING = 0.8 ** torch.arange(6.0).flip(0)


@pytest.mark.parametrize(
    ("decode", "weights", "offset"),
    [
        (lambda values: values[-3:].sum(0), [0, 0, 0, 1, 1, 1], 0),
        (lambda values: values[-1], [0, 0, 0, 0, 0, 1], 0),
        (lambda values: torch.einsum("t,tbc->bc", FADING, values), FADING.tolist(), 0),
        (lambda values: 2 * values[1:3].mean(0) - 1.5, [0, 1, 1, 0, 0, 0], -1.5),
    ],
    ids=["the last steps", "the last step", "fading", "an offset"],
)
def test_weights_of_the_steps_of_spikes_and_of_membranes_that_reset(inputs, decode, weights, offset):
    net = spiking(lambda spk, mem: decode(spk))
    readout = resolve(net, inputs)
    assert (readout.kind, readout.exactness, readout.of_spikes) == ("custom_spikes", "surrogate", True)
    assert readout.weights == pytest.approx(weights, abs=1e-6)
    # The linear score is the same mean of membranes, as for counts.
    impulse = torch.tensor([[0.9 ** (s - t) if s >= t else 0.0 for t in range(6)] for s in range(6)])
    shares = torch.tensor(weights, dtype=torch.float32) / sum(weights)
    assert torch.allclose(readout.filter.float(), shares @ impulse, atol=1e-4)
    spikes = (torch.rand(6, 4, 3, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    assert torch.allclose(readout.own_scores(spikes), decode(spikes), atol=1e-5)
    assert (0.0 if readout.own_scale is None else float(readout.own_scale.offset)) == pytest.approx(offset, abs=1e-5)

    membranes = resolve(spiking(lambda spk, mem: decode(mem)), inputs)
    assert (membranes.exactness, membranes.of_spikes) == ("surrogate", False)
    assert torch.allclose(membranes.own_scores(spikes), decode(spikes), atol=1e-4)


def test_more_steps_than_one_pass_shows():
    net = spiking(lambda spk, mem: spk[10:60].sum(0), steps=80)
    readout = resolve(net, torch.randn(8, 10, generator=torch.Generator().manual_seed(0)))
    assert readout.weights == pytest.approx([0] * 10 + [1] * 50 + [0] * 20, abs=1e-6)


def test_a_window_of_a_single_output_decides_at_its_middle(inputs):
    readout = resolve(voters(lambda spk, mem: spk[-4:].sum(0), outputs=1), inputs)
    assert (readout.kind, readout.middle) == ("custom_spikes", pytest.approx(2.0))


@pytest.mark.parametrize(
    ("returns", "kind", "exactness", "factor"),
    [
        (lambda spk, mem: spk.sum(0).unflatten(1, (3, 4)).mean(2), "spike_count", "surrogate", 1 / 4),
        (lambda spk, mem: nn.AvgPool1d(4)(spk), "spike_count", "surrogate", 1 / 4),
        (lambda spk, mem: spk[-2:].sum(0).unflatten(1, (3, 4)).sum(2), "custom_spikes", "surrogate", 1.0),
        (lambda spk, mem: mem.unflatten(2, (3, 4)).mean(3), "membrane_mean", "surrogate", 1 / 4),
    ],
    ids=["mean of counts", "voting layer", "sum of the last steps", "membranes"],
)
def test_outputs_that_vote_for_a_class_in_the_net(inputs, returns, kind, exactness, factor):
    net = voters(returns)
    readout = resolve(net, inputs)
    assert (readout.kind, readout.per_class, readout.summed, readout.exactness) == (kind, 4, True, exactness)
    assert readout.classes(12) == 3
    out = net(inputs)
    assert torch.equal(readout.scores(out), out if out.ndim == 2 else readout.decode(out))
    values = torch.rand(6, 4, 12, generator=torch.Generator().manual_seed(0))
    own = returns(values, values)
    assert torch.allclose(readout.own_scores(values), own if own.ndim == 2 else readout.decode(own), atol=1e-5)
    assert str(readout).endswith("of the output, summed over 4 outputs a class")
    with pytest.raises(OptionError, match="classes=6 for a net that returns 3 scores"):
        resolve(net, inputs, classes=6)


def dueling(spk, mem):
    advantages = mem.mean(0)
    return mem[-1][:, :1] + advantages - advantages.mean(1, keepdim=True)


def test_dueling_heads_are_told_what_to_return(inputs):
    with pytest.raises(NetworkError, match="whose values are none of") as error:
        resolve(Dense(returns=dueling), inputs)
    assert_says(error.value, "mean of neighbouring outputs|V + A - mean(A) return A")


def test_one_sample_is_not_enough_to_tell_spikes_counted_from_a_window():
    """Of some draws the first step is silent, so that the last steps and all of them agree."""
    found = set()
    for seed in range(12):
        torch.manual_seed(seed)
        net = spiking(lambda spk, mem: spk[-2:].sum(0), steps=3)
        found.add(resolve(net, torch.randn(1, 10, generator=torch.Generator().manual_seed(seed))).kind)
    assert found == {"custom_spikes"}
