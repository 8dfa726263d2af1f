import builtins
import os

import pytest
import torch

import snn_recon_plugin.memory as room
from snn_recon_plugin.errors import DataError

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch):
    def set_free(value):
        monkeypatch.setattr(room, "_free_bytes", lambda device: value)

    return set_free


def test_what_fits_and_what_does_not(free):
    free(12 * 100 * 50)  # three float32 copies of 100 features
    room.check_memory(50, 100, CPU)
    with pytest.raises(DataError, match="51 samples of 100 features") as caught:
        room.check_memory(51, 100, CPU)
    assert caught.value.fix == "pass max_samples=50"


def test_the_message_in_gigabytes(free):
    free(2**30)
    with pytest.raises(DataError, match=r"about 11\.2 GiB where 1\.0 GiB are free on cpu"):
        room.check_memory(10**6, 1000, CPU)


def test_a_proposal_that_the_initializer_takes(free):
    free(0)
    with pytest.raises(DataError, match="max_samples=10"):
        room.check_memory(100, 100, CPU)


@pytest.mark.parametrize(("samples", "value"), [(None, 0), (10**9, None)])
def test_nothing_is_refused_where_nothing_is_known(free, samples, value):
    free(value)
    room.check_memory(samples, 1000, CPU)


def test_free_memory_of_this_machine():
    assert 2**20 < room._free_bytes(CPU) < 2**50


def refuse_to_open(monkeypatch):
    real = builtins.open

    def refuse(path, *args, **options):
        if path == "/proc/meminfo":
            raise FileNotFoundError(path)
        return real(path, *args, **options)

    monkeypatch.setattr(builtins, "open", refuse)


def test_systems_without_meminfo(monkeypatch):
    refuse_to_open(monkeypatch)
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__, raising=False)
    assert room._free_bytes(CPU) == 4096000


def unknown(name):
    raise ValueError(f"unrecognized configuration name {name}")


def test_systems_that_tell_nothing(monkeypatch):
    refuse_to_open(monkeypatch)
    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert room._free_bytes(CPU) is None
    monkeypatch.delattr(os, "sysconf")
    assert room._free_bytes(CPU) is None


def test_a_gpu_tells_for_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert room._free_bytes(torch.device("cuda:0")) == 123
