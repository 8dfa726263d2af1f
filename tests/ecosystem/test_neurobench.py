"""NeuroBench counts a reconstructed net as it counts any other; `make ecosystem` runs this where NeuroBench is installed."""

import pytest

pytest.importorskip("neurobench", reason="make ecosystem installs it in an environment of its own")


@pytest.mark.filterwarnings("ignore")
def test_metrics_of_a_net_before_and_after():
    import torch

    from benchmarks.studies import neuromorphic

    names = ("as it comes", "convex readout", 'convex readout, penalty="l1"')
    before, solved, sparse = (neuromorphic.measure(name) for name in names)
    assert solved["ClassificationAccuracy"] > 0.9 > before["ClassificationAccuracy"]
    # Zeros in the readout show as connections that are not there.
    assert sparse["ConnectionSparsity"] > before["ConnectionSparsity"]
    # The spikes that NeuroBench saw are those of the net itself.
    torch.manual_seed(0)
    net, data = neuromorphic.make(), neuromorphic.load_digits_data()
    spikes = []
    net.features[1].register_forward_hook(lambda module, args, out: spikes.append(out))
    net.out.register_forward_hook(lambda module, args, out: spikes.append(out[0]))
    with torch.no_grad():
        net(data.test_inputs)
    zeros = sum(int((part == 0).sum()) for part in spikes) / sum(part.numel() for part in spikes)
    assert before["ActivationSparsity"] == pytest.approx(zeros)
