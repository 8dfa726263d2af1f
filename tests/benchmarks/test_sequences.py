"""The made sequences of benchmarks/sequences.py, their labels computed anew from what the task says."""

import re
from itertools import groupby, pairwise

import pytest
import torch

from benchmarks.sequences import TOMITA, addition, automaton_task, first_last_xor, sequential


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


def odd_runs(text):
    runs = [(symbol, len(list(group)) % 2) for symbol, group in groupby(text)]
    return any(one == ("1", 1) and two == ("0", 1) for one, two in pairwise(runs))


LANGUAGES = {
    "1": lambda text: "0" not in text,
    "2": lambda text: re.fullmatch("(10)*", text) is not None,
    "3": lambda text: not odd_runs(text),
    "4": lambda text: "000" not in text,
    "5": lambda text: text.count("0") % 2 == 0 == text.count("1") % 2,
    "6": lambda text: (text.count("1") - text.count("0")) % 3 == 0,
    "7": lambda text: re.fullmatch("0*1*0*1*", text) is not None,
    "p": lambda text: text.count("1") % 2 == 1,
}


@pytest.mark.parametrize("name", TOMITA)
def test_tomitas_languages(name):
    task = automaton_task(TOMITA[name], 200, 7, seed=4)
    texts, belongs = strings_of(task), LANGUAGES[name[0]]
    assert task.targets.tolist() == [int(belongs(text)) for text in texts]
    assert int(task.targets.sum()) == (0 if name[0] in "25" else 100)  # these languages have no string of seven symbols
    assert torch.equal(TOMITA[name].accepts[task.extra[:, -1]].long(), task.targets)
