"""Result of a diagnosis: measurements, layer by layer, and findings, with a rule for each kind of them.

To add one: a rule in ``RULES``, and what it reads in ``Circumstances`` and ``_measure`` of ``diagnose``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import ReconstructionError, SilentLayerError
from .report.figures import plot_diagnosis
from .report.hints import Hint
from .report.rows import plain_value
from .text_table import align, beside_names, percent, rate, ruled, wrap
from .training.damping import LARGEST_GROWTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 98  # characters of a line of the findings
_HEADINGS = ("layer", "neuron", "neurons", "firing rate", "dead", "always on", "no spike", "surrogate", "gradient")
SILENT = 0.3  # share of a layer that never spikes: a smaller part is common after a default initialisation, and does little harm
SATURATED = 0.1  # share of a layer that always spikes: such a neuron is a second bias, so a tenth of the width is lost
NO_SPIKE = 0.02  # share of samples without a spike: the accuracy of these is that of one fixed answer
_WEAK, _STRONG = 1.5, 0.2  # factors of the weights for a firing rate of 0.05: above the one, or below the other, it is named
_OFTEN = 0.3  # spikes a neuron and step above which that factor is measured
_FORGETFUL = 0.5  # share of the membrane kept from step to step: below, a constant current adds up to less than twice itself
VANISHING = 0.01  # of the gradient that a layer passes down: the tests have a healthy net above it, and a dead one below
_ERRORS = 2.0  # standard errors of the held-out accuracy that a gain must exceed
_LOSS = 0.1  # share of the held-out loss that a gain must save where there is no accuracy


@dataclass(frozen=True)
class LayerDiagnosis:
    """One spiking layer; shares are 0 to 1, and a value that could not be measured is NaN.

    Args:
        name: name of its synapse in the net, such as "fc1"; the neuron's if the net can't be inspected.
        neuron: class of its neurons.
        output: True for the output neuron, whose spikes are scores or resets.
        neurons: number of neurons; for a convolution channels times positions.
        firing_rate: spikes per neuron and step.
        silent: share of the neurons that never spike.
        always_on: share of the neurons that spike at every step of every sample.
        no_spike: share of the samples without a spike in the layer.
        surrogate: mean absolute derivative of a neuron's spikes, summed over its steps, by what enters it at one step, as the net's
            own surrogate gives it.
        gradient: norm of the gradient at what enters the neurons, relative to the layer above.
        reach: highest membrane on its way to a first spike, in units of the threshold; measured, like the values below, of a hidden
            layer that fires too little or too much, whose neurons can run without the net.
        gain: factor of its weights and bias for a healthy firing rate, 0.05; infinite if none gives it.
        threshold: firing threshold of its neurons.
        leak: share of the membrane that is kept from step to step.

    Example:
        >>> layer = LayerDiagnosis("fc1", "Leaky", False, 256, firing_rate=0.1, silent=0.06, always_on=0.0, no_spike=0.0)
        >>> print(layer, layer.neurons)
        layer 'fc1' 256
    """

    name: str
    neuron: str
    output: bool
    neurons: int
    firing_rate: float
    silent: float
    always_on: float
    no_spike: float
    surrogate: float = math.nan
    gradient: float = math.nan
    reach: float = math.nan
    gain: float = math.nan
    threshold: float = math.nan
    leak: float = math.nan

    def __str__(self) -> str:
        return f"{'output' if self.output else 'layer'} {self.name!r}"

    @property
    def is_unhealthy(self) -> bool:
        """True if a large part of its neurons never spikes or always does, or if they spike often."""
        return self.silent >= SILENT or self.always_on >= SATURATED or self.firing_rate > _OFTEN


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        kind: "refused", "not_reset", "silent", "saturated", "no_spike", "unread", "vanishing", "exploding", "not_finite",
            "not_measured", "unscaled_inputs", "not_solved", "gain" or "nothing_to_gain".
        text: the finding, with its figures.
        fix: what to do.
        layer: name of the layer that it is about, empty for the whole net.

    Example:
        >>> print(Finding("gain", "a readout solved on 800 samples scores 91.0 %; the net 11.0 %", "convex_init_(net, loader)"))
        a readout solved on 800 samples scores 91.0 %; the net 11.0 % -> convex_init_(net, loader)
    """

    kind: str
    text: str
    fix: str
    layer: str = ""

    def __str__(self) -> str:
        return f"{self.text} -> {self.fix}"


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
    findings: tuple[Finding, ...] = ()

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
        return plot_diagnosis(self.layers, VANISHING, title, path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``json.dumps``; NaN becomes None."""
        return {name: plain_value(getattr(self, name)) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        rows = [("network", self.network), ("readout", self.readout), ("samples", f"{self.samples:,}")]
        rows = [row for row in rows if row[1]]
        if self.fitted:
            solved = f"with a readout solved on {self.fitted:,} samples"
            if not math.isnan(self.accuracy_now):
                found = [rate(value, self.heldout) for value in (self.accuracy_now, self.accuracy_solved)]
                rows.append(("held-out accuracy", f"{found[0]} now, {found[1]} {solved}"))
            rows.append(("held-out loss", f"{self.loss_now:.4g} now, {self.loss_solved:.4g} {solved}"))
            rows.append(("held-out samples", f"{self.heldout:,}; ± are 95 % intervals"))
        layers = [_HEADINGS, *map(_cells, self.layers)] if self.layers else []
        results = [line for lines in beside_names(rows) for line in lines]
        return ruled(results, align(layers, left=2), _finding_lines(self.findings))

    def __repr__(self) -> str:
        return f"<Diagnosis of {self.network}: {', '.join(finding.kind for finding in self.findings)}>"


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
            lines += wrap(text, lead, " " * len(lead), _WIDTH)
    return lines


@dataclass(frozen=True)
class Circumstances:
    """Facts that the rules read beside the measurements."""

    call: str  # initialisation to type; empty for a net that it refuses
    start: str  # start of the hidden layers to type
    refusal: ReconstructionError | None
    changed: Collection[str]  # names of the hidden layers that an initialisation can change
    unread: Collection[str]  # names of unhealthy hidden layers whose spikes nothing reads: their membranes alone matter
    spikes_decide: bool  # else outputs are read by their membranes, which are linear as long as they do not spike
    no_gradients: str  # reason why gradients were not measured; empty if they were
    growth: float  # of random gradients in recurrent layers, on their way back
    hints: Collection[Hint]
    unsolved: ReconstructionError | None  # reason why no readout was solved
    # names of neurons that keep a state and that their library's own reset misses, by its ``resets``
    not_reset: Mapping[tuple[str, str], Sequence[str]]


Rule: TypeAlias = Callable[[Diagnosis, Circumstances], Iterator[Finding]]


def find_refusal(found: Diagnosis, given: Circumstances) -> Iterator[Finding]:
    """Report that an initialisation refuses the net."""
    error = given.refusal
    if error is not None:
        yield Finding("refused", f"convex_init_ refuses this net: {error.found}; needed: {error.needed}", error.fix)


def find_in_resets(found: Diagnosis, given: Circumstances) -> Iterator[Finding]:
    """Report nested neurons that start from the state of the last batch in a loop that relies on the library's reset."""
    for (whole, each), names in given.not_reset.items():
        shown = ", ".join(map(repr, names[:3])) + (" and others" if len(names) > 3 else "")
        text = f"{whole} does not reach the nested neurons {shown}; here they are reset before each batch"
        yield Finding("not_reset", text, f"reset each: {each}; or loop by over_time")


def find_in_layers(found: Diagnosis, given: Circumstances) -> Iterator[Finding]:
    """Report layers that fire too little or too much."""
    samples, call = found.samples, given.call
    last = next((layer for layer in reversed(found.layers) if not layer.output), None)
    dead = False  # a layer below is dead, so that those above are too
    for layer in found.layers:
        if layer.name in given.unread:
            text = f"nothing reads the spikes of {layer}, {layer.firing_rate:.2g} a neuron and step, but its membranes"
            yield Finding("unread", text, "leave the layer as it is, as hidden_init_ does", layer.name)
            continue
        solved = "solves the output's weights" if layer.output else "rebuilds or rescales the layer"
        repaired = f"{call} {solved}; or " if call and (layer.output or layer.name in given.changed) else ""
        if layer.name in given.changed:
            repaired = f"{given.start} sets its weights without labels; or {repaired}"
        matters = given.spikes_decide or not layer.output
        if layer.silent >= SILENT and matters and not (dead and layer.silent == 1):
            text = f"{layer}: {_share(layer.silent)} of {layer.neurons:,} neurons never spike on {samples:,} samples"
            text += _explain_silence(layer)
            fix = f"{repaired}lower the threshold, or scale inputs or weights up"
            yield Finding("silent", text, fix, layer.name)
        if layer.always_on >= SATURATED or layer.gain < _STRONG:
            text = f"{layer}: {layer.firing_rate:.2g} spikes a neuron and step on {samples:,} samples"
            if layer.always_on >= SATURATED:
                share = f"{layer}: {_share(layer.always_on)} of {layer.neurons:,} neurons"
                text = f"{share} spike at every step of all {samples:,} samples (saturated)"
            if layer.gain < 1:
                text += f": its weights are {_factor(1 / layer.gain)} too large for the threshold {layer.threshold:g}"
            yield Finding("saturated", text, f"{repaired}raise the threshold, or scale inputs or weights down", layer.name)
        if layer is last and layer.no_spike >= NO_SPIKE and layer.silent < 1:
            # Without a call the layer may be the output neuron itself.
            effect = "reach the readout without a spike: all get the same scores" if call else f"cause no spike in {layer}"
            text = f"{_share(layer.no_spike)} of {samples:,} samples {effect}"
            fix = f"{repaired}run more time steps, lower the threshold, or scale the inputs of {layer} up"
            yield Finding("no_spike", text, fix, layer.name)
        dead = dead or layer.silent == 1


def _explain_silence(layer: LayerDiagnosis) -> str:
    """Return why a layer is silent, as the end of a sentence; empty if that was not measured."""
    if math.isnan(layer.gain):
        return ""
    if math.isinf(layer.gain):
        return ": too few of its currents are positive, with negative weights or biases"
    causes = []
    if layer.silent == 1:
        causes.append(f"its currents bring membranes to {percent(layer.reach)} of the threshold {layer.threshold:g} at most")
    if layer.gain > _WEAK:
        causes.append(f"its weights are {_factor(layer.gain)} too small for the threshold {layer.threshold:g}")
    if layer.leak < _FORGETFUL:
        causes.append(f"a membrane keeps only {percent(layer.leak)} of its value from step to step (a low beta, or a short tau)")
    return f": {'; '.join(causes)}" if causes else ""


def _factor(value: float) -> str:
    return f"{value:.0f} times" if value >= 9.5 else f"{value:.2g} times"


def find_in_gradients(found: Diagnosis, given: Circumstances) -> Iterator[Finding]:
    """Report layers through which no gradient passes."""
    if given.no_gradients:
        text = f"gradients were not measured: {given.no_gradients}"
        yield Finding("not_measured", text, "surrogate-gradient training may fail alike: correct forward")
        return
    for layer in found.layers:
        if math.isnan(layer.surrogate):
            text = f"{layer}: the surrogate derivative is not finite, and so are the gradients of all layers below"
            yield Finding("not_finite", text, "use a surrogate with a lower slope, or another one", layer.name)
        elif layer.gradient < VANISHING:
            text = f"gradients vanish below {layer}: {layer.gradient:.2g} of the layer above (mean surrogate {layer.surrogate:.2g})"
            fix = "use a wider surrogate (a lower slope), or bring the membranes nearer to the threshold: scale inputs or weights"
            yield Finding("vanishing", text, fix, layer.name)


def find_in_growth(found: Diagnosis, given: Circumstances) -> Iterator[Finding]:
    """Report gradients that grow in recurrent layers, from step to step."""
    if given.growth > LARGEST_GROWTH:
        text = f"gradients explode in recurrent layers: {given.growth:.2g} times as large at an early time step"
        fix = "use a steeper surrogate, such as fast_sigmoid(slope=25); ReconstructionCallback and report.protect damp them"
        yield Finding("exploding", text, fix)


def find_in_hints(found: Diagnosis, given: Circumstances) -> Iterator[Finding]:
    """Report the hints that a report would show and that need no solve, such as inputs that are not scaled."""
    yield from (Finding(hint.name, hint.text, hint.fix) for hint in given.hints)


def find_in_scores(found: Diagnosis, given: Circumstances) -> Iterator[Finding]:
    """Report what a solved readout gains, or the reason why none was solved."""
    error = given.unsolved
    if error is not None:
        fix = f"{given.call}, which rebuilds hidden layers" if isinstance(error, SilentLayerError) else error.fix
        yield Finding("not_solved", f"no readout was solved: {error.found}; needed: {error.needed}", fix)
    if not found.fitted:
        return
    now, solved, held = found.accuracy_now, found.accuracy_solved, found.heldout
    if math.isnan(solved):
        better = found.loss_solved < (1 - _LOSS) * found.loss_now
        results = f"has a held-out loss of {found.loss_solved:.4g}; the net has {found.loss_now:.4g}"
    else:
        spread = math.sqrt(max(solved * (1 - solved), 1 / held) / held)
        better = solved - now > _ERRORS * spread
        results = f"scores {rate(solved, held)} on {held:,} held-out ones; the net scores {rate(now, held)}"
    text = f"a readout solved on {found.fitted:,} samples {results}"
    if better:
        yield Finding("gain", text, given.call)
        return
    if now > solved:
        text += " (too high if it was trained on these samples)"
    healthy = all(each.kind == "unread" for each in find_in_layers(found, given))
    fix = "keep the readout, and train on" if healthy else "correct the layers first, by the findings above, and diagnose again"
    yield Finding("nothing_to_gain", f"nothing to gain by the readout alone: {text}", fix)


RULES: tuple[Rule, ...] = (
    find_refusal,
    find_in_resets,
    find_in_layers,
    find_in_gradients,
    find_in_growth,
    find_in_hints,
    find_in_scores,
)


def _share(value: float) -> str:
    """Return a share as a whole percentage, with a decimal where it would round to 0 or 100."""
    shown = f"{100 * value:.0f} %"
    return percent(value) if value not in (0.0, 1.0) and shown in ("0 %", "100 %") else shown
