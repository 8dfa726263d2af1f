"""Training over several batches: states and masks that a net keeps, what the user changes, and what a handle on a net meets."""

import copy
import pickle
import subprocess
import sys

import pytest
import snntorch as snn
import torch
from snntorch import utils
from spikingjelly.activation_based import functional as jelly
from spikingjelly.activation_based import layer, neuron
from torch import nn

from snn_recon_plugin import fast_steps
from snn_recon_plugin.networks.libraries import reset_states
from snn_recon_plugin.scan.installed import install
from snn_recon_plugin.scan.plan import PassPlan, difference

from ..versions import OLD_JELLY, needs_new_jelly
from .loops import BATCH, STEPS, Dense, JellySequences, Products, vectors


class Remembers(nn.Module):
    """SpikingJelly's nodes around a module that remembers something, in one step mode; the script resets it."""

    def __init__(self, middle, mode):
        super().__init__()
        self.net = nn.Sequential(layer.Linear(12, 20), neuron.LIFNode(), middle(), layer.Linear(20, 3))
        jelly.set_step_mode(self, mode)
        self.mode = mode

    def forward(self, frames):
        return self.net(frames) if self.mode == "m" else torch.stack([self.net(frame) for frame in frames])


def feedback():
    return layer.ElementWiseRecurrentContainer(neuron.IFNode(), lambda x, y: x + 0.5 * y)


MIDDLES = {"a dropout": lambda: layer.Dropout(0.4), "a synapse": lambda: layer.SynapseFilter(tau=2.0), "feedback": feedback}


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", MIDDLES)
def test_what_modules_remember_is_kept_from_chunk_to_chunk(name, mode):
    torch.manual_seed(0)
    net, found = Remembers(MIDDLES[name], mode), []
    other, chunks = copy.deepcopy(net), [torch.rand(STEPS, BATCH, 12) * 6 for _ in range(9)]
    with fast_steps(net, [(chunks[0], torch.zeros(BATCH))]) as handle:
        assert not handle.reason or (OLD_JELLY and name == "a synapse")  # there it runs as it is written
        for each in (other, net):
            torch.manual_seed(1)
            found.append([])
            for number, frames in enumerate(chunks):
                for module in each.modules():
                    if number % 3 == 0 and hasattr(module, "reset"):
                        module.reset()
                    for key, value in getattr(module, "_memories", {}).items():
                        setattr(module, key, value.detach() if isinstance(value, torch.Tensor) else value)
                each.zero_grad()
                output = each(frames)
                output.square().sum().backward()
                found[-1] += [output.detach(), *(parameter.grad.clone() for parameter in each.parameters())]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("middle", [feedback, neuron.KLIFNode])
def test_neurons_that_forward_resets_run_by_plans_again(middle, monkeypatch):
    class Resets(Remembers):
        def forward(self, frames):
            jelly.reset_net(self)
            return super().forward(frames)

    run, ran = PassPlan.run, []
    monkeypatch.setattr(PassPlan, "run", lambda plan, inputs, **options: ran.append(plan) or run(plan, inputs, **options))
    torch.manual_seed(0)
    net, chunks = Resets(middle, "s"), [torch.rand(STEPS, BATCH, 12) * 6 for _ in range(4)]
    other = copy.deepcopy(net)
    with fast_steps(net, [(chunks[0], torch.zeros(BATCH))]):
        ran.clear()
        found = [[each(frames) for frames in chunks] for each in (net, other)]
    torch.testing.assert_close(*found)
    assert len(ran) == 2  # a record from rest, and one from what the first left


@needs_new_jelly
def test_a_neuron_that_remembers_a_list():
    torch.manual_seed(0)
    net, frames = Remembers(lambda: neuron.SlidingPSN(3), "s"), torch.rand(STEPS, BATCH, 12) * 6
    other, found = copy.deepcopy(net), []
    with fast_steps(net, [(frames, torch.zeros(BATCH))]):
        for each in (net, other):
            found.append([each(frames)])
            jelly.reset_net(each)
            found[-1].append(each(frames[:3]))
    torch.testing.assert_close(*found)


def test_what_a_net_returns_may_be_written_into():
    torch.manual_seed(0)
    net, x = JellySequences(), vectors()
    other, found = copy.deepcopy(net), []
    with fast_steps(net, [(x, torch.zeros(BATCH))]):
        net(x), net(x)  # from rest, and from what the first one left
        for each in (net, other):
            each(x).mul_(2).sum().backward()  # spikes that the backward pass reads
            found.append([parameter.grad for parameter in each.parameters()])
    torch.testing.assert_close(*found)


