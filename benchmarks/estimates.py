"""How far an estimate of a start's cost, from counts alone, is off: eleven nets and sets of data of the study start_cost.

The estimate has three constants, for passes over all samples, for passes of samples that choose hidden layers, and for the solve.
They are fitted to the costs that were measured on these very nets, so others are off by more.
"""

import json
import statistics

import numpy as np
from scipy.optimize import nnls

from benchmarks.store import RESULTS

PRICE = 40  # outputs that a product of the solve costs at least as much as
FOUR = 28**2 * 16 * 9 + (14**2 * 16 + 7**2 * 32 + 3**2 * 32) * 32 * 9
# Samples, steps, multiply-adds of hidden layers and step, features, outputs, passes of how many samples that choose hidden layers.
CASES = {
    "MNIST, 20,000, 784-500-10, 10 steps": (20_000, 10, 784 * 500, 500, 10, 3_000),
    "digits, 64-128-10, 10 steps": (1_347, 10, 64 * 128, 128, 10, 1_347),
    "MNIST by row, 10,000, RLeaky 128": (10_000, 28, 28 * 128 + 128 * 128, 128, 10, 3_000),
    "spike timing, 2,000, 20-200-200-10, 50 steps": (2_000, 50, 20 * 200 + 200 * 200, 200, 10, 2 * 2_000),
    "points in a plane, 5,000, 5-120-3, 20 steps": (5_000, 20, 5 * 120, 120, 3, 3_000),
}
for count, images in ((2_000, "10,000 images"), (3_000, "10,000 images"), (2_000, "hard images")):
    rates = 3 if images == "10,000 images" else 2  # firing rates that are tried
    CASES[f"tutorial 6, {images}, first {count:,}"] = count, 4, 24**2 * 12 * 25 + 8**2 * 64 * 12 * 25, 1024, 10, rates * 428
    CASES[f"four convolutions, {images}, first {count:,}"] = count, 4, FOUR, 288, 10, rates * 556

lines = [json.loads(line) for line in (RESULTS / "start_cost.jsonl").read_text().splitlines()]
latest = {line["name"]: line for line in lines}
rows, costs = [], []
for case, (count, steps, work, features, outputs, chosen) in CASES.items():
    found = [line for name, line in latest.items() if name.startswith(f"{case} | ")]
    costs.append(statistics.mean(line["start"] / line["plain"] for line in found))
    solve = features * max(outputs, PRICE) / (steps * (work + features * outputs))
    rows.append(((count + 2 * min(count, 512)) / (3 * count), chosen / (3 * count), solve))
relative = np.array(rows) / np.array(costs)[:, None]
constants, _ = nnls(relative, np.ones(len(rows)))
print("constants", constants.round(2))
for case, cost, ratio in zip(CASES, costs, relative @ constants, strict=True):
    print(f"{case}: {cost:.2f} epochs, estimate {cost * ratio:.2f}, {ratio:.2f} times")
