"""Tables in memory and in files: the same copies, nothing left behind, and clear errors where there is no room."""

import os
import tempfile

import pytest
import torch

from snn_recon_plugin import tables
from snn_recon_plugin.errors import DataError
from snn_recon_plugin.tables import IN_MEMORY, Tables, tables_within

FILES = Tables(largest=0)
ROWS, COLUMNS = torch.tensor([5, 0, 3]), torch.tensor([2, 1])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder of temporary files, which stays empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("columns", [None, COLUMNS])
@pytest.mark.parametrize("rows", [None, ROWS])
def test_the_same_copies_in_memory_and_in_a_file(rows, columns, dtype, monkeypatch):
    monkeypatch.setattr(tables, "_BLOCK_ELEMENTS", 8)  # two rows a block
    table = torch.randn(6, 4)
    found = FILES.taken(table, rows, columns, dtype)
    assert torch.equal(found, IN_MEMORY.taken(table, rows, columns, dtype))
    assert found.dtype == (dtype or table.dtype)


def test_rows_of_a_table_with_more_axes():
    table = torch.arange(24).reshape(4, 3, 2)
    assert torch.equal(FILES.taken(table, torch.tensor([3, 1])), table[[3, 1]])


def test_a_file_is_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        assert FILES.empty((3, 2), torch.float32).device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.int64])
def test_a_file_takes_values_of_any_dtype(dtype):
    table = FILES.empty((3, 2), dtype)
    table.fill_(1)
    assert table.dtype == dtype
    assert int(table.sum()) == 6


def test_the_limit_decides_between_memory_and_files():
    limited = Tables(largest=100)
    assert limited.in_memory(100)
    assert not limited.in_memory(101)
    assert limited.in_memory(101, torch.device("cuda"))


def test_by_default_half_of_the_free_memory_is_taken(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 6000}))
    assert tables_within(None).largest == 1000  # three tables at once
    assert tables_within(600).largest == 200


def test_too_little_disk(monkeypatch):
    monkeypatch.setattr(tables, "free_disk", lambda: 39)
    with pytest.raises(DataError, match=r"(?s)0\.00 GiB free in .*table of shape \(5, 2\)") as caught:
        FILES.empty((5, 2), torch.float32)
    assert "TMPDIR" in caught.value.fix


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="a system that reserves room")
def test_a_disk_that_is_full_after_all(monkeypatch):
    def full(handle, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"can't be made in .*No space left"):
        FILES.empty((5, 2), torch.float32)


def test_a_folder_that_is_read_only(monkeypatch):
    def refused(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    with pytest.raises(DataError, match=r"can't be made in .*Permission denied"):
        FILES.empty((5, 2), torch.float32)


def test_a_system_that_reserves_no_room(monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    assert FILES.empty((5, 2), torch.float32).shape == (5, 2)


def test_an_interrupt_leaves_no_file(monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "from_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        FILES.empty((5, 2), torch.float32)
