"""Weights that users' hooks see, and the net that is left when one of them raises."""

import contextlib

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from snn_recon_plugin.demo import build_network

from .runs import MARKS, Module, assert_equal, callback, data_set, falling, fit, trainer_of

pytestmark = MARKS

INSIDE = [f"on_validation_{when}" for when in ("epoch_start", "batch_start", "batch_end", "epoch_end")]
LATE = ["on_validation_start", "on_validation_end", "on_train_end", "on_fit_end"]
TRAINING = ["on_fit_start", "on_train_start", "on_train_batch_start", "on_before_optimizer_step", "on_train_epoch_end"]
WATCHED = [*TRAINING, *INSIDE, *LATE, "on_save_checkpoint", "state_dict", "training_step", "validation_step"]
# Those at which the evaluated weights may be in the net, and one of training.
HOOKS = [("callback before", hook) for hook in ("on_validation_epoch_start", "on_validation_epoch_end", *LATE)]
HOOKS += [("callback after", hook) for hook in ("on_train_epoch_end", "on_validation_batch_end", "on_save_checkpoint", *LATE)]
HOOKS += [("module", hook) for hook in ("training_step", "validation_step", "on_validation_epoch_end", "state_dict", "on_fit_end")]


class StopError(Exception):
    """Raised by a user's hook."""


def small():
    return Module(net=build_network(64, 12, 10, 4))


def made():
    return callback(at_start=False, metric=falling(), average=0.9)


def weights_of(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def watched(base, notice):
    """A class whose hooks call ``notice(hook, self)`` first."""

    def hook_of(name):
        def hook(self, *arguments, **options):
            notice(name, self)
            return getattr(base, name)(self, *arguments, **options)

        return hook

    return type("Watched", (base,), {name: hook_of(name) for name in WATCHED if hasattr(base, name)})


def run(folder, own, owner, stop=None):
    """A run of two epochs with a validation and a checkpoint each, which may end at some call of a hook of the owner's.

    Gives the module, and the weights at each call of each hook.
    """
    seen = {}

    def notice(hook, of):
        if isinstance(of, Module) and of is not module:  # a private copy, whose training step is read
            return
        seen.setdefault(hook, []).append(weights_of(module))
        if stop == (hook, len(seen[hook])):
            raise StopError

    pl.seed_everything(0, verbose=False)
    module = small()
    if owner == "module":
        module.__class__ = watched(Module, notice)
    users = watched(pl.Callback, notice)()
    callbacks = [*([users] if owner == "callback before" else []), *own, *([users] if owner == "callback after" else [])]
    checkpoints = pl.callbacks.ModelCheckpoint(folder, save_top_k=-1)
    trainer = trainer_of(*callbacks, checkpoints, epochs=2, enable_checkpointing=True)
    with contextlib.nullcontext() if stop is None else pytest.raises(StopError):
        trainer.fit(module, DataLoader(data_set(100), 50), DataLoader(data_set(40), 20))
    return module, seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return {owner: run(tmp_path_factory.mktemp("plain"), [], owner)[1] for owner in ("callback before", "callback after", "module")}


@pytest.mark.parametrize(("owner", "hook"), HOOKS)
def test_a_hook_that_raises_leaves_the_trained_net(tmp_path, plain, owner, hook):
    """At its last call in a run, that is after a refit unless the hook comes early."""
    expected = plain[owner][hook]
    module, _ = run(tmp_path, [made()], owner, (hook, len(expected)))
    assert_equal(weights_of(module), expected[-1])


@pytest.mark.parametrize(
    ("owner", "more"),
    [
        ("callback before", {"on_validation_end"}),
        ("callback after", {"on_validation_start", "on_train_end"}),
        ("module", {"on_validation_start", "validation_step", "state_dict", "on_train_end"}),
    ],
)
def test_hooks_see_the_trained_weights_but_in_validation(tmp_path, plain, owner, more):
    """Those of the module, and of callbacks on either side; after training, they see the evaluated weights."""
    _, seen = run(tmp_path, [made()], owner)
    assert {hook: len(found) for hook, found in seen.items()} == {hook: len(found) for hook, found in plain[owner].items()}
    others = {
        hook
        for hook, found in seen.items()
        for one, two in zip(found, plain[owner][hook], strict=True)
        if any(not torch.equal(one[name], two[name]) for name in one)
    }
    assert others == {*INSIDE, "on_fit_end", *more}


def test_a_hook_that_raises_after_the_end_leaves_the_evaluated_net():
    class Late(pl.Callback):
        def teardown(self, trainer, pl_module, stage):
            self.seen = weights_of(pl_module)
            raise StopError

    late, module = Late(), small()
    with pytest.raises(StopError):
        fit(made(), module, beside=[late], epochs=1)
    assert_equal(weights_of(module), late.seen)


def test_weights_that_a_hook_changes_after_an_epoch_are_trained_on():
    class Halves(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.net.fc2.weight.mul_(0.5)

    one, two = (fit(own, beside=[Halves()], epochs=3)[0] for own in (made(), None))
    assert one.losses == two.losses
