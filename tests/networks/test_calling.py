"""A forward that fails comes out with its own error, the shapes involved, and the call that would not fail."""

import re

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from torch import nn

from snn_recon_plugin import convex_init_, over_time
from snn_recon_plugin.errors import DataError, NetworkError
from snn_recon_plugin.networks import StoredBatch, check_forward, quiet, record

BATCH, STEPS, HIDDEN, CLASSES = 12, 3, 6, 2
IMAGES = torch.rand(BATCH, 1, 4, 5)
EVENTS = torch.rand(BATCH, 7, 2, 2, 5)  # batch first; 20 values a step


class Tutorial(nn.Module):
    """A time loop in forward around layers that take flat inputs."""

    def __init__(self, first=None):
        super().__init__()
        self.fc1, self.lif1 = first or nn.Linear(20, HIDDEN), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(HIDDEN, CLASSES), snn.Leaky(beta=0.9)

    def steps(self, x):
        return [x] * STEPS

    def forward(self, x):
        mem1, mem2, membranes = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in self.steps(x):
            spikes, mem1 = self.lif1(self.fc1(step), mem1)
            _, mem2 = self.lif2(self.fc2(spikes), mem2)
            membranes.append(mem2)
        return torch.stack(membranes)


class Frames(Tutorial):
    """The same with inputs [time, batch, features]."""

    def steps(self, x):
        return list(x)


def stepped():
    return nn.Sequential(
        nn.Linear(20, HIDDEN),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        snn.Leaky(beta=0.9, init_hidden=True, output=True),
    )


def cells():
    return norse.SequentialState(nn.Linear(20, HIDDEN), norse.LIFCell(), nn.Linear(HIDDEN, CLASSES), norse.LICell())


def failed(net, inputs, forward=None, batch=BATCH):
    forward = forward or (lambda net, x: net(x))
    with quiet(net, seed=0), pytest.raises(NetworkError) as caught:
        check_forward(net, inputs, forward, batch)
    return caught.value


def typed(error):
    """What the message says to type, as a forward."""
    return eval(re.search(r"forward=(.*?)(?: with your|, which runs)", error.fix)[1], {"torch": torch, "over_time": over_time})


