"""fast_steps: a net trains as without it, whatever its loop does, and is as before once the handle is removed."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snn_recon_plugin import convex_init_, fast_steps, over_time
from snn_recon_plugin.errors import DataError, NetworkError, OptionError, UnsupportedModuleError
from snn_recon_plugin.networks.libraries import reset_states
from snn_recon_plugin.networks.libraries import snntorch as snntorch_library
from snn_recon_plugin.networks.private.workbench import private_copy
from snn_recon_plugin.scan.plan import PassPlan

from .loops import BATCH, NETS, STEPS, Dense, images, sequential, vectors


def call(net, x, forward=None):
    output = (forward or (lambda net, x: net(x)))(net, x)
    return output[-1] if isinstance(output, tuple) else output


def train(net, batches, forward=None):
    """Train for some steps; return the losses and the parameters after them."""
    torch.manual_seed(1)
    optimizer, losses = torch.optim.SGD(net.parameters(), 0.01), []
    for x in batches:
        optimizer.zero_grad()
        loss = (call(net, x, forward).mean(0) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, [parameter.detach().clone() for parameter in net.parameters()]


@pytest.fixture(params=NETS)
def case(request):
    torch.manual_seed(0)
    make, draw, forward = NETS[request.param]
    net, other = make(), make()  # a deep copy would lose the hook with which Norse keeps a diagonal at zero
    other.load_state_dict(net.state_dict())
    return net, other, [draw() for _ in range(6)], forward


def test_training_is_the_same(case):
    net, other, batches, forward = case
    plain = train(other, batches, forward)
    with fast_steps(net, [(batches[0], torch.zeros(BATCH))], forward=forward) as handle:
        fast = train(net, batches, handle)
        torch.manual_seed(2)
        tested = call(net.eval(), batches[0], handle)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    torch.manual_seed(2)
    torch.testing.assert_close(tested, call(net, batches[0], forward))
    assert not any("forward" in vars(module) for module in net.modules())


@pytest.mark.parametrize(
    ("name", "done"),
    {
        "dense": {"fc1": "computed once for 6 steps", "lif1": "6 steps in 1 operation", "fc2": "computed once for 6 steps"},
        "frames, time first": {"fc1": "computed once for 6 steps", "lif1": "6 steps in 1 operation"},
        "frames, batch first": {"fc1": "computed once for 6 steps", "lif1": "6 steps in 1 operation"},
        "convolutions": {"conv1": "computed once for 6 steps", "lif2": "6 steps in 1 operation", "fc": "computed once for 6 steps"},
        "a loop outside": {"0": "computed once for 6 steps", "2": "6 steps in 1 operation", "4": "computed once for 6 steps"},
        "batch norm": {"0": "computed once for 6 steps", "1": "computed once for 6 steps"},
        "Norse cells": {"net.0": "computed once for 6 steps", "net.1": "6 steps in 1 operation"},
        "Norse layers": {"net.0": "as usual, 1 step", "net.1": "6 steps in 1 operation"},
        "truncated": {"fc1": "computed once for 6 steps", "lif1": "as usual, 6 steps", "fc2": "computed once for 6 steps"},
        "spikes changed in place": {"lif1": "6 steps in 1 operation", "fc2": "computed once for 6 steps"},
    }.items(),
)
def test_a_table_says_what_is_done(name, done):
    torch.manual_seed(0)
    make, draw, forward = NETS[name]
    handle = fast_steps(make(), [(draw(), torch.zeros(BATCH))], forward=forward)
    assert {layer: handle.layers[layer] for layer in done} == done
    assert all(f"{layer} " in str(handle) and text in str(handle) for layer, text in done.items())
    assert handle.difference < 1e-5
    handle.remove()


@pytest.mark.parametrize(
    ("after", "shown"), [(0.1, "100 ms in place of 500, 5.0 times faster"), (0.6, "600 ms in place of 500, no faster")]
)
def test_the_table_says_how_much_faster_a_step_is(after, shown):
    handle = fast_steps(Dense(), [(vectors(), torch.zeros(BATCH))])
    handle.seconds = (0.5, after)
    assert f"a training step takes {shown}\n" in str(handle)


@pytest.fixture
def dense():
    torch.manual_seed(0)
    net = Dense()
    x = vectors()
    handle = fast_steps(net, [(x, torch.zeros(BATCH))])
    for _ in range(4):
        net(x)
    yield net, x, handle
    handle.remove()


def plain(net):
    """Return a copy that runs the library's own code, at rest."""
    copied = private_copy(net)
    reset_states(copied)
    return copied


