"""Passes with random currents in place of a layer's output: the graph of a net's layers, and how scores follow from the readout.

Every module whose input then differs from the undisturbed pass is fed by that layer: a module tree does not show it, since forward
functions are free Python.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import PASS_STEP, CaptureError, NetworkError, ReadoutNotFoundError
from ..calls.batches import Padded, describe, tensors_in
from ..calls.calls import time_first
from ..calls.forward import Forward
from ..calls.record import StoredBatch, Taps, carries_over, record
from ..libraries import is_neuron, library_of
from ..libraries.library import Trace
from ..private.parameters import with_values
from ..private.quiet import quiet
from ..private.workbench import probe_copy, same_values
from ..readout.filters import fit_scale
from .layers import NORMS, SYNAPSES, HiddenLayer, NetworkMap, ReadoutLayer

_SEED = 20240229
_CURRENTS_SEED = 271_828  # far from the seeds of passes: a forward that draws noise must not draw the same numbers
# Of the summed magnitude: far above the rounding of one sum, far below the effect of strong currents.
_TOLERANCE = 1e-6
_STRONG = 100.0  # thresholds: a current that makes every neuron spike at once
_CALLS = 25  # of a net that makes one step a call, until spikes show its membranes


def injector(scale: float, shift: float = 0.0, draw: int = 0) -> Callable[[Any], Any]:
    """Build a function from an output to random currents of its shape, dtype and device, the same ones for the same ``draw``.

    They have standard deviation ``scale`` and mean ``shift``, and replace the first item of a tuple.
    """
    generator = torch.Generator().manual_seed(_CURRENTS_SEED + draw)

    def replace(output: Any) -> Any:
        if isinstance(output, tuple):
            return (replace(output[0]), *output[1:])
        noise = torch.randn(output.shape, generator=generator, dtype=torch.float32)
        return (noise * scale + shift).to(output)

    return replace


@dataclass
class Pass:
    """Record of one forward pass."""

    entered: dict[nn.Module, list[Tensor]] = field(default_factory=dict)  # fingerprints of each input, modules in order of calls
    shapes: dict[nn.Module, list[torch.Size]] = field(default_factory=dict)  # of those inputs
    returned: list[Tensor] = field(default_factory=list)  # fingerprints of all tensors that the forward returned

    def changed(self, other: Pass, module: nn.Module, *, first_call: bool = False) -> bool:
        """Return whether an input of a module, or of its first call alone, or the number of calls differs between two passes."""
        calls = slice(1 if first_call else None)
        return not same(self.entered.get(module, [])[calls], other.entered.get(module, [])[calls])


def observe(
    net: nn.Module,
    inputs: Any,
    forward: Forward,
    watched: Sequence[nn.Module],
    *,
    inject: tuple[nn.Module, Callable[[Any], Any]] | None = None,
) -> Pass:
    """Run a copy of the net once from rest, perhaps with an :func:`injector` at a module; watch what enters modules."""
    seen, fingerprint = Pass(), partial(_fingerprint, {})
    copied, own = probe_copy(net)

    def note(module: nn.Module, value: Tensor) -> None:
        seen.entered.setdefault(module, []).append(fingerprint(value))
        seen.shapes.setdefault(module, []).append(value.shape)

    inputs_of = {own[module]: partial(note, module) for module in watched}
    taps = Taps(inputs=inputs_of, new_outputs={} if inject is None else {own[inject[0]]: inject[1]})
    batch = StoredBatch(inputs, slice(0, 0), number=1 if inject is None else None)
    with quiet(copied, seed=_SEED):
        seen.returned = [fingerprint(tensor) for tensor in tensors_in(record(copied, batch, forward, taps))]
    return seen


def reads_spikes(net: nn.Module, inputs: Any, forward: Forward, neuron: nn.Module) -> bool:
    """Return whether a neuron's spikes reach a layer or the output; a net may read its membranes alone."""
    watched = [module for module in net.modules() if isinstance(module, SYNAPSES) or is_neuron(module)]
    plain = observe(net, inputs, forward, watched)
    other = observe(net, inputs, forward, watched, inject=(neuron, injector(1.0)))
    return not same(plain.returned, other.returned) or any(other.changed(plain, module) for module in watched)


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Return whether two lists hold equally many fingerprints that agree up to rounding."""
    if not left or len(left) != len(right):
        return len(left) == len(right)
    a, b = torch.stack(list(left)), torch.stack(list(right))
    tolerance = _TOLERANCE * torch.maximum(a[:, 1], b[:, 1])
    return bool(((a[:, 0] - b[:, 0]).abs() <= tolerance).all())


def _fingerprint(weights: dict[tuple[int, torch.device], Tensor], value: Tensor) -> Tensor:
    """Return the weighted sums of a tensor and of its magnitudes, ``[2]`` float64, which replace it in memory."""
    flat = value.detach().reshape(-1)
    flat = flat if flat.is_floating_point() else flat.to(torch.float32)
    key = flat.numel(), flat.device
    if key not in weights:
        # Random, so that spikes that trade places show; the same in every pass.
        generator = torch.Generator().manual_seed(_SEED)
        weights[key] = torch.rand(flat.numel(), generator=generator).add_(0.5).to(flat.device)
    terms = flat * weights[key]
    return torch.stack([terms.sum(), terms.abs().sum()]).double().cpu()


class Graph:
    """Paths between the synapses and neurons of a net, which is left as found; refuse a net or a pass without synapses."""

    def __init__(self, net: nn.Module, inputs: Any, forward: Forward) -> None:
        self.net, self._inputs, self._forward = net, inputs, forward
        self.names = {module: name for name, module in reversed(list(net.named_modules()))}
        self.neurons = [module for module in net.modules() if is_neuron(module)]
        self.library = library_of(self.neurons[0])
        self._norms = [module for module in net.modules() if isinstance(module, NORMS)]
        # Synapses that neuron modules hold themselves.
        self._own = {neuron: own for neuron in self.neurons if (own := self.library.synapse(neuron)) is not None}
        # Input weights that are one matrix, which alone decides the neuron's current.
        whole = [neuron for neuron, own in self._own.items() if own.weight and self.library.recurrence(neuron) is None]
        self._matrices = {self._own[neuron].module for neuron in whole}
        fused = {own.module for own in self._own.values()}
        # Any other part of a neuron, such as its recurrent weights, is neither a synapse between layers nor a readout.
        inner = {part for neuron in self.neurons for part in neuron.modules()}
        self.synapses = [m for m in net.modules() if m in fused or (isinstance(m, SYNAPSES) and m not in inner)]
        if not self.synapses:
            found = f"no layer between the neurons of a {type(net).__name__}"
            raise ReadoutNotFoundError(found, "an nn.Linear as the readout", "end the net with an nn.Linear")
        thresholds = [self.library.threshold(neuron) for neuron in self.neurons]
        highest = max((max(abs(t) for t in pair) for pair in thresholds if pair is not None), default=1.0)
        self._strength = _STRONG * max(1.0, highest)
        self.plain = self._pass(None)
        self.ran = [module for module in self.plain.entered if module in self.synapses]
        if not self.ran:
            found = f"a forward pass that calls none of {self.names_of(self.synapses)}"
            raise CaptureError(found, "a forward pass through the net's layers", PASS_STEP)
        self._disturbed = {module: self._pass(module) for module in self.ran}

    @property
    def called_once(self) -> bool:
        """True if no neuron is called more than once."""
        return all(len(self.plain.shapes.get(neuron, [])) <= 1 for neuron in self.neurons)

    def carries_over(self) -> bool:
        """Return whether a call starts from the membranes that the last one left; spikes show that after some calls."""
        return carries_over(self.net, self._inputs, self._forward, _CALLS)

    def readouts(self) -> list[nn.Module]:
        """List the layers with one weight matrix that reach the output and no synapse, in order of their first call."""
        return [m for m in self.ran if (isinstance(m, nn.Linear) or m in self._matrices) and self._ends_here(m)]

    def unreadable_ends(self) -> list[nn.Module]:
        """List the neurons that end a path with weights that can't be a readout, in order of their first call."""
        holders = {own.module for own in self._own.values()} - self._matrices
        return [module for module in self.ran if module in holders and self._ends_here(module)]

    def refuse_unrepeatable(self) -> None:
        """Refuse a net of which a second undisturbed pass differs, or has NaN; all comparisons rest on equal passes."""
        again = self._pass(None)
        changed = next((module for module in self.plain.entered if again.changed(self.plain, module)), None)
        if changed is None and same(again.returned, self.plain.returned):
            return
        where = "its output" if changed is None else f"what enters {self.names[changed]!r}"
        values = self.plain.returned if changed is None else self.plain.entered[changed]
        if not all(bool(value.isfinite().all()) for value in values):  # NaN differs from itself
            fix = "check the layers before that, and take no logarithm of 0"
            raise NetworkError(f"a forward pass with NaN or infinite values, first in {where}", "finite values", fix)
        raise NetworkError(
            "a forward pass that gives other values each time on the same inputs, from rest and with the same seed, "
            f"first in {where}",
            "a deterministic forward(net, inputs)",
            "draw noise from torch's, NumPy's or Python's global generator, seeded for each batch; let forward reset all states",
        )

    def fed_by(self, synapse: nn.Module) -> list[nn.Module]:
        """List the neurons that a synapse, which may lie inside the neuron's module, reaches, in order of their first call."""
        holders = {neuron for neuron, own in self._own.items() if own.module is synapse}
        return [m for m in self.plain.entered if m in self.neurons and (m in holders or self._feeds(synapse, m))]

    def hidden(self, readout: nn.Module, exclude: Sequence[nn.Module]) -> tuple[HiddenLayer, ...]:
        """Pair each neuron that leads to the readout with its synapse, from the input up."""
        return self._layers(self._upstream(readout), exclude)

    def all_hidden(self) -> tuple[HiddenLayer, ...]:
        """Pair each neuron that leads to a further synapse with its own one, from the input up, whatever the net ends in."""
        return self._layers({s for s in self.ran if any(self._feeds(s, other) for other in self.ran if other is not s)}, ())

    def _layers(self, leading: Collection[nn.Module], exclude: Sequence[nn.Module]) -> tuple[HiddenLayer, ...]:
        layers = []
        for neuron in self.plain.entered:
            # Of a neuron that serves layers of several sizes no unit can be followed.
            single = neuron in self.neurons and len({shape[1:] for shape in self.plain.shapes[neuron]}) == 1
            synapse = self._synapse_of(neuron) if single and neuron not in exclude else None
            if synapse is not None and synapse in leading:
                layers.append(HiddenLayer(self.names[synapse], synapse, self.names[neuron], neuron, self._norm_before(neuron)))
        # A net that passes spikes on one step late may run its layers in any order.
        return tuple(sorted(layers, key=lambda layer: len(self._upstream(layer.synapse))))

    def _norm_before(self, neuron: nn.Module) -> nn.Module | None:
        """Return the last norm that is called before a neuron, and fed by the same synapse; None without one."""
        called = list(self.plain.entered)
        passed = [module for module in called[: called.index(neuron)] if module in self._norms]
        return next((norm for norm in reversed(passed) if self._synapse_of(norm) is self._synapse_of(neuron)), None)

    def names_of(self, modules: Sequence[nn.Module]) -> str:
        """Name modules and their classes for a message."""
        return ", ".join(f"{self.names[m]!r} ({type(m).__name__})" for m in modules) or "(none)"

    def _pass(self, module: nn.Module | None, shift: float = 0.0) -> Pass:
        """Run undisturbed, or with strong currents in the place of a synapse's output."""
        inject = None if module is None else (module, injector(self._strength / (1 + abs(shift)), shift))
        watched = list(dict.fromkeys([*self.synapses, *self.neurons, *self._norms]))  # a neuron may be its own synapse
        return observe(self.net, self._inputs, self._forward, watched, inject=inject)

    def _feeds(self, synapse: nn.Module, module: nn.Module, *, first_call: bool = False) -> bool:
        return self._disturbed[synapse].changed(self.plain, module, first_call=first_call)

    def _ends_here(self, module: nn.Module) -> bool:
        """Return whether a layer reaches the output and no synapse, not even itself one step later."""
        if any(self._feeds(module, other) for other in self.ran):
            return False
        if self.plain.returned and same(self._disturbed[module].returned, self.plain.returned):
            return False
        # A layer that always spikes hides excitation: only inhibition shows that it leads on.
        silenced = self._pass(module, shift=-self._strength)
        return not any(silenced.changed(self.plain, other) for other in self.ran)

    def _synapse_of(self, neuron: nn.Module) -> nn.Module | None:
        """Return the synapse that feeds a neuron with no other synapse between, the last one if there are several.

        The first call decides, since synapses feed each other only forwards there.  In a net that passes spikes on one step late
        the first call shows nothing, so then all calls count.
        """
        if neuron in self._own:
            return self._own[neuron].module
        for first_call in (True, False):
            feeding = [s for s in self.ran if self._feeds(s, neuron, first_call=first_call)]
            direct = [s for s in feeding if not any(self._feeds(s, o, first_call=first_call) for o in feeding if o is not s)]
            if feeding:
                return (direct or feeding)[-1]
        return None

    def _upstream(self, synapse: nn.Module) -> set[nn.Module]:
        """Return the synapses from which a path leads to this one, also through layers that are silent now."""
        found = {synapse}
        while more := {s for s in self.ran if s not in found and any(self._feeds(s, other) for other in found)}:
            found |= more
        return found - {synapse}


