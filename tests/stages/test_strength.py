from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from snn_recon_plugin.convex import Features, Path, Problem, Solution, solve
from snn_recon_plugin.errors import DataError
from snn_recon_plugin.stages.stream import hold_first, split_samples
from snn_recon_plugin.stages.strength import ReadoutProgram, Samples, choose_strength

from ..convex.helpers import labels, spikes

OPTIONS = {"readout": "fc2", "num_outputs": 3, "bias_column": 0.7, "loss": "cross_entropy", "penalty": "group_l1"}
OPTIONS |= {"solver": "auto", "tol": 1e-7}


def data(count=60, size=8, seed=0):
    features = spikes(seed, count, size).float()
    classes = (features[:, 0] + 2 * features[:, 1]).long().clamp_max(2)
    classes[:3] = torch.arange(3)
    return features, classes


class Chosen(NamedTuple):
    problem: Problem
    path: Path
    solve: Callable[[], Solution]

    @property
    def trial(self):
        return self.path.chosen


def chosen_by(features, targets, split, *, bias_column, **options):
    return choose(Samples(features, targets, bias_column), split, **options)


def choose(samples, split, *, start=None, progress=None, **options):
    return Chosen(*choose_strength(samples, split, ReadoutProgram(**options), start=start, progress=progress))


# -- the split ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "share", "held"), [(10, 0.2, 2), (100, 0.25, 25), (11, 0.5, 6), (10, 0.01, 1), (37, 0.1, 4)])
def test_every_sample_is_in_one_part(count, share, held):
    split = split_samples(count, share, seed=3)
    assert len(split.heldout) == held
    assert torch.cat([split.fitted, split.heldout]).sort().values.tolist() == list(range(count))
    assert split.fitted.tolist() == sorted(split.fitted.tolist())
    assert split.heldout.tolist() == sorted(split.heldout.tolist())


def test_the_split_follows_from_the_seed_alone():
    torch.manual_seed(0)
    first = split_samples(50, 0.2, seed=1)
    torch.manual_seed(9)
    state = torch.get_rng_state()
    assert torch.equal(split_samples(50, 0.2, seed=1).heldout, first.heldout)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(split_samples(50, 0.2, seed=2).heldout, first.heldout)


def test_the_split_is_not_by_position():
    held = split_samples(1000, 0.2, seed=0).heldout.double()
    assert 400 < held.mean() < 600


@pytest.mark.parametrize(("count", "share", "head"), [(600, 0.2, 600), (2000, 0.2, 500), (2000, 0.01, 500), (1000, 0.5, 40)])
def test_samples_that_decided_something_are_not_held_out_and_those_left_out_among_them_are_first(count, share, head):
    seen = split_samples(head, share, seed=5).fitted
    split = split_samples(count, share, 1, seen)
    assert not torch.isin(split.heldout, seen).any()
    assert sorted([*split.heldout.tolist(), *split.fitted.tolist()]) == list(range(count))
    left_out = [sample for sample in range(int(seen[-1])) if sample not in set(seen.tolist())]
    wanted = max(1, min(round(share * count), count - len(seen)))
    assert len(split.heldout) == wanted
    held = set(split.heldout.tolist())
    assert set(left_out) <= held if wanted >= len(left_out) else held <= set(left_out)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_samples(count):
    with pytest.raises(DataError, match=f"{count} samples"):
        split_samples(count, 0.2, seed=0)


def test_the_first_samples_of_a_loader_are_held_out_for_good():
    numbers = torch.tensor([0, 2, 3, 7, *range(10, 25)])  # some were left out, since the loss ignores their labels
    split = hold_first(numbers, 5)
    assert (split.heldout.tolist(), split.fitted.tolist()) == ([0, 1, 2], list(range(3, 19)))
    assert split.excludes
    with pytest.raises(DataError, match="9 samples to fit"):
        hold_first(torch.arange(20), 11)


