"""Record of what the package writes and reports, to compare two versions of the code bit for bit.

A change that must not alter behaviour is checked by one run before and one after it on the same machine:

python -m benchmarks.golden --write before.json     record the checkout as it is
python -m benchmarks.golden --check before.json     run again, and list every difference

Other processors and other versions of torch round differently: compare
records of one machine only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.golden_runs import RUNS
from benchmarks.study import machine
from snn_recon_plugin import ConvexInitializer, ReconstructionError
from snn_recon_plugin.demo import build_network, load_digits_data
from tests.user_nets.catalogue import GROUPS
from tests.user_nets.data import digits
from tests.user_nets.idioms import IDIOMS
from tests.user_nets.record import Reading, UserNet

SEED, SAMPLES = 0, 120
SLOW = 8.0  # seconds from which a case is named
LONG = 12  # items from which a list is kept as a hash
Record = dict[str, Any]

# One line for each option that changes what is solved or written.
OPTIONS: dict[str, dict[str, Any]] = {
    "keep": {"hidden": "keep"},
    "rescale": {"hidden": "rescale"},
    "reconstruct": {"hidden": "reconstruct"},
    "many candidates": {"hidden": "reconstruct", "n_candidates": 200},
    **{f"witnesses {name}": {"hidden": "reconstruct", "witnesses": name} for name in ("traces", "gaussian", "relays")},
    **{f"loss {name}": {"loss": name} for name in ("logistic", "hinge", "squared_hinge")},
    **{f"penalty {name}": {"penalty": name} for name in ("group_l1", "l1")},
    **{f"hidden hinge, {name}": {"loss": "hinge", "penalty": name, "strength": 0.01} for name in ("group_l1", "l1")},
    "same loss": {"fit_loss": "same"},
    "fixed strength": {"strength": 0.01},
    "Clarabel": {"strength": 0.1, "solver": "clarabel", "max_samples": 60},
    "bounded": {"max_cost": 1e-9},
    **{f"readout {name}": {"readout": name} for name in ("membrane_sum", "membrane_last", "membrane_per_step", "membrane_max")},
}


def cases() -> dict[str, Callable[[], Record]]:
    """All cases by their names."""
    return dict(_cases())


def _cases() -> Iterator[tuple[str, Callable[[], Record]]]:
    for idiom in IDIOMS:
        for number, reading in enumerate(idiom.readings):
            for hidden in ("rescale", "reconstruct") if number == 0 else ("keep",):
                yield f"idiom | {idiom.name} | {reading.title} | {hidden}", partial(run_idiom, idiom, reading, hidden)
    number = 0
    for group, nets in GROUPS.items():
        for entry in nets:
            for extra in entry.extras:
                yield f"user net | {group} | {entry.name} | {extra or 'typed'}", partial(run_user_net, entry, number, extra)
            number += 1
    for name, options in OPTIONS.items():
        yield f"option | {name}", partial(run_option, options)
    for name, run in RUNS.items():
        yield f"training | {name}", partial(run_training, run)


def run_idiom(idiom: UserNet, reading: Reading, hidden: str) -> Record:
    """Initialise one idiom's net, decided as one of its users does."""
    data, net = load_digits_data(), idiom.build(reading.output)
    inputs = data.train_inputs[:SAMPLES].reshape(-1, *idiom.shape)
    initializer = ConvexInitializer(forward=idiom.forward, readout=reading.kind, hidden=hidden, progress=False)
    return record(net, lambda: initializer.initialize(net, DataLoader(TensorDataset(inputs, data.train_labels[:SAMPLES]), 64)))


def run_user_net(entry: UserNet, number: int, extra: str) -> Record:
    """Type one user's line."""
    samples, net = entry.order(digits(number)[0].of(torch.arange(SAMPLES))), entry.build()
    return record(net, lambda: entry.run(net, samples, extra))


