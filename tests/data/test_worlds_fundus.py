"""Pieces of a healthy retina: where they come from, what the flat field takes away."""

import torch

from sslref.data import embedded
from sslref.data.worlds import fundus


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_flat_field():
    image, _ = embedded.microaneurysms()
    flat = fundus.flat_field(image)
    assert flat.shape == image.shape
    assert abs(flat.mean() - 0.5) < 0.01
    assert abs(flat.std() - 0.1) < 0.01
    light = torch.linspace(0, 0.4, 102).expand(1, 102, 102)
    lit = fundus.flat_field(image + light)
    inner = (slice(None), slice(20, 82), slice(20, 82))
    assert (lit - flat)[inner].abs().mean() < 0.01 < (image + light - image)[inner].std()
    torch.testing.assert_close(fundus.flat_field(0.5 * image + 0.2), flat, atol=1e-4, rtol=0)


def test_pieces_lie_inside_of_the_eye():
    pieces = fundus.healthy(40, _generator())
    assert pieces.shape == (40, 1, 32, 32)
    assert torch.equal(pieces, fundus.healthy(40, _generator()))
    image, places = fundus._places("cpu")
    red = embedded.photographs(["retina"])["retina"][0]
    for top, left in places[:: len(places) // 50].tolist():
        around = red[top - 12 : top + 44, left - 12 : left + 44]
        assert around.shape == (56, 56)
        assert around.min() >= 0.2
    grid = image[0].unfold(0, 32, 1).unfold(1, 32, 1)
    values = grid[places[:, 0], places[:, 1]]
    for piece in pieces[:6, 0]:
        looks = [y for x in (piece, piece.flip(1)) for y in (x, x.mT, x.mT.flip(1), x.flip(1).mT)]
        found = [
            (values[:, 0, 0] == y[0, 0]) & (values[:, 31, 5] == y[31, 5]) & (values[:, 12, 30] == y[12, 30])
            for y in looks
        ]
        assert any(hit.any() for hit in found)
