"""Rows of a program spread over processes: what is summed over rows is summed over processes too.

Every process holds some of the samples and all of the weights.  Products with the features' transpose, losses and dual values are
all-reduced, so that all processes go through the same iterations with the same numbers and end with the same bits.  Numbers that
decide where to go on are rank 0's: the rest of the arithmetic is the same in all of them, but processors may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import DataError, OptionError, SolverError

__all__ = ["ALONE", "Alone", "Shards"]


class Alone:
    """All rows are in this process."""

    spread = False

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return value

    def largest(self, value: Tensor) -> Tensor:
        """The elementwise maximum over all processes."""
        return value

    def same(self, value: Tensor) -> Tensor:
        """What rank 0 has, bit for bit."""
        return value

    def decided(self, value: float) -> float:
        """What rank 0 has: what all processes go on by."""
        return value

    def alike(self, what: str, value: object) -> None:
        """Refuses processes that differ in something that has to be the same in all."""

    def check_device(self, features: Tensor) -> None:
        """Refuses tensors that the group's backend can't send."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """What raises an error in one process raises one in all: none waits for another that has left."""
        yield


class Shards(Alone):
    """Rows spread over the processes of a group, each with some of its own; none is counted twice.

    Args:
        group: of ``torch.distributed``; default all processes.

    Raises:
        OptionError: ``torch.distributed`` is not initialised.

    Example:
        >>> from snn_recon_plugin.convex import Design, Problem, solve
        >>> store = dist.HashStore()  # under torchrun init_process_group("gloo") is enough
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> design = Design(torch.eye(4), shards=Shards())  # each process its own rows
        >>> solution = solve(Problem(design, torch.tensor([0, 1, 1, 0]), num_outputs=2))  # the same bits in all
        >>> solution.certificate.reached
        True
        >>> dist.destroy_process_group()
    """

    spread = True

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            fix = "call torch.distributed.init_process_group('gloo') first, in processes started by torchrun"
            raise OptionError("rows spread over processes in a single process", "torch.distributed, initialised", fix)
        self._group = group
        self._first = 0 if group is None else dist.get_global_rank(group, 0)
        on_gpu = dist.get_backend(group) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same bits in all of them."""
        result = value.detach().clone().contiguous()
        dist.all_reduce(result, dist.ReduceOp.SUM, self._group)
        return result

    def largest(self, value: Tensor) -> Tensor:
        """The elementwise maximum over all processes."""
        result = value.detach().clone().contiguous()
        dist.all_reduce(result, dist.ReduceOp.MAX, self._group)
        return result

    def same(self, value: Tensor) -> Tensor:
        """What rank 0 has, bit for bit."""
        result = value.detach().clone().contiguous()
        dist.broadcast(result, self._first, self._group)
        return result

    def decided(self, value: float) -> float:
        """What rank 0 has: what all processes go on by."""
        return float(self.same(torch.tensor(value, dtype=torch.float64, device=self._device)))

    def alike(self, what: str, value: object) -> None:
        """Refuses processes that differ in something that has to be the same in all.

        Raises:
            DataError: in all of them.
        """
        found: list[object] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(found, value, self._group)
        if any(other != found[0] for other in found):
            text = ", ".join(f"{other} in process {rank}" for rank, other in enumerate(found))
            raise DataError(f"{what}: {text}", "the same in all processes", "check what each process passes")

    def check_device(self, features: Tensor) -> None:
        """Refuses tensors that the group's backend can't send.

        Raises:
            DataError: features on the CPU for a backend of GPUs.
        """
        if self._device.type == "cuda" and features.device.type != "cuda":
            fix = "move the features there, or call init_process_group('gloo')"
            raise DataError(f"features on {features.device} for processes that talk by nccl", "features on the GPU", fix)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What raises an error in one process raises one in all: none waits for another that has left."""
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        found: list[str | None] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(found, None if error is None else str(error), self._group)
        if error is not None:
            raise error
        for rank, text in enumerate(found):
            if text is not None:
                raise SolverError(f"an error in process {rank}: {text}", "rows that will do in every process", "see that process")


ALONE = Alone()
