"""The made sequences of benchmarks/sequences.py, their labels computed anew from what the task says."""

import pytest
import torch

from benchmarks.sequences import addition, first_last_xor, sequential


def strings_of(task):
    return ["".join(str(int(symbol)) for symbol in row) for row in task.inputs[..., 0]]


@pytest.mark.parametrize("length", [2, 11])
def test_first_last_xor(length):
    task = first_last_xor(301, length, seed=1)
    assert task.targets.tolist() == [int(text[0] != text[-1]) for text in strings_of(task)]
    assert abs(int(task.targets.sum()) - 150) <= 1
    assert 100 < int(task.inputs[:, 0].sum()) < 200


@pytest.mark.parametrize(("base", "digits"), [(2, 5), (10, 5)])
def test_addition(base, digits):
    task = addition(200, base, digits, seed=2)
    whole = (task.inputs * (base - 1)).round().long()
    places = base ** torch.arange(digits + 1)
    assert torch.equal((whole[..., 0] + whole[..., 1]) @ places, task.targets @ places)
    assert torch.equal(whole[:, 1:, 2], task.extra[:, :-1])
    assert task.extra[:, -1].sum() == 0


@pytest.mark.parametrize("steps", [4, 5])
def test_images_in_pieces(steps):
    images, labels = torch.rand(6, 784, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    task, moved = sequential(images, labels, steps), sequential(images, labels, steps, permutation=3)
    assert torch.equal(task.inputs.flatten(1)[:, :784], images)
    assert task.inputs.flatten(1)[:, 784:].sum() == 0
    assert not torch.equal(moved.inputs, task.inputs)
    assert torch.equal(moved.inputs.flatten(1).sort(1).values, task.inputs.flatten(1).sort(1).values)
