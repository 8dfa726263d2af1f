"""Findings of a diagnosis: what they read, and a rule for each kind.

To add one: a rule in ``RULES``, and what it reads in ``Measured`` and ``diagnose_measure.measure``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from .errors import ReconstructionError, SilentLayerError
from .report.hints import Hint
from .stages.rates import percent, rate
from .stages.scores import HeldOut
from .training.damping import LARGEST_GROWTH

__all__ = ["RULES", "VANISHING", "Finding", "LayerDiagnosis", "Measured"]

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
        """Return the layer's name for a sentence."""
        return f"{'output' if self.output else 'layer'} {self.name!r}"

    @property
    def is_unhealthy(self) -> bool:
        """True if a large part of its neurons never spikes or always does, or if they spike often."""
        return self.silent >= SILENT or self.always_on >= SATURATED or self.firing_rate > _OFTEN


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        kind: "refused", "not_reset", "silent", "saturated", "no_spike", "vanishing", "exploding", "not_finite", "not_measured",
            "unscaled_inputs", "not_solved", "gain" or "nothing_to_gain".
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
        """Return the finding and what to do."""
        return f"{self.text} -> {self.fix}"


@dataclass(frozen=True)
class Measured:
    """All that the rules read, of one network."""

    network: str  # class of the net
    readout: str  # name and decoding of the readout; empty for a net that an initialisation refuses
    samples: int
    call: str  # initialisation to type; empty for a net that it refuses
    start: str  # start of the hidden layers to type
    refusal: ReconstructionError | None
    layers: tuple[LayerDiagnosis, ...]  # spiking layers, in order of their first calls
    changed: Collection[str]  # names of the hidden layers that an initialisation can change
    spikes_decide: bool  # else outputs are read by their membranes, which are linear as long as they do not spike
    no_gradients: str  # reason why gradients were not measured; empty if they were
    growth: float  # of random gradients in recurrent layers, on their way back
    hints: Collection[Hint]
    unsolved: ReconstructionError | None  # reason why no readout was solved
    fitted: int  # samples on which a readout was solved; 0 if none was
    now: HeldOut
    solved: HeldOut
    not_reset: tuple[str, ...] = ()  # names of neurons that keep a state, and that the library's own reset misses


def find_refusal(measured: Measured) -> Iterator[Finding]:
    """Report that an initialisation refuses the net."""
    error = measured.refusal
    if error is not None:
        yield Finding("refused", f"convex_init_ refuses this net: {error.found}; needed: {error.needed}", error.fix)


def find_in_resets(measured: Measured) -> Iterator[Finding]:
    """Report nested neurons that start from the state of the last batch in a loop that relies on the library's reset."""
    if measured.not_reset:
        shown = ", ".join(map(repr, measured.not_reset[:3])) + (" and others" if len(measured.not_reset) > 3 else "")
        text = f"snntorch.utils.reset(net) does not reach the nested neurons {shown}; here they are reset before each batch"
        fix = "reset each: for m in net.modules(): m.reset_mem() if hasattr(m, 'reset_mem') else None; or loop by over_time"
        yield Finding("not_reset", text, fix)


def find_in_layers(measured: Measured) -> Iterator[Finding]:
    """Report layers that fire too little or too much."""
    samples, call = measured.samples, measured.call
    last = next((layer for layer in reversed(measured.layers) if not layer.output), None)
    dead = False  # a layer below is dead, so that those above are too
    for layer in measured.layers:
        solved = "solves the output's weights" if layer.output else "rebuilds or rescales the layer"
        repaired = f"{call} {solved}; or " if call and (layer.output or layer.name in measured.changed) else ""
        if layer.name in measured.changed:
            repaired = f"{measured.start} sets its weights without labels; or {repaired}"
        matters = measured.spikes_decide or not layer.output
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
            quiet = f"{_share(layer.no_spike)} of {samples:,} samples"
            text = f"{quiet} cause no spike in {layer}"
            if call:  # else it may be the output neuron itself
                text = f"{quiet} reach the readout without a spike: all get the same scores"
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


def find_in_gradients(measured: Measured) -> Iterator[Finding]:
    """Report layers through which no gradient passes."""
    if measured.no_gradients:
        text = f"gradients were not measured: {measured.no_gradients}"
        yield Finding("not_measured", text, "surrogate-gradient training may fail alike: correct forward")
        return
    for layer in measured.layers:
        if math.isnan(layer.surrogate):
            text = f"{layer}: the surrogate derivative is not finite, and so are the gradients of all layers below"
            yield Finding("not_finite", text, "use a surrogate with a lower slope, or another one", layer.name)
        elif layer.gradient < VANISHING:
            text = f"gradients vanish below {layer}: {layer.gradient:.2g} of the layer above (mean surrogate {layer.surrogate:.2g})"
            fix = "use a wider surrogate (a lower slope), or bring the membranes nearer to the threshold: scale inputs or weights"
            yield Finding("vanishing", text, fix, layer.name)


def find_in_growth(measured: Measured) -> Iterator[Finding]:
    """Report gradients that grow in recurrent layers, from step to step."""
    if measured.growth > LARGEST_GROWTH:
        text = f"gradients explode in recurrent layers: {measured.growth:.2g} times as large at an early time step"
        fix = "use a steeper surrogate, such as fast_sigmoid(slope=25); ReconstructionCallback and report.protect damp them"
        yield Finding("exploding", text, fix)


def find_in_hints(measured: Measured) -> Iterator[Finding]:
    """Report the hints that a report would show and that need no solve, such as inputs that are not scaled."""
    yield from (Finding(hint.name, hint.text, hint.fix) for hint in measured.hints)


def find_in_scores(measured: Measured) -> Iterator[Finding]:
    """Report what a solved readout gains, or the reason why none was solved."""
    now, solved, error = measured.now, measured.solved, measured.unsolved
    if error is not None:
        fix = f"{measured.call}, which rebuilds hidden layers" if isinstance(error, SilentLayerError) else error.fix
        yield Finding("not_solved", f"no readout was solved: {error.found}; needed: {error.needed}", fix)
    if not measured.fitted:
        return
    if math.isnan(solved.accuracy):
        better = solved.loss < (1 - _LOSS) * now.loss
        results = f"has a held-out loss of {solved.loss:.4g}; the net has {now.loss:.4g}"
    else:
        spread = math.sqrt(max(solved.accuracy * (1 - solved.accuracy), 1 / solved.samples) / solved.samples)
        better = solved.accuracy - now.accuracy > _ERRORS * spread
        figures = rate(solved.accuracy, solved.samples), rate(now.accuracy, now.samples)
        results = f"scores {figures[0]} on {solved.samples:,} held-out ones; the net scores {figures[1]}"
    text = f"a readout solved on {measured.fitted:,} samples {results}"
    if better:
        yield Finding("gain", text, measured.call)
        return
    if now.accuracy > solved.accuracy:
        text += " (too high if it was trained on these samples)"
    healthy = not list(find_in_layers(measured))
    fix = "keep the readout, and train on" if healthy else "correct the layers first, by the findings above, and diagnose again"
    yield Finding("nothing_to_gain", f"nothing to gain by the readout alone: {text}", fix)


RULES: tuple[Callable[[Measured], Iterator[Finding]], ...] = (
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
