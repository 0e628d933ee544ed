"""AutoLink: points, edges, map, mask and model against loops, closed forms and hand-computed cases."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sslref import claims
from sslref.data.worlds.figures import LIMBS, FigureWorld
from sslref.papers import autolink
from sslref.papers.autolink import (
    AutoLink,
    block_mask,
    draw_edges,
    edge_map,
    edge_weights,
    landmark_error,
    linked_edges,
    pyramid_loss,
    soft_keypoints,
    weighted_edges,
)
from sslref.train import fit


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def places(count, align_corners):
    if align_corners:
        return [-1 + 2 * i / (count - 1) for i in range(count)]
    return [(2 * i + 1) / count - 1 for i in range(count)]


# ---------------------------------------------------------------------------------------------------- points


@pytest.mark.parity("autolink.soft_keypoints", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("align_corners", [False, True])
def test_points_are_expected_places(align_corners):
    maps = random(2, 3, 4, 6)
    found = soft_keypoints(maps, align_corners=align_corners)
    for b in range(2):
        for k in range(3):
            weight = [[math.exp(v) for v in row] for row in maps[b, k].tolist()]
            total = sum(map(sum, weight))
            x = sum(w * p for row in weight for w, p in zip(row, places(6, align_corners), strict=True)) / total
            y = sum(w * p for row, p in zip(weight, places(4, align_corners), strict=True) for w in row) / total
            assert found[b, k].tolist() == pytest.approx([x, y], abs=1e-12)


def test_one_cell_and_a_flat_map():
    hot = torch.zeros(1, 1, 4, 8)
    hot[..., 1, 6] = 200.0
    assert soft_keypoints(hot).flatten().tolist() == pytest.approx([0.625, -0.25], abs=1e-6)
    assert soft_keypoints(torch.full((1, 1, 4, 8), 3.0)).flatten().tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.differs(
    "autolink",
    paper="coordinates in [-1, 1], nothing said of corners",
    official="linspace(-1, 1): the outer cells lie on the border; order (row, column)",
    here="(x, y) of cell centres; align_corners=True gives the official grid",
)
def test_grid_of_the_official_code():
    hot = torch.zeros(1, 1, 4, 8)
    hot[..., 1, 7] = 200.0
    found = soft_keypoints(hot, align_corners=True).flatten()
    assert found.tolist() == pytest.approx([1, -1 / 3], abs=1e-6)
    line = draw_edges(torch.tensor([[[-1.0, -1]]]), torch.tensor([[[1.0, -1]]]), 5, align_corners=True)
    assert (line[0, 0, 0] == 1).all()


def test_points_refuse():
    for bad in (torch.zeros(3, 4, 4), torch.zeros(0, 3, 4, 4)):
        with pytest.raises(ValueError, match="heatmaps"):
            soft_keypoints(bad)
    with pytest.raises(TypeError, match="heatmaps.*int64"):
        soft_keypoints(torch.zeros(1, 1, 2, 2, dtype=torch.int64))


def test_points_of_half_precision_are_precise():
    maps = random(2, 3, 16, 16).bfloat16()
    assert soft_keypoints(maps).dtype == torch.float32
    torch.testing.assert_close(soft_keypoints(maps), soft_keypoints(maps.double()).float())
    with torch.autocast("cpu"):
        torch.testing.assert_close(soft_keypoints(maps.float()), soft_keypoints(maps.double()).float())


# --------------------------------------------------------------------------------------------------- weights


def test_weights_by_hand():
    zero = edge_weights(torch.zeros(3, 3))
    torch.testing.assert_close(zero, math.log(2) * (1 - torch.eye(3)))
    start = edge_weights(torch.full((3, 3), -4 / 512))
    assert start[0, 1].item() == pytest.approx(0.01815, abs=1e-5)
    raw = torch.arange(9.0).view(3, 3) / 512
    assert torch.equal(edge_weights(raw), edge_weights(raw).T)
    assert edge_weights(raw)[0, 2].item() == pytest.approx(math.log1p(math.exp(2)))
    assert edge_weights(raw, scale=256)[1, 2].item() == pytest.approx(math.log1p(math.exp(2.5)))


def test_weights_read_the_upper_triangle_only():
    raw = random(4, 4).div(512).requires_grad_()
    (edge_weights(raw) * random(4, 4, seed=1)).sum().backward()
    upper = torch.ones(4, 4).triu(1).bool()
    assert (raw.grad[upper] != 0).all()
    assert (raw.grad[~upper] == 0).all()


@pytest.mark.parametrize("shape", [(3, 4), (3,), (2, 3, 3)])
def test_weights_refuse(shape):
    with pytest.raises(ValueError, match="raw"):
        edge_weights(torch.zeros(shape))
    with pytest.raises(ValueError, match="weights"):
        linked_edges(torch.zeros(shape))


# ------------------------------------------------------------------------------------------------------ edges


def loop(p, q, size, thickness, align_corners=False):
    """One edge, pixel by pixel."""
    line, picture = places(size, align_corners), []
    for y in line:
        row = []
        for x in line:
            (px, py), (qx, qy) = p, q
            s = ((x - px) * (qx - px) + (y - py) * (qy - py)) / ((qx - px) ** 2 + (qy - py) ** 2 + 1e-8)
            s = min(max(s, 0), 1)
            d2 = (x - px - s * (qx - px)) ** 2 + (y - py - s * (qy - py)) ** 2
            row.append(math.exp(-d2 / thickness))
        picture.append(row)
    return torch.tensor(picture, dtype=torch.float64)


@pytest.mark.parity("autolink.draw_edges", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize(("thickness", "align_corners"), [(0.05, False), (0.3, True)])
def test_edges_pixel_by_pixel(thickness, align_corners):
    p, q = random(2, 2, 3, 2).mul(0.5)
    found = draw_edges(p, q, 7, thickness=thickness, align_corners=align_corners)
    assert found.shape == (2, 3, 7, 7)
    for b in range(2):
        for e in range(3):
            expected = loop(p[b, e].tolist(), q[b, e].tolist(), 7, thickness, align_corners)
            torch.testing.assert_close(found[b, e], expected, rtol=0, atol=1e-12)


def test_a_horizontal_edge():
    """exp(-(y + 1/4)^2 / thickness) above and below it, round beyond its ends."""
    p, q = torch.tensor([[[-0.5, -0.25]]]).double(), torch.tensor([[[0.5, -0.25]]]).double()
    found, line = draw_edges(p, q, 8, thickness=0.1)[0, 0], torch.tensor(places(8, False)).double()
    above = torch.exp(-((line + 0.25) ** 2) / 0.1)
    torch.testing.assert_close(found[:, 2:6], above[:, None].expand(-1, 4))
    torch.testing.assert_close(found[:, 0], above * math.exp(-(0.375**2) / 0.1))


@pytest.mark.differs(
    "autolink",
    paper="a Gaussian of deviation sigma: exp(-d^2 / sigma^2)",
    official='exp(-d^2 / thick): "thick" is sigma squared, and there is no 2 below it',
    here="as the official code: thickness is sigma squared",
)
def test_thickness_is_a_square_without_a_two():
    dot = draw_edges(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), 5, thickness=0.16)[0, 0]
    assert dot[2, 3].item() == pytest.approx(math.exp(-1))  # a pixel is 0.4 wide
    assert dot[2, 2].item() == 1


def test_a_dot_has_a_finite_gradient():
    points = torch.tensor([[[0.1, -0.3], [0.1, -0.3]]]).requires_grad_()
    drawing = edge_map(points, edge_weights(torch.zeros(2, 2)), 8, thickness=0.05)
    expected = math.log(2) * loop((0.1, -0.3), (0.1, -0.3), 8, 0.05)
    torch.testing.assert_close(drawing[0, 0].double(), expected, rtol=1e-5, atol=1e-7)
    drawing.square().sum().backward()
    assert points.grad.isfinite().all()
    assert points.grad.abs().max() > 0.01


def test_direction_mirror_and_shift():
    p, q = random(2, 3, 4, 2).mul(0.4)
    there = draw_edges(p, q, 16, thickness=0.05)
    torch.testing.assert_close(draw_edges(q, p, 16, thickness=0.05), there, rtol=0, atol=1e-6)
    mirror, right = torch.tensor([-1.0, 1]).double(), torch.tensor([0.25, 0]).double()
    torch.testing.assert_close(draw_edges(p * mirror, q * mirror, 16, thickness=0.05), there.flip(3))
    torch.testing.assert_close(draw_edges(p + right, q + right, 16, thickness=0.05)[..., 2:], there[..., :-2])
    swapped = draw_edges(p.flip(2), q.flip(2), 16, thickness=0.05)  # (y, x) for (x, y)
    torch.testing.assert_close(swapped, there.mT)


def test_edges_gradient():
    p, q = random(2, 1, 2, 2).mul(0.5).requires_grad_(), random(1, 2, 2, seed=5).mul(0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, q: draw_edges(p[0], q, 4, thickness=0.3), (p, q))


def test_edges_refuse():
    p = torch.zeros(2, 3, 2)
    for starts, ends in ((p, p[:, :2]), (p[0], p[0]), (torch.zeros(2, 3, 3), torch.zeros(2, 3, 3))):
        with pytest.raises(ValueError, match="starts, ends"):
            draw_edges(starts, ends, 4)
    with pytest.raises(ValueError, match="size"):
        draw_edges(p, p, 0)
    for thickness in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="thickness"):
            draw_edges(p, p, 4, thickness=thickness)


# -------------------------------------------------------------------------------------------------------- map


@pytest.mark.parity("autolink.edge_map", against="float64 loops", tolerance=1e-12)
def test_map_is_the_largest_weighted_edge():
    points, weights = random(2, 4, 2).mul(0.5), edge_weights(random(4, 4, seed=2), scale=1.0)
    found = edge_map(points, weights, 9, thickness=0.1)
    assert found.shape == (2, 1, 9, 9)
    for b in range(2):
        edges = [
            weights[i, j] * loop(points[b, i].tolist(), points[b, j].tolist(), 9, 0.1)
            for i in range(4) for j in range(i + 1, 4)
        ]  # fmt: skip
        torch.testing.assert_close(found[b, 0], torch.stack(edges).amax(0), rtol=0, atol=1e-12)
        assert (found[b, 0] < torch.stack(edges).sum(0)).all()
        torch.testing.assert_close(weighted_edges(points, weights, 9, thickness=0.1)[b], torch.stack(edges))


def test_map_does_not_know_names():
    points, weights = random(3, 5, 2).mul(0.5), edge_weights(random(5, 5, seed=2), scale=1.0)
    order = torch.tensor([3, 0, 4, 2, 1])
    renamed = edge_map(points[:, order], weights[order][:, order], 8, thickness=0.1)
    torch.testing.assert_close(renamed, edge_map(points, weights, 8, thickness=0.1), rtol=0, atol=1e-6)
    raw = edge_weights(random(5, 5, seed=2)[order][:, order], scale=1.0)  # the raw table is not symmetric
    assert not torch.allclose(edge_map(points[:, order], raw, 8, thickness=0.1), renamed)


def test_map_grows_with_the_weights():
    points, weights = random(3, 4, 2).mul(0.5), edge_weights(random(4, 4, seed=2), scale=1.0)
    torch.testing.assert_close(edge_map(points, 3 * weights, 8), 3 * edge_map(points, weights, 8))
    assert edge_map(points, weights, 8, thickness=1.0).max() <= weights.max()


def test_gradient_goes_to_the_winner():
    points = torch.tensor([[[-0.5, 0.0], [0.5, 0], [0, 0.9]]]).requires_grad_()
    weights = torch.tensor([[0.0, 2, 0.1], [2, 0, 0.1], [0.1, 0.1, 0]]).requires_grad_()
    edge_map(points, weights, 8, thickness=0.05)[0, 0, 3, 3].backward()  # a pixel beside the edge 0-1
    assert weights.grad[0, 1] > 0.5
    assert weights.grad.count_nonzero() == 1
    assert points.grad[0, :2, 1].abs().min() > 0
    assert (points.grad[0, 2] == 0).all()


def test_gradient_reaches_points_and_upper_triangle():
    points, raw = random(1, 3, 2).mul(0.5).requires_grad_(), torch.zeros(3, 3).double().requires_grad_()
    edge_map(points, edge_weights(raw), 12, thickness=0.02).square().sum().backward()
    assert (points.grad != 0).all()
    upper = torch.ones(3, 3).triu(1).bool()
    assert (raw.grad[upper] > 0).all()
    assert (raw.grad[~upper] == 0).all()


def test_map_refuses():
    with pytest.raises(ValueError, match="keypoints"):
        edge_map(torch.zeros(2, 1, 2), torch.zeros(1, 1), 4)
    with pytest.raises(ValueError, match="keypoints"):
        edge_map(torch.zeros(2, 3, 3), torch.zeros(3, 3), 4)
    with pytest.raises(ValueError, match="weights"):
        edge_map(torch.zeros(2, 3, 2), torch.zeros(4, 4), 4)


def test_map_under_autocast_and_in_half_precision():
    points, weights = random(2, 4, 2).mul(0.5), edge_weights(random(4, 4, seed=2), scale=1.0)
    with torch.autocast("cpu"):
        found = edge_map(points.float(), weights.float(), 16, thickness=0.01)
    torch.testing.assert_close(found.double(), edge_map(points, weights, 16, thickness=0.01), rtol=1e-4, atol=1e-5)
    assert draw_edges(points.bfloat16(), points.bfloat16(), 4).dtype == torch.float32


def test_linked_edges():
    weights = torch.zeros(4, 4)
    for (i, j), value in {(0, 1): 1.0, (0, 3): 0.5, (1, 2): 0.499, (2, 3): 0.05}.items():
        weights[i, j] = weights[j, i] = value
    found = linked_edges(weights, threshold=0.5)
    assert found.dtype == torch.int64
    assert found.tolist() == [[0, 1], [0, 3]]
    assert linked_edges(weights).tolist() == [[0, 1], [0, 3], [1, 2]]
    assert linked_edges(3 * weights).tolist() == [[0, 1], [0, 3], [1, 2]]
    assert linked_edges(torch.zeros(1, 1)).shape == (0, 2)


# ------------------------------------------------------------------------------------------------------- mask


def test_mask_hides_whole_blocks():
    mask = block_mask(200, 32, blocks=8, generator=torch.Generator().manual_seed(0))
    assert mask.shape == (200, 1, 32, 32)
    assert mask.dtype == torch.bool
    corners = mask[:, :, ::4, ::4]
    assert torch.equal(mask, F.interpolate(corners.float(), scale_factor=4).bool())
    assert corners.float().mean().item() == pytest.approx(0.8, abs=0.01)


@pytest.mark.differs(
    "autolink",
    paper="80 % of the picture is masked",
    official="a coin flip for each of 16 x 16 blocks: the share varies from picture to picture",
    here="as the official code",
)
def test_mask_is_a_coin_flip_a_block():
    uniform = torch.rand(50, 1, 16, 16, generator=torch.Generator().manual_seed(7))
    mask = block_mask(50, 16, mask_ratio=0.6, generator=torch.Generator().manual_seed(7))
    assert torch.equal(mask, uniform <= 0.6)
    assert mask.flatten(1).sum(1).unique().numel() > 10
    assert not block_mask(3, 32, mask_ratio=0.0, generator=torch.Generator().manual_seed(0)).any()
    assert block_mask(3, 32, mask_ratio=1.0).all()


def test_mask_refuses():
    for arguments, name in (
        ({"size": 30}, "size"), ({"size": 0}, "size"), ({"mask_ratio": 1.1}, "mask_ratio"),
        ({"mask_ratio": -0.1}, "mask_ratio"), ({"mask_ratio": math.nan}, "mask_ratio"), ({"batch": 0}, "batch"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            block_mask(**{"batch": 2, "size": 32} | arguments)


# ------------------------------------------------------------------------------------------------------ model


def small(**options):
    torch.manual_seed(0)
    return AutoLink(**{"num_keypoints": 4, "image_size": 32, "blocks": 8, "thickness": 0.02} | options)


def test_model():
    images, model = torch.rand(3, 3, 32, 32), small()
    out = model(images, torch.Generator().manual_seed(1))
    assert out.reconstruction.shape == (3, 3, 32, 32)
    assert out.keypoints.shape == (3, 4, 2)
    torch.testing.assert_close(out.edge_map, edge_map(out.keypoints, model.weights, 32, thickness=0.02))
    assert torch.equal(out.mask, block_mask(3, 32, blocks=8, generator=torch.Generator().manual_seed(1)))
    again = model(images, torch.Generator().manual_seed(1))
    assert torch.equal(again.reconstruction, out.reconstruction)
    assert torch.equal(model(images, mask=out.mask).reconstruction, out.reconstruction)
    assert model.weights[0, 1].item() == pytest.approx(0.018, rel=0.5)
    assert model.alpha.item() == 1


def test_detector_sees_everything_and_decoder_what_is_left():
    images, model = torch.rand(2, 3, 32, 32), small()
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[..., :16] = True
    seen = {}
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    model.detector.register_forward_pre_hook(lambda module, inputs: seen.update(y=inputs[0]))
    drawing = model(images, mask=mask).edge_map
    torch.testing.assert_close(seen["y"], 2 * images - 1)
    assert (seen["x"][:, :3, :, :16] == 0).all()
    torch.testing.assert_close(seen["x"][:, :3, :, 16:], (2 * images - 1)[..., 16:])
    torch.testing.assert_close(seen["x"][:, 3:], drawing)
    with torch.no_grad():
        model.alpha.fill_(3.0)
    model(images, mask=mask)
    torch.testing.assert_close(seen["x"][:, :3, :, 16:], 3 * (2 * images - 1)[..., 16:])


def test_every_parameter_learns():
    model, images = small(), torch.rand(2, 3, 32, 32)
    pyramid_loss(model(images).reconstruction, images).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.raw.grad.triu(1).abs().max() > 0
    assert model.detector.layers[-1].weight.grad.abs().max() > 0


def test_dots_read_the_diagonal():
    model, points = small(links="dots"), torch.rand(2, 4, 2) - 0.5
    with torch.no_grad():
        model.raw.copy_(torch.diag(torch.tensor([0.0, 1, 2, -60])) / 512)
    found = model.draw(points)
    for b in range(2):
        dots = [
            math.log1p(math.exp(v)) * loop(p.tolist(), p.tolist(), 32, 0.02)
            for v, p in zip((0, 1, 2, -60), points[b], strict=True)
        ]
        torch.testing.assert_close(found[b, 0].double(), torch.stack(dots).amax(0), rtol=1e-4, atol=1e-6)


def test_model_of_the_paper():
    model = AutoLink(num_keypoints=3, width=8, down=4, depth=4)
    maps = model.detector.layers(torch.zeros(1, 3, 128, 128))
    assert maps.shape == (1, 3, 32, 32)
    assert model(torch.rand(1, 3, 128, 128)).reconstruction.shape == (1, 3, 128, 128)


def test_model_in_other_precisions():
    images = torch.rand(2, 3, 32, 32)
    assert small().double()(images.double()).reconstruction.dtype == torch.float64
    with torch.autocast("cpu"):
        out = small()(images)
    assert out.reconstruction.dtype == out.keypoints.dtype == out.edge_map.dtype == torch.float32


def test_model_refuses():
    for options, name in (
        ({"num_keypoints": 1}, "num_keypoints"), ({"links": "lines"}, "links"), ({"image_size": 30}, "size"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            small(**options)
    with pytest.raises(ValueError, match="images"):
        small()(torch.rand(2, 3, 16, 16))


@pytest.mark.parity("autolink.pyramid_loss", against="float64 loops", tolerance=1e-12)
def test_loss():
    a, b = random(2, 2, 3, 8, 8)
    expected = 0.0
    for scale in (1, 2, 4, 8):
        cells = []
        for off in (a - b).flatten(0, 1):
            for y in range(0, 8, scale):
                for x in range(0, 8, scale):
                    cells.append(abs(off[y : y + scale, x : x + scale].mean().item()))
        expected += sum(cells) / len(cells) / 4
    assert pyramid_loss(a, b).item() == pytest.approx(expected, abs=1e-12)
    assert pyramid_loss(a, b, scales=(1,)).item() == pytest.approx(F.l1_loss(a, b).item())
    with pytest.raises(ValueError, match="prediction, target"):
        pyramid_loss(a, b[:1])
    with pytest.raises(ValueError, match="prediction, target"):
        pyramid_loss(a[..., :4], b[..., :4])


# --------------------------------------------------------------------------------------------------- training


def test_weights_of_edges_do_not_decay():
    groups = autolink._optimizer(0.1, 0.01)(small()).param_groups
    assert [len(g["params"]) for g in groups][0] == 1
    assert (groups[0]["lr"], groups[0]["weight_decay"]) == (0.01, 0.0)
    assert (groups[1]["lr"], groups[1]["weight_decay"]) == (0.1, 1e-3)


def test_recipe_of_the_miniature():
    recipe = autolink.recipe(batch_size=2)
    assert (recipe.steps, recipe.batch_size) == (300, 2)
    assert "6 points, 32 px, stick figures" in recipe.about
    images, mask = recipe.task.batch(torch.Generator().manual_seed(0))
    assert images.shape == (2, 3, 32, 32)
    assert mask.shape == (2, 1, 32, 32)
    assert math.isfinite(fit(recipe.task, steps=1).last())


def test_recipe_of_the_paper(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        image.new("RGB", (140, 150), (60, 90, 20)).save(tmp_path / name / "0.png")
    recipe = autolink.recipe(tmp_path, batch_size=2)
    assert (recipe.steps, recipe.batch_size) == (20_000, 2)
    assert "8 points, 128 px, 2 pictures" in recipe.about
    assert recipe.task.batch(torch.Generator().manual_seed(0))[0].shape == (2, 3, 128, 128)
    with pytest.raises(ValueError, match="size"):
        autolink.recipe(size="huge")


# ------------------------------------------------------------------------------------------------- experiment


def test_landmark_error():
    points = random(40, 3, 2)
    joints = torch.stack([points[:, 0] + 2 * points[:, 1] + 1, -points[:, 2]], 1)
    assert landmark_error(points[:20], joints[:20], points[20:], joints[20:]) == pytest.approx(0, abs=1e-9)
    off = joints[20:] + torch.tensor([3.0, 4]).double()
    assert landmark_error(points[:20], joints[:20], points[20:], off) == pytest.approx(5)
    blind = landmark_error(0 * points[:20], joints[:20], 0 * points[20:], joints[20:])
    mean = (joints[20:] - joints[:20].mean(0)).norm(dim=2).mean().item()
    assert blind == pytest.approx(mean)


def test_graph_of_known_weights(monkeypatch):
    def learned(arm, **options):
        model = autolink.Graph(arm)
        with torch.no_grad():
            model.raw.fill_(-40 / 512)
            for n, (i, j) in enumerate((*LIMBS[:3], (1, 2))):
                model.raw[i, j] = (2 - 0.1 * n) / 512
        return model, autolink.History([1], {"loss": [0.25]})

    monkeypatch.setattr(autolink, "learn_graph", learned)
    maximum, total = (autolink.run_graph(arm, seed=0, device="cpu", steps=1) for arm in autolink.COMBINE)
    assert (maximum["precision"], maximum["recall"], maximum["tree"]) == (0.75, 0.75, 0.0)
    assert maximum["margin"] == pytest.approx(-math.log1p(math.exp(1.7)), abs=1e-4)
    assert maximum["loss"] == 0.25
    assert (maximum["piled"], maximum["moves"]) == (0.0, 1.0)
    assert total["piled"] == 1.0  # three limbs meet at the trunk


def test_the_graph_is_learned():
    model, history = autolink.learn_graph("maximum", steps=60, batch_size=8)
    weights = edge_weights(model.raw)
    assert min(weights[e] for e in LIMBS) > 10 * 0.018
    assert history.values["loss"][-1] < history.values["loss"][0]
    with pytest.raises(ValueError, match="arm: expected one of maximum, sum"):
        autolink.learn_graph("mean")


def test_arms_are_paired():
    spent = {"seed": 0, "steps": 1, "batch_size": 2}
    kept = {arm: autolink.pretrain(arm, **spent) for arm in autolink.ARMS}
    assert kept["edges + mask"] is autolink.pretrain("edges + mask", **spent)
    start = kept["random detector"].model.state_dict()
    for arm, trained in kept.items():
        assert torch.equal(trained.test.joints, kept["mean pose"].test.joints)
        assert trained.film[0].error == kept["random detector"].film[0].error or arm == "mean pose"
        assert not trained.model.training
        assert trained.model.state_dict().keys() == start.keys()
    test = kept["mean pose"].test.joints
    assert 0.2 < kept["mean pose"].film[-1].error < 0.35
    assert (test - test.mean(0)).norm(dim=2).mean().item() == pytest.approx(kept["mean pose"].film[-1].error, rel=0.05)
    assert len(autolink.pretrain("edges + mask", seed=0, steps=7, batch_size=2).film) == autolink.PARTS + 1
    with pytest.raises(ValueError, match="arm: expected one of edges"):
        autolink.pretrain("lines")


def test_drawing_of_the_truth_follows_the_figure(monkeypatch):
    """With true joints and limbs in place of the detector's, `drawn` is high and `error` is 0."""
    figures = FigureWorld().sample(200, torch.Generator().manual_seed(0))
    model = small(num_keypoints=5, thickness=0.012)
    with torch.no_grad():
        model.raw.fill_(-1)
        for i, j in LIMBS:
            model.raw[i, j] = 0.0
    film = [
        autolink.Frame(0, figures.joints, model.weights, 0.5),
        autolink.Frame(1, figures.joints, model.weights, 0.0),
    ]
    monkeypatch.setattr(autolink, "pretrain", lambda arm, **options: autolink.Trained(model, None, figures, film))
    found = autolink.run("edges + mask", seed=0, device="cpu", steps=1)
    assert found["drawn"] > 0.9
    assert (found["error"], found["error_0"], found["error_6"]) == (0.0, 0.5, 0.0)


def test_claims_name_what_runs_return(tmp_path, monkeypatch):
    monkeypatch.setattr(autolink, "EXPERIMENTS", {k: e for k, e in autolink.EXPERIMENTS.items() if k != "ratio"})
    record = claims.run("autolink", "smoke", seeds=1, cache=tmp_path)
    assert {e.kind for e in record.claims} == {"mechanism", "gain"}
    assert record["piled"].verdict == record["moves"].verdict == "exact"
    assert isinstance(autolink.pretrain("edges + mask", steps=2).model, nn.Module)
