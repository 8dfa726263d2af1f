"""The catalogue of data: labels computed in another way, and the parts that nothing is chosen by."""

import numpy as np
import pytest
import torch

from benchmarks.study import Places
from benchmarks.tasks import Parts, delayed_match, load_task, mix_digits, move, speech, spike_timing
from snn_recon_plugin.demo import Data


def test_spike_timing_hides_the_class_in_the_times():
    data = spike_timing(Places())
    assert (data.train_inputs.sum(1) == 1).all()  # each channel of each sample: averages over time say nothing
    preferred = torch.stack([data.train_inputs[data.train_labels == label].mean(0) for label in range(10)])
    near = torch.einsum("ntc,ktc->nk", data.test_inputs, preferred.log1p())
    assert float((near.argmax(1) == data.test_labels).float().mean()) > 0.9


def test_delayed_match_compares_two_cues():
    data = delayed_match(Places())
    by_cue = data.train_inputs.unflatten(2, (4, 5)).sum(3)  # (n, T, cue)
    decoded = (by_cue[:, 2:6].sum(1).argmax(1) == by_cue[:, 14:].sum(1).argmax(1)).long()
    assert float((decoded == data.train_labels).float().mean()) > 0.97
    rates = torch.stack([data.train_inputs[data.train_labels == label].mean((0, 1)) for label in (0, 1)])
    assert float((rates[0] - rates[1]).abs().max()) < 0.02


def test_spoken_digits_are_counted_in_bins_of_15_ms(tmp_path):
    stored = {"ptr": [0, 3, 5], "times": [0, 14, 15, 899, 2000], "units": [3, 3, 3, 69, 69], "y": [7, 19], "test": [False, True]}
    np.savez(tmp_path / "ende.npz", **{key: np.array(value) for key, value in stored.items()})
    data = speech(Places(speech=str(tmp_path)))
    assert data.train_inputs.nonzero().tolist() == [[0, 0, 3], [0, 1, 3]]
    assert data.train_inputs[0, 0, 3] == 2
    assert data.test_inputs.nonzero().tolist() == [[0, 59, 69]]
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([7], [19])


def test_a_fainter_digit_is_mixed_into_each_image():
    pixels = torch.zeros(200, 28, 28)
    pixels[:100, 8:20, 8:12] = pixels[100:, 8:12, 8:20] = 1.0  # upright and flat bars
    one, again = (mix_digits(pixels.flatten(1), torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, again)
    assert one.shape == (200, 1, 28, 28)
    bright = one[:, 0] > 0.85  # the image's own bar is the brighter one
    flat = bright.sum(2).amax(1) > bright.sum(1).amax(1)
    assert float((flat == (torch.arange(200) >= 100)).float().mean()) > 0.95


def test_an_image_that_moves_makes_an_event_at_each_edge():
    pixels = torch.zeros(1, 28, 28)
    pixels[0, 10, 10] = 1.0
    events = move(pixels.flatten(1))
    assert events.shape == (1, 12, 2, 34, 34)
    assert events.sum((0, 3, 4)).tolist() == [[1.0, 1.0]] * 12
    assert events[0, 1:, 1].nonzero().tolist() == [
        [step, row, column] for step, row, column in events[0, :-1, 0].nonzero().tolist()
    ]


@pytest.mark.parametrize(("task", "option"), [("rows", "--root"), ("speech", "--speech")])
def test_missing_data_name_the_option(task, option):
    with pytest.raises(SystemExit, match=option):
        load_task(task, Places())


def test_a_tenth_is_for_validation_and_the_rest_for_training():
    inputs = torch.rand(140, 3, generator=torch.Generator().manual_seed(0))
    data = Data(inputs, torch.arange(140), inputs[:5] + 1, torch.arange(5))
    parts = Parts(data, 0)
    assert len(parts.validation) == 14
    both = torch.cat([parts.train.tensors[0], parts.validation.tensors[0]])
    assert torch.equal(both.sort(0).values, inputs.sort(0).values)
    assert parts.test[0] is data.test_inputs
