"""The scene world: scenes are composed as the docstring says, the truth fits them, boxes say where a view lies."""

import pytest
import torch
from torch.nn import functional as F

from sslref.data import emoji, photographs
from sslref.data.worlds import scenes
from sslref.data.worlds.scenes import PHOTOGRAPHS, THINGS, Scenes, SceneWorld, cut, random_views
from sslref.nn import pixel_centers


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _sample(count=64, seed=0, **options) -> Scenes:
    return SceneWorld(**options).sample(count, generator(seed))


# -------------------------------------------------------------------------------------------------------- scenes


def test_shapes_and_ranges():
    drawn = _sample(40)
    assert len(drawn) == 40
    assert drawn.images.shape == (40, 3, 64, 64)
    assert drawn.images.dtype == torch.float32
    assert 0 <= drawn.images.min() <= drawn.images.max() <= 1
    assert drawn.classes.shape == drawn.instances.shape == (40, 64, 64)
    assert drawn.labels.shape == (40, 4)
    assert drawn.boxes.shape == (40, 4, 4)
    some = drawn[torch.tensor([5, 2])]
    assert torch.equal(some.images[1], drawn.images[2])
    assert torch.equal(some.boxes[0], drawn.boxes[5])


def test_maps_labels_and_boxes_agree():
    drawn = _sample(96)
    for i in range(96):
        for n in range(4):
            on = drawn.instances[i] == n + 1
            if not on.any():
                assert drawn.boxes[i, n].tolist() == [0, 0, 0, 0]
                continue
            assert (drawn.classes[i][on] == drawn.labels[i, n]).all()
            y, x = on.nonzero().T
            assert drawn.boxes[i, n].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    assert torch.equal(drawn.instances == 0, drawn.classes == 0)
    number = (drawn.labels > 0).sum(1)
    assert number.unique().tolist() == [2, 3, 4]
    assert torch.equal(drawn.labels > 0, torch.arange(4) < number[:, None])
    assert drawn.labels.unique().tolist() == list(range(13))
    assert 0.2 < (drawn.classes > 0).double().mean() < 0.3  # what the datasheet of the world says: a quarter


@pytest.mark.parity("scenes.SceneWorld", against="SciPy's map_coordinates", tolerance=1e-5)
def test_a_thing_is_the_emoji_at_its_place():
    """One large apple over a background: pixels of alpha 1 show the drawing, enlarged, mirrored or not."""
    import numpy as np
    from scipy import ndimage

    drawn = _sample(32, number=(1, 1), side=(32, 32), things=("RED APPLE",))
    seen = set()
    for i in range(32):
        errors = []
        for artist in ("google", "twitter"):
            sheet = emoji("all", vendor=artist)
            rgba = sheet.rgba[sheet.names.index("RED APPLE")].float().div(255).numpy()
            for mirror in (False, True):
                picture = rgba[:, :, ::-1] if mirror else rgba
                solid = picture[3] > 0.5
                rows, columns = np.nonzero(solid)
                x1, y1, x2, y2 = drawn.boxes[i, 0].tolist()
                if (x2 - x1, y2 - y1) != (np.ptp(columns) + 1, np.ptp(rows) + 1):
                    continue
                left, top = x1 - columns.min(), y1 - rows.min()
                y, x = np.mgrid[0:64, 0:64]
                there = [y - top, x - left]
                alpha = ndimage.map_coordinates(picture[3], there, order=1, mode="grid-constant")
                if not np.array_equal(alpha > 0.5, drawn.classes[i].numpy() == 1):
                    continue
                color = np.stack([ndimage.map_coordinates(c, there, order=1) for c in picture[:3]])
                full = alpha > 0.9999
                errors.append((np.abs(color - drawn.images[i].numpy())[:, full].max(), artist, mirror))
        error, artist, mirror = min(errors)
        assert error < 1e-5
        seen.add((artist, mirror))
    assert len(seen) == 4


