"""A device that behaves like a GPU and needs none: its tensors hold values on the CPU, and say that they are elsewhere.

Operations on tensors of both kinds fail as on a GPU, and so do a CPU's random generator and ``numpy()``.  Transfers are counted.
"""

import sys
from collections import Counter
from contextlib import ExitStack
from functools import partial
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
_ATEN = torch.ops.aten
# A GPU takes indices from the CPU, and copies from there.
_MIXED = {_ATEN.copy_.default, _ATEN._to_copy.default, _ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default}
_READ = {_ATEN._local_scalar_dense.default, _ATEN.equal.default}


class Remote(torch.Tensor):
    """A tensor of the simulated device."""

    @staticmethod
    def __new__(cls, inner):
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        found = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **shape, dtype=inner.dtype, device=DEVICE)
        found.inner = inner
        return found

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise AssertionError(f"{operation} outside of the simulation")

    def __repr__(self):
        return f"Remote({tuple(self.shape)})"

    def numpy(self, *, force=False):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    def new_tensor(self, value, *, dtype=None):
        return torch.tensor(value, dtype=dtype or self.dtype).to(DEVICE)

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()


for _name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__"):
    setattr(Remote, _name, lambda self, name=_name: getattr(self.cpu(), name)())


class _FromData(TorchFunctionMode):
    """Functions that make a tensor of numbers do so on the CPU first: they bypass the other mode."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function not in (torch.tensor, torch.as_tensor):
            return function(*args, **kwargs)
        wanted = kwargs.pop("device", None)
        if wanted is None or isinstance(args[0], torch.Tensor):
            return function(*args, **kwargs) if wanted is None else args[0].to(wanted, kwargs.get("dtype"))
        return function(*args, **kwargs).to(wanted)


def _caller():
    """Return the line of the package that called, as file:line."""
    frame = sys._getframe(2)
    while frame is not None and "snn_recon_plugin/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename.rpartition('snn_recon_plugin/')[2]}:{frame.f_lineno}"


class Simulation(TorchDispatchMode):
    """Context in which the device exists; ``transfers`` counts values and tensors that went to the CPU, by line of the package."""

    def __init__(self):
        super().__init__()
        self.transfers = Counter()

    def __enter__(self):
        self._others = ExitStack()
        self._others.enter_context(_FromData())
        # The device's real type has no autocast.
        known = torch.is_autocast_enabled
        self._others.enter_context(mock.patch("torch.is_autocast_enabled", lambda kind="cpu": kind != DEVICE.type and known(kind)))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._others.close()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat = tree_flatten((args, kwargs))[0]
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        remote = any(isinstance(value, Remote) for value in tensors)
        wanted = kwargs.get("device")
        there = remote if wanted is None else torch.device(wanted).type == DEVICE.type
        if remote and operation not in _MIXED:
            self._check(operation, tensors)
        if operation is _ATEN.copy_.default:
            there = isinstance(args[0], Remote)
        if there and isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"{operation}: expected a 'cuda' device type for generator but found 'cpu'")
        if remote and (operation in _READ or not there):
            self.transfers[_caller()] += 1
        if wanted is not None and there:
            kwargs["device"] = torch.device("cpu")
        unwrap = partial(tree_map_only, Remote, lambda value: value.inner)
        found = operation(*unwrap(args), **unwrap(kwargs))
        if not there or operation in _READ:
            return args[0] if operation is _ATEN.copy_.default else found
        if operation is _ATEN._to_copy.default and not remote:
            found = found.clone() if found is args[0] else found
        wrapped = tree_map_only(torch.Tensor, Remote, found)
        return return_and_correct_aliasing(operation, args, kwargs, wrapped) if remote else wrapped

    @staticmethod
    def _check(operation, tensors):
        here = [value for value in tensors if not isinstance(value, Remote) and value.dim() > 0]
        if here:
            shapes = [tuple(value.shape) for value in here]
            raise RuntimeError(f"{operation}: expected all tensors to be on the same device, found {shapes} on the CPU")
