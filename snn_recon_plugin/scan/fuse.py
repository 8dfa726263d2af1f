"""From the record of a pass to the same pass with all time steps of each layer and neuron at once.

Operations that do the same at each step, on the outputs of others that do, make a *site*.  A site whose function can take all steps
at once is one operation of the plan.  Two sites that wait for each other, such as a loop of layers, run step by step, as do random
numbers and writes into buffers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..networks.calls.batches import map_tensors
from .plan import PassPlan, Shape, all_steps, answer_all, describe_calls, leaves, mapped, once, over_steps, scan, walk
from .tape import Op, Origin, Tape, Value, run_from_rest, title


class UnplannedError(Exception):
    """A pass that can only run as it is written; says why."""


class _StepRange(NamedTuple):
    """Outputs of a site, ``[T, *]``, from one of its calls to before another."""

    site: int
    position: int
    start: int
    stop: int

    def later(self, steps: int) -> _StepRange:
        """Return as many steps later on."""
        return self._replace(start=self.start + steps, stop=self.stop + steps)


class _Fusion:
    """Operations of a pass, and which of them are one."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.same: dict[Value, Value] = {}  # values that an earlier operation has made
        self.sites: list[list[Op]] = []  # operations that do the same at each step
        self.site_of: dict[int, int] = {}  # by ids of operations
        self.elements: dict[Value, _StepRange] = {}  # one step each
        self.members: dict[tuple[int, int], list[Value]] = {}  # by site and position
        self.joined: dict[_StepRange, Value] = {}  # values of several steps
        self.ops = self._merge(self._after_writes(tape.ops))
        self._find_sites()
        self.fused = [self._all_steps(site) for site in range(len(self.sites))]  # the operation that takes all steps of a site

    # -- what is computed once ---------------------------------------------------------------------------------------------

    def _after_writes(self, ops: list[Op]) -> list[Op]:
        """Let operations that take what some operation writes into keep their order."""
        written = {effect for op in ops for effect in op.effects if isinstance(effect, Origin)}

        def taken(op: Op) -> set[object]:
            sources = [self.tape.sources.get(value.number) for value in leaves((op.args, op.kwargs))]
            states = {source.module for source in sources if source is not None and source.is_state}
            return states | {source for source in sources if source in written}

        return [op if op.module is not None else replace(op, effects=op.effects | taken(op)) for op in ops]

    def _merge(self, ops: list[Op]) -> list[Op]:
        """Leave out operations that an earlier one has done."""
        known: dict[object, int] = {}
        found: list[Op] = []
        repeats: Counter[int] = Counter()
        last: dict[object, int] = {}  # places of the operations that had an effect last
        for noted in ops:
            args, kwargs = self._first((noted.args, noted.kwargs))
            op = self._usual(replace(noted, args=args, kwargs=kwargs))
            # A batch norm in training mode gives the same values again, and changes its running statistics again.
            is_pure = not op.effects or (op.name == "batch_norm" and "generator" not in op.effects)
            key = _key((op.function, op.args, op.kwargs)) if is_pure and op.module is None else None
            place = None if key is None else known.get(key)
            if place is None or any(last.get(effect, place) != place for effect in op.effects):
                if key is not None:
                    known[key] = len(found)
                last.update(dict.fromkeys(op.effects, len(found)))
                found.append(op)
            else:
                self.same.update(zip(leaves(op.output), leaves(found[place].output), strict=True))
                repeats.update([place] if op.effects else [])
        for place, count in repeats.items():
            momentum = found[place].kwargs.get("momentum", 0.1)
            found[place] = replace(found[place], kwargs={**found[place].kwargs, "momentum": 1 - (1 - momentum) ** (count + 1)})
        return found

    def _first(self, tree: Any) -> Any:
        """Return a tree with the values that were made first in place of the same ones."""
        return mapped(lambda leaf: self.same.get(leaf, leaf), tree)

    def _usual(self, op: Op) -> Op:
        """Return an operation in its usual form: ``x.select(axis, step)`` as ``x[:, step]``, and views as reshapes.

        Outputs of all steps may lie in memory otherwise than those of one.
        """
        if op.name == "view" and not any(isinstance(arg, torch.dtype) for arg in (*op.args, *op.kwargs.values())):
            return replace(op, function=Tensor.reshape)
        if op.name == "repeat" and not op.kwargs and _repeats_whole(self.tape.shapes[op.args[0].number], op.args[1:]):
            return replace(op, function=Tensor.expand, args=(op.args[0], op.args[1], *[-1] * (len(op.args) - 2)))
        if op.name != "select" or len(op.args) != 3 or not all(isinstance(part, int) for part in op.args[1:]):
            return op
        values, axis, step = op.args
        index = (*[slice(None)] * (axis % len(self.tape.shapes[values.number])), step)
        return replace(op, function=Tensor.__getitem__, args=(values, index))

    # -- sites -------------------------------------------------------------------------------------------------------------

    def _find_sites(self) -> None:
        """Give each operation that differs from step to step to a site."""
        by_key: dict[object, int] = {}
        calls = Counter(_called(op) for op in self.ops if op.effects)
        chained = {op.module for op in self.ops if op.call is not None and op.call.follows}
        runs: Counter[nn.Module] = Counter()
        for op in self.ops:
            if op.module is not None and op.module in chained and not (op.call and op.call.follows):
                runs[op.module] += 1  # from other states
            is_alone = bool(op.effects) and calls[_called(op)] == 1  # one call gives the values of all steps
            key = (op.module, runs[op.module]) if op.module is not None else self._site_key(op, is_alone)
            if key is None or (op.module is not None and is_alone):
                continue
            if key not in by_key:
                by_key[key] = len(self.sites)
                self.sites.append([])
            site = by_key[key]
            for position, value in enumerate(_outputs(op)):
                place, index = (0, position) if op.name == "unbind" else (position, len(self.sites[site]))
                self.elements[value] = _StepRange(site, place, index, index + 1)
                self.members.setdefault((site, place), []).append(value)
            self.sites[site].append(op)
            self.site_of[id(op)] = site

    def _site_key(self, op: Op, is_alone: bool) -> object | None:
        """Return what the operations of a site share; None for an operation that all steps share."""
        is_stepped = any(value in self.elements for value in leaves((op.args, op.kwargs)))
        if not is_stepped and op.name == "unbind" and op.args:
            return op.args[0], len(self.sites)
        if not is_stepped and op.name == "__getitem__" and (place := _place(op.args[1])) is not None:
            return _key((op.args[0], _put(op.args[1], place, "step"), place))
        if not is_stepped and (is_alone or not op.effects):
            return None

        def kind(leaf: Value) -> object:
            element = self.elements.get(leaf)
            return leaf if element is None else ("step", element.site, element.position)

        return _key((op.function, mapped(kind, (op.args, op.kwargs)), sorted(map(str, op.effects))))

    def _all_steps(self, site: int) -> Op | None:
        """Return the operation that takes all steps of a site; None if they run one by one."""
        first = self.sites[site][0]
        if first.name == "unbind":
            return Op(all_steps, first.args, first.kwargs, self._whole(site, 0))
        if len(self.sites[site]) == 1:
            return None
        if first.module is not None:
            return self._neuron(site)
        if first.name == "__getitem__" and first.args[0] not in self.elements:
            return self._walk(site)
        return None if first.effects else self._function(site)

    def _function(self, site: int) -> Op | None:
        """Return a function of torch over all steps."""
        ops, shapes = self.sites[site], self.tape.shapes
        first = ops[0]
        given = [self._over(column) for column in zip(*(leaves((op.args, op.kwargs)) for op in ops), strict=True)]
        made = {shapes[value.number] for op in ops for value in _outputs(op)}
        if None in given or len(made) > 1 or not isinstance(first.output, Value):
            return None
        pairs = list(zip(given, leaves((first.args, first.kwargs)), strict=True))
        stepped = [shapes[value.number] for over, value in pairs if isinstance(over, _StepRange)]
        fixed = [shapes[value.number] for over, value in pairs if isinstance(over, Value)]
        leads = isinstance(given[0], _StepRange) and len(first.args) > 0 and isinstance(first.args[0], Value)
        mixes = first.kwargs.get("return_indices") or any(isinstance(arg, torch.dtype) for arg in first.args)
        if first.name == "layer_norm":  # a norm over the samples too
            mixes = len(first.args) < 2 or len(first.args[1]) >= len(stepped[0])
        function = over_steps(first.function, stepped, fixed, made.pop(), leads and not mixes)
        if function is None:
            return None
        rest = iter(given)
        args, kwargs = mapped(lambda leaf: next(rest), (first.args, first.kwargs))
        return Op(function, args, kwargs, self._whole(site, 0))

    def _walk(self, site: int) -> Op | None:
        """Return the view of which a site takes one item after the other, as in ``x[:, step]``."""
        values, index = self.sites[site][0].args
        place = _place(index)
        assert place is not None
        items = [op.args[1][place] if isinstance(index, tuple) else op.args[1] for op in self.sites[site]]
        if items != list(range(items[0], items[0] + len(items))) or items[0] < 0:
            return None
        before, after = (index[:place], index[place + 1 :]) if isinstance(index, tuple) else ((), ())
        kept = sum(part is None or isinstance(part, slice) for part in (after if Ellipsis in before else before))
        taken = _put(index, place, slice(items[0], items[0] + len(items)))
        return Op(walk, (values, taken, -1 - kept if Ellipsis in before else kept), {}, self._whole(site, 0))

    def _neuron(self, site: int) -> Op | None:
        """Return the steps of a neuron as one operation."""
        ops = self.sites[site]
        first, call = ops[0], ops[0].call
        if call is None or call.stepper.takes_sequences or not all(op.call and op.call.follows for op in ops[1:]):
            return None
        assert first.module is not None
        x = self._over(tuple(op.args[0] for op in ops))
        # The states, and the spikes if they are none of them.
        states, own = first.output["states"], [value for value in _outputs(first) if value not in first.output["states"]]
        if x is None or len(own) > 1 or len({len(list(_outputs(op))) for op in ops}) > 1:
            return None
        places = {value: position for position, value in enumerate(_outputs(first))}
        made = [self._whole(site, places[value]) for value in (*own, *states)]
        output = made if own else [None, *made]
        args = (call.stepper, len(ops), first.args, self._first(call.states), x)
        effects = frozenset(effect for op in ops for effect in op.effects)
        return Op(partial(run_from_rest, first.module, scan) if call.from_rest else scan, args, {}, output, effects)

    def _whole(self, site: int, position: int) -> _StepRange:
        return _StepRange(site, position, 0, len(self.members[site, position]))

    def _over(self, column: tuple[Any, ...]) -> _StepRange | Value | None:
        """Return what an argument is over all steps: one value, or consecutive outputs of a site; None for anything else."""
        if len(set(column)) == 1:
            only: Value = column[0]
            return only
        elements = [self.elements.get(value) for value in column]
        first = elements[0]
        if first is None or elements != [first.later(step) for step in range(len(column))]:
            return None
        return first._replace(stop=first.start + len(column))

    # -- the plan ----------------------------------------------------------------------------------------------------------

    def plan(self) -> PassPlan:
        """Return the operations in an order in which they can run, without those that nobody needs."""
        while True:
            found = [*self._planned()]
            try:
                ordered = [found[place][0] for place in _order([op for op, _ in found])]
                break
            except CycleError as error:
                stuck = [site for place in error.args[1] if (site := found[place][1]) is not None]
                if not stuck:
                    raise UnplannedError("its operations have no order") from error
                for site in stuck:
                    self.fused[site] = None
        whole = PassPlan(ordered, self.tape.returned, self.same, self.tape.sources, {})
        needed = whole.part(whole.returned, with_states=True)
        return replace(needed, done=self._done(needed.ops))

    def _done(self, ops: list[Op]) -> dict[nn.Module, str]:
        """Return what is done with the calls of each layer and neuron."""
        calls = Counter(module for op in self.tape.ops if (module := self._module(op)) is not None)
        operations = Counter(op.module for op in ops)
        steps = {op.module: op.call.steps for op in self.tape.ops if op.module is not None and op.call is not None}
        return {
            module: describe_calls(steps.get(module, 1) * count, operations[module], is_neuron=module in steps)
            for module, count in calls.items()
        }

    def _module(self, op: Op) -> nn.Module | None:
        """Return the neuron of an operation, or the layer whose parameters it takes."""
        if op.module is not None:
            return op.module
        sources = [self.tape.sources.get(value.number) for value in leaves((op.args, op.kwargs))]
        return next(
            (source.module for source in sources if source and source.module and source.name in source.module._parameters), None
        )

    def _planned(self) -> Iterator[tuple[Op, int | None]]:
        """Yield the operations of the plan, with those that put steps together and take them apart, and the sites that they are."""
        for op, site in [*self._operations()]:
            args, kwargs, output = map_tensors(self._join, (op.args, op.kwargs, op.output), _StepRange)
            yield replace(op, args=args, kwargs=kwargs, output=output), site
        for steps, value in [*self.joined.items()]:
            members = self.members[steps[:2]]
            if self.fused[steps.site] is None:
                yield Op(torch.stack, (members[steps.start : steps.stop],), {}, value), None
            elif steps == (whole := self._whole(steps.site, steps.position)):
                yield Op(torch.unbind, (value,), {}, members), None
            else:
                yield Op(Tensor.__getitem__, (self._join(whole), slice(steps.start, steps.stop)), {}, value), None

    def _join(self, steps: _StepRange) -> Value:
        """Return the value of some steps together."""
        return self.joined.setdefault(steps, Value(len(self.tape.shapes) + len(self.joined)))

    def _operations(self) -> Iterator[tuple[Op, int | None]]:
        """Yield the operations, each where its first step is, and the sites that they are."""
        done = set[int]()
        for op in self.ops:
            site = self.site_of.get(id(op))
            if site is not None and (fused := self.fused[site]) is not None:
                if site not in done:
                    done.add(site)
                    yield replace(fused, module=self._module(op)), site
            elif op.module is None:
                function = partial(once, op.function) if op.name == "linear" and op.args else op.function
                yield replace(op, function=function, module=self._module(op)), None
            else:
                call, function = op.call, op.function
                if call is not None and not call.can_repeat:
                    raise UnplannedError(f"it resets {title(self.tape.net, op.module)}, whose steps can't be taken at once")
                if call is not None and call.stepper.takes_sequences:
                    function = partial(answer_all, call.stepper)
                    function = partial(run_from_rest, op.module, function) if call.from_rest else function
                yield replace(op, function=function, output=op.output["output"], call=None), None


