"""NeuroBench counts a reconstructed net as it counts any other; `make ecosystem` runs this where NeuroBench is installed."""

import json
import sys

import pytest

pytest.importorskip("neurobench", reason="make ecosystem installs it in an environment of its own")


@pytest.mark.filterwarnings("ignore")
def test_metrics_of_a_net_before_and_after(tmp_path, monkeypatch):
    import torch

    from benchmarks import neuromorphic

    monkeypatch.setattr(neuromorphic, "EPOCHS", 1)
    monkeypatch.setattr(sys, "argv", ["neuromorphic.py", "--results", str(tmp_path)])
    neuromorphic.main()
    cases = json.loads((tmp_path / "neuromorphic.json").read_text(encoding="utf-8"))["cases"]
    before, solved, sparse = (cases[name] for name in ("as it comes", "convex readout", 'convex readout, penalty="l1"'))
    assert solved["ClassificationAccuracy"] > 0.9 > before["ClassificationAccuracy"]
    # Zeros in the readout show as connections that are not there.
    assert sparse["ConnectionSparsity"] > before["ConnectionSparsity"]
    # The spikes that NeuroBench saw are those of the net itself.
    torch.manual_seed(0)
    net, data = neuromorphic.Net(), neuromorphic.load_digits_data()
    spikes = []
    net.lif1.register_forward_hook(lambda module, args, out: spikes.append(out))
    net.lif2.register_forward_hook(lambda module, args, out: spikes.append(out[0]))
    with torch.no_grad():
        net(data.test_inputs)
    zeros = sum(int((part == 0).sum()) for part in spikes) / sum(part.numel() for part in spikes)
    assert before["ActivationSparsity"] == pytest.approx(zeros)
