"""Parts of a diagnosis: its layers, and the findings with the rules behind them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from .report_table import percent
from .stages import Options
from .stages.fit import HeldOut
from .training.damping import LARGEST_GROWTH

__all__ = [
    "VANISHING",
    "Finding",
    "LayerDiagnosis",
    "find_in_gradients",
    "find_in_growth",
    "find_in_layers",
    "find_in_scores",
    "spell_call",
]

SILENT = 0.3  # share of a layer that never spikes: a smaller part is common after a default initialisation, and does little harm
SATURATED = 0.1  # share of a layer that always spikes: such a neuron is a second bias, so a tenth of the width is lost
NO_SPIKE = 0.02  # share of samples without a spike: the accuracy of these is that of one fixed answer
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

    def __str__(self) -> str:
        """Return the layer's name for a sentence."""
        return f"{'output' if self.output else 'layer'} {self.name!r}"


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        kind: "refused", "silent", "saturated", "no_spike", "vanishing", "exploding", "not_finite", "not_measured", "not_solved",
            "gain" or "nothing_to_gain".
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


def find_in_layers(
    layers: Sequence[LayerDiagnosis], samples: int, call: str, changed: Collection[str], *, spikes_decide: bool
) -> Iterator[Finding]:
    """Yield findings on firing; ``call`` is the initialisation to type, empty for a net that it refuses.

    ``changed`` are the names of the hidden layers that an initialisation can change.  Without ``spikes_decide`` outputs are read by
    their membranes, which are linear as long as they do not spike.
    """
    last = next((layer for layer in reversed(layers) if not layer.output), None)
    dead = False  # a layer below is dead, so that those above are too
    for layer in layers:
        solved = "solves the output's weights" if layer.output else "rebuilds or rescales the layer"
        repaired = f"{call} {solved}; or " if call and (layer.output or layer.name in changed) else ""
        matters = spikes_decide or not layer.output
        if layer.silent >= SILENT and matters and not (dead and layer.silent == 1):
            text = f"{layer}: {_share(layer.silent)} of {layer.neurons:,} neurons never spike on {samples:,} samples"
            fix = f"{repaired}lower the threshold, or scale inputs or weights up"
            yield Finding("silent", text, fix, layer.name)
        if layer.always_on >= SATURATED:
            share = f"{layer}: {_share(layer.always_on)} of {layer.neurons:,} neurons"
            text = f"{share} spike at every step of all {samples:,} samples (saturated)"
            yield Finding("saturated", text, f"{repaired}raise the threshold, or scale inputs or weights down", layer.name)
        if layer is last and layer.no_spike >= NO_SPIKE and layer.silent < 1:
            quiet = f"{_share(layer.no_spike)} of {samples:,} samples"
            text = f"{quiet} cause no spike in {layer}"
            if call:  # else it may be the output neuron itself
                text = f"{quiet} reach the readout without a spike: all get the same scores"
            fix = f"{repaired}run more time steps, lower the threshold, or scale the inputs of {layer} up"
            yield Finding("no_spike", text, fix, layer.name)
        dead = dead or layer.silent == 1


def find_in_gradients(layers: Sequence[LayerDiagnosis], reason: str) -> Iterator[Finding]:
    """Yield findings on gradients; ``reason`` is the obstacle if they were not measured."""
    if reason:
        yield Finding(
            "not_measured", f"gradients were not measured: {reason}", "surrogate-gradient training may fail alike: correct forward"
        )
    for layer in layers:
        if not reason and math.isnan(layer.surrogate):
            text = f"{layer}: the surrogate derivative is not finite, and so are the gradients of all layers below"
            yield Finding("not_finite", text, "use a surrogate with a lower slope, or another one", layer.name)
        elif layer.gradient < VANISHING:
            text = f"gradients vanish below {layer}: {layer.gradient:.2g} of the layer above (mean surrogate {layer.surrogate:.2g})"
            fix = "use a wider surrogate (a lower slope), or bring the membranes nearer to the threshold: scale inputs or weights"
            yield Finding("vanishing", text, fix, layer.name)


def find_in_growth(growth: float) -> Iterator[Finding]:
    """Yield a finding if gradients grow in recurrent layers, from step to step."""
    if growth > LARGEST_GROWTH:
        text = f"gradients explode in recurrent layers: {growth:.2g} times as large at an early time step"
        fix = "use a steeper surrogate, such as fast_sigmoid(slope=25); ReconstructionCallback and report.protect damp them"
        yield Finding("exploding", text, fix)


def find_in_scores(now: HeldOut, solved: HeldOut, fitted: int, call: str, *, healthy: bool) -> Finding:
    """Return the finding on what a readout could gain; ``healthy`` if no layer below was found dead, saturated or quiet."""
    if math.isnan(solved.accuracy):
        better = solved.loss < (1 - _LOSS) * now.loss
        results = f"has a held-out loss of {solved.loss:.4g}; the net has {now.loss:.4g}"
    else:
        error = math.sqrt(max(solved.accuracy * (1 - solved.accuracy), 1 / solved.samples) / solved.samples)
        better = solved.accuracy - now.accuracy > _ERRORS * error
        results = f"scores {percent(solved.accuracy)} on {solved.samples:,} held-out ones; the net scores {percent(now.accuracy)}"
    text = f"a readout solved on {fitted:,} samples {results}"
    if better:
        return Finding("gain", text, call)
    if now.accuracy > solved.accuracy:
        text += " (too high if it was trained on these samples)"
    fix = "keep the readout, and train on" if healthy else "correct the layers first, by the findings above, and diagnose again"
    return Finding("nothing_to_gain", f"nothing to gain by the readout alone: {text}", fix)


def _share(value: float) -> str:
    """Return a share as a whole percentage, with a decimal where it would round to 0 or 100."""
    shown = f"{100 * value:.0f} %"
    return percent(value) if value not in (0.0, 1.0) and shown in ("0 %", "100 %") else shown


def spell_call(options: Options) -> str:
    """Return the initialisation to type, with the names of the options that were given."""
    names = ("loss", "readout", "readout_layer", "forward", "classes", "unpack")
    given = [f"{name}=..." for name in names if getattr(options, name) != Options.__dataclass_fields__[name].default]
    return f"convex_init_({', '.join(['net', 'loader', *given])})"
