"""Random views: against loops, closed forms and Kornia; the law of the draws; errors."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch.nn import functional as F

from sslref import augment
from sslref.augment import (
    color_distort,
    crop_and_resize,
    gaussian_blur,
    grayscale,
    random_blur,
    random_crop_boxes,
    random_flip,
    random_view,
    two_views,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(batch=5, height=12, width=12, dtype=torch.float64, seed=0):
    return torch.rand(batch, 3, height, width, dtype=dtype, generator=rng(seed))


# ---------------------------------------------------------------------------------------------------- boxes


def test_boxes_lie_inside_and_keep_their_ranges():
    boxes = random_crop_boxes(4000, 20, 30, scale=(0.1, 0.6), ratio=(0.5, 2.0), generator=rng())
    x1, y1, x2, y2 = boxes.T
    assert boxes.shape == (4000, 4)
    assert boxes.dtype == torch.float32
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x2 <= 30).all()
    assert (y2 <= 20).all()
    area, aspect = (x2 - x1) * (y2 - y1) / 600, (x2 - x1) / (y2 - y1)
    assert area.min() >= 0.1 - 1e-5
    assert area.max() <= 0.6 + 1e-5
    assert aspect.min() >= 0.5 - 1e-4
    assert aspect.max() <= 2 + 1e-4
    assert (boxes != boxes.round()).float().mean() > 0.95  # continuous


def test_boxes_follow_the_stated_law():
    # small crops always fit, so nothing is drawn again and the laws are the plain ones
    boxes = random_crop_boxes(4000, 32, 32, scale=(0.05, 0.3), generator=rng(1)).double()
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    low, high = math.log(3 / 4), math.log(4 / 3)
    for values in (
        (w * h / 1024 - 0.05) / 0.25,
        ((w / h).log() - low) / (high - low),
        boxes[:, 0] / (32 - w),
        boxes[:, 1] / (32 - h),
    ):
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parity("simclr.random_crop_boxes", against="rejection loop", tolerance=0.03)
def test_boxes_that_do_not_fit_are_drawn_again():
    def loop(rng):  # the textbook's loop, one box at a time
        for _ in range(100):
            area = rng.uniform(0.08, 1) * 20 * 30
            aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
            if w <= 30 and h <= 20:
                return w, h
        return 30, 20

    expected = np.array([loop(generator) for generator in [np.random.default_rng(0)] for _ in range(6000)])
    boxes = random_crop_boxes(6000, 20, 30, generator=rng(2))
    got = torch.stack([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]], 1).numpy()
    for axis in range(2):
        assert stats.ks_2samp(expected[:, axis], got[:, axis]).statistic < 0.03


@pytest.mark.parametrize("size", [1, 7, 32, 33, 224, 4097])
def test_whole_square(size):
    boxes = random_crop_boxes(3, size, size, scale=(1, 1), ratio=(1, 1), generator=rng())
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0, size, size]]).expand(3, 4), rtol=1e-6, atol=0)


def test_whole_picture_after_100_tries():
    boxes = random_crop_boxes(3, 10, 40, scale=(1, 1), ratio=(1, 1), generator=rng())  # a square never fits
    assert boxes.tolist() == [[0, 0, 40, 10]] * 3


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"batch": 0}, "batch"),
        ({"height": 0}, "height"),
        ({"width": -1}, "width"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.6, 0.5)}, "scale"),
        ({"scale": (0.5, 1.1)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
    ],
)
def test_boxes_refuse(keywords, name):
    with pytest.raises(ValueError, match=name):
        random_crop_boxes(**{"batch": 2, "height": 8, "width": 8} | keywords)


# ------------------------------------------------------------------------------------------ crop and resize


def bilinear(picture, x, y):
    """Value of one (C, H, W) picture at a point in pixels, pixel i having its centre at i + 1/2."""
    height, width = picture.shape[1:]
    x, y = x - 0.5, y - 0.5
    x0, y0 = math.floor(x), math.floor(y)
    total = 0
    for i, j in itertools.product((x0, x0 + 1), (y0, y0 + 1)):
        value = picture[:, min(max(j, 0), height - 1), min(max(i, 0), width - 1)]
        total = total + (1 - abs(x - i)) * (1 - abs(y - j)) * value
    return total


@pytest.mark.parity("simclr.crop_and_resize", against="float64 loops", tolerance=1e-12)
def test_crop_is_bilinear_sampling():
    x = pictures(3, 7, 9)
    boxes = torch.tensor([[1.3, 0.4, 6.2, 5.9], [0, 0, 9, 7], [8.0, 2.0, 3.5, 6.0]], dtype=torch.float64)
    out = crop_and_resize(x, boxes, (8, 10))
    expected = torch.zeros_like(out)
    for b, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for j, i in itertools.product(range(8), range(10)):
            place = x1 + (i + 0.5) / 10 * (x2 - x1), y1 + (j + 0.5) / 8 * (y2 - y1)
            expected[b, :, j, i] = bilinear(x[b], *place)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_crop_of_everything_is_the_picture_and_of_a_mirrored_box_its_mirror_image():
    x = pictures(2, 6, 8)
    whole = torch.tensor([[0.0, 0, 8, 6], [8.0, 0, 0, 6]])
    out = crop_and_resize(x, whole, (6, 8))
    torch.testing.assert_close(out[0], x[0])
    torch.testing.assert_close(out[1], x[1].flip(-1))


def test_shrinking_averages():
    x = pictures(2, 12, 12)
    whole = torch.tensor([[0.0, 0, 12, 12]]).expand(2, 4)
    torch.testing.assert_close(crop_and_resize(x, whole, 4), F.avg_pool2d(x, 3))
    stripes = (torch.arange(12) % 2).double().expand(1, 3, 12, 12)  # aliases to one value without the average
    out = crop_and_resize(stripes, whole[:1], 6)
    torch.testing.assert_close(out, torch.full_like(out, 0.5))


def test_crop_refuses():
    x = pictures(2)
    with pytest.raises(ValueError, match="boxes"):
        crop_and_resize(x, torch.zeros(3, 4), 4)
    with pytest.raises(ValueError, match="size"):
        crop_and_resize(x, torch.zeros(2, 4), 0)
    with pytest.raises(ValueError, match="x: expected a float"):
        crop_and_resize((x * 255).byte(), torch.zeros(2, 4), 4)


# ----------------------------------------------------------------------------------------------------- flip


def test_flip():
    x = pictures(400, 4, 5)
    assert torch.equal(random_flip(x, p=0), x)
    assert torch.equal(random_flip(x, p=1), x.flip(-1))
    out = random_flip(x, p=0.3, generator=rng())
    turned = (out == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(out[~turned], x[~turned])
    assert 0.2 < turned.double().mean() < 0.4
    with pytest.raises(ValueError, match="p: expected a probability"):
        random_flip(x, p=1.5)


# --------------------------------------------------------------------------------------------------- colour


def test_distortion_without_strength_is_the_identity():
    x = pictures()
    assert torch.equal(color_distort(x, strength=0, gray_p=0), x)
    assert torch.equal(color_distort(x, jitter_p=0, gray_p=0), x)


def test_gray():
    x = pictures()
    out = color_distort(x, strength=0, gray_p=1)
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 0], out[:, 2])
    torch.testing.assert_close(out, grayscale(x))
    expected = 0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    torch.testing.assert_close(out[:, 0], expected, rtol=0, atol=1e-15)


def test_distortion_stays_in_range_and_is_drawn_per_picture():
    x = pictures(1).expand(300, -1, -1, -1)
    for strength in (0.5, 1.0, 3.0):
        out = color_distort(x, strength=strength, generator=rng())
        assert out.shape == x.shape
        assert out.min() >= 0
        assert out.max() <= 1
    out = color_distort(x, jitter_p=0.8, gray_p=0.25, generator=rng())
    grey = (out[:, 0] - out[:, 1]).abs().flatten(1).amax(1) == 0
    assert 0.18 < grey.double().mean() < 0.32
    unchanged = (out == x).flatten(1).all(1)[~grey]
    assert 0.13 < unchanged.double().mean() < 0.27
    changed = out[~grey][~unchanged]
    assert torch.cdist(changed.flatten(1), changed.flatten(1)).fill_diagonal_(1).min() > 1e-4


def brightness(x, f):
    return x * f


def contrast(x, f):
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) * f + mean


def in_hsv(x, change):
    import colorsys

    out = torch.empty_like(x)
    for i, j in itertools.product(range(x.shape[1]), range(x.shape[2])):
        out[:, i, j] = torch.tensor(colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*x[:, i, j].tolist()))))
    return out


def saturation(x, f):
    return in_hsv(x, lambda h, s, v: (h, min(1, s * f), v))


def hue(x, shift):
    return in_hsv(x, lambda h, s, v: ((h + shift) % 1, s, v))


@pytest.mark.parity("simclr.color_distort", against="float64 loops with colorsys", tolerance=1e-6)
def test_distortion_applies_the_four_operations_in_every_order(monkeypatch):
    """With the draws replaced by chosen ones, all 24 orders equal a loop that clips after each operation."""
    orders = list(itertools.permutations(range(4)))
    x = pictures(len(orders), 3, 4)
    x[0, :, 0, 0], x[1, :, 0, 0], x[2, :, 0, 0] = 0.4, 0, 1  # no hue: grey, black, white
    values = torch.rand(4, len(orders), generator=rng(3))  # uniform draws of brightness, contrast, saturation, hue
    ranks = torch.tensor(orders).argsort(1).T / 4.0  # rank of each operation in its picture's order
    draws = iter([*values.view(4, -1, 1, 1, 1), ranks.view(4, -1, 1, 1, 1), torch.zeros(len(orders), 1, 1, 1)])
    monkeypatch.setattr(augment.torch, "rand", lambda *a, **k: next(draws))
    out = color_distort(x, strength=1.0, jitter_p=1.0, gray_p=0.0)
    factors = (0.2 + 1.6 * values[:3]).tolist()
    shifts = (-0.2 + 0.4 * values[3]).tolist()
    for b, order in enumerate(orders):
        expected = x[b]
        for operation in order:
            amount = shifts[b] if operation == 3 else factors[operation][b]
            expected = (brightness, contrast, saturation, hue)[operation](expected, amount).clamp(0, 1)
        torch.testing.assert_close(out[b], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
def test_ranges_of_the_factors(strength, monkeypatch):
    asked = []
    uniform = augment._uniform
    monkeypatch.setattr(augment, "_uniform", lambda s, lo, hi, *a: asked.append((lo, hi)) or uniform(s, lo, hi, *a))
    color_distort(pictures(), strength=strength)
    low, high = max(0, 1 - 0.8 * strength), 1 + 0.8 * strength
    assert asked == [(low, high)] * 3 + [(-0.2 * strength, 0.2 * strength)]


@pytest.mark.parity("simclr.color_distort, hue and saturation", against="Kornia", tolerance=1e-5)
def test_hue_and_saturation_as_kornia():
    enhance = pytest.importorskip("kornia").enhance
    x = pictures(8)
    one, zero = torch.ones(8, 1, 1, 1, dtype=x.dtype), torch.zeros(8, 1, 1, 1, dtype=x.dtype)
    for factor in (0.0, 0.4, 1.7):
        got = augment.adjust_saturation_hue(x, one * factor, zero)
        torch.testing.assert_close(got, enhance.adjust_saturation(x, factor), rtol=0, atol=1e-5)
    for shift in (-0.2, 0.13, 0.5):
        got = augment.adjust_saturation_hue(x, one, zero + shift)
        torch.testing.assert_close(got, enhance.adjust_hue(x, shift * 2 * math.pi), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("keywords", "name"),
    [({"strength": -1}, "strength"), ({"jitter_p": 1.1}, "jitter_p"), ({"gray_p": -0.1}, "gray_p")],
)
def test_distortion_refuses(keywords, name):
    with pytest.raises(ValueError, match=name):
        color_distort(pictures(), **keywords)


def test_distortion_refuses_other_channels():
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        color_distort(torch.rand(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        color_distort(torch.rand(3, 8, 8))


# ----------------------------------------------------------------------------------------------------- blur


@pytest.mark.parity("simclr.gaussian_blur", against="SciPy and a float64 loop", tolerance=1e-12)
@pytest.mark.parametrize(("kernel_size", "sigma"), [(3, 0.5), (4, 1.0), (7, 2.0)])
def test_blur(kernel_size, sigma):
    x = pictures(2, 9, 8)
    r = kernel_size // 2
    taps = np.array([math.exp(-(t**2) / (2 * sigma**2)) for t in range(-r, r + 1)])
    taps /= taps.sum()
    expected = x.numpy()
    for axis in (2, 3):
        expected = ndimage.convolve1d(expected, taps, axis=axis, mode="constant", cval=0)
    out = gaussian_blur(x, kernel_size=kernel_size, sigma=sigma)
    torch.testing.assert_close(out, torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_blur_of_even_and_odd_kernels():
    x = pictures()
    assert torch.equal(gaussian_blur(x, kernel_size=4, sigma=1.2), gaussian_blur(x, kernel_size=5, sigma=1.2))
    assert torch.equal(gaussian_blur(x, kernel_size=1, sigma=1.2), x)


def test_blur_with_one_width_for_each_picture():
    x = pictures(3)
    widths = torch.tensor([0.2, 1.0, 1.9], dtype=torch.float64)
    out = gaussian_blur(x, kernel_size=5, sigma=widths)
    for i, sigma in enumerate(widths.tolist()):
        torch.testing.assert_close(out[i], gaussian_blur(x[i : i + 1], kernel_size=5, sigma=sigma)[0])


def test_blur_refuses():
    x = pictures()
    for sigma in (0, -1.0, torch.tensor([1.0, 1, 1, 1, 0])):
        with pytest.raises(ValueError, match="sigma"):
            gaussian_blur(x, kernel_size=3, sigma=sigma)
    with pytest.raises(ValueError, match="sigma"):
        gaussian_blur(x, kernel_size=3, sigma=torch.ones(4))
    with pytest.raises(ValueError, match="kernel_size"):
        gaussian_blur(x, kernel_size=0, sigma=1.0)
    with pytest.raises(ValueError, match="sigma"):
        random_blur(x, sigma=(0.0, 1.0))


def test_random_blur_leaves_some_pictures_alone():
    x = pictures(300, 20, 20)
    out = random_blur(x, generator=rng())
    same = (out == x).flatten(1).all(1)
    assert 0.4 < same.double().mean() < 0.6
    assert torch.equal(random_blur(x, p=0), x)
    white = random_blur(torch.ones(50, 1, 40, 40), p=1, generator=rng())
    assert white.max() == 1
    assert white.min() > 0


# ---------------------------------------------------------------------------------------------------- views


def test_views():
    x = pictures(6, 16, 16)
    a, b = two_views(x, blur_p=0.5, generator=rng(7))
    assert a.shape == b.shape == x.shape
    assert a.dtype == x.dtype
    assert (a - b).abs().flatten(1).amax(1).min() > 1e-3  # two independent draws
    assert all(torch.equal(p, q) for p, q in zip((a, b), two_views(x, blur_p=0.5, generator=rng(7)), strict=True))
    assert not torch.equal(a, two_views(x, blur_p=0.5, generator=rng(8))[0])
    assert random_view(x, size=10).shape == (6, 3, 10, 10)
    plain = {"scale": (1, 1), "flip_p": 0, "strength": 0, "gray_p": 0}
    small = random_view(x, size=8, **plain)  # mirrors, colours and blurs nothing; the crop may cut the sides
    assert small.shape[-1] == 8


def test_views_differentiate():
    x = pictures(3, 8, 8).requires_grad_()
    random_view(x, blur_p=1.0, generator=rng()).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_views_keep_the_dtype_also_under_autocast(dtype):
    x = pictures(4, 8, 8, dtype=torch.float32).to(dtype)
    plain = random_view(x, blur_p=0.5, generator=rng())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = random_view(x, blur_p=0.5, generator=rng())
    assert plain.dtype == dtype
    torch.testing.assert_close(cast.to(dtype), plain)
