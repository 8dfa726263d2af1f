"""All that depends on Lightning: its two namespaces, strategies, precisions and private attributes."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core import rank_zero
from torch import Tensor, nn

from ..distributed import SINGLE_PROCESS, Shards, SingleProcess
from ..errors import DataError, NetworkError, OptionError, ReadoutNotFoundError
from ..networks.libraries import is_neuron, list_for_message

_LOG = logging.getLogger("snn_recon_plugin")

_NAMESPACES = ("lightning.pytorch", "pytorch_lightning")
_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")


def _callback_classes() -> tuple[type, ...]:
    """Return the ``Callback`` class of every namespace that can be imported."""
    classes = []
    logger: logging.Logger | None = None
    for name in sorted(_NAMESPACES, key=lambda name: name not in sys.modules):
        with contextlib.suppress(ImportError):
            classes.append(importlib.import_module(name).Callback)
            logger = logger or rank_zero.log
    if logger is not None:  # each namespace makes its own logger that of both; the user's, imported first, keeps it
        rank_zero.log = logger
    if not classes:
        raise ImportError("ReconstructionCallback needs Lightning: pip install lightning")
    return tuple(classes)


if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback  # noqa: PLC0414 (an explicit export)
else:
    # A base of each namespace, so that either trainer accepts the callback.
    Callback = type("Callback", _callback_classes(), {"__doc__": "A callback of any Lightning.", "__module__": __name__})


# -- checks before a run ------------------------------------------------------------------------------------------------


def check_trainer(trainer: Any) -> None:
    """Refuse strategies that shard parameters."""
    strategy = type(trainer.strategy).__name__
    if any(word in strategy for word in _SHARDED):
        fix = "train with strategy='ddp', or initialise once by convex_init_(net, loader) before training"
        raise OptionError(f"the strategy {strategy}, which shards parameters", "whole parameters in every process", fix)


def averages_weights(trainer: Any) -> bool:
    """Return True if a callback evaluates averaged weights, and leaves them in the module at the end of training."""
    return any("WeightAveraging" in kind.__name__ for other in trainer.callbacks for kind in type(other).__mro__)


def find_network(module: Any, name: str | None) -> nn.Module:
    """Return the named network of a LightningModule, by default itself if it has a ``forward``, else its one part with neurons."""
    if name is not None:
        found: nn.Module | None = dict(module.named_modules()).get(name)
        if not name or found is None:
            parts = [part for part, _ in module.named_children()]
            raise OptionError(f"net={name!r}", f"the name of a submodule, e.g. one of {parts}", "pass net='...' with such a name")
        return found
    parts = [part for part, child in module.named_children() if any(is_neuron(inner) for inner in child.modules())]
    if _has_forward(module) and parts:
        whole: nn.Module = module
        return whole
    if len(parts) == 1:
        return find_network(module, parts[0])
    if not parts:
        raise ReadoutNotFoundError(
            f"a {type(module).__name__} without spiking neurons of {list_for_message(lambda library: library.title)}",
            "a LightningModule that holds such a network",
            "pass the callback to the trainer of a spiking network",
        )
    needed = "one network to refit"
    fix = f"pass ReconstructionCallback(net={parts[0]!r})"
    raise NetworkError(f"a {type(module).__name__} without forward(), with several networks: {', '.join(parts)}", needed, fix)


def _has_forward(module: nn.Module) -> bool:
    """Return whether a LightningModule defines ``forward``, which Lightning itself leaves abstract."""
    own = vars(module).get("forward")
    # torch.compile(module) sets one on every module; a validation under DDP leaves the bound method of the class there.
    if own is not None and module._compiler_ctx is None and getattr(own, "__func__", None) is not type(module).forward:
        return True
    return defines(module, "forward")


def defines(module: Any, name: str) -> bool:
    """Return whether the class of a LightningModule defines a method, which Lightning's own leaves abstract."""
    owner = next(kind for kind in type(module).__mro__ if name in vars(kind))
    return not (owner.__name__ == "LightningModule" and owner.__module__.startswith(_NAMESPACES))


