"""One of several processes that share a program's rows; test_distributed.py starts them and reads what they save."""

import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from snn_recon_plugin.convex import Features, HeldOutRows, Problem, Shards, solve, solve_path
from snn_recon_plugin.errors import ReconstructionError

PARTS = (slice(0, 50), slice(50, 80), slice(80, 90), slice(90, 90))  # uneven, the last one without rows
CASES = [
    (loss, penalty, penalty == "l1")  # l1 on spikes, the others on floats
    for loss in ("cross_entropy", "logistic", "squared", "squared_hinge")
    for penalty in ("group_l1", "l1", "ridge")
]


def data(spikes=False):
    """(90, 60) features, and labels; the last process with rows lacks classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 4
    labels[80:] = torch.arange(10) % 2
    centres = torch.randn(4, 60, generator=generator)
    features = centres[labels] + 1.5 * torch.randn(90, 60, generator=generator)
    return ((features > 0.5).to(torch.uint8) if spikes else features), labels


def solved(features_of, rows, loss, penalty, spikes):
    features, labels = data(spikes)
    outputs = None if loss == "cross_entropy" else 4
    problem = Problem(features_of(features[rows], 0.7), labels[rows], loss=loss, penalty=penalty, num_outputs=outputs)
    # Within a gap of 1e-9 the weights of a smooth program may still differ in the fifth digit.
    return solve(problem.with_strength(0.05 * problem.critical_strength()), tol=1e-12 if penalty == "ridge" else 1e-9)


def path_of(features_of, rows, held):
    features, labels = data()
    problem = Problem(features_of(features[rows], 0.7), labels[rows], penalty="group_l1", num_outputs=4)
    return solve_path(problem, HeldOutRows(features[held], labels[held], 0.7), tol=1e-10)


def with_margins(features_of, rows):
    """The last rows all have their margins, so the curvatures of all classes are equal in their process alone."""
    features, labels = data()
    features[80:] = 100 * torch.randn(4, 60, generator=torch.Generator().manual_seed(0))[labels[80:]]
    problem = Problem(features_of(features[rows], 1.0), labels[rows], loss="squared_hinge", penalty="l1", num_outputs=4)
    return solve(problem.with_strength(0.01 * problem.critical_strength()), tol=1e-8).certificate.primal


def everything(features_of, rows):
    """Results that must be equal in all processes."""
    found = {}
    for loss, penalty, spikes in CASES:
        solution = solved(features_of, rows, loss, penalty, spikes)
        found[loss, penalty, spikes] = (solution.weight, solution.bias, solution.certificate, solution.outcome.name)
    half = range(*rows.indices(90))
    fitted, held = (torch.tensor([k for k in half if (k % 3 == 0) is held], dtype=torch.int64) for held in (False, True))
    path = path_of(features_of, fitted, held)
    found["path"] = [(p.strength, p.heldout_loss, p.heldout_error, p.heldout_accuracy) for p in path.points]
    found["best"] = path.best
    found["margins"] = with_margins(features_of, rows)
    weights = 1.0 + (torch.arange(90) % 5)
    features, labels = data()
    problem = Problem(features_of(features[rows], 1.0, weights[rows]), labels[rows], penalty="ridge", strength=0.1, num_outputs=4)
    found["weighted"] = solve(problem, tol=1e-12).weight
    found["accuracy"] = problem.accuracy(found["weighted"], torch.zeros(4))
    return found


def exchanged(rank):
    """Sums and maxima of short and long tensors, and what rank 0 collects."""
    shards, values = Shards(), {"short": torch.arange(5.0), "long": torch.arange(2.0**18)}
    found = {name: (shards.sum(value * (rank + 1)), shards.max(value * (rank + 1))) for name, value in values.items()}
    return {**found, "collected": shards.collect(rank)}


def raised_by(action):
    try:
        action()
    except ReconstructionError as error:
        return type(error).__name__, str(error)


def errors(rank):
    """Errors of this process if one process has bad rows."""
    features, labels = data()
    rows = PARTS[rank]
    bad = features[rows].clone()
    if rank == 1:
        bad[0, 0] = math.nan
    wide = features[rows, : 59 if rank == 2 else 60]
    wrong = labels[rows] + (10 if rank == 0 else 0)
    few = Features(features[rows], shards=Shards())
    tries = {
        "nan": lambda: Features(bad, shards=Shards()),
        "width": lambda: Features(wide, shards=Shards()),
        "bias": lambda: Features(features[rows], None if rank else 1.0, shards=Shards()),
        "labels": lambda: Problem(few, wrong, num_outputs=4),
        "kinks": lambda: Problem(few, labels[rows], loss="hinge", num_outputs=4),
        "alike": lambda: Shards().check_equal("ranks", rank),
        "solver": lambda: solve(Problem(few, labels[rows], num_outputs=4), solver="clarabel"),
    }
    raised = {name: raised_by(action) for name, action in tries.items()}
    stopped = solve(
        Problem(few, labels[rows], penalty="l1", strength=1e-4, num_outputs=4), tol=1e-12, time_limit=1e-9 if rank == 0 else 1e9
    )
    return {**raised, "time": stopped.outcome.name}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=len(PARTS))

    def features_of(features, column, weights=None):
        return Features(features, column, weights, shards=Shards())

    group = dist.new_group(list(range(len(PARTS))))
    assert float(Shards(group).sum(torch.tensor(2.0))) == 2.0 * len(PARTS)
    torch.save((everything(features_of, PARTS[rank]), errors(rank), exchanged(rank)), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
