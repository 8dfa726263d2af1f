"""Access to a user's network: calls, structure, activity and writes.

Depends on torch alone.  Libraries of neurons are never imported: the classes of a net's modules name them.
"""

from __future__ import annotations

from .activity import ActivityRecorder, LayerStats
from .batches import INSPECTED, Batch, device_of, few_samples, map_tensors, prepare_batch, split_batch
from .calling import carries_over, check_forward, refuse_calls
from .capture import Captured, Storage, capture, neuron_currents, neuron_spikes
from .fast_passes import fast_passes
from .forward import Forward, OverTime, Within, drop_autocast, keep_autocast, over_time, plain_forward
from .guard import autocast_rounding, quiet, run_quietly, unwrap
from .inspect import inspect_hidden, inspect_network
from .layers import HiddenLayer, NetworkMap, ReadoutLayer
from .libraries import is_neuron, library_of, reset_states
from .maximum import REFINE_BLOCKS, MaximumObjective, Refined, refine_maximum
from .output_neuron import Calibration, LabelledCurrents, calibrate, mark_running, own_scores, readout_currents
from .parameters import Values, can_replace, find_computation, is_frozen, trying, write_values
from .readout import Readout, Source
from .readouts import ALL_READOUTS, KINDS, SPIKE_READOUTS
from .record import StoredBatch, Taps, record
from .resolve import Expected, resolve_readout
from .state import overwrite
from .structure import Inspections, Structure
from .workbench import Workbench, private_copy
from .write import Transaction, check_writable, commit

__all__ = [
    "ALL_READOUTS",
    "INSPECTED",
    "KINDS",
    "REFINE_BLOCKS",
    "SPIKE_READOUTS",
    "ActivityRecorder",
    "Batch",
    "Calibration",
    "Captured",
    "Expected",
    "Forward",
    "HiddenLayer",
    "Inspections",
    "LabelledCurrents",
    "LayerStats",
    "MaximumObjective",
    "NetworkMap",
    "OverTime",
    "Readout",
    "ReadoutLayer",
    "Refined",
    "Source",
    "Storage",
    "StoredBatch",
    "Structure",
    "Taps",
    "Transaction",
    "Values",
    "Within",
    "Workbench",
    "autocast_rounding",
    "calibrate",
    "can_replace",
    "capture",
    "carries_over",
    "check_forward",
    "check_writable",
    "commit",
    "device_of",
    "drop_autocast",
    "fast_passes",
    "few_samples",
    "find_computation",
    "inspect_hidden",
    "inspect_network",
    "is_frozen",
    "is_neuron",
    "keep_autocast",
    "library_of",
    "map_tensors",
    "mark_running",
    "neuron_currents",
    "neuron_spikes",
    "over_time",
    "overwrite",
    "own_scores",
    "plain_forward",
    "prepare_batch",
    "private_copy",
    "quiet",
    "readout_currents",
    "record",
    "refine_maximum",
    "refuse_calls",
    "reset_states",
    "resolve_readout",
    "run_quietly",
    "split_batch",
    "trying",
    "unwrap",
    "write_values",
]
