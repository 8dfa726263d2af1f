"""Nets beyond dense layers, and loaders of every form: events of varying length, dicts, triples; each with its own test."""

from __future__ import annotations

from typing import Any

import torch
from snntorch import utils
from torch import Tensor, nn

from benchmarks.user_nets_common import (
    STEPS,
    OneBuffer,
    UserNet,
    as_batches_pad_batches,
    as_dicts,
    as_events,
    as_images,
    as_pixels,
    as_rows,
    as_stream,
    as_triples,
    by_count,
    by_count_flat,
    by_length,
    own_test,
)
from benchmarks.user_nets_dense import Loop, by_forward_pass, forward_pass
from benchmarks.user_nets_layers import (
    Conv1dNet,
    LightningNet,
    LongShortTerm,
    Normalised,
    NormalisedOverTime,
    OldLightningNet,
    OwnTraining,
    Residual,
    conv_net,
    depthwise_net,
    frozen_features,
    normalised_weights,
    old_weight_norm,
    pruned,
)


def over_events(net: nn.Module, events: Tensor) -> Tensor:
    """The script's loop over a recording, ``[T, B, 2, H, W]``."""
    utils.reset(net)
    return torch.stack([net(events[step])[0] for step in range(events.size(0))])


def by_events(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    events, targets = batch[0], batch[1]
    return over_events(net, events).sum(0).argmax(1), targets


def by_dicts(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return forward_pass(net, STEPS, batch["image"]).sum(0).argmax(1), batch["label"]


OVER = "convex_init_(net, loader, forward=over_time(10))"
COUNT_LOSS = "loss=SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)"

NETS = (
    UserNet("tutorial 6: convolutions, init_hidden", conv_net, as_images, by_forward_pass(STEPS), OVER),
    UserNet(
        "tutorial 7: convolutions on events",
        lambda: conv_net(2),
        as_events,
        own_test(by_events),
        f"convex_init_(net, loader, forward=over_time(), {COUNT_LOSS})",
    ),
    UserNet(
        "events, another number of steps in each batch",
        lambda: conv_net(2),
        as_batches_pad_batches,
        own_test(by_events),
        "convex_init_(net, loader, forward=over_time())",
        order=by_length,
    ),
    UserNet(
        "triples of events, labels and lengths",
        lambda: conv_net(2),
        as_triples,
        own_test(by_events),
        "convex_init_(net, loader, forward=over_time(), unpack=lambda batch: (batch[0], batch[1]))",
    ),
    UserNet(
        "batches that are dicts",
        conv_net,
        as_dicts,
        own_test(by_dicts),
        'convex_init_(net, loader, forward=over_time(10), unpack=lambda batch: (batch["image"], batch["label"]))',
    ),
    UserNet("grouped convolution", depthwise_net, as_images, by_forward_pass(STEPS), OVER),
    UserNet("Conv1d", Conv1dNet, as_rows, own_test(by_count)),
    UserNet("frozen convolutions, a new head", frozen_features, as_images, by_forward_pass(STEPS), OVER),
    UserNet("batch norm and dropout", Normalised, as_pixels, own_test(by_count)),
    UserNet("batch norm through time", NormalisedOverTime, as_pixels, own_test(by_count)),
    UserNet("weight norm", normalised_weights, as_pixels, own_test(by_count)),
    UserNet("residual", Residual, as_pixels, own_test(by_count)),
    UserNet("SLSTM, membranes into a Linear", LongShortTerm, as_rows, own_test(by_count), rebuilds=False),
    UserNet("lightning module", LightningNet, as_images, own_test(by_count)),
    UserNet(
        "pytorch_lightning module",
        OldLightningNet,
        as_images,
        own_test(by_count_flat),
        "convex_init_(net, loader, forward=lambda net, x: net(x.flatten(1)))",
    ),
    UserNet("a loader that fills one buffer again and again", Loop, OneBuffer, own_test(by_count)),
    UserNet("an iterable data set", Loop, as_stream, own_test(by_count)),
    UserNet(
        "weight norm of before PyTorch 2.0",
        old_weight_norm,
        as_pixels,
        own_test(by_count),
        refused=("fc", "weight_norm"),
        either=True,
    ),
    UserNet("a pruned hidden layer", pruned, as_pixels, own_test(by_count), refused=("fc1", "prun"), either=True),
    UserNet("train() is a training loop", OwnTraining, as_pixels, own_test(by_count)),
    UserNet(
        "label smoothing",
        Loop,
        as_pixels,
        own_test(by_count),
        "convex_init_(net, loader, loss=nn.CrossEntropyLoss(label_smoothing=0.1))",
        refused=("label_smoothing", "pass loss="),
        either=True,
    ),
)
