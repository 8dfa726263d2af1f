"""Ways to start and to train a net: what is chosen by which data, and the formulas of rivals."""

from functools import partial

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import methods, starts
from benchmarks.image_nets import DEEP_NETS
from benchmarks.methods import Average, Method, Schedule, run, tune
from benchmarks.nets import IMAGE_NETS, SEQUENCE_NETS, accuracy, steep
from benchmarks.studies.training import BUDGETED, CALLBACK, SHARES, SHORTER, compare, differ, rule_table
from benchmarks.tasks import Parts
from snn_recon_plugin.demo import Data, build_network

from ..training.runs import MARKS

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:`isinstance\\(treespec")]


@pytest.fixture(scope="module")
def data():
    """Two classes: a channel that spikes early, or one that does; 300 to train, 100 to test."""
    labels = torch.arange(400) % 2
    inputs = torch.zeros(400, 6, 4)
    inputs[torch.arange(400), 1, labels] = 2.0
    inputs += 0.2 * torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0))
    return Data(inputs[:300], labels[:300], inputs[300:], labels[300:])


def make(name="snntorch-feedforward"):
    torch.manual_seed(0)
    return SEQUENCE_NETS[name](4, 12, 2)


def test_rates_are_tuned_on_training_data_alone(data, monkeypatch):
    monkeypatch.setattr(methods, "TUNING_STEPS", 10)
    poisoned = Data(data.train_inputs, data.train_labels, torch.full_like(data.test_inputs, torch.nan), data.test_labels)
    found = tune(make, poisoned, Schedule(1), seed=0)
    assert found["validation"][str(found["rate"])] == max(found["validation"].values()) > 0.5


def test_the_average_stands_in_for_a_while_only():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    average = Average(layer, span=10)
    for value in (2.0, 4.0):
        nn.init.constant_(layer.weight, value)
        average.update()
    with average.swapped():
        assert layer.weight.item() == pytest.approx(3.0)  # the first steps: their plain mean
    assert layer.weight.item() == 4.0


def test_running_statistics_are_averaged_and_used_in_tests():
    net = nn.Sequential(nn.BatchNorm1d(2, momentum=1.0))
    average, inputs = Average(net, span=10), torch.tensor([[0.0, 3.0], [2.0, 5.0]])
    for shift in (0.0, 2.0):
        net(inputs + shift)
        average.update()
    with average.swapped():
        assert net[0].running_mean.tolist() == [2.0, 5.0]  # of 1 and 4, 3 and 6
        assert accuracy(net, torch.tensor([[3.0, 5.0]]), torch.tensor([0])) == 1.0  # 1 and 0 from the means
        assert net.training
        assert net[0].running_mean.tolist() == [2.0, 5.0]
    assert net[0].running_mean.tolist() == [3.0, 6.0]


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in (Method(options={}), Method(start=starts.line))]


@pytest.mark.parametrize("method", [Method(cycle=True, average=True), *SLOW])
def test_a_run_has_a_point_an_epoch(data, method):
    found = run(make, Parts(data, 0), method, 1e-3, 2, 0)
    assert len(found["epochs"]) == 2
    assert found["epochs"][0]["seconds"] < found["epochs"][1]["seconds"] <= found["final"]["seconds"]
    assert ("started" in found, "metrics" in found) == (not method.average, method.options is not None)


NETS = {"dense": partial(build_network, 64, 32, 10, 10), "recurrent": partial(SEQUENCE_NETS["snntorch-recurrent"], 20, 32, 10)}


SHAPES = [
    ("dense", (64,)),
    ("recurrent", (9, 20)),
    ("conv", (784,)),
    ("four convolutions, batch norm", (1, 28, 28)),
    ("SEW", (1, 28, 28)),
]


@pytest.mark.parametrize(("net", "shape"), SHAPES)
def test_membranes_fluctuate_about_the_threshold(net, shape):
    """Each hidden layer of nets of every shape, with the weights below it."""
    net, inputs = steep((NETS | IMAGE_NETS | DEEP_NETS)[net]()), torch.rand(50, *shape)
    starts.fluctuation_driven(net, TensorDataset(inputs), 0)
    neurons = [module for module in net.modules() if isinstance(module, snn.SpikingNeuron)]
    assert all("fast_sigmoid" in repr(neuron.spike_grad) for neuron in neurons)
    assert [starts.fluctuations(net, neuron, inputs) for neuron in neurons[:-1]] == pytest.approx(
        [1.0] * (len(neurons) - 1), rel=1e-4
    )


def points(*tests):
    epochs = [{"seconds": 10.0 * number, "test": test} for number, test in enumerate(tests, 1)]
    return [{"seed": 0, "epochs": epochs, "final": epochs[-1]}]


@pytest.mark.parametrize(("tests", "reached"), [((0.85, 0.82, 0.9), 10), ((0.5, 0.7), None)])
def test_the_callback_is_compared_with_the_best_baseline(tests, reached):
    runs = {("MNIST", "fixed rate"): points(0.5, 0.8), ("MNIST", "one cycle, EMA"): points(0.6, 0.7)}
    assert compare(runs) == {}
    found = compare({**runs, ("MNIST", CALLBACK): points(*tests)})["MNIST"]
    assert (found.goal, found.alone, found.test, found.reached) == (0.8, 20, tests[-1], reached)
    assert found.gains == (tests[-1] - 0.8,)


def test_the_interval_covers_seeds_and_test_samples():
    alike = differ([0.9, 0.9], [0.8, 0.8], 100)
    assert (alike.mean, alike.half) == pytest.approx((10.0, 196 * (0.25 / 100) ** 0.5), rel=1e-3)
    many = differ([0.9, 0.92, 0.94], [0.8, 0.8, 0.8], 10**9)  # Student's t of two degrees of freedom
    assert many.half == pytest.approx(100 * 4.303 * 0.02 / 3**0.5, rel=1e-3)
    assert str(alike) == "+10.0 (+0.2 to +19.8)"


def test_the_default_is_compared_with_the_better_of_the_others():
    tests, seconds = {BUDGETED[0]: 0.8, BUDGETED[1]: 0.9, CALLBACK: 0.95}, {BUDGETED[0]: 10.0, BUDGETED[1]: 11.0, CALLBACK: 12.0}
    runs = {
        ("MNIST", SHORTER[label, share]): [
            {"seed": seed, "tests": 10_000, "final": {"test": tests[label], "seconds": seconds[label]}} for seed in range(3)
        ]
        for label in BUDGETED
        for share in SHARES
    }
    text = rule_table(runs)
    assert f"| MNIST | {' | '.join(['+5.0 (+4.3 to +5.7), callback, no start'] * 3)} | 1.20 |" in text
    assert "1.20 times those of one cycle" in text
    assert "In half of the epochs the callback takes 1.20 to 1.20 times" in text
    assert "Its accuracy is +15.0 to +15.0 points from it" in text
    assert rule_table({}) == "Not measured yet."