def test_passes_of_other_lengths_share_no_graph_and_no_value(dense):
    net, x, _ = dense
    sums = []
    for net.steps in (9, 3, 4, 1, 6):
        found = net(x)
        torch.testing.assert_close(found, plain(net)(x))
        sums.append(found.sum())
    for one in sums:
        one.backward()
    with torch.no_grad():
        for net.steps in (9, 3, 3):
            found = net(x)
            net.fc1.weight.data.mul_(1.1)
    net.fc1.weight.data.div_(1.1)
    torch.testing.assert_close(found, plain(net)(x))


def test_a_batch_that_is_left_out_reaches_no_gradient(dense):
    net, _, _ = dense
    net.steps, data = 1, torch.rand(4 * BATCH, 12)
    for _ in range(3):
        for batch in data.split(BATCH):
            net(batch)
    data[-1] = torch.nan
    net.zero_grad()
    for batch in data.split(BATCH)[:3]:
        net(batch).sum().backward()
    assert bool(torch.isfinite(net.fc1.weight.grad).all())


def test_two_passes_of_one_input_have_graphs_of_their_own(dense):
    net, x, _ = dense
    first, second = net(x).sum(), net(x).square().sum()
    first.backward()
    second.backward()
    other = plain(net)
    other.zero_grad()
    (other(x).sum() + other(x).square().sum()).backward()
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4)


def test_passes_without_gradients_in_between(dense):
    net, x, _ = dense
    with torch.no_grad():
        tested = net(x)
    with torch.inference_mode():
        inferred = net(x)
    trained = net(x)
    torch.testing.assert_close([tested, inferred], [trained.detach()] * 2)
    assert trained.requires_grad
    assert not tested.requires_grad


def test_half_precision_runs_the_own_code(dense):
    net, x, _ = dense
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = net(x), plain(net)(x)
    assert torch.equal(found, expected)


def test_an_error_in_forward_leaves_nothing_behind(dense):
    net, x, _ = dense
    net.between = lambda spikes, state: 1 / 0
    with pytest.raises(ZeroDivisionError):
        net(x)
    net.between = lambda spikes, state: (spikes, state)
    assert torch.equal(net(x), plain(net)(x))


def test_hooks_of_the_user_fire_at_each_step(dense):
    net, x, _ = dense
    seen = []
    net.lif1.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    net.fc1.register_forward_hook(lambda module, args, output: 2 * output)
    assert torch.equal(net(x), plain(net)(x))
    assert len(seen) == 2 * STEPS


def test_copies_and_pickles_run_the_own_code(dense):
    net, x, _ = dense
    expected = plain(net)(x)
    for neuron in (net.lif1, net.lif2):
        neuron.reset_mem()
    copied, stored = copy.deepcopy(net), pickle.loads(pickle.dumps(net.fc1))
    net.fc1.weight.data.zero_()
    assert torch.equal(copied(x), expected)
    assert torch.equal(stored(x), copied.fc1(x))
    with fast_steps(copied, [(x, torch.zeros(BATCH))]) as handle:
        assert handle.layers["lif1"] == "6 steps in 1 operation"
    assert net.state_dict().keys() == Dense().state_dict().keys()


def test_two_nets_that_share_a_layer(dense):
    net, x, _ = dense
    other = Dense()
    other.fc1 = net.fc1
    for _ in range(3):
        torch.testing.assert_close(other(x), plain(other)(x))
        torch.testing.assert_close(net(x), plain(net)(x))


