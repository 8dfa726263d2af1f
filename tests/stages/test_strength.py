import pytest
import torch

from snn_recon_plugin.convex import Features, HeldOutRows, Problem, solve, solve_path, strengths_below
from snn_recon_plugin.convex.path import PATIENCE
from snn_recon_plugin.errors import DataError
from snn_recon_plugin.options import Options
from snn_recon_plugin.stages.stream import Split, split_samples
from snn_recon_plugin.stages.strength import Samples, choose_strength, plan_path

from ..convex.helpers import labels, spikes

OPTIONS = {"num_outputs": 3, "loss": "cross_entropy", "penalty": "group_l1"}  # of a Problem


def data(count=60):
    features = spikes(0, count, 8).float()
    classes = (features[:, 0] + 2 * features[:, 1]).long().clamp_max(2)
    classes[:3] = torch.arange(3)
    return features, classes


def chosen(features, targets, split=None, strength="auto", bias_column=0.7, weights=None, start=None, progress=None, **options):
    """Return the program at the strength chosen, the path, and the function that solves it."""
    split = split_samples(len(targets), 0.2, 0) if split is None else split
    given = {"tol": 1e-7, "strength": strength, **OPTIONS, **options}
    outputs, loss = given.pop("num_outputs"), given.pop("loss")
    samples = Samples(features, targets, bias_column, outputs, weights=weights)
    return choose_strength(samples, split, loss, Options(**given), readout="fc2", start=start, progress=progress)


def alone(features, targets, bias_column, strength, weights=None, **options):
    return solve(Problem(Features(features, bias_column, weights), targets, strength=strength, **{**OPTIONS, **options}), tol=1e-9)


# -- the split ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("count", "share", "held"), [(10, 0.2, 2), (100, 0.25, 25), (11, 0.5, 6), (10, 0.01, 1), (37, 0.1, 4)])
def test_every_sample_is_in_one_part(count, share, held):
    split = split_samples(count, share, seed=3)
    assert len(split.heldout) == held
    assert torch.cat([split.fitted, split.heldout]).sort().values.tolist() == list(range(count))
    assert split.fitted.tolist() == sorted(split.fitted.tolist())
    assert split.heldout.tolist() == sorted(split.heldout.tolist())


def test_the_split_follows_from_the_seed_alone_and_is_not_by_position():
    first, state = split_samples(1000, 0.2, seed=1).heldout, torch.get_rng_state()
    torch.manual_seed(9)
    assert torch.equal(split_samples(1000, 0.2, seed=1).heldout, first)
    torch.set_rng_state(state)
    assert not torch.equal(split_samples(1000, 0.2, seed=2).heldout, first)
    assert torch.equal(torch.get_rng_state(), state)
    assert 400 < first.double().mean() < 600


@pytest.mark.parametrize(("count", "share", "head"), [(600, 0.2, 600), (2000, 0.2, 500), (2000, 0.01, 500), (1000, 0.5, 40)])
def test_samples_that_decided_something_are_not_held_out_and_those_left_out_among_them_are_first(count, share, head):
    seen = split_samples(head, share, seed=5).fitted
    split = split_samples(count, share, 1, seen)
    assert not torch.isin(split.heldout, seen).any()
    assert sorted([*split.heldout.tolist(), *split.fitted.tolist()]) == list(range(count))
    left_out, held = set(range(int(seen[-1]))) - set(seen.tolist()), set(split.heldout.tolist())
    assert len(held) == max(1, min(round(share * count), count - len(seen)))
    assert left_out <= held if len(held) >= len(left_out) else held <= left_out


# -- the strength and the fit ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias_column", [0.7, None])
@pytest.mark.parametrize("penalty", ["group_l1", "ridge"])
def test_a_given_strength(bias_column, penalty):
    features, classes = data()
    split = split_samples(60, 0.2, seed=0)
    problem, path, finish = chosen(features, classes, split, 0.02, bias_column, penalty=penalty)
    solution = finish()
    assert len(path.points) == 1
    assert problem.strength == path.chosen.strength == 0.02
    assert solution.certificate.reached
    # The readout that is kept is that of all samples, to the tolerance asked for.
    known = alone(features, classes, bias_column, 0.02, penalty=penalty)
    assert solution.certificate.primal == pytest.approx(known.certificate.primal, abs=1e-6)
    # The loss of the held-out samples is that of a readout that has not seen them.
    unseen = alone(features[split.fitted], classes[split.fitted], bias_column, 0.02, penalty=penalty)
    scores = features[split.heldout].double() @ unseen.weight.T + (bias_column or 0.0) * unseen.bias
    expected = torch.nn.functional.cross_entropy(scores, classes[split.heldout])
    assert path.chosen.heldout_loss == pytest.approx(float(expected), rel=0.02)


def test_labels_of_held_out_samples_do_not_steer_the_fit_on_the_others():
    features, classes = data()
    split, other = split_samples(60, 0.2, seed=0), classes.clone()
    other[split.heldout] = (other[split.heldout] + 1) % 3
    first, second = (chosen(features, each, split, 0.02)[1].chosen for each in (classes, other))
    assert torch.equal(first.solution.weight, second.solution.weight)
    assert first.heldout_loss < second.heldout_loss


