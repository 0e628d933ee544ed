import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sslref.optical import end_point_error, flow_to_color, warp


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def warp_loops(image, flow):
    batch, channels, height, width = image.shape
    out = torch.empty_like(image)
    for b in range(batch):
        for r in range(height):
            for c in range(width):
                x = min(max(c + flow[b, 0, r, c].item(), 0.0), width - 1.0)
                y = min(max(r + flow[b, 1, r, c].item(), 0.0), height - 1.0)
                x0, y0 = math.floor(x), math.floor(y)
                x1, y1, fx, fy = min(x0 + 1, width - 1), min(y0 + 1, height - 1), x - x0, y - y0
                top = (1 - fx) * image[b, :, y0, x0] + fx * image[b, :, y0, x1]
                bottom = (1 - fx) * image[b, :, y1, x0] + fx * image[b, :, y1, x1]
                out[b, :, r, c] = (1 - fy) * top + fy * bottom
    return out


@pytest.mark.parity("optical.warp", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize(("height", "width"), [(5, 7), (4, 4), (1, 6), (6, 1)])
def test_warp_is_bilinear_reading_with_border_values(height, width):
    image, flow = normal(2, 3, height, width), 3 * normal(2, 2, height, width, seed=1)
    torch.testing.assert_close(warp(image, flow), warp_loops(image, flow), rtol=0, atol=1e-12)


def test_warp_by_whole_pixels_reads_the_neighbour():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    right = torch.zeros(1, 2, 3, 4)
    right[:, 0] = 1
    torch.testing.assert_close(warp(image, right)[0, 0, 0], torch.tensor([1.0, 2, 3, 3]))
    down = right.flip(1)
    torch.testing.assert_close(warp(image, down)[0, 0, :, 0], torch.tensor([4.0, 8, 8]))


def test_forward_flow_convention_recovers_the_first_frame():
    first = normal(1, 1, 8, 8)
    second = first.roll((1, 2), (2, 3))  # everything moves 2 to the right and 1 down
    flow = torch.tensor([2.0, 1.0], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    torch.testing.assert_close(warp(second, flow)[..., :-1, :-2], first[..., :-1, :-2])


def test_warp_is_differentiable_and_keeps_dtypes():
    image, flow = normal(1, 2, 4, 5).requires_grad_(), 0.3 * normal(1, 2, 4, 5, seed=1)
    assert torch.autograd.gradcheck(warp, (image, (flow + 0.05).requires_grad_()))
    half = warp(image.bfloat16(), flow.float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), warp(image, flow), rtol=0.02, atol=0.02)
    assert warp(image.float(), flow).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(warp(image, flow), warp_loops(image, flow), rtol=0, atol=1e-12)


@pytest.mark.parity("optical.end_point_error", against="float64 loops", tolerance=1e-12)
def test_end_point_error_is_the_mean_distance():
    pred, target = normal(2, 2, 3, 4), normal(2, 2, 3, 4, seed=1)
    mask = normal(2, 3, 4, seed=2) > 0
    every, chosen = [], []
    for b in range(2):
        for r in range(3):
            for c in range(4):
                distance = math.dist(pred[b, :, r, c].tolist(), target[b, :, r, c].tolist())
                every.append(distance)
                chosen += [distance] * bool(mask[b, r, c])
    assert end_point_error(pred, target).item() == pytest.approx(sum(every) / len(every), abs=1e-12)
    # over the pixels of the whole batch, not the mean of pictures
    assert end_point_error(pred, target, mask=mask).item() == pytest.approx(sum(chosen) / len(chosen), abs=1e-12)
    assert end_point_error(pred, target, mask=torch.zeros_like(mask)).isnan()


def test_masked_pixels_may_be_nan_and_equal_flows_have_a_gradient():
    pred, target = normal(1, 2, 3, 3).requires_grad_(), normal(1, 2, 3, 3)
    mask = torch.ones(1, 3, 3, dtype=torch.bool)
    mask[0, 1, 1] = False
    target[0, :, 1, 1] = torch.nan
    error = end_point_error(pred, target, mask=mask)
    error.backward()
    assert error.item() == 0
    assert pred.grad.isfinite().all()


@pytest.mark.parity("optical.flow_to_color", against="colorsys", tolerance=1e-12)
def test_colours_are_hsv():
    import colorsys

    flow = normal(2, 2, 4, 5)
    color = flow_to_color(flow)
    for b in range(2):
        largest = max(math.hypot(*flow[b, :, r, c].tolist()) for r in range(4) for c in range(5))
        for r in range(4):
            for c in range(5):
                x, y = flow[b, :, r, c].tolist()
                hue = (math.atan2(y, x) / (2 * math.pi)) % 1
                expected = colorsys.hsv_to_rgb(hue, math.hypot(x, y) / largest, 1.0)
                assert color[b, :, r, c].tolist() == pytest.approx(expected, abs=1e-12)


def test_right_is_red_and_rest_is_white():
    flow = torch.zeros(2, 2, 1, 2)
    flow[0, 0, 0, 0] = 1
    color = flow_to_color(flow)
    assert color[0, :, 0, 0].tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert color[0, :, 0, 1].tolist() == [1, 1, 1]
    assert (color[1] == 1).all()  # no motion anywhere: white, not nan


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 50))
def test_max_norm_fixes_the_scale_and_clips(scale, seed):
    flow = normal(1, 2, 3, 3, seed=seed)
    color = flow_to_color(flow, max_norm=scale)
    assert ((color >= 0) & (color <= 1)).all()
    torch.testing.assert_close(color, flow_to_color(7 * flow, max_norm=7 * scale))
    saturation = 1 - color.amin(1)
    torch.testing.assert_close(saturation, (flow.norm(dim=1) / scale).clamp(max=1))
    torch.testing.assert_close(flow_to_color(flow), flow_to_color(scale * flow))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: warp(normal(1, 3, 4, 4), normal(1, 2, 4, 5)), r"image: expected shape \(1, C, 4, 5\)"),
        (lambda: warp(normal(2, 3, 4, 4), normal(1, 2, 4, 4)), "image"),
        (lambda: warp(normal(1, 3, 4, 4), normal(1, 3, 4, 4)), r"flow: expected shape \(B, 2, H, W\)"),
        (lambda: end_point_error(normal(1, 2, 4, 4), normal(1, 2, 4, 5)), "target: expected shape"),
        (lambda: end_point_error(normal(1, 3, 4, 4), normal(1, 3, 4, 4)), "pred"),
        (
            lambda: end_point_error(normal(1, 2, 4, 4), normal(1, 2, 4, 4), mask=torch.ones(1, 1, 4, 4).bool()),
            r"mask: expected shape \(1, 4, 4\)",
        ),
        (lambda: flow_to_color(normal(2, 4, 4)), "flow: expected shape"),
        (lambda: flow_to_color(normal(1, 2, 4, 4), max_norm=0.0), "max_norm"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: warp(torch.zeros(1, 3, 4, 4).byte(), normal(1, 2, 4, 4)), "image: expected floating point"),
        (lambda: flow_to_color(torch.zeros(1, 2, 4, 4).long()), "flow: expected floating point"),
        (lambda: end_point_error(normal(1, 2, 2, 2), normal(1, 2, 2, 2), mask=torch.ones(1, 2, 2)), "mask: expected"),
    ],
)
def test_wrong_types_are_named(make, words):
    with pytest.raises(TypeError, match=words):
        make()
