"""Batch norms in training mode, which depend on all samples of a step and count the steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .fast_layer import FastLayer
from .sequence import condition_of, is_tracked


class FastNorm(FastLayer):
    """Forward of a batch norm: in training mode an output is given again only while the input is the same tensor.

    The running statistics are updated at each step, as the batch norm itself does.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the norm's output."""
        norm, x = self.module, args[0] if len(args) == 1 and not kwargs else None
        usable = norm.training and isinstance(x, Tensor) and is_tracked(x) and not torch.is_autocast_enabled(x.device.type)
        if x is None or not usable:
            return super().__call__(*args, **kwargs)
        self.calls += 1
        before = self.computed
        parameters: list[Tensor] = [part for part in norm._parameters.values() if part is not None]
        output = self.outputs(x, condition_of(parameters, training=True), found=None)
        if self.computed == before:
            self._update(x)
        return output

    @torch.no_grad()
    def _update(self, x: Tensor) -> None:
        """Count one more step in the running statistics.

        They are written through ``.data``: autograd keeps them, and would refuse a write that it counts, but uses them in
        evaluation mode alone.
        """
        norm: Any = self.module
        if not norm.track_running_stats:
            return
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        variance, mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1])
        norm.running_mean.data.lerp_(mean, share)
        norm.running_var.data.lerp_(variance, share)