# -- how scores follow from the output of the readout ---------------------------------------------------------------------------

_SCALES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)  # of currents at the readout, tried until its neuron spikes


@dataclass(frozen=True)
class Probe:
    """One pass under random readout currents; tensors are ``[T, B, C]``, and None without an output neuron."""

    currents: Tensor
    entered: Tensor | None  # input of the output neuron
    values: Tensor  # membranes of the output neuron, or the currents without one
    spikes: Tensor | None  # None also for a neuron that never spikes
    returned: Any  # by the net's forward
    alone: Trace | None = None  # simulation of the output neuron alone on ``entered``
    lengths: Tensor | None = None  # [B], of padded sequences


def run_probe(net: nn.Module, net_map: NetworkMap, inputs: Any, forward: Forward, draw: int = 0, gain: float = 1.0) -> Probe:
    """Run the net once from rest on a batch, with draw number ``draw`` of random currents in place of the readout's output.

    Currents are ``gain`` times those under which the output neuron spikes alone.
    Refuse calls that are not one for each step, and an output neuron that can't be simulated alone.
    """
    readout, lengths = net_map.readout, None
    if isinstance(inputs, Padded):  # lengths that differ, down from all steps, show what they change
        numbers = torch.arange(len(inputs.lengths), device=inputs.lengths.device)
        lengths = net_map.num_steps - numbers * net_map.num_steps // len(numbers)
        inputs = inputs._replace(lengths=lengths.to(inputs.lengths))
    calls, returned = _disturbed_pass(net, readout, inputs, forward, gain * _scale(readout, net_map.num_steps), draw)
    currents = _join(calls["currents"], net_map.layout, net_map)
    if readout.neuron is None:
        return Probe(currents, None, currents, None, returned, lengths=lengths)
    library = library_of(readout.neuron)
    layout = "time_first" if library.takes_sequences(readout.neuron) else "steps"
    entered = _join(calls["entered"], layout, net_map) if calls["entered"] else currents
    alone = library.run(readout.neuron, entered)
    # A neuron may hide its membranes in the net: those of its simulation alone replace them.
    values = _join(calls["membranes"], layout, net_map) if calls["membranes"] else alone.membranes
    # The output of a neuron that never spikes may be decoded over time already.
    spikes = None if torch.equal(alone.spikes, alone.membranes) else _join(calls["spikes"], layout, net_map)
    return Probe(currents, entered, values, spikes, returned, alone, lengths)


