"""The study of event recordings, on files that this test writes in the formats of the data sets; `make ecosystem` runs it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("tonic", reason="make ecosystem installs it in an environment of its own")

from tonic.dataset import Dataset

from benchmarks.store import Store
from benchmarks.studies import events
from benchmarks.study import Bench, Places

EACH = 4  # recordings of a class in a part


def clouds(classes):
    """Yield for each part, class and recording: x and y from 0 to 1, whose middle tells the class, and seconds in order."""
    random = np.random.default_rng(0)
    for part, label, number in itertools.product((0, 1), range(classes), range(EACH)):
        x, y = (np.clip(random.normal((middle % 6 + 1) / 7, 0.02, 80), 0, 0.999) for middle in (label, label // 6))
        yield part, label, number, x, y, np.sort(random.uniform(0, 0.25, 80))


def write_spoken(root, kind, classes, files):
    """Units and seconds of each spike in HDF5, in arrays of any length."""
    import h5py

    for number, name in enumerate(files):
        found = [(label, x, times) for part, label, _, x, _, times in clouds(classes) if part == number]
        (root / kind).mkdir(exist_ok=True)
        (root / kind / f"{name}.zip").touch()
        with h5py.File(root / kind / name, "w") as file:
            for key, dtype, values in (
                ("spikes/units", np.uint16, [np.uint16(700 * x) for _, x, _ in found]),
                ("spikes/times", np.float16, [np.float16(times) for *_, times in found]),
            ):
                stored = file.create_dataset(key, (len(found),), dtype=h5py.vlen_dtype(dtype))
                for row, value in enumerate(values):
                    stored[row] = value
            file["labels"] = np.array([label for label, *_ in found], dtype=np.uint16)
            file["extra/keys"], file["extra/speaker"] = np.arange(classes), np.zeros(len(found))


def write_digits(root):
    """Five bytes an event: x, y, and a sign before 23 bits of microseconds; a folder for each class."""
    for name in ("train.zip", "test.zip"):
        (root / "NMNIST").mkdir(exist_ok=True)
        (root / "NMNIST" / name).touch()
    for part, label, number, x, y, times in clouds(10):
        folder = root / "NMNIST" / ("Train", "Test")[part] / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        moment = np.uint32(1e6 * times)
        columns = 34 * x, 34 * y, 128 * (number % 2) + (moment >> 16), moment >> 8 & 255, moment & 255
        np.stack([np.broadcast_to(np.uint8(column), 80) for column in columns], 1).tofile(folder / f"{number}.bin")


def write_gestures(root):
    """Rows of x, y, sign and milliseconds; a folder for each user and light."""
    for name in ("ibmGestureTrain.tar.gz", "ibmGestureTest.tar.gz"):
        (root / "DVSGesture").mkdir(exist_ok=True)
        (root / "DVSGesture" / name).touch()
    for part, label, number, x, y, times in clouds(11):
        folder = root / "DVSGesture" / ("ibmGestureTrain", "ibmGestureTest")[part] / f"user0{number}_led"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{label}.npy", np.stack([128 * x, 128 * y, np.arange(80) % 2, 1e3 * times], 1).astype(np.int64))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("recordings")
    write_spoken(root, "SHD", 20, ("shd_train.h5", "shd_test.h5"))
    write_spoken(root, "SSC", 35, ("ssc_train.h5", "ssc_test.h5"))
    write_digits(root)
    write_gestures(root)
    return Places(events=str(root))


@pytest.fixture(autouse=True)
def few_files(monkeypatch):
    """Tonic fetches data sets of which it finds few files."""
    monkeypatch.setattr(Dataset, "_folder_contains_at_least_n_files_of_type", lambda *args: True)
    monkeypatch.setattr(Dataset, "download", lambda self: pytest.fail(f"{self} is fetched"))


SHAPES = {
    "SHD": (20, (100, 1, 700)),
    "SSC": (35, (100, 1, 700)),
    "N-MNIST": (10, (30, 2, 34, 34)),
    "DVS Gesture": (11, (30, 2, 32, 32)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_event_is_counted_in_its_frame_and_the_net_takes_the_frames(name, places):
    data, (classes, shape) = events.load(name, places), SHAPES[name]
    for inputs, labels in ((data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels)):
        assert inputs.shape == (EACH * classes, *shape)
        assert sorted(labels.tolist()) == sorted(EACH * [*range(classes)])
        assert torch.equal(inputs.flatten(1).sum(1), torch.full((len(inputs),), 80.0))
        last = inputs.flatten(2).sum(2).bool().float().mul(torch.arange(1.0, shape[0] + 1)).amax(1)
        assert bool((last <= 0.25e6 / events.SETS[name].window + 1).all())
        # The first class lies left of the second.
        across = (inputs.flatten(1, -2).sum(1) * torch.arange(shape[-1])).sum(1) / 80
        assert float(across[labels == 0].max()) < float(across[labels == 1].min())
    assert events.SETS[name].make()(data.train_inputs[:3])[-1].shape == (3, classes)


@pytest.mark.filterwarnings("ignore")
def test_runs_are_kept_and_shown(places, monkeypatch, tmp_path):
    monkeypatch.setitem(events.SETS, "N-MNIST", replace(events.SETS["N-MNIST"], epochs=1))
    bench = Bench(places, Store(tmp_path / "events.jsonl", events.STUDY.fields), events.STUDY)
    cells = events.cells(bench)
    for name in ("N-MNIST-alone-0", "N-MNIST-callback-0"):
        bench.cell(name, cells[name])
    text = events.pages(bench.store)["evidence/networks.md"]["events"]
    row = next(line for line in text.splitlines() if line.startswith("| N-MNIST"))
    assert row.endswith("| 1 | 1 |")
    assert float(row.split("|")[3].split()[0]) > float(row.split("|")[2]) + 50  # the line, and before
    assert "tonic" in text
    assert text.endswith("for want of the recordings: SHD, SSC, DVS Gesture.")