def run_option(options: dict[str, Any]) -> Record:
    """Initialise a small net with some options."""
    data, net = load_digits_data(), build_network(inputs=64, hidden=48, outputs=10, steps=8)
    loader = DataLoader(TensorDataset(data.train_inputs[:SAMPLES], data.train_labels[:SAMPLES]), 64)
    return record(net, lambda: ConvexInitializer(progress=False, **options).initialize(net, loader))


def run_training(run: Callable[[Path], tuple[nn.Module, list[Any]]]) -> Record:
    """Train a small net with the callback; the reports of all solves."""
    with tempfile.TemporaryDirectory() as folder:
        net, reports = run(Path(folder))
    return {"bits": bits(net), "reports": [plain(report.to_dict()) for report in reports]}


def record(net: nn.Module, initialise: Callable[[], Any]) -> Record:
    """Run a call; the hash of the bits that it leaves, and its report or its refusal."""
    try:
        report = initialise()
    except ReconstructionError as error:
        return {"bits": bits(net), "refused": type(error).__name__, "message": str(error)}
    return {"bits": bits(net), "report": plain(report.to_dict())}


def bits(net: nn.Module) -> str:
    """A hash of all parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def plain(value: Any) -> Any:
    """A report without its seconds; a hash in place of each long list."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name != "seconds"}
    if not isinstance(value, list):
        return value
    items = [plain(item) for item in value]
    return items if len(items) <= LONG else hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]


def run_case(name: str) -> tuple[str, Record]:
    """Run one case from the same random state as ever."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    began = time.perf_counter()
    found = cases()[name]()
    if (seconds := time.perf_counter() - began) > SLOW:
        print(f"{name}: {seconds:.0f} s", file=sys.stderr)
    return name, found


def differences(before: Any, after: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every place at which two records differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in (*before, *(key for key in after if key not in before)):
            yield from differences(before.get(key), after.get(key), f"{where}.{key}" if where else key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{where}[{number}]")
    elif before != after:
        yield where, before, after


def compare(before: dict[str, Record], after: dict[str, Record]) -> int:
    """Print what differs: bits and numbers by case, texts once each; the number of cases whose bits or numbers differ."""
    changed, texts = 0, set()
    for name, case in before.items():
        found = list(differences(case, after.get(name, {})))
        words = [each for each in found if isinstance(each[1], str) and isinstance(each[2], str) and each[0] != "bits"]
        texts |= {(where.split("[")[0], one, other) for where, one, other in words}
        rest = [each for each in found if each not in words]
        changed += bool(rest)
        if rest:
            shown = "; ".join(f"{where}: {one} -> {other}" for where, one, other in rest[:3])
            print(f"! {name}: {len(rest)} differences, {shown}")
    for where, one, other in sorted(texts):
        print(f"  text {where}:\n    {one}\n    {other}")
    print(f"{len(after)} cases, {changed} differ, {len(texts)} texts differ")
    return changed


def main() -> int:
    """Run all cases; write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="PATH", help="keep the record")
    parser.add_argument("--check", type=Path, metavar="PATH", help="compare with a record; exit 1 where bits or numbers differ")
    parser.add_argument("--only", default="", metavar="TEXT", help="run the cases whose names hold this")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    names = [name for name in cases() if options.only in name]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        found = dict(pool.imap_unordered(run_case, names, chunksize=4))
    found = {name: found[name] for name in names}
    if options.write is not None:
        head = {"machine": machine("snntorch", "norse", "lightning"), "seed": SEED, "samples": SAMPLES}
        lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in found.items()]  # a case a line, for a short diff
        text = json.dumps(head)[:-1] + ', "cases": {\n' + ",\n".join(lines) + "\n}}\n"
        options.write.write_text(text, encoding="utf-8")
    if options.check is not None:
        before = json.loads(options.check.read_text(encoding="utf-8"))["cases"]
        return min(1, compare({name: before[name] for name in before if options.only in name}, json.loads(json.dumps(found))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
