from functools import partial

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import CaptureError, DataError, NetworkError
from snn_recon_plugin.networks.calls.calls import CallRecorder
from snn_recon_plugin.networks.calls.forward import plain_forward
from snn_recon_plugin.networks.calls.record import StoredBatch, Taps, check_forward, record, tapped
from snn_recon_plugin.networks.private.quiet import autocast_rounding, quiet
from snn_recon_plugin.networks.structure.inspect import inspect_network

from ...helpers import lived_in, parameters_of, snapshot, train_data
from ...nets import Recurrent, loop_net, sequential_net
from ..nets import Dense


def run(net, x, **taps):
    return record(net, StoredBatch(x, slice(0, len(x))), plain_forward, Taps(**taps))


def nothing(value):
    return None


def test_inputs_and_outputs_are_seen_and_outputs_replaced(inputs):
    net, entered, left = Dense(), [], []
    before = parameters_of(net)
    spikes, _ = run(
        net,
        inputs,
        inputs={net.fc3: entered.append},
        new_outputs={net.fc3: lambda output: torch.full_like(output, 7.0)},
        outputs={net.fc3: left.append},
    )
    assert len(entered) == len(left) == 6
    assert all(bool((value == 7.0).all()) for value in left)
    assert bool((spikes == 1).all())
    assert parameters_of(net) == before


def test_a_batch_is_run_from_rest_with_its_own_random_numbers(inputs):
    net = Dense()
    noisy = lambda net, x: net(x + torch.rand_like(x))  # noqa: E731
    one, two = (StoredBatch(inputs, rows) for rows in (slice(0, 8), slice(8, 16)))
    with quiet(net, seed=0):
        first, other = record(net, one, noisy)[1], record(net, two, noisy)[1]
        redrawn, again = record(net, one, noisy, draw=1)[1], record(net, one, noisy)[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, redrawn)
    assert not first.requires_grad


def test_taps_that_capture_nothing(inputs):
    net = Dense()
    net.unused = nn.Linear(2, 2)
    layer, before = inspect_network(net, inputs, plain_forward).hidden[0], parameters_of(net)
    with pytest.raises(CaptureError, match=r"calls none of 'unused' \(Linear\)"):
        run(net, inputs, inputs={net.unused: nothing})
    with pytest.raises(CaptureError, match=r"calls none of 'lif1' \(Leaky\)"):
        CallRecorder(net, [StoredBatch(inputs, slice(0, 8))], lambda net, x: x).record_currents(layer)
    run(net, inputs, inputs={net.unused: nothing}, outputs={net.fc1: nothing})
    assert parameters_of(net) == before


def test_keyword_currents_are_found_behind_states():
    class Neuron(nn.Module):
        def forward(self, input_, mem=None):
            return input_

    neuron, seen = Neuron(), []
    with tapped(Taps(inputs={neuron: seen.append})):
        neuron(mem=torch.zeros(1), input_=torch.ones(4))
    assert seen[0].shape == (4,)


def test_a_first_argument_that_is_no_tensor():
    layer, seen = nn.Identity(), []
    with tapped(Taps(inputs={layer: seen.append})), pytest.raises(CaptureError, match="Identity was called with a list"):
        layer(["text"])
    assert seen == []


def test_inputs_are_replaced_for_a_while():
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        expected = layer(torch.ones(4, 2))
        with tapped(Taps(new_inputs={layer: lambda value: 2 * value})):
            assert torch.equal(layer(torch.ones(4, 2)), layer(input=torch.ones(4, 2)))
            assert not torch.equal(layer(torch.ones(4, 2)), expected)
        assert torch.equal(layer(torch.ones(4, 2)), expected)


def test_calls_are_seen_under_the_nets_autocast_and_other_functions_run_without_it():
    layer, roundings, dtypes = nn.Linear(2, 2), [], []
    taps = Taps(
        calls={layer: lambda arguments, output: roundings.append(autocast_rounding(output.device))},
        outputs={layer: lambda _: dtypes.append((torch.ones(2, 2) @ torch.ones(2)).dtype)},
    )
    with tapped(taps):
        layer(torch.ones(1, 2))
        with torch.autocast("cpu", torch.bfloat16):
            layer(torch.ones(1, 2))
    assert roundings == [0.0, torch.finfo(torch.bfloat16).eps]
    assert dtypes == [torch.float32] * 2


# -- a forward that fails comes out with its own error, the shapes involved, and the one way out ----------------------------
BATCH, STEPS, HIDDEN, CLASSES = 12, 3, 6, 2
IMAGES = torch.rand(BATCH, 1, 4, 5)
EVENTS = torch.rand(BATCH, 7, 2, 2, 5)  # batch first; 20 values a step
LABELS = torch.arange(BATCH) % CLASSES


class Tutorial(Recurrent):
    """A time loop in forward around layers that take flat inputs."""

    def __init__(self, synapse=None, over=lambda x: [x] * STEPS):
        width = HIDDEN if synapse is None else 20
        super().__init__(synapse or nn.Linear(20, HIDDEN), snn.Leaky(beta=0.9), width, CLASSES, over=over)


frames = partial(Tutorial, over=list)


def at_once():
    return norse.SequentialState(nn.Linear(20, HIDDEN), norse.LIF(), nn.Linear(HIDDEN, CLASSES), norse.LIF())


class Broken(Tutorial):
    def forward(self, x):
        return self.nothing(x)