@pytest.mark.parity("scenes.SceneWorld", against="area averages by loops", tolerance=1e-6)
def test_the_background_is_an_area_average():
    """Without things a scene is the mean over (side / 64)-pixel squares of its photograph, for some side and place."""
    photo = torch.zeros(3, 240, 240)
    photo[0] = torch.arange(240.0) / 240  # x
    photo[1] = torch.arange(240.0)[:, None] / 240  # y
    photo[2] = photo[0] * photo[1]
    part = photo[..., :132].double()
    sums = F.pad(part, (1, 0, 1, 0)).cumsum(1).cumsum(2)
    sizes = torch.tensor([240]), torch.tensor([132])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "_places", lambda split, device: (sums[None], *sizes))
        patch.setattr(scenes, "PHOTOGRAPHS", ("ramp",))
        drawn = _sample(32, number=(0, 0))
    for image in drawn.images.double() * 240:
        step = (image[0, 0, -1] - image[0, 0, 0]) / 63
        side = (64 * step).round()
        left, top = (image[0, 0, 0] + 0.5 - step / 2).round(), (image[1, 0, 0] + 0.5 - step / 2).round()
        assert 64 <= side <= 132
        assert 0 <= left <= 132 - side
        assert 0 <= top <= 240 - side
        # the mean of a piecewise constant ramp over a cell, by a fine sum
        fine = torch.arange(64 * 64, dtype=torch.float64) + 0.5
        x = (left + fine * side / 4096).floor().view(64, 64).mean(1)
        torch.testing.assert_close(image[0, 0], x, rtol=0, atol=0.02)
        torch.testing.assert_close(image[2], image[0] * image[1] / 240, rtol=0, atol=1e-3)
    exact = _sample(32, size=96, split="test", number=(0, 0), side=(20, 36))
    grey = [i for i, p in enumerate(exact.photographs.tolist()) if PHOTOGRAPHS[p] in ("brick", "grass", "gravel")]
    for i in grey:  # a part of 96 columns leaves a side of 96 alone: pixels as they are
        whole = photographs([PHOTOGRAPHS[exact.photographs[i]]])[PHOTOGRAPHS[exact.photographs[i]]][..., 144:]
        rows = whole.unfold(1, 96, 1).movedim(1, 0).transpose(2, 3)
        assert (rows - exact.images[i]).abs().amax((1, 2, 3)).min() < 1e-6
    assert grey


def test_splits_share_no_pixel_of_a_photograph():
    for split, start, end in (("train", 0.0, 0.55), ("test", 0.6, 1.0)):
        sums, heights, widths = scenes._places(split, torch.device("cpu"))
        for i, photo in enumerate(photographs(PHOTOGRAPHS).values()):
            part = photo[..., int(start * photo.shape[2]) : int(end * photo.shape[2]) if end < 1 else None]
            assert (heights[i], widths[i]) == part.shape[1:]
            total = sums[i, :, heights[i], widths[i]]
            torch.testing.assert_close(total, part.double().sum((1, 2)))