# -- the strength and the fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias_column", [0.7, None])
@pytest.mark.parametrize("penalty", ["group_l1", "ridge"])
def test_a_given_strength(bias_column, penalty):
    features, classes = data()
    split = split_samples(60, 0.2, seed=0)
    options = OPTIONS | {"bias_column": bias_column, "penalty": penalty}
    chosen = chosen_by(features, classes, split, strength=0.02, **options)
    solution = chosen.solve()
    assert len(chosen.path.points) == 1
    assert chosen.problem.strength == chosen.trial.strength == 0.02
    assert solution.certificate.reached
    assert chosen.problem.features.num_samples == 60
    # The readout that is kept is that of all samples, to the tolerance asked for.
    whole = Problem(Features(features, bias_column), classes, loss="cross_entropy", penalty=penalty, num_outputs=3, strength=0.02)
    assert solution.certificate.primal == pytest.approx(solve(whole, tol=1e-9).certificate.primal, abs=1e-6)
    # What is said of held-out samples comes from a readout that has not seen them.
    part = Problem(
        Features(features[split.fitted], bias_column),
        classes[split.fitted],
        loss="cross_entropy",
        penalty=penalty,
        num_outputs=3,
        strength=0.02,
    )
    unseen = solve(part, tol=1e-9)
    scores = features[split.heldout].double() @ unseen.weight.T + (bias_column or 0.0) * unseen.bias
    expected = float(torch.nn.functional.cross_entropy(scores, classes[split.heldout]))
    assert chosen.trial.heldout_loss == pytest.approx(expected, rel=0.02)
    accuracy = float((scores.argmax(1) == classes[split.heldout]).double().mean())
    assert chosen.trial.heldout_accuracy == pytest.approx(accuracy, abs=0.1)


def test_labels_of_held_out_samples_do_not_steer_the_fit_on_the_others():
    features, classes = data()
    split = split_samples(60, 0.2, seed=0)
    other = classes.clone()
    other[split.heldout] = (other[split.heldout] + 1) % 3
    trials = [chosen_by(features, y, split, strength=0.02, **OPTIONS).trial for y in (classes, other)]
    assert torch.equal(trials[0].solution.weight, trials[1].solution.weight)
    assert trials[0].heldout_loss < trials[1].heldout_loss


@pytest.mark.parametrize("weighted", [False, True])
def test_samples_held_out_for_good_choose_the_strength_and_are_not_fitted(weighted):
    features, classes = data(200)
    weights = torch.linspace(0.5, 2, 200, dtype=torch.float64) if weighted else None
    split, options = hold_first(torch.arange(200), 60), {name: value for name, value in OPTIONS.items() if name != "bias_column"}
    problem, path, finish = choose(Samples(features, classes, 0.7, weights=weights), split, strength="auto", **options)
    solution, losses = finish(), [point.heldout_loss for point in path.points]
    assert len(losses) > 2
    assert path.chosen.heldout_loss == min(losses)
    rest = Features(features[60:], 0.7, None if weights is None else weights[60:])
    known = Problem(rest, classes[60:], loss="cross_entropy", penalty="group_l1", num_outputs=3, strength=problem.strength)
    alone = solve(known, tol=1e-9)
    assert solution.certificate.primal == pytest.approx(alone.certificate.primal, abs=1e-6)
    assert torch.allclose(solution.weight, alone.weight, atol=1e-2)


def test_a_start_that_is_the_optimum_on_all_samples_takes_no_step():
    features, classes = data(200)
    split = split_samples(200, 0.2, 0)
    cold = chosen_by(features, classes, split, strength=0.01, **OPTIONS).solve()
    optimum = cold.weight, cold.bias
    warm = chosen_by(features, classes, split, strength=0.01, start=optimum, **OPTIONS).solve()
    assert warm.statistics.iterations == 0 < cold.statistics.iterations
    assert torch.equal(warm.weight, optimum[0])
    worse = chosen_by(features, classes, split, strength=0.01, start=(10 * optimum[0], optimum[1]), **OPTIONS).solve()
    assert worse.statistics.iterations == cold.statistics.iterations
    assert worse.certificate.relative_gap <= 1e-7


