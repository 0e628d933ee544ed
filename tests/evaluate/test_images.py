import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslref.evaluate import psnr, ssim


def pictures(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ssim_loops(x, y, data_range):
    """One channel, from the definition: weighted moments in every window inside the picture."""
    tap = [math.exp(-((i - 5) ** 2) / (2 * 1.5**2)) for i in range(11)]
    total = sum(a * b for a in tap for b in tap)
    c1, c2, values = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2, []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            cells = [(i, j) for i in range(11) for j in range(11)]
            w = [tap[i] * tap[j] / total for i, j in cells]
            p = [x[top + i, left + j].item() for i, j in cells]
            q = [y[top + i, left + j].item() for i, j in cells]
            mp, mq = (sum(a * b for a, b in zip(w, v, strict=True)) for v in (p, q))
            vp = sum(a * (b - mp) ** 2 for a, b in zip(w, p, strict=True))
            vq = sum(a * (b - mq) ** 2 for a, b in zip(w, q, strict=True))
            cov = sum(a * (b - mp) * (c - mq) for a, b, c in zip(w, p, q, strict=True))
            values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return sum(values) / len(values)


@pytest.mark.parity("evaluate.ssim", against="float64 loops", tolerance=1e-10)
def test_ssim_is_that_of_the_definition():
    x, y = pictures(2, 2, 12, 13), pictures(2, 2, 12, 13, seed=1)
    y = 0.7 * x + 0.3 * y
    expected = [sum(ssim_loops(x[b, c], y[b, c], 1.0) for c in range(2)) / 2 for b in range(2)]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parity("evaluate.ssim", against="scikit-image", tolerance=1e-6)
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_is_scikit_images(data_range):
    from skimage.metrics import structural_similarity

    x = pictures(2, 3, 24, 31).mul(data_range)
    y = x + 0.1 * data_range * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    expected = [
        structural_similarity(a.numpy(), b.numpy(), data_range=data_range, **options) for a, b in zip(x, y, strict=True)
    ]
    assert ssim(x, y, data_range=data_range).tolist() == pytest.approx(expected, abs=1e-6)
    assert ssim(x.float(), y.float(), data_range=data_range).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parity("evaluate.psnr", against="scikit-image", tolerance=1e-10)
@pytest.mark.parity("evaluate.psnr", against="float64 loops", tolerance=1e-10)
def test_psnr_is_per_picture():
    from skimage.metrics import peak_signal_noise_ratio

    x, y = pictures(3, 2, 5, 4), pictures(3, 2, 5, 4, seed=1)
    for a, b, value in zip(x, y, psnr(x, y, data_range=2.0), strict=True):
        error = sum((p - q) ** 2 for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)) / 40
        assert value.item() == pytest.approx(10 * math.log10(4 / error), abs=1e-10)
        library = peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=2.0)
        assert value.item() == pytest.approx(library, abs=1e-10)


def test_psnr_by_hand():
    x = pictures(2, 3, 8, 8)
    assert psnr(x, x + 0.1).tolist() == pytest.approx([20, 20])
    assert psnr(x, x).tolist() == pytest.approx([120, 120])
    assert psnr(x.float(), x.float()).dtype == torch.float32
    bytes_ = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert psnr(bytes_, bytes_ + 255, data_range=255.0).item() == pytest.approx(0)  # no wrap-around


@given(seed=st.integers(0, 99), noise=st.floats(0.01, 1))
def test_ssim_is_symmetric_bounded_and_1_for_equal_pictures(seed, noise):
    x = pictures(1, 1, 14, 12, seed=seed)
    y = (1 - noise) * x + noise * pictures(1, 1, 14, 12, seed=seed + 1)
    torch.testing.assert_close(ssim(x, y), ssim(y, x))
    assert ssim(x, y).item() < 1
    assert ssim(x, x).item() == pytest.approx(1)
    torch.testing.assert_close(ssim(9 * x, 9 * y, data_range=9.0), ssim(x, y))


def test_pictures_of_a_batch_do_not_mix_and_both_measures_have_gradients():
    x, y = pictures(3, 2, 12, 12), pictures(3, 2, 12, 12, seed=1)
    torch.testing.assert_close(ssim(x, y)[1:2], ssim(x[1:2], y[1:2]))
    torch.testing.assert_close(psnr(x, y)[1:2], psnr(x[1:2], y[1:2]))
    small = pictures(1, 1, 11, 11).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: ssim(a, y[:1, :1, :11, :11]), small)
    assert torch.autograd.gradcheck(lambda a: psnr(a, y[:1, :1, :11, :11]), small)


def test_half_precision_and_autocast_are_computed_in_float32():
    x, y = pictures(1, 3, 16, 16, dtype=torch.float32), pictures(1, 3, 16, 16, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssim(x, y), ssim(x.clone(), y.clone()))
        assert ssim(x, y).dtype == torch.float32
    torch.testing.assert_close(ssim(x.bfloat16(), y.bfloat16()), ssim(x, y), rtol=0, atol=0.01)
    assert psnr(x.bfloat16(), y.bfloat16()).dtype == torch.float32


P = torch.zeros(2, 3, 12, 12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: psnr(P, P[:1]), r"target: expected the shape of pred, \(2, 3, 12, 12\), got \(1, 3, 12, 12\)"),
        (lambda: psnr(P[:0], P[:0]), "not empty"),
        (lambda: psnr(P[0, 0, 0], P[0, 0, 0]), r"pred: expected shape \(B, ...\)"),
        (lambda: psnr(P, P, data_range=0), "data_range"),
        (lambda: ssim(P, P[..., :11]), "target: expected the shape"),
        (lambda: ssim(P[..., :10], P[..., :10]), r"sides >= 11, got \(2, 3, 12, 10\)"),
        (lambda: ssim(P[0], P[0]), "pred: expected shape"),
        (lambda: ssim(P, P, data_range=-1.0), "data_range"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