def layout_of_readout(
    net: nn.Module, readout: ReadoutLayer, layouts: Sequence[str], num_steps: int, inputs: Any, forward: Forward
) -> str:
    """Return the first possible layout by which the readout's currents, scaled, enter its neuron; the first one if none shows."""
    if len(layouts) == 1 or readout.neuron is None or library_of(readout.neuron).synapse(readout.neuron) is not None:
        return layouts[0]
    calls, _ = _disturbed_pass(net, readout, inputs, forward, _SCALES[0])
    takes_sequence = library_of(readout.neuron).takes_sequences(readout.neuron)
    if len(calls["entered"]) != (1 if takes_sequence else num_steps):
        return layouts[0]
    entered = calls["entered"][0] if takes_sequence else torch.stack(calls["entered"])
    for layout in layouts:
        if fit_scale(time_first(layout, calls["currents"], num_steps), entered) is not None:
            return layout
    return layouts[0]


def _scale(readout: ReadoutLayer, num_steps: int) -> float:
    """Return a size of random currents under which the output neuron spikes, if it ever does."""
    if readout.neuron is None:
        return _SCALES[0]
    weight = readout.weight
    for scale in _SCALES:
        currents = injector(scale)(weight.new_empty(num_steps, 4, readout.out_features))
        spikes = library_of(readout.neuron).run(readout.neuron, currents).spikes
        if bool((spikes != 0).any()):
            return scale
    return _SCALES[0]


