"""Kinds of candidates and pools of them: test accuracy of readouts on rebuilt layers, on images, sequences and few samples.

    python benchmarks/witness_kinds.py --root DIR        writes benchmarks/results/witness_kinds.json

DIR holds MNIST as torchvision has it, and ``speech/ende.npz``.  Tasks are those of ``witness_tasks.py``.  The package's own
functions draw, simulate and select, three candidates a neuron.  The readout solves the squared hinge with a ridge that a fifth of
the training samples chooses.  No gradient step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from common import RESULTS, machine, run_all
from torch import Tensor, nn
from witness_tasks import STEPS, TASKS, TRAIN, Split

from snn_recon_plugin.convex import Features, Problem, make_loss, solve
from snn_recon_plugin.hidden import Candidates, LayerSite, Sampler, get_sampler
from snn_recon_plugin.hidden.neuron import measure_excitability
from snn_recon_plugin.hidden.samplers import auto, draw_candidates, draw_pool, separate
from snn_recon_plugin.hidden.select import SelectionProgram, find_usable, select
from snn_recon_plugin.hidden.simulate import run_alone
from snn_recon_plugin.networks import HiddenLayer, library_of

STUDIED = tuple(TASKS)[:12]
LEAK, RIDGES = 0.95, (1e-1, 2e-2, 4e-3)
TESTED = 2000


def boundaries(
    site: LayerSite,
    count: int,
    generator: torch.Generator,
    *,
    among: int = 32,
    at_steps: bool = False,
    weighed: bool = False,
    steepness: float = 1.0,
) -> Candidates:
    """Traces whose partner is the nearest among some, by average or at the step; steps uniform, or weighed by the readout."""
    if at_steps:
        first, second, steps = draw_at_steps(site, count, among, generator)
    else:
        first, second = site.draw_pairs(count, generator)
        steps = draw_weighed(site, len(first), generator) if weighed else site.draw_steps(len(first), generator)
    ends = site.take_traces(first, steps), site.take_traces(second, steps)
    currents = site.excitability
    step = steepness * max(currents.half_rate - currents.rheobase, currents.rheobase)
    return separate(replace(site, excitability=replace(currents, half_rate=currents.rheobase + step)), *ends, generator)


def draw_at_steps(site: LayerSite, count: int, among: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs whose partner is the nearest of another class at the step, among some, and their steps."""
    second = torch.randint(len(site.labels), (count,), generator=generator)
    others = torch.randint(len(site.labels), (among, count), generator=generator)
    steps = site.draw_steps(count, generator)
    ends = site.take_traces(second, steps)
    distances = torch.stack([(site.take_traces(other, steps) - ends).square().sum(1) for other in others])
    distances[site.labels[others] == site.labels[second]] = torch.inf
    first = others[distances.argmin(0), torch.arange(count)]
    differ = site.labels[first] != site.labels[second]
    return first[differ], second[differ], steps[differ]


def draw_weighed(site: LayerSite, count: int, generator: torch.Generator) -> Tensor:
    """Steps drawn by the last-step readout's weight of a spike, a fifth of them at any step."""
    assert site.over_time is not None
    steps = len(site.over_time)
    weights = filter_of(steps, last=True)[0]
    weights = 0.8 * weights / weights.sum() + 0.2 / steps
    return torch.multinomial(weights.float(), count, replacement=True, generator=generator)