class Hidden(nn.Module):
    """Neurons that hide their states, reset by snnTorch's function for nets."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(12, 3), snn.Leaky(beta=0.9, init_hidden=True)

    def forward(self, x):
        utils.reset(self)
        return torch.stack([self.lif(self.fc(x)) for _ in range(STEPS)])


@pytest.mark.usefixtures("no_other_neurons")
def test_neurons_of_other_nets_leave_steps_fast(monkeypatch):
    run, ran = PassPlan.run, []
    monkeypatch.setattr(PassPlan, "run", lambda plan, inputs, **options: ran.append(plan) or run(plan, inputs, **options))
    net, other, x = Hidden(), Hidden(), vectors()
    with fast_steps(net, [(x, torch.zeros(BATCH))]):
        ran.clear()
        other(x)
        assert torch.equal(net(x), net(x))
    assert len(ran) == 1


class Smoothed(nn.Module):
    """A loss of the user that holds another."""

    def __init__(self):
        super().__init__()
        self.loss, self.smoothing = nn.CrossEntropyLoss(), 0.0

    def forward(self, scores, labels):
        return self.loss(scores, labels) + self.smoothing * scores.square().mean()


@pytest.mark.parametrize(("make", "option"), [(nn.CrossEntropyLoss, "label_smoothing"), (Smoothed, "smoothing")])
def test_a_loss_that_changes_between_steps(make, option):
    torch.manual_seed(0)
    net, loss_fn = nn.Sequential(nn.Linear(12, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True)), make()
    x, labels = vectors(), torch.arange(BATCH) % 3

    def step(net, batch):
        reset_states(net)
        return sum(loss_fn(net(batch[0])[1], batch[1]) for _ in range(STEPS))

    with fast_steps(net, [(x, labels)], step=step) as handle:
        for smoothing in (0.0, 0.0, 0.3):
            setattr(loss_fn, option, smoothing)
            torch.testing.assert_close(handle(net, (x, labels)), step(net, (x, labels)))


def test_a_step_that_goes_backward_stays_fast():
    torch.manual_seed(0)
    net, labels = nn.Sequential(nn.Linear(12, 3), neuron.LIFNode()), nn.functional.one_hot(torch.arange(BATCH) % 3, 3).float()
    batches, optimizer = [(vectors(), labels) for _ in range(4)], torch.optim.SGD(net.parameters(), 0.1)

    def step(net, batch):
        jelly.reset_net(net)
        loss = nn.functional.mse_loss(sum(net(batch[0]) for _ in range(STEPS)) / STEPS, batch[1])
        loss.backward()

    with fast_steps(net, batches, step=step) as handle:
        for batch in batches:
            with Products() as seen:
                handle(net, batch).backward()
            optimizer.step()
        assert "later" not in str(handle)
    assert seen.count == 1


def test_weights_of_classes_in_a_loss_outside_of_the_net():
    torch.manual_seed(0)
    net, loss_fn = nn.Sequential(nn.Linear(12, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True)), nn.CrossEntropyLoss()
    x, labels = vectors(), torch.arange(BATCH) % 3
    loss_fn.weight = torch.tensor([1.0, 2.0, 3.0])

    def step(net, batch):
        reset_states(net)
        return sum(loss_fn(net(batch[0])[1], batch[1]) for _ in range(STEPS))

    with fast_steps(net, [(x, labels)], step=step) as handle:
        assert handle.layers["0"] == f"computed once for {STEPS} steps"
        for weight in (loss_fn.weight, loss_fn.weight.flip(0), None):
            loss_fn.weight = weight
            for _ in range(2):
                with Products() as seen:
                    found = handle(net, (x, labels))
                torch.testing.assert_close(found, step(net, (x, labels)))
            assert seen.count == 1


def test_the_table_names_why_a_later_pass_ran_as_it_is_written():
    net, x = Dense(), vectors()
    with fast_steps(net, [(x, torch.zeros(BATCH))]) as handle:
        net(x)
        assert "later" not in str(handle)
        with torch.autocast("cpu", torch.bfloat16):
            net(x)
        assert "a later pass ran as it is written: autocast is on" in str(handle)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when it imports its compiler
def test_a_net_may_be_compiled_afterwards():
    torch.manual_seed(0)
    net, x = Dense(), vectors()
    with fast_steps(net, [(x, torch.zeros(BATCH))]), torch.no_grad():
        assert torch.allclose(torch.compile(net, backend="eager")(x), net(x))


def test_a_pickle_needs_no_package(tmp_path):
    net = nn.Sequential(nn.Linear(12, 3))
    install([net])
    script = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb')); print('snn_recon_plugin' in sys.modules)"
    (tmp_path / "net").write_bytes(pickle.dumps(net))
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path / "net")], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]


def test_plans_that_fail_leave_a_net_as_it_is(monkeypatch):
    def fail(plan, inputs, **options):
        raise ValueError

    monkeypatch.setattr(PassPlan, "run", fail)
    net, x = Dense(), vectors()
    with fast_steps(net, [(x, torch.zeros(BATCH))]) as handle:
        assert handle.reason == "with all steps at once it raises ValueError"
        assert net(x).requires_grad


def test_a_value_that_is_no_number_differs():
    one, nan = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    assert difference([one, one], [one, nan]) == difference([one, nan], [one, one]) == torch.inf
