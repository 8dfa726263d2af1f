"""The study of training: its runs, its tables and its figure."""

from functools import partial
from types import SimpleNamespace

import pytest
import snntorch as snn
import torch
from torch.utils.data import TensorDataset

from benchmarks.hidden_networks import fluctuations
from benchmarks.training import budgets, render
from benchmarks.training.aided import FewFirst
from benchmarks.training.cases import CASES, small, split, steep
from benchmarks.training.runs import METHODS, run, tune
from benchmarks.training.starts import fluctuation_driven
from snn_recon_plugin.demo import Data

from ..training.runs import MARKS

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:`isinstance\\(treespec")]


@pytest.fixture(scope="module")
def data():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(180) % 10
    inputs = torch.rand(10, 64, generator=draw)[labels] + 0.2 * torch.rand(180, 64, generator=draw)
    return Data(inputs[:140], labels[:140], inputs[140:], labels[140:])


def test_a_tenth_is_for_validation_and_the_rest_for_training(data):
    parts = split(data, 0)
    both = torch.cat([parts.train.tensors[0], parts.validation.tensors[0]])
    assert len(parts.validation) == 14
    assert torch.equal(both.sort(0).values, data.train_inputs.sort(0).values)
    assert parts.test[0] is data.test_inputs


SLOW_RUNS = ["line, one cycle, EMA", "S-SWIM, one cycle, EMA", "callback, fixed rate"]
RUNS = ["one cycle, EMA", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_RUNS)]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_a_point_an_epoch(data, name):
    found = run(partial(small, data), split(data, 0), METHODS[name], 1e-3, 2, 0)
    assert len(found["epochs"]) == 2
    assert found["epochs"][0]["seconds"] < found["epochs"][1]["seconds"] <= found["final"]["seconds"]
    assert 0 <= found["final"]["test"] <= 1
    assert ("started" in found) == (METHODS[name].start is not None)
    assert ("metrics" in found) == (METHODS[name].options is not None)


@pytest.mark.parametrize("case", ["digits", "spoken digits, recurrent", "MNIST, convolutions"])
def test_membranes_fluctuate_about_the_threshold(case):
    """Each hidden layer of nets of every shape, with the weights below it."""
    inputs = {"digits": torch.rand(50, 64), "spoken digits, recurrent": torch.rand(50, 9, 20)}.get(case, torch.rand(50, 784))
    data = Data(inputs, torch.arange(50) % 10, inputs, torch.arange(50) % 10)
    net = CASES[case].make(data)
    fluctuation_driven(net, TensorDataset(inputs, data.train_labels), 0)
    neurons = [module for module in net.modules() if isinstance(module, snn.SpikingNeuron)][:-1]
    assert [fluctuations(net, neuron, inputs) for neuron in neurons] == pytest.approx([1.0] * len(neurons), rel=1e-4)


def test_the_best_rate_is_that_of_validation_data(data):
    found = tune(partial(small, data), split(data, 0), METHODS["fixed rate"], 1, 0)
    assert found["validation"][str(found["rate"])] == max(found["validation"].values())


def test_every_neuron_gets_the_steep_surrogate():
    net = steep(small(None))
    assert all("fast_sigmoid" in repr(module.spike_grad) for module in net.modules() if hasattr(module, "spike_grad"))


def points(*tests):
    epochs = [{"seconds": 10.0 * number, "validation": test, "test": test} for number, test in enumerate(tests, 1)]
    return {"epochs": epochs, "final": epochs[-1], "metrics": {"recon/step_share": 0.25}}


def test_a_row_compares_with_the_best_baseline():
    case = next(iter(CASES))
    runs = {
        (case, "fixed rate"): [points(0.5, 0.8)],
        (case, "one cycle, EMA"): [points(0.6, 0.7)],
        (case, "callback, one cycle"): [points(0.85, 0.82, 0.9)],
    }
    text = render.row(case, runs)
    assert text is not None
    assert text[-6:] == ["+10.0", "20", "10", "30", "-3.0", "1"]
    *_, row, _, line = render.summary(runs).splitlines()
    assert row == f"| {case} | 80.0 | 90.0 | 20 | 10 | 30 |"
    assert "+10.0 at the median" in line
    assert "0.50 of its seconds at the median, and sooner in 1 of 1 tasks" in line
    assert render.row(case, {(case, "fixed rate"): [points(0.5)]}) is None
    runs[case, "callback, one cycle"] = [points(0.7)]
    assert "not reached" in render.table(runs)


def test_other_tables_and_the_figure(tmp_path):
    case = next(iter(render.PANELS))
    runs = {(case, name): [points(0.5, 0.8)] for name in (*render.LINES, "SGD 0.05", "callback, SGD 0.05")}
    assert "| 80.0 | 80.0 | 0.25 |" in render.sgd_table(runs)
    kinds = {"free": {"line": 0.9, "trained": 0.5}}
    kinds |= {name: {"line": 0.9, "trained": 0.6, "left": 0.91} for name in ("protected", "protected, validation")}
    loops = {f"a | Adam | {kind}": found for kind, found in kinds.items()}
    assert "| a | Adam | 90.0 | 50.0 | 60.0 | 91.0 | 91.0 |" in render.loops_table(loops)
    render.draw(runs, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def cell(method, epochs, seconds, test, seed=0):
    return {"case": "MNIST", "method": method, "epochs": epochs, "seconds": seconds, "test": test, "seed": seed}


def test_a_budget_shows_the_longest_run_that_it_pays_for():
    cells = [*(cell("alone", epochs, 10.0 * epochs, 0.5 + epochs / 100) for epochs in (1, 2, 4, 8))]
    cells += [cell("callback", 1, 30.0, 0.9), cell("callback", 6, 85.0, 0.95)]
    assert budgets.planned(8, 3.0) == 6
    assert budgets.planned(2, 3.0) == 0
    alone, callback = budgets.table(cells).splitlines()[2:]
    assert alone == "| MNIST | alone | 51.0 | 52.0 | 54.0 | 58.0 | – | – |"
    assert callback == "| MNIST | callback | – | – | 90.0 | 95.0 | 95.0 | – |"


def test_a_budget_shows_the_mean_over_seeds():
    cells = [cell("alone", 1, 10.0, 0.5, seed) for seed in range(3)]
    assert "| MNIST | alone | 50.0 (3 seeds) |" in budgets.table(cells)


def test_few_steps_come_first_and_all_of_them_in_tests(data):
    net = CASES["MNIST, 60,000 images, 300 neurons"].make(data)
    aided = FewFirst(3)
    module = SimpleNamespace(net=net, scale=1.0)
    trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=10)
    aided.on_train_start(trainer, module)
    aided.on_train_batch_start(trainer, module, None, 0)
    assert (net.steps, module.scale > 1) == (3, True)
    aided.on_train_batch_end(trainer, module, None, None, 0)
    assert (net.steps, module.scale) == (10, 1.0)
    trainer.global_step = 7
    aided.on_train_batch_start(trainer, module, None, 0)
    assert net.steps == 10