PLAIN = {
    "flatten": (Tutorial, IMAGES, "lambda net, x: net(x.flatten(1))"),
    "loop outside": (stepped, IMAGES, "over_time(25, flatten=True)"),
    "loop outside over frames": (stepped, EVENTS.transpose(0, 1), "over_time(time_dim=0, flatten=True)"),
    "loop outside, batch first": (stepped, EVENTS, "over_time(time_dim=1, flatten=True)"),
    "Norse": (cells, IMAGES, "over_time(25, flatten=True)"),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_what_to_type_is_what_runs(kind):
    make, inputs, text = PLAIN[kind]
    net = make()
    error = convex_error(net, inputs)
    assert f"forward={text}" in error.fix
    assert typed(error)(net, inputs) is not None


def convex_error(net, inputs, **options):
    """The error of the one line, with which a user meets it."""
    with pytest.raises(NetworkError) as caught:
        convex_init_(net, [(inputs, torch.arange(BATCH) % CLASSES)], progress=False, **options)
    return caught.value


def test_the_message_has_the_error_the_shapes_and_the_layer():
    error = convex_error(Tutorial(), IMAGES)
    assert isinstance(error.__cause__, RuntimeError)
    assert str(error.__cause__) in error.found
    assert "tensor [12, 1, 4, 5]" in error.found
    assert "'fc1' (Linear) takes [batch, 20]" in error.needed


def test_the_layer_that_failed_is_named_where_it_is_not_the_first():
    net = Tutorial()
    net.fc2 = nn.Linear(HIDDEN + 1, CLASSES)
    error = failed(net, IMAGES.flatten(1))
    assert "it failed in 'fc2' (Linear), which takes [batch, 7] and got tensor [12, 6]" in error.found
    assert "correct forward" in error.fix


def test_the_users_own_time_loop_and_function_are_kept():
    assert "forward=over_time(4, flatten=True)" in failed(stepped(), IMAGES, over_time(4)).fix
    assert "over_time(4, time_dim=1, flatten=True)" in failed(stepped(), EVENTS[:, :4], over_time(4, time_dim=1)).fix

    def mine(net, x):
        return net(x)

    assert "forward=lambda net, x: mine(net, x.flatten(1))" in failed(Tutorial(), IMAGES, mine).fix


class Broken(Tutorial):
    def forward(self, x):
        return self.nothing(x)


def test_a_bug_stays_visible():
    error = failed(Broken(), IMAGES)
    assert isinstance(error.__cause__, AttributeError)
    assert "AttributeError: 'Broken' object has no attribute 'nothing'" in error.found
    assert "correct forward" in error.fix


class Counting(Tutorial):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_trials_run_on_copies():
    net = Counting()
    assert "x.flatten(1)" in failed(net, IMAGES).fix
    assert net.calls == 1


def test_inputs_that_are_no_tensor_are_described():
    error = failed(Tutorial(), {"image": IMAGES})
    assert "a dict with the keys ['image']" in error.found


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes(interrupt):
    def forward(net, x):
        raise interrupt

    with pytest.raises(interrupt):
        check_forward(Tutorial(), IMAGES, forward, BATCH)
    with pytest.raises(interrupt):
        record(Tutorial(), StoredBatch(IMAGES, slice(0, BATCH)), forward)


def test_a_later_batch_is_named():
    with pytest.raises(NetworkError, match=r"batch 3: tensor \[12, 1, 4, 5\]") as caught:
        record(Tutorial(), StoredBatch(IMAGES, slice(24, 36), 3), lambda net, x: net(x))
    assert "drop_last=True" in caught.value.fix


def out_of_memory(net, x):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("forward", [out_of_memory, lambda net, x: torch.empty(2**60)], ids=["GPU", "CPU"])
def test_a_batch_that_takes_too_much_memory(forward):
    with pytest.raises(DataError, match="does not fit into memory") as caught:
        record(Tutorial(), StoredBatch(IMAGES, slice(0, BATCH)), forward)
    assert "smaller batches" in caught.value.fix
    with pytest.raises(DataError, match="does not fit into memory"):
        check_forward(Tutorial(), IMAGES, forward, BATCH)


def test_a_forward_that_minds_what_its_layers_give():
    class Careful(Tutorial):
        def forward(self, x):
            membranes = super().forward(x)
            assert float(membranes.abs().max()) < 50, "membranes run away"
            return membranes

    error = convex_error(Careful(), IMAGES.flatten(1))
    assert "membranes run away" in error.found
    assert "random currents" in error.found


def test_time_and_batch_in_the_other_order():
    labels = torch.arange(BATCH) % CLASSES
    with pytest.raises(DataError, match="8 time steps on 7 samples") as caught:
        convex_init_(Frames(), [(EVENTS.flatten(2), labels)], progress=False)
    assert "x.transpose(0, 1)" in caught.value.fix
    with pytest.raises(DataError) as caught:
        convex_init_(stepped(), [(EVENTS, labels)], forward=over_time(flatten=True), progress=False)
    assert "over_time(time_dim=1, flatten=True)" in caught.value.fix
    assert "over_time(25, flatten=True)" in caught.value.fix


def test_inputs_without_a_time_axis_for_a_net_that_loops_over_the_first():
    error = convex_error(Frames(), torch.rand(BATCH, 20))
    assert "without a batch axis" in error.found
    assert "net(x.expand(25, *x.shape))" in error.fix


def test_the_same_for_a_readout_of_inputs_that_spike():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif, self.fc = snn.Leaky(beta=0.9), nn.Linear(20, CLASSES)

        def forward(self, x):
            mem, record = self.lif.reset_mem(), []
            for step in x:
                spikes, mem = self.lif(step, mem)
                record.append(self.fc(spikes))
            return torch.stack(record)

    assert "without a batch axis" in convex_error(Encoder(), torch.rand(BATCH, 20)).found