def test_strength_auto_is_chosen_by_held_out_loss():
    features, classes = data(200)
    seen = []
    chosen = chosen_by(features, classes, split_samples(200, 0.3, seed=0), strength="auto", progress=seen.append, **OPTIONS)
    assert list(chosen.path.points) == seen
    assert len(seen) >= 3
    assert chosen.trial.heldout_loss == min(point.heldout_loss for point in seen)
    assert chosen.problem.strength == chosen.trial.strength


RARE = 0  # a fitted sample that the part does not hold


@pytest.mark.parametrize("rare", [False, True])
def test_a_part_of_many_samples_chooses_where_the_path_begins(rare):
    """Fewer solves on all samples to a held-out loss as low; the whole path if the part may miss a class."""
    count, generator = 26_000, torch.Generator().manual_seed(0)
    features, classes = data(count)
    flipped = torch.rand(count, generator=generator) < 0.2
    classes = torch.where(flipped, torch.randint(3, (count,), generator=generator), classes)
    split = split_samples(count, 0.2, seed=0)
    if rare:
        classes[:] = classes.clamp_max(1)
        classes[split.fitted[RARE]] = 2
    options = OPTIONS | {"penalty": "ridge", "tol": 1e-4}
    short, whole = (chosen_by(features, classes, split, strength=choice, **options) for choice in ("auto", "one_se"))
    assert short.solve().certificate.reached
    strengths, all_strengths = ([point.strength for point in chosen.path.points] for chosen in (short, whole))
    if rare:
        assert strengths[0] == all_strengths[0]
        return
    assert strengths[0] < all_strengths[0]
    assert len(strengths) < len(all_strengths)
    assert short.trial.heldout_loss == pytest.approx(min(point.heldout_loss for point in whole.path.points), rel=0.02)


def test_a_path_near_a_strength_that_was_best_before():
    features, classes = data()
    split = split_samples(60, 0.2, seed=0)
    whole = chosen_by(features, classes, split, strength="auto", **OPTIONS)
    near = chosen_by(features, classes, split, strength="auto", previous=whole.trial.strength, **OPTIONS)
    steps = [point.strength for point in whole.path.points]
    assert near.path.points[0].strength == pytest.approx(whole.trial.strength * steps[0] / steps[1])
    assert near.trial.strength == pytest.approx(whole.trial.strength)
    for other in ("one_se", 0.01):  # which ask for all strengths, or for one
        plain, told = (chosen_by(features, classes, split, strength=other, previous=n, **OPTIONS) for n in (None, 0.1))
        assert told.trial.strength == plain.trial.strength


@pytest.mark.parametrize("strength", [None, 0.1])
def test_a_single_class(strength):
    features, _ = data()
    with pytest.raises(DataError, match="a single class, 2, in all 60 labels"):
        chosen_by(features, torch.full((60,), 2), split_samples(60, 0.2, seed=0), strength=strength, **OPTIONS)


def test_features_that_are_all_the_same():
    _, classes = data()
    with pytest.raises(DataError, match="features of 'fc2' that are the same for every sample"):
        chosen_by(torch.ones(60, 8), classes, split_samples(60, 0.2, seed=0), strength="auto", **OPTIONS)


def test_regression_targets_are_not_classes():
    features, _ = data()
    targets = torch.cat([torch.ones(60, 1), features[:, :1]], dim=1)
    options = OPTIONS | {"loss": "squared", "num_outputs": 2, "penalty": "ridge"}
    chosen = chosen_by(features, targets, split_samples(60, 0.2, seed=0), strength=1e-4, **options)
    assert chosen.trial.heldout_loss < 1e-3


def test_a_class_that_only_held_out_samples_have():
    features, classes = data()
    split = split_samples(60, 0.2, seed=0)
    classes = classes % 2
    classes[split.heldout[0]] = 2
    assert chosen_by(features, classes, split, strength="auto", **OPTIONS).solve().certificate.reached


def test_labels_out_of_range():
    features, _ = data()
    with pytest.raises(DataError, match="class indices from 0 to 2"):
        chosen_by(features, labels(0, 60, 4), split_samples(60, 0.2, seed=0), strength=0.1, **OPTIONS)
