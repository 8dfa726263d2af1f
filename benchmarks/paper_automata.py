"""Recurrent layers rebuilt from the states of automata: one convex program a neuron, one for the readout, no gradient step.

    python benchmarks/paper_automata.py        writes benchmarks/results/paper_automata.json

Two neurons stand for a state and a symbol: they spike where the automaton was in that state and read that symbol.  (Two, since
Norse's neurons have no weight from themselves, and a state that is kept must hold itself up.)  The spikes that a layer should
emit on the training strings are given to ``weights_from_patterns``; what comes out is tested on longer strings.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common import RESULTS, machine, run_all
from benchmarks.sequences import TOMITA, Automaton, automaton_task, random_automaton
from snn_recon_plugin import convex_init_
from snn_recon_plugin.patterns import weights_from_patterns

__all__ = ["AUTOMATA", "LAYERS", "rebuild"]

LENGTH, LONG, SAMPLES = 12, 100, 500
FIRST_LAST = Automaton(torch.tensor([[1, 3], [1, 2], [1, 2], [4, 3], [4, 3]]), torch.tensor([False, False, True, False, True]))
AUTOMATA: dict[str, Automaton] = {
    "first XOR last": FIRST_LAST,
    **TOMITA,
    **{f"random, {states} states": random_automaton(states, seed=states) for states in (4, 6, 8)},
}


class _Recurrent(nn.Module):
    """A recurrent layer and a linear readout of its spikes; (T, B, 3) in, scores (B, C) after the last step out."""

    def __init__(self, neurons: int, outputs: int) -> None:
        super().__init__()
        self.readout = nn.Linear(neurons, outputs)

    def steps(self, inputs: Tensor) -> Iterator[Tensor]:
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([self.readout(spikes) for spikes in self.steps(inputs)])[-1]


class RLeakyNet(_Recurrent):
    """snnTorch's RLeaky, whose leak of 0.5 keeps half of the membrane."""

    def __init__(self, inputs: int, neurons: int, outputs: int) -> None:
        super().__init__(neurons, outputs)
        self.synapse = nn.Linear(inputs, neurons)
        self.neuron = snn.RLeaky(beta=0.5, linear_features=neurons)

    def steps(self, inputs: Tensor) -> Iterator[Tensor]:
        spikes, membranes = self.neuron.init_rleaky()
        for step in inputs:
            spikes, membranes = self.neuron(self.synapse(step), spikes, membranes)
            yield spikes

    def write(self, patterns: Tensor, inputs: Tensor) -> float:
        """Solves the layer and writes it; the share of (sample, step, neuron) triples that it gets wrong."""
        found = weights_from_patterns(self.neuron, inputs, patterns)
        assert found.bias is not None
        assert found.recurrent is not None
        with torch.no_grad():
            self.synapse.weight.copy_(found.weight)
            self.synapse.bias.copy_(found.bias)
            self.neuron.recurrent.weight.copy_(found.recurrent)
        return float(found.mismatch.mean())


class LIFRecurrentNet(_Recurrent):
    """Norse's LIFRecurrentCell, time constants as long as its step of 1 ms: nothing is left of membrane and current after one."""

    def __init__(self, inputs: int, neurons: int, outputs: int) -> None:
        super().__init__(neurons, outputs)
        constant = torch.as_tensor(1000.0)
        self.cell = norse.LIFRecurrentCell(inputs, neurons, p=norse.LIFParameters(tau_mem_inv=constant, tau_syn_inv=constant))

    def steps(self, inputs: Tensor) -> Iterator[Tensor]:
        state = None
        for step in inputs:
            spikes, state = self.cell(step, state)
            yield spikes

    def write(self, patterns: Tensor, inputs: Tensor) -> float:
        """As above; the layer has no bias, a constant input takes its place."""
        found = weights_from_patterns(self.cell, inputs, patterns, bias=False)
        assert found.recurrent is not None
        with torch.no_grad():
            self.cell.input_weights.copy_(found.weight)
            self.cell.recurrent_weights.copy_(found.recurrent)
        return float(found.mismatch.mean())


LAYERS: dict[str, Callable[[int, int, int], Any]] = {"RLeaky": RLeakyNet, "LIFRecurrent": LIFRecurrentNet}


def coded(strings: Tensor) -> Tensor:
    """(T, n, 3): whether the symbol is 0, whether it is 1, and a constant."""
    hot = nn.functional.one_hot(strings.long(), 2).float()
    return torch.cat([hot, torch.ones_like(hot[..., :1])], -1).transpose(0, 1)


def transitions(automaton: Automaton, strings: Tensor) -> Tensor:
    """(T, n, 4 * states): which state the automaton was in and which symbol it read, at each step, twice."""
    states = automaton.run(strings)
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    hot = nn.functional.one_hot(2 * before + strings, 2 * len(automaton.moves)).float().transpose(0, 1)
    return torch.cat([hot, hot], -1)


def rebuild(automaton: Automaton, layer: str, length: int = LENGTH, samples: int = SAMPLES, seed: int = 0) -> dict[str, Any]:
    """Solves a layer and its readout for an automaton, and tests it on strings as long and on much longer ones."""
    torch.manual_seed(seed)
    task = automaton_task(automaton, samples, length, seed)
    strings = task.inputs[..., 0].long()
    inputs, neurons = coded(strings), 4 * len(automaton.moves)
    net, began = LAYERS[layer](3, neurons, 2), time.perf_counter()
    wrong = net.write(transitions(automaton, strings), inputs)
    batches = DataLoader(TensorDataset(inputs.transpose(0, 1), task.targets), samples)
    steps_first = lambda net, batch: net(batch.transpose(0, 1))  # noqa: E731
    report = convex_init_(net, batches, hidden="keep", fit_loss="same", forward=steps_first)
    seconds = time.perf_counter() - began
    tests = {}
    for steps in (length, LONG):
        test = automaton_task(automaton, 1000, steps, seed + 1)
        with torch.no_grad():
            found = net(coded(test.inputs[..., 0])).argmax(1)
        tests[str(steps)] = float((found == test.targets).double().mean())
    gap = report.certificate.relative_gap
    return {"neurons": neurons, "mismatch": wrong, "tests": tests, "relative_gap": gap, "seconds": seconds}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    cases = {
        f"{name}, {layer}": lambda automaton=automaton, layer=layer: rebuild(automaton, layer)  # type: ignore[misc]
        for name, automaton in AUTOMATA.items()
        for layer in LAYERS
    }
    head = {"machine": machine("snntorch", "norse"), "seed": 0, "length": LENGTH, "samples": SAMPLES}
    run_all(options.results / "paper_automata.json", head, cases)


if __name__ == "__main__":
    main()
