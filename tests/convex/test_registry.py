import pytest

from snn_recon_plugin.convex import LOSSES, make_loss, make_penalty
from snn_recon_plugin.errors import OptionError

from .helpers import PENALTY_NAMES


@pytest.mark.parametrize(
    ("make", "name"), [*((make_loss, name) for name in LOSSES), *((make_penalty, name) for name in PENALTY_NAMES)]
)
def test_names_and_objects_are_taken(make, name):
    made = make(name)
    assert made.name == name
    assert make(made) is made


def test_short_names_of_losses():
    names = {"ce": "cross_entropy", "nll": "cross_entropy", "bce": "logistic", "mse": "squared", "smooth_l1": "huber"}
    assert {short: make_loss(short).name for short in names} == names


@pytest.mark.parametrize(("make", "option", "valid"), [(make_loss, "loss", LOSSES), (make_penalty, "penalty", PENALTY_NAMES)])
@pytest.mark.parametrize("name", ["nope", "multi_margin", "", None])
def test_unknown_names_are_refused_with_the_valid_ones(make, option, valid, name):
    with pytest.raises(OptionError, match=f"{option}={name!r}") as caught:
        make(name)
    assert all(each in caught.value.needed for each in valid)


@pytest.mark.parametrize(
    ("make", "name", "fix"),
    [
        (make_loss, "squared_multi_margin", "pass loss='squared_hinge'"),
        (make_loss, "mae", "pass loss='huber', an absolute error but for small ones"),
        (make_penalty, "group_l1+ridge", "pass penalty='ridge' or 'group_l1'"),
        (make_penalty, "l1 + ridge", "pass penalty='ridge' or 'l1'"),
    ],
)
def test_names_without_a_program_say_what_to_type(make, name, fix):
    with pytest.raises(OptionError) as caught:
        make(name)
    assert caught.value.fix == fix