def test_threads(dense):
    net, _, _ = dense
    stateless = nn.Sequential(net.fc1, nn.ReLU())
    inputs, found = [vectors() for _ in range(4)], {}

    def work(number):
        found[number] = [stateless(inputs[number]) for _ in range(50)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, x in enumerate(inputs):
        assert all(torch.equal(output, plain(stateless)(x)) for output in found[number])


def test_a_second_derivative_is_refused(dense):
    net, x, _ = dense
    with pytest.raises(UnsupportedModuleError, match=r"second derivative.*\n.*\n.*remove\(\)"):
        torch.autograd.grad(net(x).sum(), net.fc2.weight, create_graph=True)


def test_reset_by_snntorch_between_passes(monkeypatch):
    monkeypatch.setattr(snn.SpikingNeuron, "instances", [])  # ``utils.reset`` resets every neuron of the process
    torch.manual_seed(0)
    net, x = sequential(), images()
    fast_steps(net, [(x, torch.zeros(BATCH))], forward=over_time(STEPS))
    for _ in range(4):
        utils.reset(net)
        found = torch.stack([net(x)[1] for _ in range(STEPS)])
    net.get_submodule("0").weight.data.mul_(1.1)
    utils.reset(net)
    found = torch.stack([net(x)[1] for _ in range(STEPS)])
    own = plain(net)
    for neuron in (own.get_submodule("2"), own.get_submodule("5")):
        neuron.reset_mem()
    assert torch.equal(found, torch.stack([own(x)[1] for _ in range(STEPS)]))


def test_the_one_line_works_on_a_net_with_faster_steps():
    torch.manual_seed(0)
    net, other = Dense(), Dense()
    other.load_state_dict(net.state_dict())
    inputs, labels = vectors(60), torch.arange(60) % 3
    loader = DataLoader(TensorDataset(inputs, labels), 20)
    with fast_steps(net, loader):
        convex_init_(net, loader, progress=False)
        tested = net(inputs)
    convex_init_(other, loader, progress=False)
    assert torch.equal(net.fc2.weight, other.fc2.weight)
    assert torch.equal(tested, other(inputs))


def test_wrong_gradients_let_the_net_run_as_it_is_written(monkeypatch):
    monkeypatch.setattr(snntorch_library, "_formula", lambda function: torch.zeros_like)
    handle = fast_steps(Dense(), [(vectors(), torch.zeros(BATCH))])
    assert handle.reason == "with all steps at once its values differ"
    assert handle.layers["lif1"] == "as usual, 6 steps"


def test_what_is_drawn_later_and_modes_stay():
    net, data, drawn = Dense().train(), TensorDataset(vectors(40), torch.arange(40)), []
    net.fc2.eval()
    for fast in (False, True):
        torch.manual_seed(0)
        loader, before = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(1)), torch.get_rng_state()
        handle = fast_steps(net, loader) if fast else None
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append(torch.cat([labels for _, labels in loader]))
    assert torch.equal(*drawn)
    assert (net.fc1.training, net.fc2.training) == (True, False)
    handle.remove()
    handle.remove()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when it imports its compiler
def test_refusals(dense):
    net, x, _ = dense
    batches = [(x, torch.zeros(BATCH))]
    for given, loader, error, text in [
        ("net", batches, NetworkError, "a str in place of a network"),
        (nn.ReLU(), batches, NetworkError, "a ReLU without neurons of snnTorch, Norse or"),
        (Dense(), [], DataError, "an empty loader"),
        (Dense(), [(torch.rand(2, 5), torch.zeros(2))], NetworkError, "mat1 and mat2"),
        (nn.DataParallel(Dense()), batches, OptionError, r"an nn\.DataParallel"),
        (torch.compile(Dense()), batches, OptionError, "a compiled network"),
        (net, batches, OptionError, r"faster steps already(.|\n)*remove\(\)"),
    ]:
        with pytest.raises(error, match=text):
            fast_steps(given, loader)
    with pytest.raises(OptionError, match="forward=25"):
        fast_steps(Dense(), batches, forward=25)