def mixture(*parts: tuple[float, Sampler]) -> Sampler:
    """A pool of samplers by their shares."""

    def draw(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
        return Candidates.join([sampler(site, max(1, round(share * count)), generator) for share, sampler in parts])

    return draw


def pool(above: bool = False, **shares: float) -> Sampler:
    """The package's pool with other shares: in layers that see the net's inputs, or in those above spikes."""

    def draw(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
        return draw_pool(shares, site, count, generator) if site.fed_by_spikes == above else auto(site, count, generator)

    return draw


at_step = partial(boundaries, at_steps=True)
KINDS: dict[str, str | Sampler] = {
    "auto": "auto",
    "pairs": "pairs",
    "Gaussian": "gaussian",
    "traces": "traces",
    "traces, nearest of 8 at the step": partial(at_step, among=8),
    "traces, nearest of 32 at the step": at_step,
    "traces, steps by the readout": partial(boundaries, weighed=True),
    "traces, half of them nearest at the step": mixture((0.5, boundaries), (0.5, at_step)),
    "traces, half of them 4 times as steep": mixture((0.5, boundaries), (0.5, partial(boundaries, steepness=4.0))),
    "3/4 pairs, 1/4 Gaussian": pool(gaussian=1 / 4, pairs=3 / 4),
    "3/4 traces, 1/4 pairs": pool(pairs=1 / 4, traces=3 / 4),
    "3/4 traces, 1/4 Gaussian": pool(gaussian=1 / 4, traces=3 / 4),
    "above: 1/3 relays, 2/3 pairs": pool(above=True, relays=1 / 3, pairs=2 / 3),
    "above: 1/3 relays, 2/3 traces": pool(above=True, relays=1 / 3, traces=2 / 3),
    "above: 1/3 relays, 1/3 traces, 1/3 pairs": pool(above=True, relays=1 / 3, traces=1 / 3, pairs=1 / 3),
}


@cache
def load(task: str, root: str, seed: int) -> Split:
    """Inputs (T, n, D), or (1, n, D) for images, and labels, for training and for test."""
    parts = TASKS[task].load(root, seed)
    inputs = [part.transpose(0, 1) if part.dim() == 3 else part[None] for part in parts[::2]]
    return inputs[0][:, :TRAIN], parts[1][:TRAIN], inputs[1][:, :TESTED], parts[3][:TESTED]


def filter_of(steps: int, last: bool) -> Tensor:
    """The readout's filter (1, T): of the mean membrane, or of the last one."""
    kernel = LEAK ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    return (kernel if last else kernel.flip(0).cumsum(0).flip(0) / steps)[None]


def rebuild(site: LayerSite, neuron: nn.Module, labels: Tensor, filters: Tensor, kind: str, seed: int) -> tuple[Candidates, Any]:
    """The selected rows of a layer and the numbers of their kinds; the layer's own rows fill up."""
    weight = site.synapse.weight
    assert site.over_time is not None
    layer = HiddenLayer("hidden", site.synapse, "neuron", neuron)
    generator = torch.Generator().manual_seed(seed)
    drawn = draw_candidates(get_sampler(KINDS[kind]), site, 3 * len(weight), generator)
    emitted = run_alone(layer, site.over_time, filters, drawn)
    usable = find_usable(emitted)[0]
    program = SelectionProgram(labels, make_loss("squared_hinge"), int(labels.max()) + 1, 1.0)
    chosen = drawn.take(usable[select(program, emitted.take(usable)).order[: len(weight)]])
    return chosen, chosen.count_kinds()


def fit(features: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Scores of test features by the squared hinge; a fifth of the samples chooses the ridge."""
    held, variance = len(labels) // 5, float(features.double().var(0).mean())

    def scores(some: slice, others: Tensor, share: float) -> tuple[Tensor, Tensor]:
        problem = Problem(
            Features(features[some]),
            labels[some],
            loss="squared_hinge",
            penalty="ridge",
            strength=share * variance,
            num_outputs=int(labels.max()) + 1,
        )
        found = solve(problem, tol=1e-3)
        return others.double() @ found.weight.T + found.bias, found.weight

    right = {share: (scores(slice(held, None), features[:held], share)[0].argmax(1) == labels[:held]).sum() for share in RIDGES}
    return scores(slice(None), test, max(right, key=lambda share: int(right[share])))[0]


def run(task: str, kind: str, root: str, seed: int) -> dict[str, Any]:
    """Test accuracy of one net."""
    train, labels, test, test_labels = load(task, root, seed)
    torch.manual_seed(seed)
    net: Any = TASKS[task].build()
    steps = STEPS if len(train) == 1 else len(train)
    filters, kinds = filter_of(steps, net.last), []
    for number, (synapse, neuron) in enumerate(zip(net.synapses, net.neurons, strict=False)):
        excitability = measure_excitability(neuron, steps, train)
        site = LayerSite(
            synapse,
            train.mean(0),
            labels,
            excitability,
            number > 0,
            over_time=train,
        )
        chosen, counts = rebuild(site, neuron, labels, filters, kind, seed)
        kinds.append(counts)
        rows = [chosen.weight, chosen.bias]
        train, test = (emit(neuron, values, steps, *rows) for values in (train, test))
    features = [torch.einsum("t,tnp->np", filters[0].float(), spikes) for spikes in (train, test)]
    right = (fit(features[0], labels, features[1]).argmax(1) == test_labels).double().mean()
    print(f"{task}, {kind}, {seed}: {100 * float(right):.2f} {kinds}", flush=True)
    return {"task": task, "witnesses": kind, "test": float(right), "selected": kinds}


def emit(neuron: nn.Module, inputs: Tensor, steps: int, weight: Tensor, bias: Tensor) -> Tensor:
    """Spikes (T, n, N) of rows."""
    currents = nn.functional.linear(inputs, weight, bias).expand(steps, -1, -1)
    with torch.no_grad():
        return library_of(neuron).run(neuron, currents).spikes


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="where torchvision finds MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(STUDIED))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        f"{task}, {kind}, seed {seed}": partial(run, task, kind, options.root, seed)
        for seed in options.seeds
        for task in options.tasks
        for kind in options.kinds
    }
    torch.set_num_threads(1)
    run_all(RESULTS / "witness_kinds.json", {"machine": machine("snntorch"), "train": TRAIN}, cases)


if __name__ == "__main__":
    main()
