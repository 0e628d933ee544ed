"""Cells of views and what corresponds to what, against loops."""

import pytest
import torch

from sslref.nn import pixel_centers, true_matches


def boxes(count, seed=0):
    draw = torch.rand(count, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    low, high = draw.min(1).values, draw.max(1).values + 0.2
    made = torch.cat([low, high], 1)
    return torch.where(torch.arange(count)[:, None] % 2 == 1, made[:, [2, 1, 0, 3]], made)  # every second is mirrored


@pytest.mark.parity("nn.pixel_centers", against="closed form", tolerance=1e-12)
def test_centres_by_hand():
    box = torch.tensor([[10.0, 20, 50, 40], [50, 20, 10, 40]])
    found = pixel_centers(box, 2, 4)
    assert found.shape == (2, 2, 4, 2)
    assert found[0, 0, :, 0].tolist() == [15, 25, 35, 45]
    assert found[1, 1, :, 0].tolist() == [45, 35, 25, 15]
    assert found[0, :, 3, 1].tolist() == found[1, :, 0, 1].tolist() == [25, 35]
    assert torch.equal(pixel_centers(box.long(), 2, 4), found)
    assert pixel_centers(box.double(), 2, 4).dtype == torch.float64


@pytest.mark.parity("nn.true_matches", against="float64 loops", tolerance=0.0)
@pytest.mark.parametrize("key_size", [None, (3, 7)])
def test_matches_by_loops(key_size):
    a, b = boxes(8), boxes(8, seed=1)
    index, inside = true_matches(a, b, 5, 4, key_size=key_size)
    rows, columns = key_size or (5, 4)
    assert 0.1 < inside.double().mean() < 0.9
    for i in range(8):
        x1, y1, x2, y2 = b[i].tolist()
        for cell, (x, y) in enumerate(pixel_centers(a, 5, 4)[i].view(-1, 2).tolist()):
            lies = min(x1, x2) <= x <= max(x1, x2) and y1 <= y <= y2
            assert inside[i, cell].item() == lies
            if lies:
                row, column = int((y - y1) / (y2 - y1) * rows), int((x - x1) / (x2 - x1) * columns)
                assert index[i, cell] == row * columns + column


def test_a_view_matches_itself_and_its_mirror():
    a = boxes(6)
    index, inside = true_matches(a, a, 3, 3)
    assert inside.all()
    assert torch.equal(index, torch.arange(9).expand(6, -1))
    mirrored, inside = true_matches(a, a[:, [2, 1, 0, 3]], 3, 3)
    assert inside.all()
    assert torch.equal(mirrored, torch.arange(9).view(3, 3).flip(1).flatten().expand(6, -1))


def test_errors():
    with pytest.raises(ValueError, match=r"boxes: expected shape \(B, 4\)"):
        pixel_centers(torch.zeros(4), 2, 2)
    for size in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match="expected at least 1, got 0"):
            pixel_centers(torch.zeros(1, 4), *size)
    with pytest.raises(ValueError, match="boxes_q, boxes_k"):
        true_matches(torch.zeros(2, 4), torch.zeros(3, 4), 2, 2)
    with pytest.raises(ValueError, match="key_size"):
        true_matches(torch.zeros(2, 4), torch.zeros(2, 4), 2, 2, key_size=(0, 1))
