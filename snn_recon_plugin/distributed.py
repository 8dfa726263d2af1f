"""Rows of a program shared by several processes: sums over rows become sums over processes.

Every process (rank) holds some of the samples and all of the weights.  Sums are all-reduced, so all ranks run the same iterations
and end with the same bits.  Numbers that decide the next step are broadcast from rank 0, since processors may differ.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import DataError, OptionError, ProcessError, ReconstructionError, SolverError

T = TypeVar("T")


class SingleProcess:
    """A single process that holds all rows."""

    is_distributed = False
    rank = 0
    size = 1  # number of processes

    def local_count(self, count: int) -> int:
        """Return this process's number of so many samples that are dealt out one by one, from rank 0 on."""
        return len(range(self.rank, count, self.size))

    def global_indices(self, numbers: Tensor) -> Tensor:
        """Return the indices among the samples of all processes, if dealt out one by one, of some samples of this process."""
        return numbers * self.size + self.rank

    def total_rows(self, rows: int) -> int:
        """Return the number of rows of all processes, of which this one has ``rows``."""
        return rows

    def sum(self, value: Tensor, once: Tensor | None = None) -> Tensor:
        """Return the sum over all processes, with the same bits on all ranks, plus ``once``, which all have, a single time."""
        return value if once is None else value + once.to(value)

    def sum_pair(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over all processes of (C, A) and (C,), in one message."""
        return weight, bias

    def max(self, value: Tensor) -> Tensor:
        """Return the elementwise maximum over all processes."""
        return value

    def broadcast(self, value: Tensor) -> Tensor:
        """Return rank 0's value, bit for bit."""
        return value

    def broadcast_number(self, value: float) -> float:
        """Return rank 0's number, on which all ranks base the next step."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank: plain values and tensors on the CPU."""
        return [value]

    def gather_rows(self, rows: Tensor, places: Tensor) -> Tensor:
        """Return the rows of all processes, in ascending order of their places (n,) among those of all."""
        return rows

    def collect(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, in rank 0; no value in the others."""
        return [value]

    def broadcast_object(self, value: T, device: torch.device) -> T:
        """Return rank 0's value, of any type that pickles, with its tensors on a device."""
        return value

    def on_first(self, make: Callable[[], T], device: torch.device) -> T:
        """Return what ``make`` returns in rank 0, with its tensors on a device; an error is raised on all ranks."""
        made: T | None = None
        with self.share_errors():
            if self.rank == 0:
                made = make()
        return cast(T, self.broadcast_object(made, device))

    def check_equal(self, what: str, value: object) -> None:
        """Refuse processes that differ in something that must be the same on all ranks, by a DataError on all."""

    def check_device(self, features: Tensor) -> None:
        """Refuse tensors that the group's backend can't send, by a DataError."""

    @contextmanager
    def share_errors(self, *, ends: bool = False) -> Iterator[None]:
        """Raise an error on all ranks if one raises it, so that none waits for a rank that has left.

        Others get a SolverError.  With ``ends=True`` they get a ProcessError unless all errors are ReconstructionErrors: training
        may go on after these, and any other error ends it.
        """
        yield


class Shards(SingleProcess):
    """Rows shared by the processes of a group, each with its own; no row is counted twice.

    Args:
        group: process group of ``torch.distributed``; default all processes.

    Raises:
        OptionError: ``torch.distributed`` is not initialised.

    Example:
        >>> from snn_recon_plugin.convex import Features, Problem, solve
        >>> store = dist.HashStore()  # under torchrun init_process_group("gloo") is enough
        >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> features = Features(torch.eye(4), shards=Shards())  # each process its own rows
        >>> solution = solve(Problem(features, torch.tensor([0, 1, 1, 0]), num_outputs=2))  # the same bits in all
        >>> solution.certificate.reached
        True
        >>> dist.destroy_process_group()
    """

    is_distributed = True

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            fix = "call torch.distributed.init_process_group('gloo') first, in processes started by torchrun"
            raise OptionError("rows spread over processes in a single process", "torch.distributed, initialised", fix)
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._first = 0 if group is None else dist.get_global_rank(group, 0)
        on_gpu = dist.get_backend(group) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def _call(self, exchange: Callable[..., object], *arguments: object) -> None:
        """Run one exchange of the group; a process that has gone, or a timeout, is a ProcessError."""
        try:
            exchange(*arguments, group=self._group)
        except RuntimeError as error:
            raise ProcessError(
                f"a process that does not answer: {str(error).strip().splitlines()[0]}",
                "all processes alive until the solve has ended",
                "fix the first error in the output of the other processes; if one of them is only slow, pass a longer timeout= to "
                "init_process_group, or to Lightning's DDPStrategy",
            ) from error

    def _reduced(self, value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        result = value.detach().clone().contiguous()
        self._call(dist.all_reduce, result, operation)
        return result

    def total_rows(self, rows: int) -> int:
        return int(self.sum(torch.tensor(rows, device=self._device)))

    def sum(self, value: Tensor, once: Tensor | None = None) -> Tensor:
        return self._reduced(value if once is None or self.rank else value + once.to(value), dist.ReduceOp.SUM)

    def sum_pair(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        both = self.sum(torch.cat([weight, bias[:, None]], 1))
        return both[:, :-1].contiguous(), both[:, -1].contiguous()

    def max(self, value: Tensor) -> Tensor:
        return self._reduced(value, dist.ReduceOp.MAX)

    def broadcast(self, value: Tensor) -> Tensor:
        result = value.detach().clone().contiguous()
        self._call(dist.broadcast, result, self._first)
        return result

    def broadcast_number(self, value: float) -> float:
        return float(self.broadcast(torch.tensor(value, dtype=torch.float64, device=self._device)))

    def gather(self, value: T) -> list[T]:
        found = [value] * self.size
        self._call(dist.all_gather_object, found, value)
        return found

    def gather_rows(self, rows: Tensor, places: Tensor) -> Tensor:
        # Copies, since a view would travel with all that it is a part of.
        parts = self.gather((rows.to("cpu", copy=True), places.to("cpu", copy=True)))
        order = torch.cat([each for _, each in parts]).argsort()
        return torch.cat([each for each, _ in parts])[order].to(rows.device)

    def collect(self, value: T) -> list[T]:
        found = [value] * self.size if self.rank == 0 else None
        self._call(dist.gather_object, value, found, self._first)
        return found or []

    def broadcast_object(self, value: T, device: torch.device) -> T:
        file = io.BytesIO()
        if self.rank == 0:
            torch.save(value, file)
        message = [file.getvalue()]
        self._call(dist.broadcast_object_list, message, self._first)
        if self.rank == 0:
            return value
        result: T = torch.load(io.BytesIO(message[0]), map_location=device, weights_only=False)
        return result

    def check_equal(self, what: str, value: object) -> None:
        found = self.gather(value)
        if any(other != found[0] for other in found):
            text = ", ".join(f"{other} in process {rank}" for rank, other in enumerate(found))
            raise DataError(f"{what}: {text}", "the same in all processes", "check what each process passes")

    def check_device(self, features: Tensor) -> None:
        if self._device.type == "cuda" and features.device.type != "cuda":
            fix = "move the features there, or call init_process_group('gloo')"
            raise DataError(f"features on {features.device} for an nccl process group", "features on the GPU", fix)

    @contextmanager
    def share_errors(self, *, ends: bool = False) -> Iterator[None]:
        error: Exception | None = None
        try:
            yield
        except ProcessError:
            raise  # no further exchange can succeed
        except Exception as caught:
            error = caught
        refused = isinstance(error, ReconstructionError)
        found = self.gather(None if error is None else (refused, str(error)))
        failed = sorted((entry[0], rank, entry[1]) for rank, entry in enumerate(found) if entry is not None)
        ended = ends and bool(failed) and not failed[0][0]  # an unexpected error comes first
        if error is not None and not (ended and refused):
            raise error
        for _, rank, text in failed:
            kind = ProcessError if ended else SolverError
            raise kind(f"an error in process {rank}: {text}", "valid rows in every process", "fix the error of that process")


SINGLE_PROCESS = SingleProcess()