def _disturbed_pass(
    net: nn.Module, readout: ReadoutLayer, inputs: Any, forward: Forward, scale: float, draw: int = 0
) -> tuple[defaultdict[str, list[Tensor]], Any]:
    """Run a copy of the net with random currents; return the values at each call of the readout and its neuron, and the output."""
    calls, draw_currents = defaultdict[str, list[Tensor]](list), injector(scale, draw=draw)
    copied, own = probe_copy(net)
    readout = replace(readout, module=own[readout.module], neuron=None if readout.neuron is None else own[readout.neuron])

    def inject(output: Any) -> Any:
        calls["currents"].append(draw_currents(output))
        return calls["currents"][-1].clone()

    def inject_input(value: Tensor) -> Tensor:
        calls["entered"].append(inject(value.new_empty(*value.shape[:-1], readout.out_features)))
        return calls["entered"][-1].clone()

    entered: dict[nn.Module, Callable[[Tensor], object]] = {}
    left: dict[nn.Module, Callable[[Any], object]] = {}
    if readout.neuron is not None:
        neuron, library = readout.neuron, library_of(readout.neuron)

        def keep(output: Any) -> None:
            membrane = library.membrane(neuron, output)
            if membrane is not None:
                calls["membranes"].append(membrane.clone())
            calls["spikes"].append(library.spikes(output).clone())

        left[neuron] = keep
        if library.synapse(neuron) is None:
            entered[neuron] = lambda value: calls["entered"].append(value.clone())
    if readout.module is readout.neuron:
        # With an identity as the weight the inputs are the currents.
        identity = {(readout.module, readout.weight_name): torch.eye(readout.out_features)}
        taps = Taps(inputs=entered, outputs=left, new_inputs={readout.module: inject_input})
    else:
        identity = {}
        taps = Taps(inputs=entered, outputs=left, new_outputs={readout.module: inject})
    with quiet(copied, seed=0), with_values(identity):
        returned = record(copied, StoredBatch(inputs, slice(0, 0), number=None), forward, taps)
    return calls, returned


