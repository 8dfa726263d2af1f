"""A plan on paper: seconds and memory of a program that no machine here can hold, from measured rates and a GPU's data sheet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .floor import floor_seconds, seconds_of

__all__ = ["GPU", "ROWS", "SOURCE", "Plan", "make_plans"]

ROWS, COLUMNS, OUTPUTS = 1_281_167, 4_096, 1_000  # ImageNet's training images and classes
SOURCE = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
# NVIDIA's data sheet of the H100 SXM; without sparsity, for which it lists twice the rate of TF32.
GPU = {"memory": 80e9, "bytes_per_second": 3.35e12, "tf32": 494.5e12, "float64": 67e12, "link": 900e9}


@dataclass(frozen=True)
class Plan:
    """One way to solve the program.

    Args:
        name: of the machine.
        devices: GPUs, each with a share of the rows; 0 for the CPU.
        seconds: at the share of the machine's limits that the measured solve reached.
        floor: seconds at the limits.
        exchanged: seconds of the sums over GPUs.
        spikes: bytes of features on each device.
        scores: bytes of the arrays (rows, outputs) on each device.
        blocks: parts in which the outputs are solved one after the other, so that all fits.
    """

    name: str
    devices: int
    seconds: float
    floor: float
    exchanged: float
    spikes: float
    scores: float
    blocks: int


def make_plans(measured: dict[str, Any], rates: dict[str, Any]) -> list[Plan]:
    """Return the plans for the CPU, one GPU and eight, from a measured solve of ours and the CPU's rates.

    As many products are taken as the measured solve took, and as many arrays of the scores' shape held.
    """
    program = {**measured, "n": ROWS, "P": COLUMNS, "C": OUTPUTS, "features_bytes": ROWS * COLUMNS}
    share = floor_seconds(measured, rates) / seconds_of(measured)
    arrays = max(1.0, measured["added_bytes"] / (8 * measured["n"] * measured["C"]))
    floor = floor_seconds(program, rates)
    spikes, scores = float(ROWS * COLUMNS), arrays * 8 * ROWS * OUTPUTS
    plans = [Plan("this CPU", 0, floor / share, floor, 0.0, spikes, scores, 1)]
    for devices in (1, 8):
        gpu = {"bytes_per_second": devices * GPU["bytes_per_second"], "flops": {"tf32": devices * GPU["tf32"]}}
        floor = floor_seconds(program, gpu)
        # Two products make a gradient, which is summed over GPUs in float64; a ring sends it twice.
        exchanged = 0.0 if devices == 1 else program["products"] / 2 * 2 * 8 * COLUMNS * OUTPUTS / GPU["link"]
        room = GPU["memory"] - spikes / devices
        blocks = max(1, -int(-scores / devices // room))
        plans.append(
            Plan(
                f"{devices} H100", devices, floor / share + exchanged, floor, exchanged, spikes / devices, scores / devices, blocks
            )
        )
    return plans
