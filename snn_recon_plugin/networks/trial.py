"""Let a net run with other parameter values without touching the user's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from ..errors import UnsupportedModuleError, WriteError

__all__ = ["trial_parameters"]


@contextmanager
def trial_parameters(values: Mapping[tuple[nn.Module, str], Tensor]) -> Iterator[None]:
    """Hang other parameters on modules until the block ends, then the original objects again.

    An optimizer, a tied module or an outside reference keeps seeing the originals all the while.

    Args:
        values: for each module and parameter name the value to run with, of the parameter's shape.  Values are
            used as they are, in the parameter's dtype and on its device.

    Yields:
        Nothing.

    Raises:
        UnsupportedModuleError: if a module has no plain parameter of that name.
        WriteError: if a value has another shape than the parameter.
    """
    for (module, name), value in values.items():
        current = module._parameters.get(name)
        if current is None:
            raise UnsupportedModuleError(
                f"{type(module).__name__} without a plain parameter {name!r}",
                "a parameter of that name that no parametrization or pruning computes",
                "remove the parametrization first, e.g. torch.nn.utils.parametrize.remove_parametrizations",
            )
        if current.shape != value.shape:
            raise WriteError(
                f"a value of shape {list(value.shape)} for {name!r}",
                f"the shape {list(current.shape)}",
                "give a value of the parameter's shape",
            )
    with ExitStack() as stack:
        for (module, name), value in values.items():
            original = module._parameters[name]
            assert original is not None
            stack.callback(module._parameters.__setitem__, name, original)
            module._parameters[name] = nn.Parameter(value.detach().to(original), requires_grad=False)
        yield
