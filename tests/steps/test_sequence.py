"""Values of consecutive steps: which tensors are steps of them."""

import torch

from snn_recon_plugin.steps.sequence import Sequence, Tape


def test_tensors_are_recognised_by_their_memory():
    tape = Tape()
    sequence = tape.add(Sequence(torch.rand(3, 2, 4)))
    assert tape.find(sequence.slices[1]) == (sequence, 1)
    assert tape.find(sequence.slices[2].view(2, 2, 2)) == (sequence, 2)
    assert tape.find(sequence.slices[2].clone()) is None
    assert not tape.holds(sequence.slices[2].clone())


def test_a_step_that_was_written_into_is_none_of_its_sequence():
    tape = Tape()
    sequence = tape.add(Sequence(torch.rand(3, 2, 4)))
    sequence.slices[1].add_(1)
    assert tape.find(sequence.slices[1]) is None
    assert tape.find(sequence.slices[2]) == (sequence, 2)


def test_a_tensor_is_no_step_of_values_that_were_given_up():
    """Python gives the identity of a tensor that is gone to another one."""
    tape = Tape()
    sequence = tape.add(Sequence(torch.rand(3, 2, 4)))
    step = sequence.slices[0]
    assert tape.holds(step)
    sequence.release()
    assert not tape.holds(step)
