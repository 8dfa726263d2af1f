"""Diagnosis of a network on the user's data, which reads only: the call, and its result."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, NoReturn

from torch import nn

from .diagnose_measure import measure
from .diagnose_rules import RULES, Finding, LayerDiagnosis
from .networks.calls.calling import refuse_calls
from .networks.calls.forward import Forward
from .networks.private.quiet import run_quietly
from .networks.private.workbench import Workbench
from .option_checks import check_names, check_whole
from .options import Options
from .report.plots import plot_diagnosis
from .report.report_values import plain_value
from .stages.initialize import prepare_network
from .stages.rates import percent, rate
from .stages.stream import Unpack
from .text_table import align

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnosis", "Finding", "LayerDiagnosis", "diagnose"]

_SPELLED = ("loss", "readout", "readout_layer", "forward", "classes", "unpack")  # options that a proposed call repeats
_WIDTH = 98  # characters of a line of the findings
_HEADINGS = ("layer", "neuron", "neurons", "firing rate", "dead", "always on", "no spike", "surrogate", "gradient")


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Result of :func:`diagnose`; a value that could not be measured is NaN, and a finding gives the reason.

    Args:
        network: class of the net.
        readout: name of the readout layer, and the decoding of its scores; empty for a net that an initialisation refuses.
        samples: samples that were run.
        fitted: samples on which the readout was solved; 0 if none was.
        heldout: held-out samples, on which accuracies and losses are measured.
        accuracy_now: accuracy of the net as it is on them, 0 to 1; NaN for regression.  If the net was trained on these samples, it
            is too high.
        accuracy_solved: accuracy on them with a readout solved without them.
        loss_now: mean training loss of the net as it is.
        loss_solved: mean training loss with the solved readout.
        layers: spiking layers, in order of their first calls.
        findings: what was found, and what to do.

    Example:
        >>> from snn_recon_plugin import diagnose
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=64, outputs=10, steps=8)
        >>> found = diagnose(net, [(data.train_inputs, data.train_labels)], max_samples=300)
        >>> [layer.name for layer in found.layers], found.findings[-1].fix
        (['fc1'], 'convex_init_(net, loader)')
    """

    network: str
    readout: str
    samples: int
    fitted: int
    heldout: int
    accuracy_now: float
    accuracy_solved: float
    loss_now: float
    loss_solved: float
    layers: tuple[LayerDiagnosis, ...]
    findings: tuple[Finding, ...]

    def plot(self, path: str | FilePath | None = None) -> Figure:
        """Draw firing rates, neurons that never or always spike, and gradients, by layer.

        Args:
            path: file to save the figure to, e.g. "diagnosis.png".

        Raises:
            OptionError: matplotlib is not installed, or there is no spiking layer.
        """
        title = self.network
        if not math.isnan(self.accuracy_now):
            now, solved = (rate(value, self.heldout) for value in (self.accuracy_now, self.accuracy_solved))
            title += f": held-out accuracy {now} now, {solved} with a solved readout"
        return plot_diagnosis(self.layers, title, path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``json.dumps``; NaN becomes None."""
        return {name: plain_value(getattr(self, name)) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        return render(self)

    def __repr__(self) -> str:
        return f"<Diagnosis of {self.network}: {', '.join(finding.kind for finding in self.findings)}>"


def render(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as text: results, layers, and findings, divided by rules."""
    rows = [("network", diagnosis.network), ("readout", diagnosis.readout), ("samples", f"{diagnosis.samples:,}")]
    rows = [row for row in rows if row[1]]
    if diagnosis.fitted:
        solved = f"with a readout solved on {diagnosis.fitted:,} samples"
        if not math.isnan(diagnosis.accuracy_now):
            found = [rate(value, diagnosis.heldout) for value in (diagnosis.accuracy_now, diagnosis.accuracy_solved)]
            rows.append(("held-out accuracy", f"{found[0]} now, {found[1]} {solved}"))
        rows.append(("held-out loss", f"{diagnosis.loss_now:.4g} now, {diagnosis.loss_solved:.4g} {solved}"))
        rows.append(("held-out samples", f"{diagnosis.heldout:,}; ± are 95 % intervals"))
    width = max(len(name) for name, _ in rows)
    blocks = [
        [f"{name:<{width}}  {text}" for name, text in rows],
        _layer_lines(diagnosis.layers),
        _finding_lines(diagnosis.findings),
    ]
    rule = "-" * max(len(line) for block in blocks for line in block)
    return "\n".join([rule, *(line for block in blocks if block for line in (*block, rule))])


def _layer_lines(layers: Sequence[LayerDiagnosis]) -> list[str]:
    """Return the lines of the layers' table; none without a layer."""
    rows = [_HEADINGS, *map(_cells, layers)] if layers else []
    return align(rows, left=2)


def _cells(layer: LayerDiagnosis) -> tuple[str, ...]:
    name = repr(layer.name) + (" (output)" if layer.output else "")
    rate = "n/a" if math.isnan(layer.firing_rate) else f"{layer.firing_rate:.3f}"
    shares = [percent(value) for value in (layer.silent, layer.always_on, layer.no_spike)]
    passed = ["n/a" if math.isnan(value) else f"{value:.2g}" for value in (layer.surrogate, layer.gradient)]
    return (name, layer.neuron, f"{layer.neurons:,}", rate, *shares, *passed)


def _finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the lines of the findings, numbered and wrapped, each with what to do below it."""
    lines: list[str] = []
    for number, finding in enumerate(findings, start=1):
        indent = " " * len(f"{number}. ")
        for lead, text in ((f"{number}. ", finding.text), (f"{indent}-> ", finding.fix)):
            lines += textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)
    return lines


def diagnose(
    net: nn.Module,
    loader: Iterable[Any],
    *,
    loss: object = None,
    readout: str = "auto",
    readout_layer: str | None = None,
    forward: Forward | None = None,
    classes: int | None = None,
    unpack: Unpack | None = None,
    max_samples: int = 1000,
    seed: int = 0,
    **unknown: NoReturn,
) -> Diagnosis:
    """Measure how a network fires, whether gradients pass, and what a readout solved on its spikes would score.

    Nothing is written: parameters, their gradients, modes, hooks, random generators and membranes are left as found, also after an
    error or an interrupt.  All measurements are in evaluation mode.  The report of ``convex_init_(hidden="keep")`` with the same
    ``max_samples`` and ``seed`` has the same accuracies and firing rates.

    Args:
        net: a network of snnTorch, Norse or SpikingJelly.  Of one that ``convex_init_`` refuses, firing and gradients are
            reported, and the refusal is a finding.
        loader: (input, target) batches, as for ``ConvexInitializer.initialize``.
        loss: your training loss, by name or as its object; default None: the network's attribute ``loss_fn``, ``criterion``
            or ``loss``, else "cross_entropy".
        readout: decoding of scores; default "auto".
        readout_layer: name of the readout's nn.Linear, for networks with several candidates.
        forward: ``forward(net, inputs)``; default ``net(inputs)``.
        classes: number of classes that the outputs stand for, if they are fewer than the outputs.
        unpack: ``unpack(batch)`` gives (input, target), for batches that are no such pairs.
        max_samples: maximum number of samples, the first ones of the loader, at least 10; default 1,000.  A fifth is held out.
        seed: of the split, of the shuffling of your loader during the call, and of everything else random; default 0.
        **unknown: none; other names are refused, with the closest option.

    Returns:
        The diagnosis.  ``print`` shows a table; each finding has what to do.

    Raises:
        OptionError: an unknown name, a number out of range, or an option that does not fit the net.
        DataError: an empty loader, or batches that can't be used.
        NetworkError: ``net`` is no module, or the forward pass fails, so that nothing can be measured.

    Example:
        >>> from snn_recon_plugin import convex_init_, diagnose
        >>> from snn_recon_plugin.demo import build_network, load_digits_data
        >>> data, net = load_digits_data(), build_network(inputs=64, hidden=64, outputs=10, steps=8)
        >>> loader = [(data.train_inputs, data.train_labels)]
        >>> diagnose(net, loader).findings[-1].kind
        'gain'
        >>> report = convex_init_(net, loader, progress=False)
        >>> diagnose(net, loader).findings[-1].kind
        'nothing_to_gain'
    """
    check_names(unknown, (*_SPELLED, "max_samples", "seed"))
    check_whole("max_samples", max_samples, 10)
    checked = Options(
        hidden="keep",
        loss=loss,
        readout=readout,
        readout_layer=readout_layer,
        forward=forward,
        classes=classes,
        unpack=unpack,
        max_samples=max_samples,
        seed=seed,
    )
    inner, prepared = prepare_network(net, checked)
    bench = Workbench.of(inner)
    with refuse_calls(inner):
        calls = _spell_call("convex_init_", checked, _SPELLED), _spell_call("hidden_init_", checked, ("forward", "unpack"))
        work = partial(measure, bench.net, loader, prepared, max_samples, *calls)
        found = run_quietly(bench.net, work, seed=checked.seed, loader=loader)
    return Diagnosis(
        found.network,
        found.readout,
        found.samples,
        fitted=found.fitted,
        heldout=found.solved.samples,
        accuracy_now=found.now.accuracy,
        accuracy_solved=found.solved.accuracy,
        loss_now=found.now.loss,
        loss_solved=found.solved.loss,
        layers=found.layers,
        findings=tuple(finding for rule in RULES for finding in rule(found)),
    )


def _spell_call(name: str, options: Options, repeated: Sequence[str]) -> str:
    """Return a call to type, with those of the given options that it takes."""
    fields = Options.__dataclass_fields__
    given = [f"{each}=..." for each in repeated if getattr(options, each) != fields[each].default]
    return f"{name}({', '.join(['net', 'loader', *given])})"
