"""A run of a user's training step that only shows what its losses get: it ends where the net's loss goes backward.

Nothing but the private net runs or changes: optimizers, schedulers and gradient scalers that the step reaches do nothing, and the
net's modes stay as they are.
"""

from __future__ import annotations

import dis
import gc
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode

from ..convex import LOSSES
from ..networks.calls.batches import map_tensors

Step: TypeAlias = Callable[[nn.Module, Any], Any]

# Losses of torch by their functions.  Those that no program has are named in its refusal.
_FUNCTIONS: dict[Callable[..., Any], type[nn.Module]] = {
    **{function: module for kind in LOSSES.values() for module, function in kind.torch_losses.items()},
    functional.l1_loss: nn.L1Loss,
    functional.binary_cross_entropy: nn.BCELoss,
    functional.multilabel_margin_loss: nn.MultiLabelMarginLoss,
}
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_NOT_OF_USERS = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])  # folders of code
# Functions by which a test decides: the largest of a row of scores.
_DECISIONS = {getattr(owner, name) for owner in (torch, Tensor) for name in ("argmax", "max", "topk")}
_SNNTORCH = "snntorch.functional.loss"  # its loss objects are seen as themselves, not as the losses of torch that they call


@dataclass(frozen=True)
class LossCall:
    """A call of a loss."""

    loss: object  # module of torch, or object of snnTorch; None for what a net returns in a step without a known loss
    scores: Any  # of a loss a tensor
    targets: Tensor
    value: Tensor


@dataclass
class Seen:
    """Calls of losses in a run of a step, in order."""

    calls: list[LossCall] = field(default_factory=list)
    total: Tensor | None = None  # loss of the net that the step returned, or took backward
    passed: int = 0  # tensors that went backward before, of other nets
    later: list[LossCall] = field(default_factory=list)  # calls between this and the next loss of the net that goes backward


class _Ended(BaseException):  # a step may catch every Exception
    """Raised where the net's loss goes backward: all that there is to see was seen."""