class Careful(Tutorial):
    def forward(self, x):
        membranes = super().forward(x)
        assert float(membranes.abs().max()) < 50, "membranes run away"
        return membranes


def stepped():
    return sequential_net(sizes=(20, HIDDEN, CLASSES))


def wrong_size():
    net = Tutorial()
    net.fc2 = nn.Linear(HIDDEN + 1, CLASSES)
    return net


def refused(net, inputs, kind=NetworkError, **options):
    with pytest.raises(kind) as caught:
        convex_init_(net, [(inputs, LABELS)], progress=False, **options)
    return caught.value


def mine(net, x):
    return net(x)


FAILED = {  # net, inputs, forward, words of what was found and needed
    "shapes": (Tutorial, IMAGES, plain_forward, "tensor [12, 1, 4, 5]|it failed in 'fc1' (Linear), which takes [batch, 20]"),
    "a later layer": (
        wrong_size,
        IMAGES.flatten(1),
        plain_forward,
        "it failed in 'fc2' (Linear), which takes [batch, 7] and got tensor [12, 6]",
    ),
    "a bug": (Broken, IMAGES, plain_forward, "AttributeError: 'Broken' object has no attribute 'nothing'"),
    "no tensor": (Tutorial, {"image": IMAGES}, plain_forward, "Linear was called with a dict with the keys ['image']"),
    "time loop": (stepped, IMAGES, over_time(4), "over_time(4) raised RuntimeError"),
    "a function": (Tutorial, IMAGES, mine, "forward(net, inputs) raised RuntimeError"),
}


@pytest.mark.parametrize("case", FAILED)
def test_messages_of_a_forward_that_fails(case):
    make, inputs, forward, words = FAILED[case]
    net = make()
    with quiet(net, seed=0), pytest.raises(NetworkError) as caught:
        check_forward(net, inputs, forward)
    error = caught.value
    assert "pass step=train_batch" in error.fix
    assert case == "no tensor" or str(error.__cause__) in error.found
    assert all(word in f"{error.found} {error.needed}" for word in words.split("|"))


def test_what_to_type_is_what_runs():
    loss_fn = nn.CrossEntropyLoss()
    step = refused(Tutorial(), IMAGES).fix.split("or step=")[1].split("; if")[0]
    typed = eval(step, {"loss_fn": loss_fn, "forward_pass": lambda net, x: net(x.flatten(1)).mean(0)})
    assert (
        convex_init_(Tutorial(), [(IMAGES, LABELS)], step=typed, progress=False, hidden="rescale").loss == "CrossEntropyLoss (step)"
    )


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes(interrupt):
    def forward(net, x):
        raise interrupt

    with pytest.raises(interrupt):
        check_forward(Tutorial(), IMAGES, forward)
    with pytest.raises(interrupt):
        record(Tutorial(), StoredBatch(IMAGES, slice(0, BATCH)), forward)


def out_of_memory(net, x):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("forward", [out_of_memory, lambda net, x: torch.empty(2**60)], ids=["GPU", "CPU"])
def test_a_batch_that_takes_too_much_memory(forward):
    with pytest.raises(DataError, match="does not fit into memory") as caught:
        record(Tutorial(), StoredBatch(IMAGES, slice(0, BATCH)), forward)
    assert "smaller batches" in caught.value.fix
    with pytest.raises(DataError, match="does not fit into memory"):
        check_forward(Tutorial(), IMAGES, forward)


@pytest.mark.parametrize(
    ("net", "inputs", "options", "kind", "found", "fixes"),
    [
        (Careful, IMAGES.flatten(1), {}, NetworkError, ["membranes run away", "random currents"], []),
        (frames, EVENTS.flatten(2), {}, DataError, ["8 time steps on 7 samples"], ["pass step="]),
        (stepped, EVENTS, {"forward": over_time(flatten=True)}, DataError, [], ["over_time(time_dim=1)"]),
        (frames, IMAGES.flatten(1), {}, NetworkError, ["without a batch axis"], ["pass step="]),
        (lambda: frames(nn.Identity()), IMAGES.flatten(1), {}, NetworkError, ["without a batch axis"], []),
        (at_once, IMAGES.flatten(1), {}, NetworkError, ["'3'", "all time steps in one call", "inputs of shape ["], ["x.expand(25"]),
    ],
    ids=[
        "a check in forward",
        "time and batch swapped",
        "swapped outside",
        "no time axis",
        "no time axis, neuron first",
        "all steps at once",
    ],
)
def test_calls_that_run_but_are_wrong(net, inputs, options, kind, found, fixes):
    error = refused(net(), inputs, kind, **options)
    assert all(word in error.found for word in found)
    assert all(word in error.fix for word in fixes)


def test_a_forward_that_was_replaced_and_holds_the_net_is_refused_with_its_membranes_as_before():
    net, (inputs, labels) = lived_in(loop_net()), train_data(100)
    own = net.forward
    net.forward = lambda *args: own(*args)  # noqa: PLW0108 -- as wrappers for mixed precision do, not a bound method
    before = snapshot(net)
    with pytest.raises(NetworkError, match=r"call type\(net\).forward\(net, x\) in forward= or step="):
        convex_init_(net, [(inputs, labels)])
    assert snapshot(net) == before
    assert convex_init_(net, [(inputs, labels)], forward=lambda net, x: type(net).forward(net, x), write="always").parameters
