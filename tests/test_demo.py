import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from snn_recon_plugin import demo
from snn_recon_plugin.errors import OptionError

from .helpers import without

ROOT = Path(__file__).resolve().parents[1]


def write_idx(path, array):
    """MNIST's file format: a magic number with the number of axes, their lengths, the bytes."""
    header = struct.pack(">I", 0x800 + array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def fake_mnist(root, train=120, test=40):
    """Blobs whose place tells the class, as MNIST's four files."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    kept = {}
    for name, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 60, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 + 5 * (label // 2) : 6 + 5 * (label // 2), 3 + 12 * (label % 2) : 13 + 12 * (label % 2)] = 255
        write_idx(folder / f"{name}-images-idx3-ubyte", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte", labels)
        kept[name] = (images, labels)
    return kept


def test_the_demo_on_the_digits(tmp_path, capsys):
    figure = tmp_path / "figure.png"
    result = demo.run_demo(str(figure))
    assert result["before"] <= 0.25
    assert result["after"] >= 0.96
    assert result["certificate"].reached
    assert result["certificate"].relative_gap <= 1e-6
    assert result["exactness"] == "exact"
    assert result["epoch_from_default"] > 0.5
    assert result["epoch_from_convex"] > result["epoch_from_default"]
    assert figure.stat().st_size > 5000
    shown = capsys.readouterr().out
    assert "digits: 1347 training images, 450 test images" in shown
    assert "report = convex_init_(net, loader)" in shown
    assert "exactness          exact" in shown
    assert f"before {100 * result['before']:.1f} %   after {100 * result['after']:.1f} %" in shown
    assert f"certificate     {result['certificate']}" in shown
    for name in ("default", "convex"):
        assert re.search(rf"one surrogate epoch from the {name} start +{100 * result[f'epoch_from_{name}']:.1f} %", shown)
    assert f"figure          {figure}" in shown


def test_digits():
    data = demo.load_digits_data()
    assert (data.train_inputs.shape, data.test_inputs.shape) == ((1347, 64), (450, 64))
    assert (data.train_inputs.dtype, data.train_labels.dtype) == (torch.float32, torch.int64)
    assert (float(data.train_inputs.min()), float(data.train_inputs.max())) == (0.0, 1.0)
    assert data.train_labels.unique().tolist() == data.test_labels.unique().tolist() == list(range(10))
    torch.manual_seed(5)
    assert torch.equal(demo.load_digits_data().train_labels, data.train_labels)


def test_mnist_files(tmp_path):
    kept = fake_mnist(tmp_path)
    data = demo.load_mnist_data(str(tmp_path), None)
    assert torch.allclose(data.train_inputs, torch.tensor(kept["train"][0]).flatten(1).float() / 255)
    assert torch.allclose(data.test_inputs, torch.tensor(kept["t10k"][0]).flatten(1).float() / 255)
    assert data.train_labels.tolist() == kept["train"][1].tolist()
    assert data.test_labels.tolist() == kept["t10k"][1].tolist()
    some = demo.load_mnist_data(str(tmp_path), 30)
    assert torch.equal(some.train_inputs, data.train_inputs[:30])
    assert torch.equal(some.train_labels, data.train_labels[:30])
    assert len(some.test_labels) == 40


def test_accuracy_and_training():
    data = demo.load_digits_data()
    torch.manual_seed(0)
    net = demo.build_network(64, 32, 10, 5)
    assert net(torch.rand(3, 64)).shape == (5, 3, 10)
    before = demo.test_accuracy(net, data)
    predicted = net(data.test_inputs).mean(0).argmax(1)
    assert before == pytest.approx(float((predicted == data.test_labels).double().mean()))
    assert demo.train_epoch(net, data, 1e-2, 64) > 0
    assert demo.test_accuracy(net, data) > before + 0.2


def test_what_goes_wrong(tmp_path, capsys):
    assert demo.main(["--figure", str(tmp_path / "nowhere" / "figure.png")]) == 2
    assert "nowhere" in capsys.readouterr().out
    with pytest.raises(OptionError, match="no MNIST below"):
        demo.load_mnist_data(str(tmp_path / "nowhere"), None)
    with pytest.raises(SystemExit) as stop:
        demo.main(["--nonsense"])
    assert stop.value.code == 2
    assert "usage: python -m snn_recon_plugin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "pip", "call"),
    [
        ("sklearn", "scikit-learn", demo.load_digits_data),
        ("torchvision", "torchvision", lambda: demo.load_mnist_data("data", None)),
        ("snntorch", "snntorch", lambda: demo.build_network(4, 4, 2, 1)),
    ],
)
def test_missing_packages(monkeypatch, package, pip, call):
    without(monkeypatch, package)
    with pytest.raises(OptionError, match=rf"(?s){pip} is not installed.*pip install 'snn-recon-plugin\[demo\]'"):
        call()


def test_help_of_the_module():
    command = [sys.executable, "-m", "snn_recon_plugin", "--help"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m snn_recon_plugin")
    assert "--figure" in done.stdout


def test_the_module_returns_the_status_of_main(monkeypatch):
    import runpy

    monkeypatch.setattr(demo, "main", lambda: 3)
    monkeypatch.delitem(sys.modules, "snn_recon_plugin.__main__", raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("snn_recon_plugin", run_name="__main__")
    assert stop.value.code == 3
