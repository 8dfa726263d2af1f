"""What a start costs beside an epoch with the faster steps of an earlier commit: CPU seconds of both, by turns, with accuracies.

``python -m benchmarks.start_against EARLIER_CHECKOUT --root DIR --speech DIR`` prints one line of JSON for each run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

MEASURE = """
import importlib.util, json, sys, time, warnings
from functools import partial
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from snn_recon_plugin import convex_init_, fast_steps

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
folder, case, commit, seed = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
spec = importlib.util.spec_from_file_location("nets", folder + "/nets.py")
nets = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nets)
make = partial(*eval(open(folder + "/make.txt").read(), {"dense": nets.dense, "recurrent": nets.recurrent}))
make = partial(make.func, *make.args, **json.load(open(folder + "/options.json")))
x, y, test, labels, size = torch.load(folder + "/data.pt")
loader = DataLoader(TensorDataset(x, y), size, shuffle=True)
few = DataLoader(TensorDataset(x[:300], y[:300]), size)


def epoch(net, optimizer, batches):
    began = time.process_time()
    for inputs, targets in batches:
        optimizer.zero_grad()
        functional.cross_entropy(net(inputs).mean(0), targets).backward()
        optimizer.step()
    return time.process_time() - began


def trained(fast):
    torch.manual_seed(seed)
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    if fast:
        with fast_steps(net, loader):
            epoch(net, optimizer, few)
            return min(epoch(net, optimizer, loader) for _ in range(2))
    epoch(net, optimizer, few)
    return epoch(net, optimizer, loader)


forward = lambda net, inputs: net(inputs).mean(0)
convex_init_(make(), few, forward=forward, progress=False)
torch.manual_seed(seed)
net = make()
began = time.process_time()
convex_init_(net, loader, forward=forward, seed=seed, progress=False)
start = time.process_time() - began
with torch.no_grad():
    right = [(net(part).mean(0).argmax(1) == known).float() for part, known in zip(test.split(500), labels.split(500))]
found = {"case": case, "commit": commit, "seed": seed, "start": start, "test": float(torch.cat(right).mean())}
print(json.dumps({**found, "fast": trained(True), "plain": trained(False)}))
"""


def main() -> None:
    from benchmarks.studies.start_cost import CASES
    from benchmarks.study import Places
    from benchmarks.tasks import load_task

    parser = argparse.ArgumentParser()
    parser.add_argument("earlier")
    parser.add_argument("--root", required=True)
    parser.add_argument("--speech", required=True)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    checkouts = [Path(given.earlier).resolve(), Path.cwd()]
    for case, (task, make, size) in CASES.items():
        if given.only not in case:
            continue
        data = load_task(task, Places(given.root, given.speech))
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            (place / "nets.py").write_text(Path("benchmarks/nets.py").read_text())
            (place / "make.txt").write_text(f"({make.func.__name__}, {', '.join(map(str, make.args))})")
            (place / "options.json").write_text(json.dumps(make.keywords))
            torch.save((data.train_inputs, data.train_labels, data.test_inputs, data.test_labels, size), place / "data.pt")
            for seed in range(3):
                for checkout in checkouts:
                    commit = subprocess.run(
                        ["git", "rev-parse", "--short=8", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
                    ).stdout.strip()
                    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
                    subprocess.run(
                        [sys.executable, "-c", MEASURE, folder, case, commit, str(seed)], cwd=checkout, env=environment, check=True
                    )


if __name__ == "__main__":
    main()
