"""The package's own passes over a private net, by plans: what layers get and give, and no more than is asked for."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from ..errors import CaptureError
from ..networks.calls.batches import tensors_in
from ..networks.calls.forward import Forward
from ..networks.calls.record import AskedPass, Taps, run_by, tapped
from ..networks.libraries import is_neuron, parts_of_neurons
from ..networks.private.quiet import full_precision
from ..networks.private.workbench import take_over
from ..networks.structure.layers import SYNAPSES
from .installed import FastPass
from .plan import PassPlan, difference

_MOST_BYTES = 2**31  # of the tensors of a pass: a plan holds those of all steps
_MOST_KINDS = 64  # of batches, until plans are made anew
_DIFFERENCE = 1e-2  # relative: where rounding decides about a spike, what follows from it changes

# A module, and whether its outputs are meant, or its inputs.
Place: TypeAlias = tuple[nn.Module, bool]


def fast_passes(net: nn.Module) -> AbstractContextManager[None]:
    """Let passes of a private net run faster until the block ends.

    A kind of batch that comes a second time is recorded.  Its plan is compared with that pass, and runs from then on.
    """
    return run_by(_Passes(net))


class KeptPasses:
    """Faster passes of one private copy after another, by the plans of the first."""

    def __init__(self) -> None:
        self._passes: _Passes | None = None

    @contextmanager
    def of(self, fresh: nn.Module) -> Iterator[nn.Module]:
        """Yield a copy that holds what a fresh one does, and run its passes faster until the block ends."""
        if self._passes is None or self._passes.is_full or not take_over(self._passes.net, fresh):
            self._passes = _Passes(fresh)
        with run_by(self._passes):
            yield self._passes.net


class _Passes:
    """Plans of a net's passes.

    Args:
        net: private.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._passes: list[tuple[Forward, FastPass]] = []
        self._once: set[Hashable] = set()  # kinds of batches that came once
        self._parts: dict[Hashable, PassPlan] = {}
        inside = parts_of_neurons(net)
        layers = [module for module in net.modules() if module not in inside]
        neurons = [layer for layer in layers if is_neuron(layer)]
        gets = [layer for layer in layers if isinstance(layer, SYNAPSES)] + neurons
        self.places: list[Place] = [*((layer, False) for layer in gets), *((neuron, True) for neuron in neurons)]

    @property
    def is_full(self) -> bool:
        """True after many kinds of batches, as where something around the net changes with each."""
        return len(self._once) >= _MOST_KINDS

    def __call__(self, asked: AskedPass) -> tuple[Any, set[nn.Module]] | None:
        """Return the output of a pass, and the modules whose taps were called; None if it has to run as it is written."""
        taps = asked.taps
        wanted = (*((module, False) for module in taps.inputs), *((module, True) for module in taps.outputs))
        odd = taps.new_inputs or taps.new_outputs or taps.calls or not set(self.places).issuperset(wanted)
        if asked.net is not self.net or odd:
            return None
        found = self._run(asked, wanted)
        if found is None:
            return None
        with full_precision():
            for (module, is_output), values in zip(wanted, found[1], strict=True):
                for value in values:
                    (taps.outputs if is_output else taps.inputs)[module](value)
        return found[0], {module for (module, _), values in zip(wanted, found[1], strict=True) if values}

    def _run(self, asked: AskedPass, wanted: tuple[Place, ...]) -> tuple[Any, list[list[Any]]] | None:
        """Return the output of a pass, and what enters or leaves at some places."""
        fast, tensors = self._pass_of(asked.forward), list(tensors_in(asked.batch.inputs))
        if fast.gives_up:
            return None
        with asked.from_rest():
            key = fast.key_of((asked.batch.inputs,), {}, tensors)
            plan, name = fast.plans.get(key), (key, wanted, asked.whole)
            if plan is not None:
                if name not in self._parts:
                    self._parts[name] = plan.part(self._part(plan.returned, wanted, asked.whole), with_states=False)
                found: tuple[Any, list[list[Any]]] = self._parts[name].run(tensors, own=False)
                return found
        if key not in self._once or not fast.can_plan(key):
            self._once.add(key)
            return None
        returned = self._record(fast, key, asked)
        return None if returned is None else self._part(returned, wanted, whole=True)

    def _pass_of(self, forward: Forward) -> FastPass:
        """Return the plans of a forward."""
        for known, fast in self._passes:
            if known is forward or known == forward:
                return fast
        fast = FastPass(self.net, partial(_note_all, self.net, forward, self.places))
        self._passes.append((forward, fast))
        return fast

    def _record(self, fast: FastPass, key: Hashable, asked: AskedPass) -> Any:
        """Return what the net's own code makes of a batch at all places, and make a plan of it; None if it can't be kept."""
        try:
            with asked.from_rest():
                returned = asked.call(lambda net, inputs: fast.record(key, (inputs,), {}))
        except CaptureError as error:
            fast.refuse(key, str(error))
            return None
        plan = fast.plans[key]
        if plan is not None:
            with asked.from_rest():
                again = plan.run(list(tensors_in(asked.batch.inputs)), own=False)
            if not difference(tensors_in(returned), tensors_in(again)) <= _DIFFERENCE:
                fast.refuse(key, "with all steps at once its values differ")
        return returned

    def _part(self, returned: Any, wanted: tuple[Place, ...], whole: bool) -> tuple[Any, list[list[Any]]]:
        output, seen = returned
        return output if whole else None, [seen[self.places.index(place)] for place in wanted]


def _note_all(net: nn.Module, forward: Forward, places: list[Place], inputs: Any) -> tuple[Any, list[list[Any]]]:
    """Return the output of a net, and what enters or leaves at each of some places; refuse more than a plan may hold."""
    seen: list[list[Any]] = [[] for _ in places]
    size = 0

    def note(values: list[Any], value: Any) -> None:
        nonlocal size
        values.append(value)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))
        if size > _MOST_BYTES:
            found = f"a pass whose layers give more than {_MOST_BYTES} bytes"
            raise CaptureError(found, "fewer samples or steps", "pass smaller batches, for a faster pass")

    taps: list[dict[nn.Module, Any]] = [{}, {}]
    for (module, is_output), values in zip(places, seen, strict=True):
        taps[is_output][module] = partial(note, values)
    with tapped(Taps(*taps)):
        output = forward(net, inputs)
    return output, seen
