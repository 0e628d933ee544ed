"""Likeness of cells against loops over pairs."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from sslref.evaluate import likeness, region_spread


def maps(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parity("evaluate.likeness", against="float64 loops", tolerance=1e-12)
def test_likeness():
    x = maps(3, 5, 2, 3)
    cells = {(b, i): x[b].flatten(1)[:, i] for b in range(3) for i in range(6)}
    within, between = [], []
    for (p, u), (q, v) in itertools.combinations(cells.items(), 2):
        (within if p[0] == q[0] else between).append(F.cosine_similarity(u, v, dim=0).item())
    got = likeness(x)
    assert got[0].item() == pytest.approx(sum(within) / len(within), abs=1e-12)
    assert got[1].item() == pytest.approx(sum(between) / len(between), abs=1e-12)


def test_likeness_of_collapsed_maps():
    assert torch.stack(likeness(torch.ones(2, 3, 2, 2))).tolist() == pytest.approx([1, 1])
    flat = torch.eye(2)[:, :, None, None].expand(2, 2, 3, 3)
    assert torch.stack(likeness(flat)).tolist() == pytest.approx([1, 0], abs=1e-6)
    assert likeness(flat.bfloat16())[0].dtype == torch.float32


@pytest.mark.parity("evaluate.region_spread", against="float64 loops", tolerance=1e-12)
def test_region_spread():
    x = maps(2, 4, 3, 3)
    regions = torch.tensor([[0, 0, 1, 0, 2, 1, 0, 2, 1], [5, 5, 5, 5, 5, 5, 5, 5, 5]]).view(2, 3, 3)
    unit, own, whole = F.normalize(x, dim=1).flatten(2), 0.0, 0.0
    for b in range(2):
        for i in range(9):
            mine = unit[b][:, regions[b].flatten() == regions[b].flatten()[i]]
            own += (unit[b, :, i] - mine.mean(1)).square().sum().item() / 18
            whole += (unit[b, :, i] - unit[b].mean(1)).square().sum().item() / 18
    got = region_spread(x, regions)
    assert got[0].item() == pytest.approx(own, abs=1e-12)
    assert got[1].item() == pytest.approx(whole, abs=1e-12)
    assert own < whole
    assert region_spread(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2).long())[0].item() == pytest.approx(0, abs=1e-12)


def test_refuses():
    for shape in ((2, 3, 4), (1, 3, 2, 2), (2, 3, 1, 1)):
        with pytest.raises(ValueError, match="maps: expected"):
            likeness(torch.ones(shape))
    with pytest.raises(ValueError, match="maps, regions: expected"):
        region_spread(torch.ones(2, 3, 2, 2), torch.zeros(2, 2, 3))
