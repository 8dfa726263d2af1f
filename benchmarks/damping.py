"""Which factor on the recurrent gradient trains best, and which one the growth of random gradients chooses.

    python benchmarks/damping.py --root DIR --speech DIR       writes benchmarks/results/damping.json

Adam in one cycle without clipping, batches of 64, from the one line and from fresh weights; tests are of an average (EMA) of the
weights.  Each case is trained with every factor.  Beside that stands a short trial of each: Adam at the same rate, then the loss
of other samples at the best temperature.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import warnings
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import RESULTS, machine, run_all
from benchmarks.sequences import TOMITA, automaton_task
from benchmarks.temporal.nets import NETS, accuracy
from benchmarks.temporal.tasks import MADE, Places, load_task
from benchmarks.temporal.training import AVERAGED, Average
from snn_recon_plugin import convex_init_
from snn_recon_plugin.demo import Data
from snn_recon_plugin.stages import Options
from snn_recon_plugin.training.damping import FACTORS, FRESH_MARGIN, SAMPLES, Damping, choose_damping, measure_growth
from snn_recon_plugin.training.measure import TEMPERATURES

BATCH, HIDDEN, SEEDS, TESTS = 64, 128, (0, 1), 4_000
SMALLER = (0.125, 0.0)  # factors beside those that are chosen among, from the line
TRIAL_STEPS, TRIAL_HELD = (10, 20, 40), 512
AUTOMATON, LENGTH = "5: even zeros and even ones", 12


@dataclass(frozen=True)
class Case:
    """A recurrent net on a task.

    Args:
        task: of temporal/tasks.py, or "automaton".
        epochs: of training.
        slope: of a fast sigmoid as snnTorch's surrogate gradient; None for the library's own.
        images: the first ones of MNIST by row; None for all samples.
        net: of temporal/nets.py.
        rate: highest learning rate of the cycle.
    """

    task: str
    epochs: int
    slope: float | None = None
    images: int | None = None
    net: str = "snntorch-recurrent"
    rate: float = 2e-3


CASES: dict[str, Case] = {
    "MNIST by row, 5,000": Case("rows", 4, images=5_000),
    "MNIST by row, 5,000, fast sigmoid 5": Case("rows", 4, 5.0, 5_000),
    "MNIST by row, 5,000, fast sigmoid 25": Case("rows", 4, 25.0, 5_000),
    "MNIST by row, 10,000": Case("rows", 4, images=10_000),
    "MNIST by row, 10,000, fast sigmoid 25": Case("rows", 4, 25.0, 10_000),
    "spoken digits": Case("speech", 8),
    "spoken digits, fast sigmoid 25": Case("speech", 8, 25.0),
    "digits by row": Case("digits", 15),
    "digits by row, fast sigmoid 25": Case("digits", 15, 25.0),
    "digits by row, Norse": Case("digits", 15, net="norse-recurrent", rate=5e-4),
    "delayed match": Case("match", 15),
    "delayed match, fast sigmoid 5": Case("match", 15, 5.0),
    "delayed match, fast sigmoid 25": Case("match", 15, 25.0),
    "delayed match, Norse": Case("match", 15, net="norse-recurrent", rate=5e-4),
    "automaton": Case("automaton", 20),
    "automaton, fast sigmoid 25": Case("automaton", 20, 25.0),
}


@cache
def data_of(task: str, images: int | None, places: Places) -> Data:
    """Training data, and at most 4,000 samples to test on."""
    if task == "automaton":
        strings = automaton_task(TOMITA[AUTOMATON], sum(MADE), LENGTH)
        inputs, labels = torch.cat([strings.inputs, 1 - strings.inputs], -1), strings.targets
        data = Data(inputs[: MADE[0]], labels[: MADE[0]], inputs[MADE[0] :], labels[MADE[0] :])
    else:
        data = load_task(task, places)
    return Data(data.train_inputs[:images], data.train_labels[:images], data.test_inputs[:TESTS], data.test_labels[:TESTS])


def make(case: Case, data: Data, seed: int) -> Any:
    """Return a fresh net."""
    torch.manual_seed(seed)
    net: Any = NETS[case.net](data.train_inputs.shape[2], HIDDEN, int(data.train_labels.max()) + 1)
    if case.slope is not None:
        net.neuron.spike_grad = surrogate.fast_sigmoid(slope=case.slope)
    return net


def start(net: Any, data: Data, seed: int) -> None:
    """Run the one line."""
    dataset = TensorDataset(data.train_inputs, data.train_labels)
    convex_init_(net, DataLoader(dataset, 128), progress=False, seed=seed)


def sample_of(data: Data) -> list[tuple[Tensor, Tensor]]:
    """Return the samples on which growth is measured."""
    return [(data.train_inputs[:SAMPLES], data.train_labels[:SAMPLES])]


def step(net: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> None:
    """Do one step of Adam."""
    optimizer.zero_grad()
    functional.cross_entropy(net(inputs).mean(0), labels).backward()
    optimizer.step()


def train(net: nn.Module, data: Data, case: Case, factor: float, seed: int) -> dict[str, float]:
    """Train a copy with a factor; test accuracy and CPU seconds."""
    net, draw = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    inputs, labels = data.train_inputs, data.train_labels
    total = case.epochs * math.ceil(len(labels) / BATCH)
    optimizer = torch.optim.Adam(net.parameters(), case.rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, case.rate, total_steps=total)
    average, began = Average(net, AVERAGED * total), time.process_time()
    with Damping(net, factor):
        for _ in range(case.epochs):
            for index in torch.randperm(len(labels), generator=draw).split(BATCH):
                step(net, optimizer, inputs[index], labels[index])
                cycle.step()
                average.update()
    seconds = time.process_time() - began
    with average.swapped():
        return {"test": accuracy(net, data.test_inputs, data.test_labels), "seconds": seconds}


def trial(net: nn.Module, data: Data, case: Case, factor: float) -> dict[str, float]:
    """Return the loss of other samples at the best temperature after a few steps of a copy."""
    net, draw = copy.deepcopy(net), torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.train_labels), generator=draw)
    held, rest = order[:TRIAL_HELD], order[TRIAL_HELD:]
    optimizer, losses = torch.optim.Adam(net.parameters(), case.rate), {}
    with Damping(net, factor):
        for number in range(1, TRIAL_STEPS[-1] + 1):
            index = rest[torch.randint(len(rest), (BATCH,), generator=draw)]
            step(net, optimizer, data.train_inputs[index], data.train_labels[index])
            if number in TRIAL_STEPS:
                with torch.no_grad():
                    scores = net(data.train_inputs[held]).mean(0).double()
                labels = data.train_labels[held]
                losses[str(number)] = min(float(functional.cross_entropy(scores / scale, labels)) for scale in TEMPERATURES)
    return losses


def study(case: Case, places: Places, line: bool, seed: int) -> dict[str, Any]:
    """One net, trained with each factor."""
    data = data_of(case.task, case.images, places)
    net = make(case, data, seed)
    if line:
        start(net, data, seed)
    began = time.process_time()
    chosen = choose_damping(net, sample_of(data), Options(), fresh=not line)
    result: dict[str, Any] = {"samples": len(data.train_labels), "chosen": chosen, "choosing": time.process_time() - began}
    result["growth"] = {str(factor): measure_growth(net, sample_of(data), Options(), factor) for factor in (FRESH_MARGIN, *FACTORS)}
    result["before"] = accuracy(net, data.test_inputs, data.test_labels)
    factors = (*FACTORS, *SMALLER) if line and case.slope is None and case.net.startswith("snntorch") else FACTORS
    result["trained"] = {str(factor): train(net, data, case, factor, seed) for factor in factors}
    result["trial"] = {str(factor): trial(net, data, case, factor) for factor in FACTORS}
    return result


def main() -> None:
    """Runs what the json does not hold yet, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of torchvision's MNIST")
    parser.add_argument("--speech", help="folder of ende.npz")
    parser.add_argument("--only", help="run only cases with this text in their name")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    places = Places(chosen.root, chosen.speech)
    cases = {
        name: run
        for key, case in CASES.items()
        for line in (True, False)
        for seed in SEEDS
        for name, run in [(f"{key}, {'line' if line else 'fresh'}, seed {seed}", partial(study, case, places, line, seed))]
        if chosen.only is None or chosen.only in name
    }
    content = run_all(RESULTS / "damping.json", {"machine": machine("snntorch", "norse")}, cases)
    for name, result in content["cases"].items():
        tests = ", ".join(f"{factor}: {100 * run['test']:.1f}" for factor, run in result["trained"].items())
        growth, before = result["growth"]["1.0"], 100 * result["before"]
        print(f"{name}: growth {growth:.3g}, chosen {result['chosen']:g}, before {before:.1f}; {tests}")


if __name__ == "__main__":
    main()
