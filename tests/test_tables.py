"""Tables in memory and in files: the same copies, nothing left behind, and clear errors where there is no room."""

import os
import tempfile

import pytest
import torch

from snn_recon_plugin import tables
from snn_recon_plugin.errors import DataError
from snn_recon_plugin.tables import IN_MEMORY, Tables, tables_within

FILES = Tables(largest=0)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of temporary files, which stays empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("columns", [None, torch.tensor([2, 1])])
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
