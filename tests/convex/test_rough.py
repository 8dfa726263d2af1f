import pytest
import torch

from snn_recon_plugin.convex import Design, Problem, rough, solve
from snn_recon_plugin.convex.columns import Columns
from snn_recon_plugin.convex.rough import RoughColumns, is_native

from .helpers import labels, random, spikes

N, P, C = 300, 250, 3


@pytest.fixture
def native(monkeypatch):
    """As on a processor that multiplies bfloat16; others compute the same, only slowly."""
    monkeypatch.setattr(rough, "is_native", lambda: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_products_in_three_digits(native, dtype):
    features = spikes(0, N, P).to(dtype) if dtype == torch.uint8 else (random(0, N, P) + 3).float()
    design = Design(features, torch.linspace(0.5, 2, N, dtype=torch.float64), torch.linspace(0, 3, N, dtype=torch.float64))
    exact = design.columns(None, torch.float32)
    fast = design.rough(exact)
    assert isinstance(fast, RoughColumns)
    assert fast.matrix.dtype == torch.bfloat16
    W, b, U = random(1, C, P).float(), random(2, C).float(), random(3, N, C).float()
    pairs = [(fast.scores(W, b), exact.scores(W, b)), *zip(fast.adjoint(U), exact.adjoint(U), strict=True)]
    for one, two in pairs:
        assert one.dtype == torch.float32
        assert float((one - two).norm() / two.norm()) < 1e-2


def test_who_gets_them(native, monkeypatch):
    design = Design(random(0, N, P).float())
    whole, some = design.columns(None, torch.float32), design.columns(torch.arange(240), torch.float32)
    assert design.rough(whole) is design.rough(whole)  # made once
    kept = design.rough(whole)
    assert design.rough(some).matrix.shape == (N, 240)
    assert design.rough(whole) is not kept  # one of them at a time
    assert design.of_features(torch.arange(230)).rough(design.columns(torch.arange(230), torch.float32)).matrix.shape == (N, 230)
    double, small = design.columns(None, torch.float64), design.columns(torch.arange(20), torch.float32)
    assert design.rough(double) is double
    assert design.rough(small) is small
    monkeypatch.setattr(rough, "is_native", lambda: False)
    assert isinstance(Design(random(0, N, P).float()).rough(whole), Columns)


def test_a_torch_that_can_not_tell(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not is_native()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert is_native()


@pytest.mark.parametrize("penalty", ["ridge", "group_l1", "l1"])
def test_the_same_optimum_with_as_many_newton_steps(monkeypatch, penalty):
    problem = Problem(Design(spikes(0, N, P).float()), labels(0, N, C), penalty=penalty, strength=1e-3, num_outputs=C)
    found = []
    for fast in (True, False):
        monkeypatch.setattr(rough, "is_native", lambda fast=fast: fast)
        problem.design._rough = None
        found.append(solve(problem, tol=1e-8))
    for solution in found:
        assert solution.certificate.reached
    assert abs(found[0].certificate.primal - found[1].certificate.primal) <= 1e-8 * problem.zero_loss
    assert found[0].iterations <= found[1].iterations + 3
