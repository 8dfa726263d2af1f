"""A neuron whose next time steps are taken in one operation where their inputs are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..networks.libraries.stepper import Call, States, Stepper
from .installed import Installed
from .sequence import Kept, Place, Sequence, Tape, condition_of, is_tracked, is_written, split
from .walk import Walk, at_once


@dataclass(frozen=True)
class _Inputs:
    """Inputs of steps: those of a sequence from a step on, or one input for all."""

    source: Sequence | Place
    step: int

    def is_at(self, start: _Inputs, taken: int) -> bool:
        """Return whether this is the input ``taken`` steps after the first one."""
        if isinstance(self.source, Sequence):
            return self.source is start.source and self.step == start.step + taken
        return self.source == start.source


@dataclass
class _Chunk:
    """Steps that were taken in one operation, or one step by the neuron's own code."""

    inputs: _Inputs  # of the first step
    condition: object
    made: list[Kept]  # states, and spikes at the end; none after a step of the neuron's own code
    spikes: tuple[Tensor, ...]  # after each step, none after a step of the neuron's own code
    states: list[States]  # after each step
    taken: int = 0  # steps that the net has asked for

    def follows(self, call: Call) -> bool:
        """Return whether a call starts from the states that the last one left."""
        left = self.states[self.taken - 1] if all(kept.is_valid for kept in self.made) else ()
        same = len(left) == len(call.states) and all(one is other for one, other in zip(left, call.states, strict=True))
        return same and not (self.made and any(map(is_written, left)))

    def next(self) -> tuple[Tensor, States]:
        """Return spikes and states of the next step."""
        self.taken += 1
        return self.spikes[self.taken - 1], self.states[self.taken - 1]


class FastNeuron(Installed):
    """Forward of a neuron that takes several steps at once.

    It takes as many steps as the pass before had, if their inputs are known: steps of one sequence, or one input for all.  That is
    a prediction.  A state or an input that differs ends it, and the next steps start from there.  A step that is not predicted is
    taken by the neuron's own code.
    """

    def __init__(self, module: nn.Module, stepper: Stepper, tape: Tape) -> None:
        super().__init__(module, tape)
        self.stepper = stepper
        self._walk = Walk(tape)
        self._chunk: _Chunk | None = None
        self._steps = self._call = 0  # steps of this pass so far, and the net's call of the last one
        self._run, self._length = 0, 1  # steps that shared an input or a sequence so far, and in the run before
        self._walks = False  # the steps of a sequence were asked for one after the other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the neuron returns."""
        self.calls += 1
        usable = not kwargs and args and isinstance(args[0], Tensor) and is_tracked(args[0])
        call = self.stepper.read(args) if usable else None
        if call is None:
            self.computed += 1
            return self.own(*args, **kwargs)
        if self.stepper.takes_sequences:
            return self._take_all(call)
        condition = condition_of(self.stepper.parameters, self.module.training)
        found = self._walk.find(call.x, condition)
        inputs = _Inputs(Place(call.x), 0) if found is None else _Inputs(*found)
        chunk = self._count(call, inputs, condition)
        if chunk is None or chunk.taken == len(chunk.states):
            self.computed += 1
            chunk = self._chunk = self._predict(call, inputs, condition)
        if chunk is None:
            output = self.own(*args)
            self._chunk = _Chunk(inputs, condition, [], (), [self.stepper.left(output)], taken=1)
            return output
        return self.stepper.answer(*chunk.next())

    def _count(self, call: Call, inputs: _Inputs, condition: object) -> _Chunk | None:
        """Count the step; return the steps that were taken at once if this is the next one."""
        chunk = self._chunk
        if chunk is None or not chunk.follows(call):
            self.tape.lengths[self], self._steps, chunk = max(self._steps, 1), 0, None
        elif self._call == self.tape.calls:
            self.tape.loops_inside = True
        self._steps, self._call = self._steps + 1, self.tape.calls
        if chunk is None or chunk.condition != condition or not inputs.is_at(chunk.inputs, chunk.taken):
            self._length, self._run, chunk = max(self._run, 1), 0, None
        elif isinstance(inputs.source, Sequence):
            self._walks = True
        self._run += 1
        return chunk

    def _predict(self, call: Call, inputs: _Inputs, condition: object) -> _Chunk | None:
        """Take the steps that can be taken from here; None for one step alone."""
        x = call.x
        shared = isinstance(inputs.source, Place)
        if isinstance(inputs.source, Sequence):
            x = inputs.source.shaped_like(x)[inputs.step :]
            steps = at_once(len(x) if self._walks else 1, call.x)
            x = x[:steps]
        else:
            steps = at_once(max(1, self._length - self._run + 1), x)
        if steps == 1:
            return None
        spikes, states = self.stepper.scan(x, call.states, steps, shared)
        made = self.tape.add(Sequence(spikes))
        kept = [*(Kept(state) for state in states), made]
        steps_of = [made.slices if state is spikes else split(state) for state in states]
        return _Chunk(inputs, condition, kept, made.slices, list(zip(*steps_of, strict=True)))

    def _take_all(self, call: Call) -> Any:
        """Answer a call that gives all steps."""
        x, steps = call.x, len(call.x)
        shared = steps > 1 and x.stride(0) == 0
        self.calls, self.computed = self.calls + steps - 1, self.computed + 1
        return self.stepper.answer(*self.stepper.scan(x[0] if shared else x, call.states, steps, shared))