@pytest.mark.parametrize("weighted", [False, True])
def test_samples_held_out_for_good_choose_the_strength_and_are_not_fitted(weighted):
    features, classes = data(200)
    weights = torch.linspace(0.5, 2, 200, dtype=torch.float64) if weighted else None
    seen = []
    problem, path, finish = chosen(
        features, classes, Split(torch.arange(60, 200), torch.arange(60), excludes=True), weights=weights, progress=seen.append
    )
    solution, losses = finish(), [point.heldout_loss for point in path.points]
    assert list(path.points) == seen
    assert len(losses) > 2
    assert path.chosen.heldout_loss - min(losses) <= 0.1 * max(point.heldout_error for point in path.points)
    assert problem.strength == path.chosen.strength
    known = alone(features[60:], classes[60:], 0.7, problem.strength, None if weights is None else weights[60:])
    assert solution.certificate.primal == pytest.approx(known.certificate.primal, abs=1e-6)
    assert torch.allclose(solution.weight, known.weight, atol=1e-2)


def test_a_start_that_is_the_optimum_on_all_samples_takes_no_step():
    def solved(start=None):
        return chosen(*data(200), strength=0.01, start=start)[2]()

    cold = solved()
    warm, worse = solved((cold.weight, cold.bias)), solved((10 * cold.weight, cold.bias))
    assert warm.statistics.iterations == 0 < cold.statistics.iterations == worse.statistics.iterations
    assert torch.equal(warm.weight, cold.weight)
    assert worse.certificate.relative_gap <= 1e-7


@pytest.mark.parametrize("rare", [False, True])
def test_a_part_of_many_samples_chooses_where_the_path_begins(rare):
    """One solve on all samples to a held-out loss as low; the whole path if the part may miss a class."""
    count, generator = 26_000, torch.Generator().manual_seed(0)
    features, classes = data(count)
    flipped = torch.rand(count, generator=generator) < 0.2
    classes = torch.where(flipped, torch.randint(3, (count,), generator=generator), classes)
    if rare:
        classes[:] = classes.clamp_max(1)
        classes[split_samples(count, 0.2, 0).fitted[0]] = 2  # which the part does not hold
    _, short, finish = chosen(features, classes, penalty="ridge", tol=1e-4)
    assert finish().certificate.reached
    split = split_samples(count, 0.2, 0)
    fitted, held = Samples(features, classes, 0.7, 3).part(split.fitted), split.heldout
    whole = solve_path(fitted.problem("cross_entropy", "ridge"), HeldOutRows(features[held], classes[held], 0.7))
    if rare:
        assert short.points[0].strength == whole.points[0].strength
        return
    assert short.points[0].strength < whole.points[0].strength
    assert len(short.points) == 1
    assert short.chosen.heldout_loss == pytest.approx(min(point.heldout_loss for point in whole.points), rel=0.02)


# -- the plan of a path, without a solve ----------------------------------------------------------------------------------
def planned(trained=False, strength="auto"):
    """Return strengths and patience of the path, and the strengths of a whole one."""
    problem = Samples(*data(61), 0.7, OPTIONS["num_outputs"]).problem(OPTIONS["loss"], OPTIONS["penalty"])
    return plan_path(strength, problem, trained=trained), strengths_below(problem)


@pytest.mark.parametrize("options", [{"trained": True}, {}])
def test_a_number_is_taken(options):
    assert planned(strength=0.01, **options)[0] == ([0.01], PATIENCE)


def test_without_a_trained_readout_a_path_has_all_strengths():
    assert planned()[0] == (None, PATIENCE)


def test_a_path_from_a_trained_readout_leaves_out_large_strengths():
    found, whole = planned(trained=True)
    assert found == (whole[2:], 1)


@pytest.mark.parametrize(("penalty", "many", "some"), [("group_l1", 20_000, 8_000), ("ridge", 4_000, 4_000)])
def test_many_samples_choose_it_on_a_part_first(penalty, many, some):
    more, few = (Samples(*data(count), 0.7, OPTIONS["num_outputs"]) for count in (many + 1, many))
    assert len(more.random_part(sparse=penalty != "ridge").targets) == some
    assert few.random_part(sparse=penalty != "ridge") is None


def test_held_out_samples_enter_the_matrices_of_a_solved_path():
    """The path is solved without them, and the program on all samples is no other for what the path left behind."""
    features, classes = data(200)
    problem, path, finish = chosen(features, classes, loss="squared_hinge", penalty="ridge")
    kept = problem.features.columns(None, torch.float32).grams
    assert kept is not None
    split = split_samples(200, 0.2, 0)
    unseen = alone(features[split.fitted], classes[split.fitted], 0.7, problem.strength, loss="squared_hinge", penalty="ridge")
    known = alone(features, classes, 0.7, problem.strength, loss="squared_hinge", penalty="ridge")
    assert path.chosen.solution.certificate.primal == pytest.approx(unseen.certificate.primal, rel=1e-3)
    assert not kept.bent[split.heldout].any()
    assert finish().certificate.primal == pytest.approx(known.certificate.primal, rel=1e-6)
    assert kept.bent[split.heldout].any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: chosen(torch.ones(60, 8), data()[1]), "features of 'fc2' that are the same for every sample"),
        (lambda: chosen(data()[0], labels(0, 60, 4), strength=0.1), "class indices from 0 to 2"),
    ],
)
def test_refused(call, words):
    with pytest.raises(DataError, match=words):
        call()


def test_regression_targets_are_not_classes():
    features, _ = data()
    targets = torch.cat([torch.ones(60, 1), features[:, :1]], dim=1)
    _, path, _ = chosen(features, targets, strength=1e-4, loss="squared", num_outputs=2, penalty="ridge")
    assert path.chosen.heldout_loss < 1e-3


def test_a_class_that_only_held_out_samples_have():
    features, classes = data()
    split, classes = split_samples(60, 0.2, seed=0), classes % 2
    classes[split.heldout[0]] = 2
    assert chosen(features, classes, split)[2]().certificate.reached
