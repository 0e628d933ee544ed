"""STS: labels against slow loops (SciPy's convolution, pixel by pixel), and the facts that hold exactly."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sslref.data import DataError
from sslref.data.worlds.moving import MovingWorld
from sslref.nn.r2plus1d import SmallR2Plus1D
from sslref.papers import sts
from sslref.papers.sts import (
    appearance_labels,
    appearance_statistics,
    color_overlap,
    dominant_color,
    motion_boundary,
    motion_labels,
    motion_maps,
    motion_statistics,
    orientation_histogram,
    region_masks,
    sts_loss,
)
from sslref.train import fit


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ----------------------------------------------------------------------------------------- everything again, slowly


def _owners(pattern, size):
    """Pixel by pixel, the list of regions (from 0) that own it."""
    half, owners = size // 2, {}
    for r in range(size):
        for c in range(size):
            if pattern == 1:
                found = [4 * (r * 4 // size) + c * 4 // size]
            elif pattern == 2:
                ring = min(r, c, size - 1 - r, size - 1 - c) * 8 // size
                found = [3 - min(ring, 3)]
            else:
                quadrant, a, b = 2 * (r // half) + c // half, r % half, c % half
                if quadrant in (1, 2):  # mirrored, as the official code does it
                    b = half - 1 - b
                    found = [2 * quadrant] * (a <= b) + [2 * quadrant + 1] * (a >= b)
                else:
                    found = [2 * quadrant] * (a >= b) + [2 * quadrant + 1] * (a <= b)
            owners[r, c] = found
    return owners


def _slow_histogram(pairs):
    bins = [0.0] * 8
    for magnitude, angle in pairs:
        low = math.floor(angle / 45)
        share = angle / 45 - low
        bins[low % 8] += magnitude * (1 - share)
        bins[(low + 1) % 8] += magnitude * share
    return bins


def _first_max(values):
    return max(range(len(values)), key=lambda i: (values[i], -i))


def _slow_motion(flow):
    kernel = np.array([[-1.0, 0, 1]] * 3)
    flow = flow.double().numpy()
    size, labels, frames = flow.shape[-1], {}, []
    for component in (0, 1):
        d_x = np.stack([ndimage.convolve(f, kernel, mode="reflect") for f in flow[:, component]])
        d_y = np.stack([ndimage.convolve(f, kernel.T, mode="reflect") for f in flow[:, component]])
        frames.append(_first_max([float(np.hypot(a, b).sum()) for a, b in zip(d_x, d_y, strict=True)]) + 1)
        x, y = d_x.sum(0), d_y.sum(0)
        for pattern, count in ((1, 16), (2, 4), (3, 8)):
            members = [[] for _ in range(count)]
            for (r, c), found in _owners(pattern, size).items():
                pair = (math.hypot(x[r, c], y[r, c]), math.degrees(math.atan2(y[r, c], x[r, c])) % 360)
                for k in found:
                    members[k].append(pair)
            totals = [sum(m for m, _ in pairs) / (len(pairs) if pattern == 2 else 1) for pairs in members]
            if pattern == 1 and max(totals) == 0:
                labels[pattern, component] = [0, 0]
                continue
            region = _first_max(totals)
            labels[pattern, component] = [region + 1, _first_max(_slow_histogram(members[region])) + 1]
    return [label for p in (1, 2, 3) for c in (0, 1) for label in labels[p, c]] + frames


def _octant(r, g, b):
    return 1 + 2 * (r > 127) + (g > 127) + 4 * (b <= 127)


def _slow_color(pixels, mode):
    if mode == "octant":
        counts = Counter(_octant(*p) for p in pixels)
        return min(counts, key=lambda k: (-counts[k], k))
    counts = Counter(pixels)
    return _octant(*min(counts, key=lambda p: (-counts[p], p[2] * 65536 + p[1] * 256 + p[0])))


def _slow_overlap(frames):
    """frames: for each frame the list of (r, g, b) of one region."""
    iou = []
    for channel in range(3):
        histograms = [Counter(p[channel] for p in frame) for frame in frames]
        low = sum(min(h[b] for h in histograms) for b in range(256))
        high = sum(max(h[b] for h in histograms) for b in range(256))
        iou.append(low / high)
    return sum(iou) / 3


def _slow_appearance(clip, mode):
    clip = clip.permute(0, 2, 3, 1).tolist()
    labels = []
    for pattern, count in ((1, 16), (2, 4), (3, 8)):
        owners = _owners(pattern, len(clip[0]))
        regions = [
            [[tuple(frame[r][c]) for (r, c), found in owners.items() if k in found] for frame in clip]
            for k in range(count)
        ]
        overlaps = [_slow_overlap(region) for region in regions]
        for k in (_first_max([-o for o in overlaps]), _first_max(overlaps)):
            labels += [k + 1, _slow_color([p for frame in regions[k] for p in frame], mode)]
    return [*labels, _slow_color([tuple(p) for frame in clip for row in frame for p in row], mode)]


def _clips(count, *, frames=3, size=16, seed=0):
    """Video whose regions differ in colour and in how much they change, with many equal colours."""
    generator = _generator(seed)
    base = torch.randint(0, 256, (count, 1, 3, 4, 4), generator=generator)
    base = base.repeat_interleave(size // 4, -1).repeat_interleave(size // 4, -2)
    noise = torch.randint(-2, 3, (count, frames, 3, size, size), generator=generator) * 20
    change = torch.rand(count, 1, 1, size, size, generator=generator) < 0.3
    return (base + noise * change).clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parity("sts.region_masks", against="float64 loops", tolerance=0)
@pytest.mark.parametrize("size", [8, 16, 24, 112])
def test_region_masks_against_loops(size):
    for pattern, count in ((1, 16), (2, 4), (3, 8)):
        slow = torch.zeros(count, size, size, dtype=torch.bool)
        for (r, c), found in _owners(pattern, size).items():
            slow[found, r, c] = True
        masks = region_masks(pattern, size)
        assert masks.dtype == torch.bool
        assert torch.equal(masks, slow)


def test_patterns_one_and_two_tile_the_square_and_three_shares_its_diagonals():
    for pattern in (1, 2):
        assert (region_masks(pattern, 32).sum(0) == 1).all()
    assert region_masks(2, 16).sum((1, 2)).tolist() == [16, 48, 80, 112]
    triangles = region_masks(3, 16)
    assert triangles.sum((1, 2)).tolist() == [36] * 8
    assert (triangles.sum(0) == 2).sum() == 32
    # one pixel of each: next to the middle of a side
    assert triangles[:, 7, 0].tolist() == [True] + [False] * 7
    assert triangles[:, 0, 7].tolist() == [False, True] + [False] * 6
    assert triangles[:, 0, 8].tolist() == [False, False, True] + [False] * 5
    assert triangles[:, 7, 15].tolist() == [False, False, False, True] + [False] * 4
    assert triangles[:, 8, 0].tolist() == [False] * 4 + [True] + [False] * 3
    assert triangles[:, 15, 7].tolist() == [False] * 5 + [True] + [False] * 2
    assert triangles[:, 15, 8].tolist() == [False] * 6 + [True, False]
    assert triangles[:, 8, 15].tolist() == [False] * 7 + [True]


def test_region_masks_errors():
    for pattern in (0, 4, "1"):
        with pytest.raises(ValueError, match="pattern: expected 1, 2 or 3"):
            region_masks(pattern, 16)
    for size in (0, -8, 12, 4):
        with pytest.raises(ValueError, match="size: expected a positive multiple of 8"):
            region_masks(1, size)


# ---------------------------------------------------------------------------------------------------------- boundary


@pytest.mark.parity("sts.motion_boundary", against="SciPy's ndimage.convolve", tolerance=1e-12)
def test_motion_boundary_is_a_convolution_with_symmetric_borders():
    flow = torch.randn(3, 2, 7, 9, dtype=torch.float64, generator=_generator())
    kernel = np.array([[-1.0, 0, 1]] * 3)
    result = motion_boundary(flow)
    assert result.shape == (3, 2, 2, 7, 9)
    for t in range(3):
        for component in range(2):
            for derivative, k in enumerate((kernel, kernel.T)):
                expected = ndimage.convolve(flow[t, component].numpy(), k, mode="reflect")
                np.testing.assert_allclose(result[t, component, derivative], expected, rtol=0, atol=1e-12)


@pytest.mark.parity("sts.motion_boundary", against="closed form", tolerance=1e-12)
def test_motion_boundary_of_a_ramp_is_minus_its_slope():
    x = torch.arange(8, dtype=torch.float64).expand(8, 8)
    boundary = motion_boundary(torch.stack([2 * x, x.T])[None])[0]
    assert (boundary[0, 0, :, 1:-1] == -2 * 6).all()  # six differences of one pixel each
    assert (boundary[0, 0, :, [0, -1]] == -2 * 3).all()  # the border repeats the last column
    assert (boundary[0, 1] == 0).all()
    assert (boundary[1, 1, 1:-1] == -6).all()
    assert (boundary[1, 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_pan_has_no_boundary_at_all(dtype):
    flow = torch.tensor([0.1234567, -7.7654321]).to(dtype).view(1, 2, 1, 1).expand(3, 2, 16, 16)
    boundary = motion_boundary(flow)
    assert boundary.dtype == dtype
    assert (boundary == 0).all()


def test_integers_do_not_wrap_around():
    flow = torch.zeros(1, 2, 8, 8, dtype=torch.uint8)
    flow[..., 4:] = 200
    boundary = motion_boundary(flow)
    assert boundary.dtype == torch.float64
    assert boundary.min() == -600
    assert torch.equal(boundary, motion_boundary(flow.double()))


def test_motion_boundary_differentiates():
    flow = torch.randn(2, 2, 5, 6, dtype=torch.float64, generator=_generator(), requires_grad=True)
    assert torch.autograd.gradcheck(motion_boundary, flow)


def test_motion_boundary_errors():
    for shape in ((2, 8, 8), (3, 1, 8, 8), (0, 2, 8, 8), (1, 3, 2, 8, 8)):
        with pytest.raises(ValueError, match="flow: expected shape"):
            motion_boundary(torch.zeros(shape))
    with pytest.raises(TypeError, match="flow"):
        motion_boundary(torch.zeros(1, 2, 8, 8, dtype=torch.complex64))


# --------------------------------------------------------------------------------------------------------- histogram


@pytest.mark.parity("sts.orientation_histogram", against="float64 loops", tolerance=1e-12)
def test_orientation_histogram_against_loops():
    magnitude = torch.rand(5, 7, dtype=torch.float64, generator=_generator())
    angle = torch.rand(5, 7, dtype=torch.float64, generator=_generator(1)) * 2000 - 1000
    slow = _slow_histogram(zip(magnitude.flatten().tolist(), (a % 360 for a in angle.flatten().tolist()), strict=True))
    result = orientation_histogram(magnitude, angle)
    torch.testing.assert_close(result, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parity("sts.orientation_histogram", against="closed form", tolerance=1e-12)
def test_orientation_histogram_by_hand():
    result = orientation_histogram(torch.tensor([1.0, 2.0]).double(), torch.tensor([45.0, 350.0]).double())
    expected = torch.tensor([2 * 7 / 9, 1, 0, 0, 0, 0, 0, 2 * 2 / 9], dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    one = torch.ones(1)
    assert orientation_histogram(one, torch.tensor([-1e-30])).argmax() == 0  # modulo 360 this is 360 itself
    assert orientation_histogram(one, torch.tensor([360.0])).tolist() == [1] + [0] * 7
    assert orientation_histogram(one, torch.tensor([-90.0]), num_bins=4).tolist() == [0, 0, 0, 1]
    assert orientation_histogram(one, torch.tensor([67.5])).tolist() == [0, 0.5, 0.5, 0, 0, 0, 0, 0]
    assert orientation_histogram(one[:0], one[:0]).tolist() == [0] * 8


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(-1e4, 1e4)), min_size=1, max_size=20), st.integers(2, 16))
def test_orientation_histogram_keeps_the_total(pairs, bins):
    magnitude, angle = torch.tensor(pairs, dtype=torch.float64).T
    result = orientation_histogram(magnitude, angle, num_bins=bins)
    assert result.shape == (bins,)
    assert (result >= 0).all()
    torch.testing.assert_close(result.sum(), magnitude.sum(), rtol=1e-9, atol=1e-9)


def test_orientation_histogram_errors_and_dtype():
    with pytest.raises(ValueError, match="angle: expected the shape of magnitude"):
        orientation_histogram(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="num_bins"):
        orientation_histogram(torch.ones(2), torch.ones(2), num_bins=1)
    assert orientation_histogram(torch.ones(2), torch.ones(2)).dtype == torch.float32


# ----------------------------------------------------------------------------------------------------- motion labels


@pytest.mark.parity("sts.motion_labels", against="float64 loops", tolerance=0)
@pytest.mark.parity("sts.motion_statistics", against="float64 loops", tolerance=0)
@pytest.mark.parametrize("size", [8, 16, 24])
def test_motion_labels_against_loops(size):
    flow = torch.randn(4, 5, 2, size, size, dtype=torch.float64, generator=_generator(size))
    flow[1] *= torch.rand(size, size, generator=_generator(1)) < 0.1  # few moving pixels
    flow[2] = 0
    flow[3, :, 0] = 0  # motion in v alone
    labels = motion_labels(flow)
    assert labels.dtype == torch.int64
    for i in range(4):
        assert labels[i].tolist() == _slow_motion(flow[i])
        assert torch.equal(motion_statistics(flow[i]), labels[i])
    assert labels[2].tolist() == [0, 0, 0, 0] + [1] * 10


@pytest.mark.parity("sts.largest_flow_block", against="float64 loops", tolerance=0)
@pytest.mark.parametrize("size", [8, 24])
def test_largest_flow_block_against_loops(size):
    flow = torch.randn(5, 3, 2, size, size, dtype=torch.float64, generator=_generator(size))
    flow[4] = 0
    blocks = sts.largest_flow_block(flow)
    assert blocks.dtype == torch.int64
    for i in range(5):
        totals = [0.0] * 16
        for row in range(size):
            for column in range(size):
                x, y = flow[i, :, :, row, column].sum(0).tolist()
                totals[4 * (row * 4 // size) + column * 4 // size] += math.hypot(x, y)
        assert blocks[i] == _first_max(totals) + 1
    with pytest.raises(ValueError, match="flow: expected"):
        sts.largest_flow_block(flow[0])


def test_labels_do_not_depend_on_the_dtype():
    flow = torch.randn(3, 4, 2, 16, 16, generator=_generator()).bfloat16()
    expected = motion_labels(flow.double())
    assert torch.equal(motion_labels(flow), expected)
    assert torch.equal(motion_labels(flow.float()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(motion_labels(flow.float()), expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 50))
def test_a_pan_changes_no_label(seed, speed):
    generator = _generator(seed)
    flow = torch.randn(1, 5, 2, 16, 16, dtype=torch.float64, generator=generator)
    pan = torch.randn(1, 5, 2, 1, 1, dtype=torch.float64, generator=generator) * speed  # a shaking camera
    assert torch.equal(motion_labels(flow + pan), motion_labels(flow))


def test_swapping_the_components_swaps_the_labels_in_pairs():
    flow = torch.randn(2, 5, 2, 16, 16, generator=_generator())
    labels, swapped = motion_labels(flow), motion_labels(flow.flip(2))
    order = [2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 13, 12]
    assert torch.equal(swapped, labels[:, order])
    for i, name in enumerate(sts.MOTION_NAMES):
        assert sts.MOTION_NAMES[order[i]] == {"u": "v", "v": "u"}[name[0]] + name[1:]


def test_a_disc_in_block_six_is_found_there():
    r, c = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    disc = ((r - 11.5) ** 2 + (c - 11.5) ** 2 < 6).double()
    flow = torch.zeros(4, 2, 32, 32, dtype=torch.float64)
    flow[:, 0] = disc
    flow[2, 0] *= 3
    labels = dict(zip(sts.MOTION_NAMES, motion_statistics(flow).tolist(), strict=True))
    assert labels["u_region_1"] == 6
    assert labels["u_region_2"] == 1
    assert labels["v_region_1"] == labels["v_direction_1"] == 0
    assert labels["u_frame"] == 3


def test_directions_point_away_from_what_moves_to_the_right():
    """u is 1 in the right half: it grows to the right, so d_x, minus the derivative, points to the left: bin 5."""
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0, :, 8:] = 1
    assert motion_statistics(flow)[1] == 5
    assert motion_statistics(-flow)[1] == 1
    assert motion_statistics(flow.mT)[1] == 7  # grows downwards: up is 270 degrees
    assert motion_statistics(flow.flip(1))[3] == 5


def test_pattern_two_compares_means():
    flow = torch.rand(1, 2, 64, 64, dtype=torch.float64, generator=_generator())
    flow[..., 24:40, 24:40] *= 3
    magnitude, _ = motion_maps(flow)
    sums = magnitude[0].flatten() @ region_masks(2, 64).flatten(1).double().T
    assert sums.argmax() == 3  # the outermost ring is the largest
    assert motion_statistics(flow)[4] == 1


def test_motion_maps_are_what_the_labels_are_made_of():
    flow = torch.randn(2, 3, 2, 16, 16, dtype=torch.float64, generator=_generator())
    magnitude, angle = motion_maps(flow)
    labels = motion_labels(flow)
    for i in range(2):
        summed = motion_boundary(flow[i]).sum(0)
        torch.testing.assert_close(magnitude[i], summed.square().sum(1).sqrt())
        inside = region_masks(1, 16)[labels[i, 0] - 1]
        assert orientation_histogram(magnitude[i, 0][inside], angle[i, 0][inside]).argmax() + 1 == labels[i, 1]


def test_motion_label_errors():
    with pytest.raises(ValueError, match="square"):
        motion_statistics(torch.zeros(3, 2, 16, 24))
    with pytest.raises(ValueError, match="multiple of 8"):
        motion_statistics(torch.zeros(3, 2, 12, 12))
    with pytest.raises(ValueError, match=r"\(T, 2, S, S\)"):
        motion_statistics(torch.zeros(1, 3, 2, 16, 16))
    with pytest.raises(ValueError, match=r"\(B, T, 2, S, S\)"):
        motion_labels(torch.zeros(3, 2, 16, 16))
    with pytest.raises(ValueError, match="not empty"):
        motion_labels(torch.zeros(0, 3, 2, 16, 16))


@pytest.mark.differs(
    "sts",
    paper="the clip is flipped before its labels are computed",
    official="mirrors the picture of u but keeps its sign, so u_direction is that of the reversed motion",
    here="labels take a flow that is right: mirrored, and u negated",
)
def test_a_flip_without_the_sign_turns_the_direction():
    flow = torch.zeros(1, 2, 16, 16)
    flow[:, 0, 4:12, 2:6] = 1
    flow[:, 0, 5:11, 6] = 0.5  # a softer edge on the right
    official = flow.flip(-1)
    right = official * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    turned = (motion_statistics(official)[1] - motion_statistics(right)[1]) % 8
    assert motion_statistics(official)[0] == motion_statistics(right)[0]
    assert turned == 4


@pytest.mark.differs(
    "sts",
    paper="15 flows for 16 frames",
    official="reads 16 flow images, sums all of them, and looks for the frame of largest motion among the first 15",
    here="as many flows as are given, all of them for everything",
)
def test_every_flow_counts():
    flow = torch.zeros(16, 2, 16, 16)
    flow[15, 0, 2:5, 2:5] = 1
    assert motion_statistics(flow)[12] == 16


# ------------------------------------------------------------------------------------------------- dominant colours


@pytest.mark.parity("sts.dominant_color", against="float64 loops", tolerance=0)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from((0, 1, 126, 127, 128, 255))] * 3), min_size=1, max_size=12))
def test_dominant_color_against_counting(pixels):
    tensor = torch.tensor(pixels, dtype=torch.uint8)
    assert dominant_color(tensor) == _slow_color(pixels, "octant")
    assert dominant_color(tensor, mode="exact") == _slow_color(pixels, "exact")


@pytest.mark.differs(
    "sts",
    paper="the octant of most pixels",
    official="the octant of the most frequent exact 24-bit colour",
    here='both: mode "octant" (the default) and "exact"',
)
def test_the_two_dominant_colors_can_differ():
    pixels = torch.tensor([[255, 0, 0]] * 3 + [[0, 255, 0]] * 2 + [[10, 255, 0]] * 2, dtype=torch.uint8)
    assert dominant_color(pixels) == 6
    assert dominant_color(pixels, mode="exact") == 7
    corners = torch.tensor([[r, g, b] for b in (255, 0) for r in (0, 255) for g in (0, 255)], dtype=torch.uint8)
    assert [dominant_color(c[None]) for c in corners] == list(range(1, 9))


def test_dominant_color_errors():
    pixels = torch.zeros(4, 3, dtype=torch.uint8)
    with pytest.raises(TypeError, match="uint8"):
        dominant_color(pixels.float())
    with pytest.raises(ValueError, match="mode"):
        dominant_color(pixels, mode="mean")
    for shape in ((0, 3), (4, 4), (3,), (1, 4, 3)):
        with pytest.raises(ValueError, match="pixels"):
            dominant_color(torch.zeros(shape, dtype=torch.uint8))


# ------------------------------------------------------------------------------------------------- appearance labels


@pytest.mark.parity("sts.color_overlap", against="float64 loops", tolerance=1e-12)
def test_color_overlap_against_loops():
    video = _clips(2)
    for pattern, count in ((1, 16), (2, 4), (3, 8)):
        owners, result = _owners(pattern, 16), color_overlap(video, pattern)
        for i in range(2):
            for k in range(count):
                frames = [
                    [tuple(frame[:, r, c].tolist()) for (r, c), found in owners.items() if k in found]
                    for frame in video[i]
                ]
                assert result[i, k].item() == pytest.approx(_slow_overlap(frames), abs=1e-12)


@pytest.mark.parity("sts.appearance_labels", against="float64 loops", tolerance=0)
@pytest.mark.parity("sts.appearance_statistics", against="float64 loops", tolerance=0)
@pytest.mark.parametrize("mode", ["octant", "exact"])
def test_appearance_labels_against_loops(mode):
    video = _clips(3, seed=3)
    labels = appearance_labels(video, color_mode=mode)
    assert labels.dtype == torch.int64
    for i in range(3):
        assert labels[i].tolist() == _slow_appearance(video[i], mode)
        assert torch.equal(appearance_statistics(video[i], color_mode=mode), labels[i])


def test_a_static_clip_is_consistent_everywhere():
    video = torch.randint(0, 256, (1, 1, 3, 16, 16), dtype=torch.uint8, generator=_generator()).expand(
        -1, 4, -1, -1, -1
    )
    for pattern in (1, 2, 3):
        assert (color_overlap(video, pattern) == 1).all()
    labels = dict(zip(sts.APPEARANCE_NAMES, appearance_labels(video)[0].tolist(), strict=True))
    assert [v for k, v in labels.items() if "region" in k] == [1] * 6
    assert labels["diverse_color_2"] == labels["consistent_color_2"]


def test_where_and_in_what_color_it_changes():
    video = torch.full((4, 3, 16, 16), 255, dtype=torch.uint8)
    for t in range(4):
        video[t, 1:, 0:4, 12:16] = video[t, 1:, 0:4, 12:16].clamp(max=10 * t)
    labels = dict(zip(sts.APPEARANCE_NAMES, appearance_statistics(video).tolist(), strict=True))
    assert labels["diverse_region_1"] == 4
    assert labels["diverse_color_1"] == 7  # red
    assert labels["diverse_region_2"] == 4
    assert labels["consistent_region_1"] == 1
    assert labels["consistent_color_1"] == labels["color"] == 4  # white


@pytest.mark.differs(
    "sts",
    paper="the dominant colour of a ring",
    official="for ring 2 slices the time axis (block[:-14]) where it means the last 14 rows",
    here="the pixels of the ring, in every frame",
)
def test_the_color_of_ring_two_is_that_of_its_pixels():
    video = torch.zeros(16, 3, 112, 112, dtype=torch.uint8)
    video[:, 2, 70:84, 28:84] = 255  # blue below, a third of the ring; black, red, green elsewhere
    video[:, 0, 28:42, 28:56] = 255
    video[:, 1, 28:42, 56:84] = 255
    video[:, 0, 42:70, 28:42] = torch.arange(16, dtype=torch.uint8)[:, None, None]
    labels = dict(zip(sts.APPEARANCE_NAMES, appearance_statistics(video, color_mode="exact").tolist(), strict=True))
    assert labels["diverse_region_2"] == 2
    assert labels["diverse_color_2"] == 1  # blue


def test_appearance_label_errors():
    video = torch.zeros(2, 3, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(TypeError, match="clip: expected torch.uint8"):
        appearance_statistics(video[0].float())
    with pytest.raises(TypeError, match="video: expected torch.uint8"):
        appearance_labels(video.int())
    with pytest.raises(ValueError, match="clip: expected shape"):
        appearance_statistics(video)
    with pytest.raises(ValueError, match="video: expected shape"):
        appearance_labels(video[:0])
    with pytest.raises(ValueError, match="expected shape"):
        appearance_statistics(video[0, ..., :8])
    with pytest.raises(ValueError, match="multiple of 8"):
        appearance_statistics(video[0, ..., :12, :12])
    with pytest.raises(ValueError, match="color_mode"):
        appearance_statistics(video[0], color_mode="mean")
    with pytest.raises(ValueError, match="pattern"):
        color_overlap(video, 4)


# -------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parity("sts.sts_loss", against="float64 loops", tolerance=1e-12)
def test_loss_against_loops():
    generator = _generator()
    m, a = (torch.randn(3, n, dtype=torch.float64, generator=generator) for n in (14, 13))
    mt, at = (torch.randint(0, 17, (3, n), generator=generator) for n in (14, 13))
    slow_m = sum((m[i, j].item() - mt[i, j].item()) ** 2 for i in range(3) for j in range(14)) / 42
    slow_a = sum((a[i, j].item() - at[i, j].item()) ** 2 for i in range(3) for j in range(13)) / 39
    assert sts_loss(m, mt, a, at).item() == pytest.approx(slow_m + 0.1 * slow_a, abs=1e-12)
    loss = sts_loss(m, mt, a, at, motion_weight=0.5, appearance_weight=2.0)
    assert loss.item() == pytest.approx(0.5 * slow_m + 2 * slow_a, abs=1e-12)


def test_loss_gradient_and_dtypes():
    generator = _generator()
    m, a = (torch.randn(2, n, dtype=torch.float64, generator=generator, requires_grad=True) for n in (14, 13))
    mt, at = (torch.randint(0, 17, (2, n), generator=generator) for n in (14, 13))
    assert torch.autograd.gradcheck(lambda m, a: sts_loss(m, mt, a, at), (m, a))
    assert sts_loss(m.float(), mt, a.float(), at).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sts_loss(m.float(), mt, a.float(), at)
    torch.testing.assert_close(loss, sts_loss(m.float(), mt, a.float(), at))


def test_loss_errors():
    m, a = torch.zeros(2, 14), torch.zeros(2, 13)
    for arguments, name in (
        ((m[:, :13], m[:, :13], a, a), "motion_pred"),
        ((m, m[:1], a, a), "motion_target"),
        ((m, m, m, a), "appearance_pred"),
        ((m, m, a, a[0]), "appearance_target"),
        ((m[:0], m[:0], a[:0], a[:0]), "B > 0"),
    ):
        with pytest.raises(ValueError, match=name):
            sts_loss(*arguments)


# --------------------------------------------------------------------------------------------------- the miniature


def test_animated_clips_are_refused():
    clips = MovingWorld(animated=True).sample(2, _generator())
    with pytest.raises(ValueError, match="animated"):
        sts.label(clips.video, clips.exact_flow())


def test_labelled_clips_of_the_world():
    data, known = sts.world_clips("test", 40, 5)
    assert data.video.dtype == torch.uint8
    assert data.video.shape == (40, 8, 3, 32, 32)
    clips = MovingWorld(split="test").sample(32, _generator(11))
    assert torch.equal(data.motion[:32], motion_labels(clips.flow))
    assert torch.equal(data.appearance[3], appearance_statistics(data.video[3]))
    assert torch.equal(known["direction"][:32], clips.meta["direction"][:, 0])
    for i in range(32):
        cells = [(clips.parts[i, :, r : r + 8, c : c + 8] > 0).sum() for r in range(0, 32, 8) for c in range(0, 32, 8)]
        assert known["block"][i] == torch.stack(cells).argmax()


def test_crop_and_mirror_cuts_whole_squares():
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    video = torch.stack([x, y, x * 0 + 1])[None, None] + torch.arange(3)[:, None, None, None, None] * 100
    video = video.expand(3, 64, 3, 20, 20).transpose(0, 1).reshape(64, 3, 3, 20, 20)  # 64 clips of 3 frames
    cut = sts.crop_and_mirror(video, 16, _generator())
    assert cut.shape == (64, 3, 3, 16, 16)
    right = cut[:, 0, 0, 0, 1] - cut[:, 0, 0, 0, 0]
    assert set(right.tolist()) == {1.0, -1.0}
    assert (cut.diff(dim=-1)[:, :, 0] == right[:, None, None, None]).all()
    assert (cut.diff(dim=-2)[:, :, 1] == 1).all()
    left = cut[:, 0, 0].amin((1, 2))
    assert set(left.tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert torch.equal(cut[:, 1:], cut[:, :1] + torch.tensor([100.0, 200.0])[:, None, None, None])  # all frames alike
    assert torch.equal(cut, sts.crop_and_mirror(video, 16, _generator()))


def test_estimated_flow_has_the_frames_of_the_clip():
    clips = MovingWorld().sample(2, _generator(4))
    flow = sts.estimate_flow(clips.video, warps=3)
    assert flow.shape == clips.flow.shape
    error, without = (flow - clips.flow).norm(dim=2).mean(), clips.flow.norm(dim=2).mean()
    assert error < 0.5 * without
    with pytest.raises(ValueError, match="warps"):
        sts.estimate_flow(clips.video, warps=0)


def test_the_pan_changes_the_raw_label_only():
    boundary, raw = (sts.run_pan(arm, seed=7, device="cpu", clips=64) for arm in ("motion boundary", "raw flow"))
    assert boundary["changed"] == 0
    assert raw["changed"] > 0.15
    assert raw["found_without_pan"] > 65 > boundary["found_without_pan"] == boundary["found"]


def test_training_is_reproducible_and_arms_share_everything_else():
    budget = {"seed": 3, "steps": 3, "clips": 64}
    (first, history), (again, same) = sts.pretrain("both", **budget), sts.pretrain("both", **budget)
    assert history.values == same.values
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    start, nothing = sts.pretrain("random", **budget)
    assert not nothing.steps
    data = sts.world_clips("train", 64, 3)[0]
    torch.testing.assert_close(start.motion.bias, data.motion.float().mean(0))
    motion, _ = sts.pretrain("motion", **budget)
    torch.testing.assert_close(motion.appearance.weight, start.appearance.weight, rtol=0, atol=1e-4)  # decay alone
    assert not torch.equal(motion.motion.weight, start.motion.weight)
    out = sts.predict(motion, data.video)
    assert (out.features.shape, out.motion.shape, out.appearance.shape) == ((64, 64), (64, 14), (64, 13))


@pytest.mark.differs(
    "sts",
    paper="the linear layers learn at twice the rate",
    official="every bias learns at twice the rate, those of BatchNorm too",
    here="the official code's",
)
def test_biases_learn_at_twice_the_rate():
    model = sts.STS(SmallR2Plus1D())
    optimizer = sts._official_sgd(model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (1e-3 if name.endswith("bias") else 5e-4)
    assert all((g["momentum"], g["weight_decay"]) == (0.9, 5e-3) for g in optimizer.param_groups)


def test_recipes(monkeypatch):
    clips = sts.world_clips
    monkeypatch.setattr(sts, "world_clips", lambda split, count, seed, device: clips(split, 64, seed, device))
    small = sts.recipe(batch_size=4)
    history = fit(small.task, steps=2)
    assert set(history.values) == {"loss", "motion", "appearance"}
    expected = history.last("motion") + 0.1 * history.last("appearance")
    assert history.last("loss") == pytest.approx(expected, rel=1e-5)
    paper = sts.recipe(size="paper", batch_size=2)
    assert paper.steps == 18 * math.ceil(9537 / 2)
    assert [round(paper.task.schedule(s, 18), 9) for s in (0, 5, 6, 11, 12, 17)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    video, motion, appearance = paper.task.batch(_generator())
    assert video.shape == (2, 16, 3, 112, 112)
    assert (motion.shape, appearance.shape) == ((2, 14), (2, 13))
    with pytest.raises(ValueError, match="size: expected"):
        sts.recipe(size="large")
    with pytest.raises(ValueError, match="batch_size: expected at least 2"):
        sts.recipe(batch_size=1)
    with pytest.raises(ValueError, match="arm: expected one of random"):
        sts.pretrain("none", seed=0, steps=1, clips=32)
    with pytest.raises(ValueError, match="video: expected shape"):
        sts.crop_and_mirror(torch.zeros(1, 2, 3, 16, 12), 16, _generator())


def test_recipe_on_a_folder_of_videos(tmp_path):
    av = pytest.importorskip("av")
    for i in range(2):
        with av.open(str(tmp_path / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=12)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            frames = torch.randint(0, 256, (10, 48, 64, 3), dtype=torch.uint8, generator=_generator(i)).numpy()
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    found = sts.recipe(tmp_path, size="miniature", batch_size=2)
    video, motion, _ = found.task.batch(_generator())
    assert video.shape == (2, 8, 3, 32, 32)
    assert (motion >= 0).all()
    again = found.task.batch(_generator())
    assert torch.equal(video, again[0])
    assert torch.equal(motion, again[1])
    with pytest.raises(DataError, match="expected"):
        sts.recipe(tmp_path / "nothing", size="miniature")


def test_claims_name_what_the_runs_return():
    for name, experiment in sts.EXPERIMENTS.items():
        budget = {k: v for k, v in experiment.budgets["smoke"].items() if k != "seeds"}
        found = {arm: experiment.run(arm, seed=0, device="cpu", **budget) for arm in experiment.arms}
        for claim in sts.CLAIMS:
            if claim.experiment == name:
                for arm in (claim.baseline, claim.method, *claim.ablations):
                    assert math.isfinite(found[arm][claim.metric])
        assert set(experiment.budgets) == {"smoke", "ci", "ledger", "gpu"}
