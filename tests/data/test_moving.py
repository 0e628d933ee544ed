"""The moving world: its flow explains its frames, its masks are what was drawn, its splits share nothing."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from sslref.data.embedded import emoji, photographs
from sslref.data.worlds import moving
from sslref.data.worlds.moving import PHOTOGRAPHS, Clips, MovingWorld
from sslref.optical import warp


def _sample(count=32, seed=0, **options) -> Clips:
    return MovingWorld(**options).sample(count, torch.Generator().manual_seed(seed))


def _pixels(size):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return x, y


def _visible(clips, flow):
    """Pixels of frame t whose nearest pixel at p + flow belongs to the same part in frame t + 1."""
    size = clips.video.shape[-1]
    x, y = _pixels(size)
    to_x, to_y = x + flow[:, :, 0], y + flow[:, :, 1]
    inside = (to_x >= 0) & (to_x <= size - 1) & (to_y >= 0) & (to_y <= size - 1)
    index = (to_y.round().clamp(0, size - 1) * size + to_x.round().clamp(0, size - 1)).long()
    there = clips.parts[:, 1:].flatten(2).gather(2, index.flatten(2)).view_as(index)
    return inside & (there == clips.parts[:, :-1]) & clips.valid


def _errors(clips, flow, where):
    """Mean absolute difference between frame t and frame t + 1 read along the flow, and without it."""
    flow = flow.nan_to_num()
    now, after = clips.video[:, :-1], clips.video[:, 1:]
    read = warp(after.flatten(0, 1), flow.flatten(0, 1)).view_as(now)
    where = where & _visible(clips, flow)
    return [(other - now).abs().mean(2)[where].mean().item() for other in (read, after)]


# -------------------------------------------------------------------------------------------------- flow against frames


@pytest.mark.parity("moving.MovingWorld", against="its own frames, warped", tolerance=0.04)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"split": "test"},
        {"hinge": 25.0},
        {"hinge": 25.0, "limbs": True},
        {"objects": 2, "size": 40},
        {"still": 0.5, "directions": None, "vendor": "twitter"},
    ],
)
def test_flow_leads_from_frame_to_frame(options):
    clips = _sample(128, **options)
    everywhere = torch.ones_like(clips.valid)
    error, without = _errors(clips, clips.flow, everywhere)
    assert error < 0.016
    assert error < 0.3 * without
    for part in clips.parts.unique().tolist()[1:]:
        error, without = _errors(clips, clips.flow, clips.parts[:, :-1] == part)
        assert error < 0.04, part
        assert error < 0.32 * without, part


def test_what_is_seen_of_shadows_and_reflections_moves_as_seen_says():
    for options in ({"shadow": 0.9}, {"reflection": 0.9}):
        clips = _sample(128, hinge=25.0, spin=6.0, **options)
        where = clips.effect[:, :-1] & clips.effect[:, 1:]
        along_seen, _ = _errors(clips, clips.seen, where)
        along_flow, _ = _errors(clips, clips.flow, where)
        assert along_seen < 0.6 * along_flow, options
        off = ~clips.effect[:, :-1, None].expand_as(clips.flow)
        assert torch.equal(clips.seen[off], clips.flow[off])
        assert not (clips.effect & (clips.parts > 0)).any()


@pytest.mark.parity("moving.MovingWorld", against="closed form", tolerance=1e-5)
def test_a_reflection_turns_the_other_way_about_a_mirrored_centre():
    clips = _sample(8, reflection=0.5, spin=20.0)
    x, y = _pixels(32)
    for i in range(8):
        side, angle, centre = clips.meta["diameter"][i, 0], clips.meta["angle"][i, :, 0], clips.meta["centre"][i, :, 0]
        for t in range(7):
            turn = (angle[t] - angle[t + 1]).item()
            (c_x, c_y), (d_x, d_y) = centre[t], centre[t + 1]
            c_y, d_y = c_y + side, d_y + side  # 0.5 D below the figure is the line, 0.5 D below the line its image
            new_x = math.cos(turn) * (x - c_x) - math.sin(turn) * (y - c_y) + d_x
            new_y = math.sin(turn) * (x - c_x) + math.cos(turn) * (y - c_y) + d_y
            on = clips.effect[i, t].expand(2, -1, -1)
            torch.testing.assert_close(clips.seen[i, t][on], torch.stack([new_x - x, new_y - y])[on], rtol=0, atol=5e-5)
    assert clips.effect.sum() > 1000


def test_a_shadow_lies_to_the_lower_right():
    clips = _sample(64, shadow=1.0, spin=0.0, pan=(0, 0))
    velocity = clips.meta["velocity"][:, :, :, None, None].expand_as(clips.flow)
    where = clips.effect[:, :-1, None].expand_as(clips.flow)
    torch.testing.assert_close(clips.seen[where], velocity[where], rtol=0, atol=1e-5)
    place = torch.stack([e.nonzero().double().mean(0).flip(0) for e in clips.effect[:, 3]])
    away = (place - clips.meta["centre"][:, 3, 0]).nanmean(0)
    assert (away > 1).all()
    assert clips.video.permute(0, 1, 3, 4, 2)[clips.effect].mean() < 0.1  # shadow=1 is black


# ------------------------------------------------------------------------------------------------- what was drawn


@pytest.mark.parity("moving.MovingWorld", against="SciPy's map_coordinates", tolerance=1e-4)
def test_sprites_lie_where_the_meta_data_says():
    world = MovingWorld(diameter=(10, 20), spin=10.0)
    clips = world.sample(8, torch.Generator().manual_seed(3))
    sprites = moving._pool("train", "google", False, torch.device("cpu"))[0]
    x, y = _pixels(32)
    for i in range(8):
        for t in (0, 5):
            side, angle, centre = (
                clips.meta["diameter"][i, 0],
                clips.meta["angle"][i, t, 0],
                clips.meta["centre"][i, t, 0],
            )
            dx, dy = x - centre[0], y - centre[1]
            q_x = (torch.cos(angle) * dx + torch.sin(angle) * dy) * 24 / side + 11.5
            q_y = (torch.cos(angle) * dy - torch.sin(angle) * dx) * 24 / side + 11.5
            sprite = sprites[clips.meta["emoji"][i, 0], 0].numpy()
            color, alpha = (
                np.stack([ndimage.map_coordinates(c, [q_y, q_x], order=1, mode="grid-constant") for c in part])
                for part in (sprite[:3], sprite[3:])
            )
            sure = np.abs(alpha[0] - 0.5) > 1e-4
            assert np.array_equal((clips.parts[i, t].numpy() == 1)[sure], (alpha[0] > 0.5)[sure])
            opaque = alpha[0] > 0.9999
            np.testing.assert_allclose(clips.video[i, t].numpy()[:, opaque], color[:, opaque], rtol=0, atol=3e-4)


@pytest.mark.parity("moving.MovingWorld", against="closed form", tolerance=1e-5)
def test_flow_of_a_turning_sprite_is_that_of_its_matrix():
    clips = _sample(8, spin=20.0)
    x, y = _pixels(32)
    for i in range(8):
        for t in range(7):
            turn = (clips.meta["angle"][i, t + 1, 0] - clips.meta["angle"][i, t, 0]).item()
            c, d = clips.meta["centre"][i, t : t + 2, 0]
            new_x = math.cos(turn) * (x - c[0]) - math.sin(turn) * (y - c[1]) + d[0]
            new_y = math.sin(turn) * (x - c[0]) + math.cos(turn) * (y - c[1]) + d[1]
            expected = torch.stack([new_x - x, new_y - y])
            on = (clips.parts[i, t] == 1).expand(2, -1, -1)
            torch.testing.assert_close(clips.flow[i, t][on], expected[on], rtol=0, atol=2e-5)


def test_background_and_still_objects_move_by_minus_the_camera_to_the_last_digit():
    clips = _sample(64, still=0.5, hinge=30.0)
    camera = -clips.meta["camera"][:, None, :, None, None].expand_as(clips.flow)
    on = (clips.parts[:, :-1, None] == 0).expand_as(clips.flow)
    assert torch.equal(clips.flow[on], camera[on])
    moves = clips.meta["moves"][:, 0]
    assert 0.25 < moves.double().mean() < 0.75
    assert torch.equal(clips.flow[~moves], camera[~moves])
    assert (clips.flow[moves] != camera[moves]).flatten(1).any(1).all()
    assert (clips.meta["direction"][~moves] == -1).all()
    assert (clips.meta["velocity"][~moves] == 0).all()


def test_draws_keep_to_their_intervals():
    clips = _sample(512, speed=(1.0, 1.5), pan=(0.2, 0.4), diameter=(10, 11), spin=3.0, directions=4)
    meta = clips.meta
    assert 1.0 <= meta["velocity"].norm(dim=2).min() < 1.05
    assert 1.45 < meta["velocity"].norm(dim=2).max() <= 1.5001
    assert meta["camera"].norm(dim=1).min() >= 0.2
    assert meta["camera"].norm(dim=1).max() <= 0.4001
    assert (meta["camera"] > 0).double().mean(0).sub(0.5).abs().max() < 0.1
    assert 10 <= meta["diameter"].min() <= meta["diameter"].max() <= 11
    assert meta["angle"].diff(dim=1).abs().max() <= math.radians(3.0001)
    assert meta["direction"].unique().tolist() == [0, 1, 2, 3]
    heading = torch.atan2(meta["velocity"][..., 1], meta["velocity"][..., 0]) % (2 * math.pi)
    torch.testing.assert_close((heading / (math.pi / 2)).round().long() % 4, meta["direction"])
    assert len(meta["photograph"].unique()) == len(PHOTOGRAPHS)
    moved = meta["centre"].diff(dim=1)[:, :, 0]
    torch.testing.assert_close(moved, (meta["velocity"] - meta["camera"][:, None]).expand(-1, 7, -1), rtol=0, atol=1e-5)
    middle = meta["centre"].mean(1)[:, 0]
    assert ((middle - 15.5).abs() <= 16 - 0.35 * 10).all()


def test_figures_have_two_parts_and_later_objects_are_in_front():
    assert _sample(hinge=25.0).parts.unique().tolist() == [0, 1, 2]
    clips = _sample(64, hinge=25.0, objects=2)
    assert clips.parts.unique().tolist() == [0, 1, 2, 3, 4]
    rigid = _sample(64, objects=2, spin=0.0)
    for number in (1, 2):
        velocity = (rigid.meta["velocity"][:, number - 1] - rigid.meta["camera"])[:, None, :, None, None]
        on = (rigid.parts[:, :-1, None] == 2 * number - 1).expand_as(rigid.flow)
        torch.testing.assert_close(rigid.flow[on], velocity.expand_as(rigid.flow)[on])
    centre = rigid.meta["centre"].round().long().clamp(0, 31)
    on_second = rigid.parts[:, 3].flatten(1).gather(1, centre[:, 3, 1, 1:] * 32 + centre[:, 3, 1, :1])
    assert (on_second != 1).double().mean() > 0.9  # the first object never covers the middle of the second


def test_the_limb_swings_about_its_joint():
    """Seen from the body, every pixel of the limb turns about one point that stays where it is."""
    clips = _sample(32, hinge=40.0, spin=0.0, speed=(0, 0), pan=(0, 0))
    checked = 0
    for i in range(32):
        limb = clips.parts[i, 3] == 2
        if limb.sum() < 20 or clips.flow[i, 3][:, limb].norm(dim=0).max() < 0.5:
            continue
        y, x = limb.nonzero().double().T
        u, v = clips.flow[i, 3][:, limb].double()
        # rigid: u = (cos - 1)(x - jx) - sin (y - jy), v = sin (x - jx) + (cos - 1)(y - jy): linear in four unknowns
        one, none = torch.ones_like(x), torch.zeros_like(x)
        rows = torch.cat([torch.stack([x, -y, one, none], 1), torch.stack([y, x, none, one], 1)])
        solution = torch.linalg.lstsq(rows, torch.cat([u, v])[:, None]).solution[:, 0]
        torch.testing.assert_close(rows @ solution, torch.cat([u, v]), rtol=0, atol=1e-4)
        a, b, c, d = solution
        assert (a + 1) ** 2 + b**2 == pytest.approx(1, abs=1e-4)
        joint = torch.linalg.solve(torch.stack([torch.stack([a, -b]), torch.stack([b, a])]), -torch.stack([c, d]))
        centre = clips.meta["centre"][i, 3, 0]
        assert (joint - centre).norm() <= 0.12 * clips.meta["diameter"][i, 0] + 0.05
        assert (clips.flow[i, 3][:, clips.parts[i, 3] == 1] == 0).all()
        checked += 1
    assert checked > 10


# ----------------------------------------------------------------------------------------------------- animations


def test_animations_have_masks_and_no_flow():
    clips = _sample(64, animated=True)
    on = (clips.parts[:, :-1] > 0) | (clips.parts[:, 1:] > 0)
    assert torch.equal(clips.valid, ~on)
    for flow in (clips.flow, clips.seen):
        assert torch.equal(flow.isnan(), on[:, :, None].expand_as(flow))
    error, without = _errors(clips, clips.flow, clips.valid)
    assert error < 0.016
    assert error < 0.3 * without
    with pytest.raises(ValueError, match="animated"):
        clips.exact_flow()
    rigid = _sample(2)
    assert rigid.valid.all()
    assert rigid.exact_flow() is rigid.flow


def test_animations_move_by_themselves_unless_they_are_still():
    for still, expected in ((0.0, True), (1.0, False)):
        clips = _sample(32, animated=True, still=still, pan=(0, 0), speed=(0, 0), spin=0.0)
        changes = (clips.video.diff(dim=1).abs() > 1e-6).flatten(1).any(1)
        assert (changes.double().mean() > 0.9) == expected
        assert changes.any() == expected


# ------------------------------------------------------------------------------------------------ splits and seeds


def test_splits_share_no_emoji_and_no_pixel_of_a_photograph():
    train, test = MovingWorld(), MovingWorld(split="test")
    assert not set(train.captions) & set(test.captions)
    assert len(train.captions) + len(test.captions) > 1400
    for split in ("train", "test"):
        widths = moving._places(split, 160, torch.device("cpu"))[1]
        full = torch.tensor([photographs([n])[n].shape[2] * 160 / 240 for n in PHOTOGRAPHS])
        torch.testing.assert_close(
            widths / full, torch.full_like(full, 0.6 if split == "train" else 0.4), rtol=0, atol=0.01
        )


def test_categories_are_those_of_the_emoji():
    clips, drawn = _sample(64), emoji()
    captions = MovingWorld().captions
    for i in range(64):
        index = drawn.captions.index(captions[clips.meta["emoji"][i, 0]])
        assert clips.meta["category"][i, 0] == drawn.labels[index]
        assert drawn.categories[drawn.labels[index]] not in ("Flags", "Symbols")


def test_the_same_generator_gives_the_same_clips():
    options = {"hinge": 20.0, "shadow": 0.5, "reflection": 0.3, "objects": 2}
    first, again, other = _sample(40, **options), _sample(40, **options), _sample(40, seed=1, **options)
    for name in ("video", "flow", "seen", "parts", "valid", "effect"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.video, other.video)
    longer = _sample(64, **options)
    assert torch.equal(longer[:32].video, first[:32].video)
    assert torch.equal(longer[:32].meta["centre"], first[:32].meta["centre"])
    state = torch.get_rng_state()
    _sample(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_shapes_and_ranges():
    clips = _sample(33, frames=5, size=24, objects=2, reflection=0.5)
    assert len(clips) == 33
    assert clips.video.shape == (33, 5, 3, 24, 24)
    assert clips.flow.shape == clips.seen.shape == (33, 4, 2, 24, 24)
    assert clips.parts.shape == clips.effect.shape == (33, 5, 24, 24)
    assert clips.valid.shape == (33, 4, 24, 24)
    assert clips.video.dtype == torch.float32
    assert 0 <= clips.video.min() <= clips.video.max() <= 1
    assert clips.meta["centre"].shape == (33, 5, 2, 2)
    some = clips[torch.tensor([4, 2])]
    assert torch.equal(some.video[1], clips.video[2])
    assert torch.equal(some.meta["emoji"][0], clips.meta["emoji"][4])
    empty = _sample(3, objects=0)
    assert not empty.parts.any()
    assert set(empty.meta) == {"camera", "photograph"}


def test_long_clips_need_larger_photographs():
    assert _sample(2, frames=16, size=48, photo_side=240).video.shape == (2, 16, 3, 48, 48)
    with pytest.raises(ValueError, match="photo_side: expected larger photographs"):
        MovingWorld(frames=16, size=48, split="test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 1}, "frames: expected at least 2, got 1"),
        ({"objects": -1}, "objects"),
        ({"still": 1.5}, "still: expected 0 to 1, got 1.5"),
        ({"shadow": -0.1}, "shadow"),
        ({"photo_side": 480}, "photo_side"),
        ({"directions": 0}, "directions"),
        ({"diameter": (0, 4)}, "diameter"),
        ({"speed": (2, 1)}, "speed"),
        ({"pan": (-1, 1)}, "pan"),
        ({"animated": True, "hinge": 5.0}, "animated"),
        ({"limbs": True}, "limbs: expected hinge > 0"),
        ({"vendor": "apple"}, "vendor"),
        ({"split": "all"}, "split"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        MovingWorld(**options)


def test_no_clips_is_an_error():
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        _sample(0)