def test_the_same_generator_gives_the_same_scenes():
    first, again, other = _sample(40), _sample(40), _sample(40, seed=1)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.instances, again.instances)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(_sample(64).images[:32], first.images[:32])
    assert not torch.equal(first.images, _sample(40, split="test").images)
    state = torch.get_rng_state()
    _sample(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_keep_to_their_ranges():
    drawn = _sample(256, number=(1, 3), side=(20, 24), things=THINGS[:3])
    sizes = drawn.boxes[..., 2:] - drawn.boxes[..., :2]
    assert sizes.max() <= 24
    assert drawn.labels.unique().tolist() == [0, 1, 2, 3]
    assert (drawn.labels > 0).sum(1).unique().tolist() == [1, 2, 3]
    assert len(drawn.photographs.unique()) == len(PHOTOGRAPHS)
    empty = _sample(2, number=(0, 0))
    assert empty.labels.shape == (2, 0)
    assert empty.boxes.shape == (2, 0, 4)
    assert not empty.classes.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 97}, "size: expected 1 to 96, got 97"),
        ({"number": (3, 2)}, "number: expected a range"),
        ({"number": (-1, 2)}, "number"),
        ({"side": (0, 4)}, "side"),
        ({"side": (20, 65)}, "side: expected a range .* from 1 to 64"),
        ({"things": ()}, "things"),
        ({"things": ("APPLE PIE",)}, "things.*1 unknown"),
        ({"things": ("OWL", "OWL")}, "things: expected different"),
        ({"split": "all"}, "split"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        SceneWorld(**options)


def test_no_scenes_is_an_error():
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        _sample(0)


# --------------------------------------------------------------------------------------------------------- views


@pytest.mark.parity("scenes.cut", against="closed form", tolerance=1e-6)
def test_cut_reads_where_the_box_says():
    line = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    ramps = torch.stack(torch.meshgrid(line, line, indexing="xy"))[None].expand(3, -1, -1, -1)  # x, y of each pixel
    boxes = torch.tensor([[0.25, 0.125, 0.75, 0.625], [0.75, 0.125, 0.25, 0.625], [0.1, 0.2, 0.8, 0.9]]).double()
    views = cut(ramps, boxes, 12)
    torch.testing.assert_close(views.movedim(1, -1), pixel_centers(boxes, 12, 12), rtol=0, atol=1e-6)
    torch.testing.assert_close(views[1], views[0].flip(-1))
    whole = cut(ramps, torch.tensor([[0.0, 0, 1, 1]]).expand(3, -1), 64)
    torch.testing.assert_close(whole, ramps)


def test_cut_of_labels_takes_the_pixel_below():
    labels = _sample(8).instances
    boxes = random_views(_sample(8).images, generator=generator(3)).boxes
    views = cut(labels, boxes, 48, nearest=True)
    assert views.dtype == labels.dtype
    for i in range(8):
        for row, line in enumerate(pixel_centers(boxes, 48, 48)[i].tolist()):
            for column, (x, y) in enumerate(line):
                assert views[i, row, column] == labels[i, int(64 * y), int(64 * x)]


def test_views_keep_to_the_law():
    images = _sample(32).images.repeat(32, 1, 1, 1)
    views, boxes = random_views(images, generator=generator())
    assert views.shape == (1024, 3, 48, 48)
    assert 0 <= views.min() <= views.max() <= 1
    wide, high = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    torch.testing.assert_close(wide.abs(), high)
    area = high.square()
    assert 0.3 <= area.min() < 0.31
    assert 0.99 < area.max() <= 1
    assert area.mean().item() == pytest.approx(0.65, abs=0.02)
    assert (wide < 0).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert 0 <= boxes.min() <= boxes.max() <= 1
    gray = (views.amax(1) - views.amin(1)).amax((1, 2)) < 1e-6
    colored = (images.amax(1) - images.amin(1)).amax((1, 2)) > 0.05
    assert gray[colored].double().mean().item() == pytest.approx(0.2, abs=0.05)


@pytest.mark.parity("scenes.random_views", against="closed form", tolerance=1e-6)
def test_color_of_a_view():
    """Without colour change a view is the cut itself; with it, one affine function of each channel."""
    images = _sample(8).images * 0.3 + 0.3  # nothing is clipped
    plain, boxes = random_views(images, color=0.0, gray_p=0.0, generator=generator(1))
    torch.testing.assert_close(plain, cut(images, boxes, 48))
    changed, _ = random_views(images, gray_p=0.0, generator=generator(1))
    mean = plain.mean((1, 2, 3))
    for i in range(8):
        ratios = []
        for c in range(3):
            x = torch.stack([plain[i, c].flatten() - mean[i], torch.ones(48 * 48)], dim=1)
            fit = torch.linalg.lstsq(x, changed[i, c].flatten()[:, None]).solution[:, 0]
            clipped = changed[i, c].max() == 1
            if not clipped:
                torch.testing.assert_close(x @ fit, changed[i, c].flatten(), rtol=0, atol=1e-5)
                ratios.append(fit[0] / fit[1] * mean[i])  # the contrast, the same in all channels
        for ratio in ratios:
            assert ratio.item() == pytest.approx(ratios[0].item(), abs=1e-4)
            assert 0.6 <= ratio <= 1.4
    gray, _ = random_views(images, color=0.0, gray_p=1.0, flip_p=0.0, generator=generator(1))
    expected = (plain * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(1)
    unmirrored = (boxes[:, 0] < boxes[:, 2]).nonzero().flatten()
    torch.testing.assert_close(gray[unmirrored, 1], expected[unmirrored])


def test_views_are_drawn_by_the_generator():
    images = _sample(4).images
    first, again = (random_views(images, generator=generator(2)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.boxes, again.boxes)
    assert not torch.equal(first.boxes, random_views(images, generator=generator(3)).boxes)
    assert random_views(images.double(), generator=generator(2)).images.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.5, 1.1)}, "scale"),
        ({"color": 1.0}, "color"),
        ({"flip_p": 1.5}, "flip_p"),
        ({"gray_p": -0.1}, "gray_p"),
        ({"size": 0}, "at least 1, got 0"),
    ],
)
def test_views_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        random_views(torch.rand(2, 3, 8, 8), **options)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="images: expected float"):
        random_views(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="maps: expected"):
        cut(torch.zeros(2, 8, 8), torch.zeros(2, 4), 4)
    with pytest.raises(ValueError, match="boxes: expected"):
        cut(torch.zeros(2, 3, 8, 8), torch.zeros(3, 4), 4)