def watch_step(
    step: Step,
    net: nn.Module,
    batch: Any,
    ends: Callable[[Tensor], bool],
    decides: Callable[[Tensor], bool] = lambda _: False,
    *,
    shown: Seen | None = None,
) -> Seen:
    """Run a step on a private net, and return what its losses got.

    The run ends at a tensor that goes backward if ``ends`` is true of it, or whose largest value is taken if ``decides`` is.
    Others are passed over.  With ``shown``, which is filled and returned, the run goes on behind a loss in a loop, to the next one.
    """
    seen, first = Seen() if shown is None else shown, -1  # number of calls of losses where the net's goes backward

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal first
        for tensor in [tensors] if isinstance(tensors, Tensor) else tensors:
            if not ends(tensor):
                seen.passed += first < 0
                continue
            if first >= 0:
                seen.later = seen.calls[first:]
                raise _Ended
            first, seen.total = len(seen.calls), tensor
            if shown is None or not _in_loop(sys._getframe()):
                raise _Ended

    def gradients(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        backward(outputs)
        return tuple(torch.zeros_like(each) for each in ([inputs] if isinstance(inputs, Tensor) else inputs))

    returned: Any = None
    try:
        with _idle(net, backward, gradients), _seen_as_themselves(seen), _Losses(seen, backward, decides):
            returned = step(net, batch)
    except _Ended:
        pass
    except Exception:  # behind the loss gradients are missing
        if first < 0:
            raise
    if first >= 0:
        del seen.calls[first:]
        return seen
    if isinstance(returned, dict):
        returned = returned.get("loss")
    seen.total = returned if isinstance(returned, Tensor) else None
    return seen


def _in_loop(frame: FrameType | None) -> bool:
    """Return whether a call in a step stands in a loop of the user's code."""
    while frame is not None and frame.f_code is not watch_step.__code__:
        code, at = frame.f_code, frame.f_lasti
        jumps = () if code.co_filename.startswith(_NOT_OF_USERS) else dis.get_instructions(code)
        if any(each.opcode in _JUMPS and each.argval <= at <= each.offset for each in jumps):
            return True
        frame = frame.f_back
    return False


class _Losses(TorchFunctionMode):
    """Note the losses of torch, with their arguments, and what a test decides by."""

    def __init__(self, seen: Seen, backward: Callable[[Any], None], decides: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._seen, self._backward, self._decides = seen, backward, decides

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is Tensor.backward:
            return self._backward(args[0])
        if func in _DECISIONS and self._decides(args[0] if args else (kwargs or {})["input"]):
            raise _Ended
        result = func(*args, **(kwargs or {}))
        if func in _FUNCTIONS:
            given = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
            self._seen.calls.append(LossCall(_module(func, given), given["input"], given["target"], result))
        return result


def _module(function: Callable[..., Any], given: dict[str, Any]) -> nn.Module:
    """Return the loss module that stands for a call of a function."""
    kind = _FUNCTIONS[function]
    takes = inspect.signature(kind).parameters.keys() - {"size_average", "reduce", "input", "target"}
    return kind(**{name: value for name, value in given.items() if name in takes})


# -- what a step may reach -----------------------------------------------------------------------------------------------------


@contextmanager
def replaced(owner: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Give an object or a class other attributes, until the block ends."""
    before = {name: vars(owner)[name] for name in values if name in vars(owner)}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in values:
            if name in before:
                setattr(owner, name, before[name])
            elif name in vars(owner):
                delattr(owner, name)


@contextmanager
def kept_metrics() -> Iterator[None]:
    """Put back the states of all metrics of torchmetrics when the block ends: a test may hold them anywhere."""
    module = sys.modules.get("torchmetrics")
    metrics = [each for each in gc.get_objects() if module is not None and issubclass(type(each), module.Metric)]
    plain = (bool, int, list, Tensor, type(None))
    states = [{name: value for name, value in vars(metric).items() if isinstance(value, plain)} for metric in metrics]
    copies = map_tensors(Tensor.clone, states)
    try:
        yield
    finally:
        for metric, state in zip(metrics, copies, strict=True):
            vars(metric).update(state)


@contextmanager
def _seen_as_themselves(seen: Seen) -> Iterator[None]:
    """Note the loss objects of snnTorch in place of the losses of torch that they call."""
    module = sys.modules.get(_SNNTORCH)
    kinds = [] if module is None else [kind for kind in vars(module).values() if isinstance(kind, type)]

    def noting(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def noted(loss: Any, scores: Tensor, targets: Tensor) -> Tensor:
            before = len(seen.calls)
            value = call(loss, scores, targets)
            seen.calls[before:] = [LossCall(loss, scores, targets, value)]
            return value

        return noted

    with ExitStack() as stack:
        for kind in kinds:
            if "__call__" in vars(kind) and kind.__module__ == _SNNTORCH:
                stack.enter_context(replaced(kind, {"__call__": noting(vars(kind)["__call__"])}))
        yield


@contextmanager
def _idle(net: nn.Module, backward: Callable[..., None], gradients: Callable[..., Any]) -> Iterator[None]:
    """Let optimizers, schedulers and scalers do nothing, and keep the modes of a private net, until the block ends."""

    def nothing(self: Any, *args: Any, **kwargs: Any) -> None:
        return None

    held: list[tuple[dict[str, Any], list[Any]]] = []  # groups of an optimizer that steps, and their parameters

    def empty(optimizer: Any, args: Any, kwargs: Any) -> None:
        held.extend((group, group["params"]) for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["params"] = []

    def fill(*args: Any) -> None:
        while held:
            group, parameters = held.pop()
            group["params"] = parameters

    def unchanged(self: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return value

    def keep_modes(*args: Any, **kwargs: Any) -> nn.Module:
        return net

    scaler = {**dict.fromkeys(("step", "update", "unscale_"), nothing), "scale": unchanged}
    with ExitStack() as stack:
        # A step runs its closure, without parameters to change; schedulers give optimizers steps of their own.
        stack.callback(fill)
        stack.callback(register_optimizer_step_pre_hook(empty).remove)
        stack.callback(register_optimizer_step_post_hook(fill).remove)
        for kind, name in ((torch.optim.Optimizer, "zero_grad"), (torch.optim.lr_scheduler.LRScheduler, "step")):
            for each in (kind, *_subclasses(kind)):
                if name in vars(each):
                    stack.enter_context(replaced(each, {name: nothing}))
        stack.enter_context(replaced(torch.amp.GradScaler, scaler))
        stack.enter_context(replaced(torch.autograd, {"backward": backward, "grad": gradients}))
        stack.enter_context(replaced(net, dict.fromkeys(("train", "eval"), keep_modes)))  # a step may call net.train()
        yield


def _subclasses(kind: type) -> list[type]:
    found: list[type] = kind.__subclasses__()
    return list(dict.fromkeys([*found, *(inner for each in found for inner in _subclasses(each))]))
