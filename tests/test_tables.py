"""Tables in memory and in files: the same copies, nothing left behind, and clear errors where there is no room."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from snn_recon_plugin import convex_init_, over_time, tables
from snn_recon_plugin.errors import DataError
from snn_recon_plugin.tables import COPIES, IN_MEMORY, Tables, tables_within

from .helpers import values
from .nets import sequential_net

FILES = Tables(largest=0)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of temporary files, which stays empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("columns", "dtype"), [(None, None), (torch.tensor([2, 1]), torch.bfloat16)])
@pytest.mark.parametrize("rows", [None, torch.tensor([2, 0])])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2), (3, 2**22)], ids=["a block", "more axes", "a row a block"])
def test_the_same_copies_in_memory_and_in_a_file(shape, rows, columns, dtype):
    table = torch.randint(200, shape, dtype=torch.uint8)
    found = FILES.taken(table, rows, columns, dtype)
    assert torch.equal(found, IN_MEMORY.taken(table, rows, columns, dtype))
    assert found.dtype == (dtype or table.dtype)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.int64])
def test_a_file_takes_values_of_any_dtype_and_is_on_the_cpu_whatever_the_default_device(dtype):
    with torch.device("meta"):
        table = FILES.empty((3, 2), dtype)
    table.fill_(1)
    assert (table.dtype, table.device.type, int(table.sum())) == (dtype, "cpu", 6)


def test_the_limit_decides_between_memory_and_files(monkeypatch):
    limited = Tables(largest=100)
    assert limited.in_memory(100)
    assert not limited.in_memory(101)
    assert limited.in_memory(101, torch.device("cuda"))
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 6000}))
    assert tables_within(None).largest == 1000  # half of the free memory, for three tables at once
    assert tables_within(600).largest == 200


def raising(error):
    def fail(*args, **options):
        raise error

    return fail


@pytest.mark.parametrize(
    ("place", "name", "replaced", "found"),
    [
        (tables, "free_disk", lambda: 39, r"(?s)0\.00 GiB free in .*table of shape \(5, 2\)"),
        (os, "posix_fallocate", raising(OSError(28, "No space left")), r"can't be made in .*No space left"),
        (tempfile, "mkstemp", raising(PermissionError(13, "Permission denied")), r"can't be made in .*Permission denied"),
        (torch, "from_file", raising(RuntimeError("no mapping")), r"can't be made in .*no mapping"),
    ],
    ids=["too little disk", "a disk that is full after all", "a folder that is read-only", "no mapping"],
)
def test_a_file_that_cannot_be_made(place, name, replaced, found, monkeypatch):
    monkeypatch.setattr(place, name, replaced, raising=False)
    with pytest.raises(DataError, match=found) as caught:
        FILES.empty((5, 2), torch.float32)
    assert "TMPDIR" in caught.value.fix


def test_a_system_that_reserves_no_room(monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert FILES.empty((5, 2), torch.float32).shape == (5, 2)


def test_an_interrupt_leaves_no_file(monkeypatch):
    monkeypatch.setattr(torch, "from_file", raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        FILES.empty((5, 2), torch.float32)


SAMPLES = 600
IN_FILES = {"max_memory": 2**20, "hidden": "keep", "forward": over_time(4)}  # 480 kB of features, and a third is the limit
LEAKS = torch.tensor([0.5, 0.8, 0.9])


def batches(size=100):
    inputs = 2 * torch.rand(SAMPLES, 10, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, :3] * torch.tensor([1.0, 1.2, 0.9])).argmax(1)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def build(beta=0.8):
    return sequential_net(sizes=(10, 200, 3), beta=beta)


@pytest.mark.parametrize(
    ("beta", "options"),
    [
        (0.8, {}),
        (0.8, {"penalty": "group_l1", "fit_loss": "same"}),
        (0.8, {"readout": "membrane_per_step"}),
        (LEAKS, {"readout": "membrane_per_step"}),
    ],
    ids=["means", "sparse", "steps", "filters and steps"],
)
def test_files_change_no_bit(beta, options, monkeypatch):
    made, mkstemp = [], tempfile.mkstemp
    monkeypatch.setattr(tempfile, "mkstemp", lambda **names: made.append(names) or mkstemp(**names))
    nets = [build(beta), build(beta)]
    in_memory = convex_init_(nets[0], batches(), **{**IN_FILES, "max_memory": 2**30}, **options)
    assert not made
    in_files = convex_init_(nets[1], iter(batches()), **IN_FILES, **options)  # a stream of unknown length
    assert made
    assert values(nets[0]) == values(nets[1])
    assert (in_files.program.samples, in_files.accuracy_after) == (SAMPLES, in_memory.accuracy_after)


SCRIPT = """
import re
import sys
import warnings
from pathlib import Path
import torch
from snn_recon_plugin import convex_init_, over_time
from tests.nets import sequential_net

def resident(name):
    return 1024 * int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

warnings.simplefilter("ignore")
torch.set_num_threads(1)
count, width = 20_000, 500
net = sequential_net(sizes=(20, width, 10))
inputs = 3 * torch.randn(count, 20)
labels = (inputs @ torch.randn(20, 10)).argmax(1)
batches = list(zip(inputs.split(500), labels.split(500)))
options = {"forward": over_time(5), "hidden": sys.argv[1], "penalty": sys.argv[2]}
convex_init_(net, batches[:4], **options)  # imports, and the memory of the solver's own work
Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
before = resident("VmRSS")
convex_init_(net, batches, **options)
print((resident("VmHWM") - before) / (4 * count * width))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark of Linux")
@pytest.mark.parametrize("options", [("keep", "ridge"), ("keep", "group_l1"), ("reconstruct", "ridge")], ids=str)
def test_features_are_in_memory_about_as_often_as_expected(options):
    """2.4 to 3.2 times where this was written."""
    command, root = [sys.executable, "-c", SCRIPT, *options], Path(__file__).parents[1]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    assert 1.5 < float(result.stdout) < 1.25 * COPIES
