"""Forward that stands in place of a module's own: it records a pass for each kind of input, and runs its plan from then on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ..networks.calls.batches import map_tensors, tensors_in
from .fuse import UnplannedError, plan_pass
from .plan import PassPlan
from .tape import is_plain, record_pass, steppers_of

_MOST = 64  # kinds of inputs, such as lengths, that are planned for
_REFUSED = 3  # records that have no plan, until no more are made


class FastPass:
    """A function that runs a net, with a plan for each kind of input.

    A plan holds for inputs of the same shapes, types and numbers, for the same modes, and for modules with the same attributes.

    Args:
        net: whose layers run.
        run: the function.
    """

    def __init__(self, net: nn.Module, run: Any) -> None:
        self.net, self.run = net, run
        self.plans: dict[Hashable, PassPlan | None] = {}
        self.reason = ""  # why the last record has no plan
        self._refused = 0  # records without
        self._modules = list(net.modules())
        self._steppers = steppers_of(net)
        inside = {part for neuron in self._steppers for part in neuron.modules()}
        self._own = [module for module in self._modules if module not in inside]
        found = (getattr(neuron, "_memories", None) for neuron in self._steppers)  # states of SpikingJelly
        self._memories = [memories for memories in found if isinstance(memories, dict)]
        self._hooked = [*self._own, *self._steppers]  # modules whose hooks are the user's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        inputs = list(tensors_in([args, kwargs]))
        key = self._key(args, kwargs, inputs)
        found = self.plans.get(key)
        if found is not None:
            return found.run(inputs)
        if key is None or key in self.plans or len(self.plans) >= _MOST or self._refused >= _REFUSED:
            return self.run(*args, **kwargs)
        output, tape = record_pass(self.net, self._steppers, self.run, args, kwargs)
        try:
            self.plans[key] = plan_pass(tape)
        except UnplannedError as refusal:
            self.plans[key], self.reason = None, str(refusal)
            self._refused += 1
        return output

    def _key(self, args: Any, kwargs: Any, inputs: list[Tensor]) -> Hashable | None:
        """Return what a plan depends on; None if the function has to run as it is, as with hooks of the user."""
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks or torch.is_inference_mode_enabled():
            return None
        if any(module._forward_hooks or module._forward_pre_hooks for module in self._hooked):
            return None
        if not is_plain((args, kwargs)) or not all(_is_usual(tensor) for tensor in inputs):
            return None
        modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
        kinds = [(tensor.shape, tensor.dtype, tensor.device, tensor.stride(), tensor.requires_grad) for tensor in inputs]
        same = [next(place for place, other in enumerate(inputs) if other is tensor) for tensor in inputs]
        rest = repr(map_tensors(lambda tensor: None, (args, kwargs)))
        holds = [isinstance(state, Tensor) for memories in self._memories for state in memories.values()]
        training = [module.training for module in self._modules]
        return rest, modes, *kinds, *same, *holds, *training, *map(_attributes, self._own)


def _attributes(module: nn.Module) -> tuple[Hashable, ...]:
    """Return attributes and parts of a module, numbers by value and others by identity."""
    own = (value if isinstance(value, int | float | str) else id(value) for value in vars(module).values())
    return (*own, *map(id, module._modules.values()))


def _is_usual(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_inference()


class Installed(FastPass):
    """Forward of a module, set on the instance."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, module.forward)
        self._hooked.remove(module)  # whose hooks run around its forward
        self.module = module
        self.__wrapped__ = module.forward  # ``inspect.signature`` shows its arguments

    def __reduce__(self) -> Any:
        """Let copies and pickles of the net run the module's own code."""
        return _own_forward, (self.module,)


def _own_forward(module: nn.Module) -> Any:
    """Return the forward of a module's class."""
    return MethodType(type(module).forward, module)


def install(modules: Iterable[nn.Module]) -> list[Installed]:
    """Set a forward with plans in place of the modules' own."""
    found = []
    for module in modules:
        vars(module)["forward"] = faster = Installed(module)
        found.append(faster)
    return found


def uninstall(installed: Iterable[Installed]) -> None:
    """Give modules back their own forwards."""
    for faster in installed:
        if vars(faster.module).get("forward") is faster:
            del vars(faster.module)["forward"]
