"""Weights that users' hooks see, and the net that is left when one of them raises."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from snn_recon_plugin import ConvexInitializer

from .runs import MARKS, Module, assert_equal, callback, data_set, falling, trainer_of

pytestmark = MARKS

EARLY = "setup on_fit_start on_sanity_check_start on_sanity_check_end on_train_start"
TRAINING = (
    "on_train_epoch_start on_train_batch_start on_before_zero_grad on_before_backward on_after_backward "
    "on_before_optimizer_step on_train_batch_end on_train_epoch_end"
)
VALIDATION = (
    "on_validation_start on_validation_epoch_start on_validation_batch_start on_validation_batch_end on_validation_epoch_end "
    "on_validation_end"
)
SAVING, LATE = "on_save_checkpoint state_dict", "on_train_end on_fit_end"
OF_MODULES = "training_step validation_step on_validation_model_eval on_validation_model_train configure_gradient_clipping"
OF_CALLBACKS = f"{EARLY} {TRAINING} {VALIDATION} {SAVING} {LATE}".split()
NOT_OF_MODULES = ("on_sanity_check_start", "on_sanity_check_end")
HOOKS = [("callback before", hook) for hook in f"{VALIDATION} {LATE}".split()]
HOOKS += [("callback after", hook) for hook in OF_CALLBACKS]
HOOKS += [("module", hook) for hook in [*OF_CALLBACKS, *OF_MODULES.split()] if hook not in NOT_OF_MODULES]


def weights_of(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


class StopError(Exception):
    """Raised by a user's hook."""


def watched(base, notice):
    """A class whose hooks call ``notice(hook, module)`` first."""

    def hook_of(name):
        def hook(self, *arguments, **options):
            trainer = getattr(self, "seen_by", None) or self.trainer
            notice(name, trainer.lightning_module)
            return getattr(base, name)(self, *arguments, **options)

        return hook

    names = [name for name in {*OF_CALLBACKS, *OF_MODULES.split()} if hasattr(base, name)]
    return type("Watched", (base,), {name: hook_of(name) for name in names})


def made():
    """A callback with quick refits."""
    return callback(of=ConvexInitializer(hidden="keep", strength=0.01), at_start=False, metric=falling(), average=0.9)


def run(folder, own, owner, notice):
    """A run of two epochs with a validation and a checkpoint each; gives the module and what it raised."""
    pl.seed_everything(0, verbose=False)
    module = (watched(Module, notice) if owner == "module" else Module)(hidden=12)
    callbacks = [own] if own is not None else []
    if owner != "module":
        user = watched(pl.Callback, notice)()
        callbacks.insert(0 if owner == "callback before" else len(callbacks), user)
    checkpoints = pl.callbacks.ModelCheckpoint(folder, save_top_k=-1)
    trainer = trainer_of(*callbacks, checkpoints, epochs=2, enable_checkpointing=True)
    if owner != "module":
        user.seen_by = trainer
    raised = None
    try:
        trainer.fit(module, DataLoader(data_set(100), 50), DataLoader(data_set(40), 20))
    except StopError as error:
        raised = error
    return module, raised


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The weights at each call of each hook, in runs without the callback."""
    found = {}
    for owner in ("callback before", "module"):

        def notice(hook, module, owner=owner):
            found.setdefault((owner.split()[0], hook), []).append(weights_of(module))

        run(tmp_path_factory.mktemp("plain"), None, owner, notice)
    return found


@pytest.mark.parametrize(("owner", "hook"), HOOKS)
def test_a_hook_that_raises_leaves_the_trained_net(tmp_path, plain, owner, hook):
    """At its last call in a run, that is after a refit unless the hook comes early."""
    expected, calls = plain[owner.split()[0], hook], []

    def notice(name, module):
        if name == hook:
            calls.append(name)
            if len(calls) == len(expected):
                raise StopError

    module, raised = run(tmp_path, made(), owner, notice)
    assert raised is not None
    assert_equal(weights_of(module), expected[-1])


@pytest.mark.parametrize("owner", ["callback before", "callback after", "module"])
def test_hooks_see_the_trained_weights_but_in_validation(tmp_path, plain, owner):
    """Those of the module, and of callbacks on either side; after training, they see the evaluated weights."""
    seen = {}

    def notice(hook, module):
        seen.setdefault(hook, []).append(weights_of(module))

    run(tmp_path, made(), owner, notice)
    others = set()
    for hook, found in seen.items():
        expected = plain[owner.split()[0], hook]
        assert len(found) == len(expected)
        if any(not torch.equal(one[name], two[name]) for one, two in zip(found, expected, strict=True) for name in one):
            others.add(hook)
    inside = {"on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end"}
    assert (
        others
        == inside
        | {"on_fit_end"}
        | {
            "callback before": {"on_validation_end"},
            "callback after": {"on_validation_start", "on_train_end"},
            "module": {"on_validation_start", "validation_step", "state_dict", "on_train_end"},
        }[owner]
    )


def test_a_hook_that_raises_after_the_end_leaves_the_evaluated_net(tmp_path):
    class Late(pl.Callback):
        def teardown(self, trainer, pl_module, stage):
            self.seen = weights_of(pl_module)
            raise StopError

    late, module = Late(), Module(hidden=12)
    trainer = trainer_of(made(), late, epochs=1)
    with pytest.raises(StopError):
        trainer.fit(module, DataLoader(data_set(100), 50))
    assert_equal(weights_of(module), late.seen)


def test_weights_that_a_hook_changes_after_an_epoch_are_trained_on():
    class Halves(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.net.fc2.weight.mul_(0.5)

    losses = []
    for callbacks in ([made(), Halves()], [Halves()]):
        pl.seed_everything(0, verbose=False)
        module = Module(hidden=12)
        trainer_of(*callbacks, epochs=3).fit(module, DataLoader(data_set(100), 50))
        losses.append(module.losses)
    assert losses[0] == losses[1]