def test_a_step_with_the_loop_outside_gives_its_loss():
    torch.manual_seed(0)
    net, optimizers = sequential(), []
    inputs, labels = images(40), torch.arange(40) % 3
    loader = DataLoader(TensorDataset(inputs, labels), BATCH)

    def train_batch(net, batch):
        reset_states(net)
        optimizers[0].zero_grad()
        loss = sum(nn.functional.cross_entropy(net(batch[0])[1], batch[1]) for _ in range(STEPS)) / STEPS
        loss.backward()
        optimizers[0].step()
        return loss.detach()

    other = sequential()
    other.load_state_dict(net.state_dict())
    optimizers.append(torch.optim.SGD(other.parameters(), 0.1))
    plain = [train_batch(other, batch) for batch in loader]
    optimizers[0] = torch.optim.SGD(net.parameters(), 0.1)
    with fast_steps(net, loader, step=train_batch) as handle:
        assert handle.layers["0"] == "computed once for 6 steps"
        fast = []
        for batch in loader:
            optimizers[0].zero_grad()
            loss = handle(net, batch)
            loss.backward()
            optimizers[0].step()
            fast.append(loss.detach())
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(list(net.parameters()), list(other.parameters()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [None, lambda net, batch: nn.functional.cross_entropy(net(batch[0])[-1], batch[1])])
def test_what_is_compared_and_timed_are_steps_by_plans(step, monkeypatch):
    run, ran = PassPlan.run, []
    monkeypatch.setattr(PassPlan, "run", lambda plan, inputs, **options: ran.append(plan) or run(plan, inputs, **options))
    with fast_steps(Dense(), [(torch.rand(BATCH, 12), torch.arange(BATCH) % 3)], step=step) as handle:
        assert len(ran) == 4  # the second of two steps on few samples, and three that are timed
        assert not handle.is_outside


def test_a_handle_of_a_loop_inside_forward_runs_the_net(dense):
    net, x, handle = dense
    assert torch.equal(handle(net, x), net(x))


# -- batch norms in training mode -------------------------------------------------------------------------------------------
NORMS = {"usual": {}, "no statistics": {"track_running_stats": False}, "no weights": {"affine": False}}


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
def test_running_statistics_count_each_step(options):
    torch.manual_seed(0)
    net = sequential(nn.BatchNorm2d(4, **options))
    other, forward = copy.deepcopy(net), over_time(STEPS)
    handle = fast_steps(net, [(images(), torch.zeros(BATCH))], forward=forward)
    assert handle.layers["0"] == f"computed once for {STEPS} steps"
    for _ in range(3):
        x = images()
        sums = [forward(other, x)[0].sum(), handle(net, x)[0].sum()]
        assert torch.equal(*sums)
        for each in sums:
            each.backward()
    for name, value in net[1].state_dict().items():
        torch.testing.assert_close(value, other[1].state_dict()[name])
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4)


def test_a_norm_behind_spikes_runs_at_each_step():
    torch.manual_seed(0)
    net = sequential()
    net.insert(3, nn.BatchNorm2d(4))  # behind the hidden neuron
    handle = fast_steps(net, [(images(), torch.zeros(BATCH))], forward=over_time(STEPS))
    assert handle.layers["3"] == f"as usual, {STEPS} steps"
    assert handle.layers["5"] == f"computed once for {STEPS} steps"


def test_an_average_of_all_batches_reads_its_own_count():
    net = sequential(nn.BatchNorm2d(4, momentum=None))
    handle = fast_steps(net, [(images(), torch.zeros(BATCH))], forward=over_time(STEPS))
    assert handle.layers["3"] == f"as usual, {STEPS} steps"
    assert handle.reason == "it reads values of tensors (__float__)"


# -- DistributedDataParallel ------------------------------------------------------------------------------------------------
ROOT = Path(__file__).resolve().parents[2]


def trained(store, how):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.scan.two_ranks", str(store)]
    ranks = [
        subprocess.Popen([*command, str(rank), how], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    found = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [float(text) for text in found]


@pytest.mark.slow
def test_two_ranks_train_as_without(tmp_path):
    plain, fast = trained(tmp_path / "plain", "plain"), trained(tmp_path / "fast", "fast")
    assert plain[0] == plain[1]
    assert fast[0] == fast[1]
    assert fast[0] == pytest.approx(plain[0], rel=1e-6)