def plan_pass(tape: Tape) -> PassPlan:
    """Return the plan of a recorded pass; raises an UnplannedError for one that can only run as it is written."""
    if tape.refused:
        raise UnplannedError(tape.refused)
    return _Fusion(tape).plan()


def _order(ops: list[Op]) -> Iterator[int]:
    """Yield the places of operations in an order in which they can run; raises a CycleError if there is none."""
    makers = {value: place for place, op in enumerate(ops) for value in leaves(op.output)}
    sorter, last = TopologicalSorter[int](), dict[object, int]()
    for place, op in enumerate(ops):
        sorter.add(place, *(makers[value] for value in leaves((op.args, op.kwargs)) if value in makers))
        for effect in op.effects:
            sorter.add(place, *([last[effect]] if effect in last else []))
            last[effect] = place
    yield from sorter.static_order()


def _outputs(op: Op) -> Iterator[Value]:
    """Yield the values that an operation makes, once each."""
    yield from dict.fromkeys(leaves(op.output))


def _called(op: Op) -> object:
    """Return what an operation calls: a neuron, or a function with its arguments."""
    return op.module if op.module is not None else _key((op.function, op.args, op.kwargs))


def _repeats_whole(shape: Shape, times: tuple[Any, ...]) -> bool:
    """Return whether ``x.repeat(T, 1, 1)`` repeats a whole tensor of some shape along its first axis, or along a new one."""
    first, *rest = times if all(isinstance(time, int) for time in times) and times else (0,)
    return first > 0 and set(rest) <= {1} and (len(rest) == len(shape) or (len(rest) + 1 == len(shape) and shape[0] == 1))


def _place(index: Any) -> int | None:
    """Return the place of the one whole number among the indices of ``x[...]``; None if there is none, or several."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts):
        return None
    places = [place for place, part in enumerate(parts) if isinstance(part, int) and not isinstance(part, bool)]
    return places[0] if len(places) == 1 else None


def _put(index: Any, place: int, part: Any) -> Any:
    """Return indices with another one at a place."""
    return (*index[:place], part, *index[place + 1 :]) if isinstance(index, tuple) else part


def _key(tree: Any) -> object | None:
    """Return something hashable that is equal for equal arguments; None for arguments that can't be compared."""
    try:
        found = _hashable(tree)
        hash(found)
    except TypeError:
        return None
    return found


def _hashable(tree: Any) -> object:
    if isinstance(tree, slice):
        return "slice", tree.start, tree.stop, tree.step
    if isinstance(tree, dict):
        return "dict", *((key, _hashable(item)) for key, item in tree.items())
    if isinstance(tree, tuple | list):
        return type(tree).__name__, *map(_hashable, tree)
    return type(tree).__name__, tree
