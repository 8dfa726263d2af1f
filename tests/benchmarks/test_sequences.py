"""The tasks of benchmarks/sequences.py, their labels computed anew from what the task says."""

import re
from itertools import groupby, pairwise

import pytest
import torch

from benchmarks.sequences import TOMITA, addition, automaton_task, first_last_xor, random_automaton, sequential
from benchmarks.studies.automata import AUTOMATA, rebuild


def strings_of(task):
    return ["".join(str(int(symbol)) for symbol in row) for row in task.inputs[..., 0]]


@pytest.mark.parametrize("length", [2, 11])
def test_first_last_xor(length):
    task = first_last_xor(301, length, seed=1)
    assert task.inputs.shape == (301, length, 1)
    assert task.targets.tolist() == [int(text[0] != text[-1]) for text in strings_of(task)]
    assert abs(int(task.targets.sum()) - 150) <= 1
    assert len(set(strings_of(task))) > min(301, 2**length) // 2
    assert 100 < int(task.inputs[:, 0].sum()) < 200


@pytest.mark.parametrize(("base", "digits"), [(2, 5), (3, 10), (10, 5)])
def test_addition(base, digits):
    task = addition(200, base, digits, seed=2)
    assert task.inputs.shape == (200, digits + 1, 3)
    whole = (task.inputs * (base - 1)).round().long()
    places = base ** torch.arange(digits + 1)
    assert torch.equal((whole[..., 0] + whole[..., 1]) @ places, task.targets @ places)
    assert torch.equal(whole[:, 1:, 2], task.extra[:, :-1])
    assert task.extra[:, -1].sum() == 0
    assert set(task.targets.flatten().tolist()) == set(range(base))


@pytest.mark.parametrize("steps", [4, 14, 28, 5])
def test_images_in_pieces(steps):
    images, labels = torch.rand(6, 784, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    task = sequential(images, labels, steps)
    assert task.inputs.shape == (6, steps, -(-784 // steps))
    assert torch.equal(task.inputs.flatten(1)[:, :784], images)
    assert task.inputs.flatten(1)[:, 784:].sum() == 0
    moved = sequential(images, labels, steps, permutation=3)
    assert not torch.equal(moved.inputs, task.inputs)
    assert torch.equal(moved.inputs.flatten(1).sort(1).values, task.inputs.flatten(1).sort(1).values)
    assert torch.equal(moved.inputs, sequential(images, labels, steps, permutation=3).inputs)


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
@pytest.mark.parametrize("length", [1, 7, 12])
def test_tomitas_languages(name, length):
    task = automaton_task(TOMITA[name], 200, length, seed=4)
    texts, belongs = strings_of(task), LANGUAGES[name[0]]
    assert task.targets.tolist() == [int(belongs(text)) for text in texts]
    there_are = {belongs(format(number, f"0{length}b")) for number in range(2**length)}
    assert int(task.targets.sum()) == (100 if len(there_are) == 2 else 200 * int(True in there_are))
    assert torch.equal(TOMITA[name].accepts[task.extra[:, -1]].long(), task.targets)


@pytest.mark.parametrize("states", [3, 5, 8])
def test_random_automata(states):
    automaton = random_automaton(states, seed=states)
    task = automaton_task(automaton, 300, 10, seed=0)
    moves = automaton.moves.tolist()
    for text, states_seen, label in zip(strings_of(task), task.extra.tolist(), task.targets.tolist(), strict=True):
        state, seen = 0, []
        for symbol in text:
            state = moves[state][int(symbol)]
            seen.append(state)
        assert states_seen == seen
        assert label == int(automaton.accepts[state])
    assert {0} | set(task.extra.flatten().tolist()) == set(range(states))
    assert int(task.targets.sum()) == 150


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["RLeaky", "LIFRecurrent"])
@pytest.mark.parametrize("name", ["first XOR last", "2: repetitions of 10"])
def test_automata_are_rebuilt_in_layers(name, layer):
    task = automaton_task(AUTOMATA[name], 100, 9)
    if name == "first XOR last":
        assert task.targets.tolist() == [int(text[0] != text[-1]) for text in strings_of(task)]
    found = rebuild(AUTOMATA[name], layer, length=8, samples=100)
    assert (found["mismatch"], found["tests"]) == (0, {"8": 1.0, "100": 1.0})
    assert found["relative_gap"] <= 1e-6
