"""The flow estimator: against known motion, against scikit-image, against its own batch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslref.data import photographs
from sslref.data.worlds.moving import MovingWorld
from sslref.optical import _divergence, _gradient, end_point_error, tv_l1, warp

GREY = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def _photograph(size=64):
    x = F.interpolate(photographs(["china"])["china"][None], scale_factor=0.5, mode="bilinear", antialias=True)
    return (x * GREY).sum(1, keepdim=True)[..., 20 : 20 + size, 40 : 40 + size].double()


@pytest.mark.parametrize("motion", [(1.3, -0.6), (-2.5, 3.0)])
def test_a_known_shift_is_found(motion):
    second = _photograph()
    flow = torch.tensor(motion, dtype=torch.float64)[:, None, None].expand(1, 2, 64, 64)
    found = tv_l1(warp(second, flow), second, attachment=50.0)
    assert found.dtype == torch.float64
    inside = slice(8, -8)
    assert end_point_error(found[..., inside, inside], flow[..., inside, inside]) < 0.15


@pytest.mark.parity("optical.tv_l1", against="scikit-image (error on exact flow, relative)", tolerance=0.3)
def test_as_good_as_scikit_image():
    registration = pytest.importorskip("skimage.registration")
    clips = MovingWorld(size=48).sample(6, torch.Generator().manual_seed(0))
    grey = (clips.video * GREY).sum(2, keepdim=True)
    first, second, truth = grey[:, 2], grey[:, 3], clips.flow[:, 2]
    peer = [
        registration.optical_flow_tvl1(a[0].numpy(), b[0].numpy())[::-1] for a, b in zip(first, second, strict=True)
    ]
    peer = end_point_error(torch.from_numpy(np.stack(peer)).float(), truth)
    error, without = end_point_error(tv_l1(first, second), truth), end_point_error(torch.zeros_like(truth), truth)
    assert error < 1.3 * peer
    assert error < 0.35 * without


def test_pairs_do_not_touch_each_other():
    x = torch.rand(3, 1, 24, 40, generator=torch.Generator().manual_seed(0))
    x = F.avg_pool2d(x, 5, stride=1, padding=2)
    y = x.roll(1, dims=3)
    together = tv_l1(x, y)
    assert together.shape == (3, 2, 24, 40)
    for i in range(3):
        torch.testing.assert_close(tv_l1(x[i : i + 1], y[i : i + 1]), together[i : i + 1], rtol=0, atol=1e-4)


def test_equal_or_flat_pictures_do_not_move():
    x = _photograph(32)
    assert tv_l1(x, x).abs().max() < 1e-9
    flat = torch.full((1, 1, 8, 8), 0.5)
    assert (tv_l1(flat, flat + 0.1) == 0).all()
    assert tv_l1(x.bfloat16(), x.bfloat16()).dtype == torch.float32


def test_divergence_is_minus_the_adjoint_of_the_gradient():
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(2, 2, 5, 7, dtype=torch.float64, generator=generator)
    p = torch.randn(2, 2, 2, 5, 7, dtype=torch.float64, generator=generator)
    torch.testing.assert_close((_gradient(f) * p).sum(), -(f * _divergence(p)).sum())


def test_errors():
    x = torch.rand(1, 1, 16, 16)
    for bad in (x[0], x.expand(-1, 3, -1, -1), x[..., :8]):
        with pytest.raises(ValueError, match="first, second"):
            tv_l1(bad, x)
    with pytest.raises(TypeError, match="floating point"):
        tv_l1(x.byte(), x.byte())
    for name in ("attachment", "tightness", "warps", "iterations"):
        with pytest.raises(ValueError, match=name):
            tv_l1(x, x, **{name: 0})