def check_only_callback(trainer: Any, module: Any, callback: Any) -> None:
    """Refuse two ReconstructionCallbacks for (parts of) one network."""
    own = {id(parameter) for parameter in find_network(module, callback.net).parameters()}
    for other in trainer.callbacks:
        if other is callback or not isinstance(other, type(callback)):
            continue
        if any(id(parameter) in own for parameter in find_network(module, other.net).parameters()):
            fix = "keep one of them, or name their networks: net='...'"
            raise OptionError("two ReconstructionCallbacks for the same network", "one for each network", fix)


# -- a run --------------------------------------------------------------------------------------------------------------


def is_last_step(trainer: Any) -> bool:
    """Return whether no training follows this batch, unless the run ends early."""
    stops = 0 < trainer.max_steps <= trainer.global_step
    return bool(stops or (trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs))


def validates_after_batch(trainer: Any) -> bool:
    """Return whether a validation follows this batch, as Lightning's training loop decides it."""
    validates: bool = trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    if getattr(trainer, "_val_check_time_interval", None) is None:  # since Lightning 2.6
        return validates
    return all(processes_of(trainer).gather(validates))  # their clocks differ


def say(trainer: Any, network: str | None, line: str) -> None:
    """Log a line about a network, and print it above the progress bar, in the first process."""
    if trainer.is_global_zero:
        line = line if network is None else f"{network}: {line}"
        _LOG.info(line)
        bar = trainer.progress_bar_callback
        if bar is not None and getattr(bar, "is_enabled", True):  # bars that users write need not have the property
            show = bar.print if trainer.global_step else print  # before training a bar of tqdm prints nothing
            show(line)


def keep_running(trainer: Any) -> None:
    """Let early stopping and rates on a plateau wait anew: training improves, though the evaluated weights do not change yet."""
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            config.scheduler.num_bad_epochs = -1  # the step that follows adds one
    for callback in trainer.callbacks:
        if any(kind.__name__ == "EarlyStopping" for kind in type(callback).__mro__):
            callback.wait_count = -1  # the check that follows adds one


def log_metrics(trainer: Any, network: str | None, metrics: dict[str, float]) -> dict[str, float]:
    """Give metrics that were measured to loggers and ``trainer.callback_metrics``; return them by the names shown there."""
    prefix = "recon/" if network is None else f"recon/{network}/"
    metrics = {prefix + name: value for name, value in metrics.items() if not math.isnan(value)}
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)
    return metrics


def set_checkpoint_weights(strategy: Any, evaluated: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Take checkpoints' weights inside a context, by the strategy's method: no callback sees those of weights alone."""
    inner = strategy.lightning_module_state_dict

    def state_dict() -> dict[str, Any]:
        with evaluated():
            return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inner().items()}

    strategy.lightning_module_state_dict = state_dict


def restore_checkpoint_weights(strategy: Any) -> None:
    """Undo ``set_checkpoint_weights``."""
    vars(strategy).pop("lightning_module_state_dict", None)


# -- data ---------------------------------------------------------------------------------------------------------------


def move_batch(trainer: Any, batch: Any) -> Any:
    """Convert and move a batch as the trainer's loops do."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


@contextlib.contextmanager
def validating(trainer: Any) -> Iterator[None]:
    """Set the trainer's stage to validation, for hooks that treat training data differently."""
    stage, trainer.validating = trainer.state.stage, True
    try:
        yield
    finally:
        trainer.state.stage = stage


def validation_loader(trainer: Any) -> tuple[Iterable[Any], float]:
    """Return the loader of validation data, and the largest number of its batches; call it inside ``validating``."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    if trainer.enable_validation and loop._combined_loader is None:
        loop.setup_data()  # Lightning itself waits for the first epoch that is validated
    loaders = None if loop._combined_loader is None else loop._combined_loader.iterables
    if isinstance(loaders, list | tuple) and len(loaders) == 1:
        loaders = loaders[0]
    if loaders is None or isinstance(loaders, list | tuple | dict):
        found = "no validation data" if not loaders else f"{len(loaders)} loaders of validation data"
        raise DataError(found, "one loader of them", "pass one loader as val_dataloaders to trainer.fit")
    return loaders, min(loop._max_batches)


def processes_of(trainer: Any) -> SingleProcess:
    """Return the trainer's processes."""
    return Shards() if trainer.world_size > 1 else SINGLE_PROCESS
