import runpy
import sys

import pytest
import torch

from snn_recon_plugin import demo
from snn_recon_plugin.errors import OptionError

from .helpers import without


def test_the_demo_on_the_digits(tmp_path, capsys):
    # More than 5 seconds: all that the command line shows, training included.
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
    assert str(result["certificate"]) in shown
    for name in ("before", "after", "epoch_from_default", "epoch_from_convex"):
        assert f"{100 * result[name]:.1f} %" in shown
    assert f"figure          {figure}" in shown


def test_digits():
    data = demo.load_digits_data()
    assert (data.train_inputs.shape, data.test_inputs.shape) == ((1347, 64), (450, 64))
    assert (data.train_inputs.dtype, data.train_labels.dtype) == (torch.float32, torch.int64)
    assert (float(data.train_inputs.min()), float(data.train_inputs.max())) == (0.0, 1.0)
    assert data.train_labels.unique().tolist() == data.test_labels.unique().tolist() == list(range(10))
    torch.manual_seed(5)
    assert torch.equal(demo.load_digits_data().train_labels, data.train_labels)


def test_what_goes_wrong(tmp_path, capsys):
    assert demo.main(["--figure", str(tmp_path / "nowhere" / "figure.png")]) == 2
    assert "nowhere" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        demo.main(["--nonsense"])
    assert stop.value.code == 2
    assert "usage: python -m snn_recon_plugin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "pip", "call"),
    [("sklearn", "scikit-learn", demo.load_digits_data), ("snntorch", "snntorch", lambda: demo.build_network(4, 4, 2, 1))],
)
def test_missing_packages(monkeypatch, package, pip, call):
    without(monkeypatch, package)
    with pytest.raises(OptionError, match=f"(?s){pip} is not installed.*pip install {pip}$"):
        call()


def test_the_module_shows_help_and_returns_the_status_of_main(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["snn_recon_plugin", "--help"])
    for status in (0, 3):
        monkeypatch.delitem(sys.modules, "snn_recon_plugin.__main__", raising=False)
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("snn_recon_plugin", run_name="__main__")
        assert stop.value.code == status
        monkeypatch.setattr(demo, "main", lambda: 3)
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: python -m snn_recon_plugin")
    assert "--figure" in shown.out
    assert shown.err == ""
