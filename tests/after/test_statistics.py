"""Sums over samples: of any batches, saved and loaded, and of one network alone."""

import pytest
import torch

from snn_recon_plugin import Statistics, extend_, statistics_of
from snn_recon_plugin.errors import DataError, NetworkError, OptionError

from ..helpers import batches, lived_in, untouched
from ..nets import Averaged, Loop, loop_net


def same(one, other):
    names = ("gram", "sums", "kept", "kept_labels")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_sums_do_not_depend_on_batches_and_the_net_is_only_read():
    net = lived_in(loop_net())
    with untouched(net):
        whole, parts = statistics_of(net, batches(size=600)), statistics_of(net, batches(size=100))
    assert torch.allclose(whole.gram, parts.gram, rtol=1e-5)
    assert whole.counts == parts.counts
    assert sum(whole.counts) == 600


def test_kept_rows_are_a_part_of_the_samples():
    kept = statistics_of(loop_net(), batches())
    counts = torch.bincount(kept.kept_labels).tolist()
    assert counts == [int(0.2 * count) for count in kept.counts]
    rest = kept.without_kept()
    assert sum(rest.counts) + len(kept.kept) == 600
    assert float(torch.linalg.eigvalsh(rest.gram).min()) > -1e-9  # still a sum of squares


def test_all_steps_of_a_kept_sample_are_kept():
    net, listed = loop_net(), batches(200, 50)
    kept = statistics_of(net, listed, readout="membrane_per_step")
    assert (kept.steps, sum(kept.counts)) == (net.steps, 200 * net.steps)
    assert "200 samples" in repr(kept)
    one, other = (statistics_of(net, part, readout="membrane_per_step") for part in (listed[:2], listed[2:]))
    for each in (kept, one.joined(other)):
        leading = each.kept.reshape(-1, net.steps, each.kept.shape[-1])[..., -1]  # what one unit of bias adds, at each step
        assert torch.equal(leading, leading[:1].expand_as(leading))
        assert torch.equal(each.kept_labels.reshape(-1, net.steps).T, each.kept_labels[:: net.steps].expand(net.steps, -1))


def test_joined_sums_are_those_of_all_samples():
    net, listed = loop_net(), batches(size=100)
    one, other = (statistics_of(net, listed[:cut]).joined(statistics_of(net, listed[cut:])) for cut in (3, 1))
    assert torch.allclose(one.gram, other.gram, rtol=1e-12)
    assert one.counts == other.counts == statistics_of(net, listed).counts


def test_save_and_load(tmp_path):
    kept = statistics_of(loop_net(), batches(100))
    kept.save(tmp_path / "old.pt")
    torch.load(tmp_path / "old.pt", weights_only=True)
    loaded = Statistics.load(tmp_path / "old.pt")
    assert same(kept, loaded)
    assert (kept.counts, kept.identity, kept.steps) == (loaded.counts, loaded.identity, loaded.steps)


def test_a_file_of_version_0_4_which_had_an_axis_of_filters(tmp_path):
    kept = statistics_of(loop_net(), batches(100))
    kept.save(tmp_path / "new.pt")
    stored = torch.load(tmp_path / "new.pt", weights_only=True)
    old = {"gram": kept.gram[None], "sums": kept.sums[None], "kept": kept.kept[:, None], "format": 2}
    torch.save(stored | old, tmp_path / "old.pt")
    assert same(kept, Statistics.load(tmp_path / "old.pt"))


@pytest.mark.parametrize("content", [{"format": 0}, {"weight": torch.zeros(2)}, [1, 2], torch.zeros(3), Loop])
def test_a_file_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(OptionError, match="holds no statistics"):
        Statistics.load(tmp_path / "other.pt")


def changed(change):
    net = Loop(outputs=8)
    with torch.no_grad():
        change(net)
    return net


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.fc1.weight[0, 0].add_(1e-6), r"hidden layers \(checksum\)"),
        (lambda net: net.lif2.beta.fill_(0.5), r"temporal filters \(checksum\)"),
        (lambda net: setattr(net, "decode", lambda spikes, membranes: membranes.sum(0)), "readout membrane_mean, now membrane_sum"),
        (lambda net: net.__init__(hidden=20, outputs=8), "features 48, now 20"),
    ],
)
def test_statistics_of_another_net_are_refused(change, message):
    inputs, labels = batches(600, 600)[0]
    old, new = labels < 8, labels >= 8
    torch.manual_seed(0)
    kept = statistics_of(Loop(outputs=8), [(inputs[old], labels[old])])
    torch.manual_seed(0)
    net = changed(change)
    given = [(inputs[new].to(net.fc1.weight.dtype), labels[new])]
    with untouched(net), pytest.raises(NetworkError, match=message):
        extend_(net, given, statistics=kept)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(torch.arange(10) + 1, "labels up to 10 for 10 outputs"), (torch.arange(10) - 1, "from -1"), (torch.rand(10), "float32")],
)
def test_labels_that_are_no_classes(labels, message):
    with pytest.raises(DataError, match=message):
        statistics_of(Averaged(), [(torch.rand(10, 64), labels)])
