"""Forward that stands in place of a module's own: it records a pass for each kind of input, and runs its plan from then on."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from ..networks.calls.batches import map_tensors, tensors_in
from ..networks.libraries import parts_of_neurons
from .fuse import UnplannedError, plan_pass
from .plan import PassPlan
from .surroundings import surroundings_of
from .tape import autocast_is_on, is_plain, record_pass, steppers_of, title

_MOST = 64  # kinds of inputs, such as lengths, that are planned for
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ALL_HOOKS = [getattr(torch_module, f"_global{hooks}") for hooks in _HOOKS]
_REFUSED = 3  # records that have no plan, until no more are made


class FastPass:
    """A function that runs a net, with a plan for each kind of input.

    A plan holds for inputs of the same shapes, types and numbers, for the same modes, and for modules with the same attributes; of
    the net itself those that it ``reads``, or all.
    """

    module: nn.Module | None = None  # whose forward the function is: its hooks run around it

    def __init__(self, net: nn.Module, run: Any, reads: Collection[str] | None = None) -> None:
        self.net, self.run, self._reads = net, run, reads
        self.plans: dict[Hashable, PassPlan | None] = {}
        self.reason = ""  # why there was no plan last
        self._refused = 0  # records without
        self._modules: list[nn.Module] = []
        self._hooked: list[nn.Module] = []  # modules whose hooks are the user's

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        if not torch.compiler.is_compiling() and not self.gives_up:
            inputs = list(tensors_in([args, kwargs]))
            key = self.key_of(args, kwargs, inputs)
            found = self.plans.get(key)
            if found is not None:
                return found.run(inputs)
            if self.can_plan(key):
                return self.record(key, args, kwargs)
        return self.run(*args, **kwargs)

    @property
    def gives_up(self) -> bool:
        """True after some records, none of which has a plan."""
        return self._refused >= _REFUSED and not any(self.plans.values())

    def can_plan(self, key: Hashable | None) -> bool:
        """Return whether a pass may be recorded."""
        return key is not None and key not in self.plans and len(self.plans) < _MOST and self._refused < _REFUSED

    def record(self, key: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the function returns, and make a plan of the pass."""
        output, tape = record_pass(self.net, steppers_of(self.net), self.run, args, kwargs)
        try:
            self.plans[key] = plan_pass(tape)
        except UnplannedError as refusal:
            self.refuse(key, str(refusal))
        return output

    def refuse(self, key: Hashable, reason: str) -> None:
        """Let the function itself run for inputs of a kind."""
        self.plans[key], self.reason = None, reason
        self._refused += 1

    def key_of(self, args: Any, kwargs: Any, inputs: list[Tensor]) -> Hashable | None:
        """Return what a plan depends on; None if the function has to run as it is, as with hooks of the user."""
        modules = list(self.net.modules())
        if modules != self._modules:
            self._modules, inside = modules, parts_of_neurons(self.net)
            self._hooked = [module for module in modules if module not in inside and module is not self.module]
        hooked = next((module for module in self._hooked if any(getattr(module, hooks) for hooks in _HOOKS)), None)
        reason = "hooks of all modules are set" if any(_ALL_HOOKS) else _transformed()
        if hooked is not None:
            reason = f"{title(self.net, hooked)} has hooks"
        usual = (type(x) in (Tensor, nn.Parameter) and x.layout is torch.strided and not x.is_inference() for x in inputs)
        if not is_plain((args, kwargs)) or not all(usual):
            reason = "its inputs are no plain tensors"
        if reason:
            self.reason = reason
            return None
        rest = repr(map_tensors(lambda tensor: None, (args, kwargs)))
        around = surroundings_of(self.net, self.run, inputs, reads=self._reads)
        return rest, torch.is_grad_enabled(), torch.get_default_dtype(), *around.items()


def _transformed() -> str:
    """Return what else than a plain pass goes on: autocast, inference mode, a trace, or a function of torch.func; "" if nothing."""
    if autocast_is_on():
        return "autocast is on"
    traced = torch._C._get_tracing_state() is not None or torch._C._functorch.maybe_current_level() is not None
    odd = traced or torch.is_inference_mode_enabled() or forward_ad._current_level >= 0
    return "inference mode, a trace or torch.func is on" if odd else ""


class Installed(FastPass):
    """Forward of a module, set on the instance."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, module.forward)
        self.module = module
        self.__wrapped__ = module.forward  # ``inspect.signature`` shows its arguments

    def __reduce__(self) -> Any:
        """Let copies and pickles of the net run the module's own code."""
        return getattr, (self.module, "forward")  # of a copy that has no attributes yet, so its class's


def install(modules: Iterable[nn.Module]) -> list[Installed]:
    """Set a forward with plans in place of the modules' own."""
    installed = [Installed(module) for module in modules]
    for faster in installed:
        vars(faster.module)["forward"] = faster
    return installed


def uninstall(installed: Iterable[Installed]) -> None:
    """Give modules back their own forwards."""
    for faster in installed:
        if vars(faster.module).get("forward") is faster:
            del vars(faster.module)["forward"]