def _join(calls: Sequence[Tensor], layout: str, net_map: NetworkMap) -> Tensor:
    if len(calls) == (net_map.num_steps if layout == "steps" else 1):
        sequence = time_first(layout, calls, net_map.num_steps)
        if sequence.ndim == 3:
            return sequence
    raise CaptureError(
        f"the readout or its neuron was called {len(calls)} times on {describe(calls[0]) if calls else 'nothing'} "
        f"in a forward pass of {net_map.num_steps} steps",
        "one call of both for each step with [batch, features]",
        "give every layer one neuron of its own for all steps, and call the readout only inside the time loop, once at each step",
    )


def check_neuron_alone(name: str, probe: Probe) -> None:
    """Refuse an output neuron that does something else in the net than alone."""
    assert probe.entered is not None
    assert probe.alone is not None
    # Autocast may round membranes to 16 bits, which tips spikes of those near the threshold.
    rounded = torch.finfo(probe.values.dtype).bits == 16
    same_spikes = probe.spikes is None or rounded or same_values(probe.alone.spikes, probe.spikes)
    if not same_values(probe.alone.membranes, probe.values) or not same_spikes:
        if same_values(probe.alone.membranes[:1], probe.values[:1]):
            found = f"a forward that changes the state of the output neuron {name!r} between time steps, as a clamp or a reset does"
            fix = "make it once before the time loop, and hand it on unchanged in forward"
            raise NetworkError(found, "an output neuron whose state is handed on as the neuron returns it", fix)
        raise NetworkError(
            f"the output neuron {name!r} does not start from rest in the net's forward",
            "a membrane of zero at the first step",
            f"reset it at the start of forward; if your script resets the net and then steps it, {PASS_STEP}",
        )
