"""Recurrent layers rebuilt from the states of automata: one convex program a neuron, one for the readout, no gradient step.

Two neurons stand for a state and a symbol: they spike where the automaton was in that state and read that symbol.  (Two, since
Norse's neurons have no weight from themselves, and a state that is kept must hold itself up.)  The spikes that a layer should
emit on the training strings are given to ``weights_from_patterns``; what comes out is tested on longer strings.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import product
from typing import Any

import norse.torch as norse
import snntorch as snn
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.render import machine_line, markdown_table
from benchmarks.sequences import TOMITA, Automaton, automaton_task, random_automaton
from benchmarks.store import Store
from benchmarks.study import Bench, Cells, Study
from snn_recon_plugin import convex_init_
from snn_recon_plugin.patterns import weights_from_patterns

LENGTH, LONG, SAMPLES, SEED = 12, 100, 500, 0
FIRST_LAST = Automaton(torch.tensor([[1, 3], [1, 2], [1, 2], [4, 3], [4, 3]]), torch.tensor([False, False, True, False, True]))
AUTOMATA: dict[str, Automaton] = {
    "first XOR last": FIRST_LAST,
    **TOMITA,
    **{f"random, {states} states": random_automaton(states, seed=states) for states in (4, 6, 8)},
}
LAYERS = ("RLeaky", "LIFRecurrent")


class Net(nn.Module):
    """A recurrent layer and a linear readout of its spikes; (B, T, 3) in, scores (B, 2) after the last step out.

    RLeaky keeps half of its membrane.  Of LIFRecurrentCell, with time constants as long as its step of 1 ms, nothing is left.
    """

    def __init__(self, layer: str, neurons: int) -> None:
        super().__init__()
        self.readout = nn.Linear(neurons, 2)
        if layer == "RLeaky":
            self.synapse, self.neuron = nn.Linear(3, neurons), snn.RLeaky(beta=0.5, linear_features=neurons)
        else:
            constant = torch.as_tensor(1000.0)
            self.cell = norse.LIFRecurrentCell(3, neurons, p=norse.LIFParameters(tau_mem_inv=constant, tau_syn_inv=constant))
        self.snntorch = layer == "RLeaky"

    def forward(self, inputs: Tensor) -> Tensor:
        spikes, state = self.neuron.init_rleaky() if self.snntorch else (None, None)
        for step in inputs.unbind(1):
            spikes, state = self.neuron(self.synapse(step), spikes, state) if self.snntorch else self.cell(step, state)
        return self.readout(spikes)

    def write(self, patterns: Tensor, inputs: Tensor) -> float:
        """Solve the layer and write it; the share of (sample, step, neuron) triples that it gets wrong."""
        neuron = self.neuron if self.snntorch else self.cell
        found = weights_from_patterns(neuron, inputs, patterns, bias=self.snntorch)  # the constant input is Norse's bias
        values = {"synapse.weight": found.weight, "synapse.bias": found.bias, "neuron.recurrent.weight": found.recurrent}
        if not self.snntorch:
            values = {"cell.input_weights": found.weight, "cell.recurrent_weights": found.recurrent}
        self.load_state_dict(values, strict=False)
        return float(found.mismatch.mean())


def coded(strings: Tensor) -> Tensor:
    """(n, T, 3): whether the symbol is 0, whether it is 1, and a constant."""
    hot = nn.functional.one_hot(strings.long(), 2).float()
    return torch.cat([hot, torch.ones_like(hot[..., :1])], -1)


def transitions(automaton: Automaton, strings: Tensor) -> Tensor:
    """(T, n, 4 * states): which state the automaton was in and which symbol it read, at each step, twice."""
    states = automaton.run(strings)
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    hot = nn.functional.one_hot(2 * before + strings, 2 * len(automaton.moves)).float().transpose(0, 1)
    return torch.cat([hot, hot], -1)


def rebuild(automaton: Automaton, layer: str, length: int = LENGTH, samples: int = SAMPLES) -> dict[str, Any]:
    """Solve a layer and its readout for an automaton, and test it on strings as long and on much longer ones."""
    torch.manual_seed(SEED)
    task, neurons = automaton_task(automaton, samples, length, SEED), 4 * len(automaton.moves)
    strings = task.inputs[..., 0].long()
    inputs, net, began = coded(strings), Net(layer, neurons), time.perf_counter()
    wrong = net.write(transitions(automaton, strings), inputs.transpose(0, 1))
    report = convex_init_(net, DataLoader(TensorDataset(inputs, task.targets), samples), hidden="keep", fit_loss="same")
    seconds, tests = time.perf_counter() - began, {}
    for steps in (length, LONG):
        test = automaton_task(automaton, 1000, steps, SEED + 1)
        with torch.no_grad():
            found = net(coded(test.inputs[..., 0])).argmax(1)
        tests[str(steps)] = float((found == test.targets).double().mean())
    gap = report.certificate.relative_gap
    return {"neurons": neurons, "mismatch": wrong, "tests": tests, "relative_gap": gap, "seconds": seconds}


def cells(bench: Bench) -> Cells:
    """Every automaton with both layers."""
    del bench
    return {f"{name}, {layer}": partial(rebuild, AUTOMATA[name], layer) for name, layer in product(AUTOMATA, LAYERS)}


def pages(store: Store) -> dict[str, dict[str, str]]:
    """A row an automaton and kind of layer."""
    rows = []
    for name, layer in product(AUTOMATA, LAYERS):
        cell = store[f"{name}, {layer}"]
        tests = [f"{100 * cell['tests'][str(steps)]:.1f}" for steps in (LENGTH, LONG)]
        about = f"{cell['relative_gap']:.0e}", f"{cell['seconds']:.1f}"
        rows.append((name, layer, str(cell["neurons"]), f"{cell['mismatch']:.1%}", *tests, *about))
    tests = [f"test at T={steps}, %" for steps in (LENGTH, LONG)]
    table = markdown_table(("automaton", "layer", "neurons", "spikes missed", *tests, "relative gap", "seconds"), rows)
    return {"evidence/paper_automata.md": {"paper automata": f"{table}\n\n{machine_line(store.cells()[0]['machine'])}"}}


STUDY = Study(
    title="automata in recurrent layers",
    minutes=10,
    cells=cells,
    pages=pages,
    fields=("neurons", "mismatch", "tests", "relative_gap", "seconds"),
    packages=("snntorch", "norse"),
)
