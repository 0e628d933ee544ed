"""Probes on feature maps, against loops and scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score
from torch.nn import functional as F

from sslref import evaluate
from sslref.evaluate import (
    accuracy,
    cell_labels,
    linear_probe,
    match_accuracy,
    mean_iou,
    nearest_cells,
    presence_ap,
    propagation_accuracy,
    segmentation_probe,
    standardize,
)
from sslref.nn import pixel_centers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def labels(*shape, classes=4, seed=0):
    return torch.randint(classes, shape, generator=generator(seed))


@pytest.mark.parity("evaluate.cell_labels", against="float64 loops", tolerance=0.0)
def test_cells_take_the_most_frequent_label():
    fine = labels(3, 8, 12)
    coarse = cell_labels(fine, 4, 3)
    for b in range(3):
        for row in range(4):
            for column in range(3):
                cell = fine[b, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4].flatten().tolist()
                assert coarse[b, row, column] == min(set(cell), key=lambda label: (-cell.count(label), label))
    assert cell_labels(torch.tensor([[[3, 3, 1, 1]]]), 1, 1).item() == 1  # a tie


@pytest.mark.parity("evaluate.mean_iou", against="scikit-learn", tolerance=1e-12)
def test_mean_iou():
    pred, target = labels(500, classes=7), labels(500, classes=7, seed=1)
    assert mean_iou(pred, target) == pytest.approx(jaccard_score(target, pred, average="macro"), abs=1e-12)
    gap = target.clone()
    gap[gap == 2] = 3
    pred[pred == 2] = 3  # label 2 occurs nowhere and does not count
    assert mean_iou(pred, gap) == pytest.approx(jaccard_score(gap, pred, average="macro"), abs=1e-12)
    assert mean_iou(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])) == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parity("evaluate.segmentation_probe", against="linear_probe on rows", tolerance=1e-9)
def test_segmentation_probe():
    y, y_test = labels(20, 3, 4), labels(10, 3, 4, seed=1)
    centers = maps(4, 6, seed=2)
    x, x_test = ((centers[t] + maps(*t.shape, 6, seed=3)).movedim(-1, 1) for t in (y, y_test))
    found = segmentation_probe(x, y, x_test, y_test, l2=0.01, foreground=True)
    rows, rows_test = (
        torch.stack([m[b, :, r, c] for b in range(len(m)) for r in range(3) for c in range(4)]) for m in (x, x_test)
    )
    a, b = standardize(rows, rows_test)
    pred = linear_probe(a, y.flatten(), b, C=1 / (0.01 * 240)).argmax(1)
    assert torch.equal(found.pred.flatten(), pred)
    truth = y_test.flatten()
    assert found.miou == pytest.approx(mean_iou(pred, truth))
    assert found.figure_ground == pytest.approx(jaccard_score(truth > 0, pred > 0, average="macro"))
    figure = y.flatten() > 0
    own = linear_probe(a[figure], y.flatten()[figure], b[truth > 0], C=1 / (0.03 * int(figure.sum())))
    assert found.foreground == pytest.approx(accuracy(own, truth[truth > 0]))
    assert math.isnan(segmentation_probe(x, y, x_test, y_test).foreground)
    assert segmentation_probe(x * 7 + 2, y, x_test * 7 + 2, y_test, l2=0.01).miou == pytest.approx(found.miou)


@pytest.mark.parity("evaluate.nearest_cells", against="float64 loops", tolerance=0.0)
def test_nearest_cells():
    q, k = maps(3, 5, 2, 3), maps(3, 5, 4, 2, seed=1)
    found = nearest_cells(q, k)
    for b in range(3):
        for i in range(6):
            cosines = [F.cosine_similarity(q[b, :, i // 3, i % 3], k[b, :, j // 2, j % 2], dim=0) for j in range(8)]
            assert found[b, i] == max(range(8), key=cosines.__getitem__)
    assert (nearest_cells(torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3)) == 0).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_cells(q.float(), k.float()), found)


def two_views():
    boxes_q = torch.tensor([[0.0, 0, 0.6, 0.6], [0.3, 0.1, 1.0, 0.8], [0.9, 0.2, 0.1, 1.0]]).double()
    boxes_k = torch.tensor([[0.2, 0.1, 1.0, 0.9], [0.9, 0.0, 0.2, 0.7], [0.0, 0.1, 0.7, 0.8]]).double()
    return boxes_q, boxes_k


@pytest.mark.parity("evaluate.match_accuracy", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("within", [0, 1])
def test_match_accuracy(within):
    boxes_q, boxes_k = two_views()
    q, k = maps(3, 4, 4, 5), maps(3, 4, 5, 4, seed=1)
    hits, total = 0, 0
    for b in range(3):
        x1, y1, x2, y2 = boxes_k[b].tolist()
        for i, (x, y) in enumerate(pixel_centers(boxes_q, 4, 5)[b].view(-1, 2).tolist()):
            column, row = math.floor((x - x1) / (x2 - x1) * 4), math.floor((y - y1) / (y2 - y1) * 5)
            if 0 <= column < 4 and 0 <= row < 5:
                cosines = [F.cosine_similarity(q[b].flatten(1)[:, i], k[b].flatten(1)[:, j], dim=0) for j in range(20)]
                best = max(range(20), key=cosines.__getitem__)
                hits += max(abs(best // 4 - row), abs(best % 4 - column)) <= within
                total += 1
    assert 0 < hits < total < 60
    assert match_accuracy(q, k, boxes_q, boxes_k, within=within) == pytest.approx(hits / total, abs=1e-12)


@pytest.mark.parity("evaluate.propagation_accuracy", against="float64 loops", tolerance=1e-12)
def test_propagation_accuracy():
    boxes_q, boxes_k = two_views()
    q, k = maps(3, 4, 4, 4), maps(3, 4, 4, 4, seed=1)
    mine, theirs = labels(3, 4, 4, classes=3), labels(3, 4, 4, classes=3, seed=1)
    found = nearest_cells(q, k)
    hits, total = 0, 0
    for b in range(3):
        x1, y1, x2, y2 = boxes_k[b].tolist()
        for i, (x, y) in enumerate(pixel_centers(boxes_q, 4, 4)[b].view(-1, 2).tolist()):
            inside = 0 <= (x - x1) / (x2 - x1) < 1 and 0 <= (y - y1) / (y2 - y1) < 1
            if inside and mine[b].flatten()[i] > 0:
                hits += int(theirs[b].flatten()[found[b, i]] == mine[b].flatten()[i])
                total += 1
    assert 0 < hits < total
    result = propagation_accuracy(q, k, boxes_q, boxes_k, mine, theirs)
    assert result == pytest.approx(hits / total, abs=1e-12)


def test_maps_that_know_their_place_match_perfectly():
    boxes_q, boxes_k = two_views()
    q, k = (torch.cat([p := pixel_centers(b, 6, 6).movedim(-1, 1), 1 - p.square()], 1) for b in (boxes_q, boxes_k))
    angle = [torch.cat([(9 * x).sin(), (9 * x).cos(), (3 * x).sin(), (3 * x).cos()], 1) for x in (q[:, :2], k[:, :2])]
    assert match_accuracy(*angle, boxes_q, boxes_k) == 1
    assert match_accuracy(angle[0], angle[1].flip(-1), boxes_q, boxes_k) < 0.7


@pytest.mark.parity("evaluate.presence_ap", against="scikit-learn", tolerance=1e-9)
def test_presence():
    from sklearn.linear_model import Ridge

    there, there_test = labels(60, 3, classes=2).bool(), labels(30, 3, classes=2, seed=1).bool()
    mix = maps(3, 5, seed=2)
    x, test = (t.double() @ mix + 0.8 * maps(len(t), 5, seed=4) for t in (there, there_test))
    there_test[:, 1] = False  # occurs in no test picture: does not count
    a, b = standardize(x, test)
    scores = Ridge(alpha=2.0).fit(a, there.double()).predict(b)
    expected = sum(average_precision_score(there_test[:, i], scores[:, i]) for i in (0, 2)) / 2
    assert presence_ap(x, there, test, there_test, alpha=2.0) == pytest.approx(expected, abs=1e-9)
    assert 0.5 < expected < 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cell_labels(labels(2, 7, 8), 2, 2), r"labels: expected \(B, n \* 2, m \* 2\)"),
        (lambda: cell_labels(labels(2, 8), 2, 2), "labels"),
        (lambda: mean_iou(labels(3), labels(4)), "one shape"),
        (lambda: nearest_cells(maps(2, 3, 4), maps(2, 3, 4, 4)), "feat_q: expected shape"),
        (lambda: nearest_cells(maps(2, 3, 4, 4), maps(2, 5, 4, 4)), "same B and D"),
        (lambda: match_accuracy(*[maps(1, 2, 3, 3)] * 2, *[torch.rand(1, 4)] * 2, within=-1), "within"),
        (
            lambda: match_accuracy(
                *[maps(1, 2, 3, 3)] * 2, torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[2.0, 2, 3, 3]])
            ),
            "expected views that overlap",
        ),
        (
            lambda: propagation_accuracy(
                *[maps(1, 2, 3, 3)] * 2, *[torch.tensor([[0.0, 0, 1, 1]])] * 2, *[torch.zeros(1, 3, 3).long()] * 2
            ),
            "some foreground",
        ),
        (
            lambda: segmentation_probe(maps(2, 3, 4, 4), labels(2, 4, 5), maps(2, 3, 4, 4), labels(2, 4, 4)),
            "train_labels: expected one label a cell of train",
        ),
        (
            lambda: segmentation_probe(*[maps(2, 3, 4, 4), labels(2, 4, 4)] * 2, l2=0.0),
            "l2: expected > 0",
        ),
        (
            lambda: segmentation_probe(
                maps(2, 3, 4, 4), labels(2, 4, 4), maps(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
            ),
            "some foreground",
        ),
        (lambda: presence_ap(maps(4, 2), labels(4, 2).bool(), maps(3, 2), labels(4, 2).bool()), "test_y"),
        (lambda: presence_ap(maps(4, 2), labels(4, 2).bool(), maps(4, 2), labels(4, 2).bool(), alpha=-1), "alpha"),
        (lambda: presence_ap(maps(4, 2), labels(4, 2).bool(), maps(4, 2), torch.zeros(4, 2).bool()), "got none"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_types():
    for call in (
        lambda: cell_labels(maps(2, 4, 4), 2, 2),
        lambda: mean_iou(maps(3), labels(3)),
        lambda: segmentation_probe(*[maps(2, 3, 4, 4), maps(2, 4, 4)] * 2),
        lambda: presence_ap(maps(4, 2), labels(4, 2), maps(4, 2), labels(4, 2)),
    ):
        with pytest.raises(TypeError, match=r"expected (integers|torch\.bool)"):
            call()


def test_names_are_exported():
    for name in ("Segmentation", "segmentation_probe", "match_accuracy", "propagation_accuracy", "presence_ap"):
        assert name in evaluate.__all__
