"""Best overlaps, average recall, nesting and the spread of assignments against loops and by hand."""

import math

import pytest
import torch

from sslref.evaluate import assignment_spread, average_recall, best_iou, nested_share


def masks(count, seed=0, p=0.4):
    return torch.rand(count, 5, 4, generator=torch.Generator().manual_seed(seed)) < p


@pytest.mark.parity("evaluate.best_iou", against="float64 loops", tolerance=1e-12)
def test_best_iou():
    found, true = masks(6), masks(3, seed=1)
    got = best_iou(found, true)
    assert got.dtype == torch.float64
    for value, t in zip(got.tolist(), true, strict=True):
        assert value == pytest.approx(max((f & t).sum().item() / (f | t).sum().item() for f in found), abs=1e-12)
    assert best_iou(found[:0], true).tolist() == [0, 0, 0]
    assert best_iou(true, true).tolist() == [1, 1, 1]
    assert best_iou(true, true[:0]).shape == (0,)
    assert best_iou(torch.zeros(1, 5, 4, dtype=torch.bool), torch.zeros(1, 5, 4, dtype=torch.bool)).tolist() == [0]


def test_best_iou_refuses():
    with pytest.raises(ValueError, match="found: expected shape"):
        best_iou(masks(2)[:, :3], masks(2))
    with pytest.raises(TypeError, match=r"true: expected torch\.bool"):
        best_iou(masks(2), masks(2).int())


@pytest.mark.parity("evaluate.average_recall", against="by hand", tolerance=1e-12)
def test_average_recall():
    assert average_recall(torch.tensor([1.0, 0.4], dtype=torch.float64)) == 0.5
    assert average_recall(torch.tensor([0.7])) == 0.5  # reaches 0.5, 0.55, 0.6, 0.65 and 0.7
    assert average_recall(torch.tensor([0.95])) == 1
    assert average_recall(torch.tensor([0.949])) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="best: expected shape"):
        average_recall(torch.zeros(0))


def test_nested_share():
    fine = torch.tensor([[[1, 0, 0, 0]], [[0, 1, 1, 0]]]).bool()
    assert nested_share([fine, torch.tensor([[[0, 1, 1, 1]]]).bool()]) == 1
    assert nested_share([fine, torch.tensor([[[1, 1, 0, 0]]]).bool()]) == 0.5
    assert nested_share([torch.tensor([[[0, 1, 1, 1]]]).bool(), fine]) == 0.5  # the order counts
    assert nested_share([fine]) == nested_share([fine, fine[:0]]) == 1


@pytest.mark.parity("evaluate.assignment_spread", against="closed form", tolerance=1e-6)
def test_assignment_spread():
    p = torch.eye(5)[[0, 0, 1, 1, 2, 2, 3, 3]]
    for used, told, rows in ((4, 4, p), (1, 1, p[:2]), (5, 1, torch.full((3, 5), 0.2))):
        got = assignment_spread(rows)
        assert got[0].item() == pytest.approx(used, abs=1e-5)
        assert got[1].item() == pytest.approx(told, abs=1e-5)
    p = torch.rand(6, 4, dtype=torch.float64).softmax(1)
    mean = p.mean(0)
    high = -sum(m * math.log(m) for m in mean.tolist())
    single = -sum(v * math.log(v) for v in p.flatten().tolist()) / 6
    used, told = assignment_spread(p)
    assert used.item() == pytest.approx(math.exp(high), abs=1e-12)
    assert told.item() == pytest.approx(math.exp(high - single), abs=1e-12)
    with pytest.raises(ValueError, match="p: expected shape"):
        assignment_spread(torch.zeros(0, 3))
