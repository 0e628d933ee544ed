"""Randomized quantization: the quantizer against loops, closed forms and hand-computed cases; arms and measures."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sslref import claims
from sslref.data import DataError
from sslref.nn import ConvNet
from sslref.papers import randomized_quantization as rq
from sslref.papers.randomized_quantization import (
    RandomizedQuantization,
    bin_edges,
    bin_index,
    quantize,
    randomized_quantization,
)
from sslref.train import fit


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=draws(seed), dtype=torch.float64)


def channel(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, 1, -1)


RAMP = channel(0, 1, 2, 3, 4)


def loop(x, edge_u, value_u):
    """Section 3, value by value: edges, index and result."""
    batch, channels = x.shape[:2]
    count = value_u.shape[2]
    edges, index, out = [], torch.zeros(x.shape, dtype=torch.int64), torch.zeros_like(x)
    for b in range(batch):
        for c in range(channels):
            values = x[b, c].flatten().tolist()
            low, high = min(values), max(values)
            cuts = [low, *sorted(low + u * (high - low) for u in edge_u[b, c].tolist()), high]
            edges.append(cuts)
            for n, value in enumerate(values):
                inside = [i for i in range(count) if cuts[i] <= value < cuts[i + 1]]
                i = inside[0] if inside else count - 1
                index[b, c].view(-1)[n] = i
                out[b, c].view(-1)[n] = cuts[i] + value_u[b, c, i].item() * (cuts[i + 1] - cuts[i])
    return torch.tensor(edges, dtype=x.dtype).view(batch, channels, -1), index, out


# ------------------------------------------------------------------------------------------- deterministic pieces

SHAPES = [(2, 3, 7), (2, 3, 4, 5), (2, 2, 3, 2, 4)]


@pytest.mark.parity("randomized_quantization.bin_edges", against="float64 loops", tolerance=1e-12)
@pytest.mark.parity("randomized_quantization.bin_index", against="float64 loops", tolerance=0.0)
@pytest.mark.parity("randomized_quantization.quantize", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bins", [1, 2, 5, 9])
def test_quantizer_equals_the_loop(shape, bins):
    x = 3 * rand(*shape) - 1
    edge_u, value_u = rand(*shape[:2], bins - 1, seed=1), rand(*shape[:2], bins, seed=2)
    edges, index, out = loop(x, edge_u, value_u)
    torch.testing.assert_close(bin_edges(x, edge_u), edges, rtol=0, atol=1e-12)
    found = bin_index(x, bin_edges(x, edge_u))
    assert found.dtype == torch.int64
    assert torch.equal(found, index)
    torch.testing.assert_close(quantize(x, edge_u, value_u), out, rtol=0, atol=1e-12)


def test_by_hand():
    edge_u, value_u = channel(0.5), channel(0.5, 0.5)
    edges = bin_edges(RAMP, edge_u)
    assert edges.flatten().tolist() == [0, 2, 4]
    assert bin_index(RAMP, edges).flatten().tolist() == [0, 0, 1, 1, 1]
    assert quantize(RAMP, edge_u, value_u).flatten().tolist() == [1, 1, 3, 3, 3]


def test_edges_are_sorted_and_values_belong_to_the_sorted_bins():
    edge_u, value_u = channel(0.9, 0.1), channel(0.0, 0.5, 1.0)
    torch.testing.assert_close(bin_edges(RAMP, edge_u), channel(0, 0.4, 3.6, 4))
    torch.testing.assert_close(quantize(RAMP, edge_u, value_u), channel(0, 2, 2, 2, 4))


def test_an_edge_value_belongs_to_the_bin_on_its_right_and_the_maximum_to_the_last():
    edges = channel(0, 1, 3, 4)
    assert bin_index(RAMP, edges).flatten().tolist() == [0, 1, 1, 2, 2]
    assert bin_index(RAMP, channel(0, 0, 4, 4)).flatten().tolist() == [1, 1, 1, 1, 2]
    assert bin_index(RAMP, channel(0, 4)).flatten().tolist() == [0] * 5


def test_equal_edges_make_an_empty_bin():
    edge_u, value_u = channel(0.5, 0.5), channel(0.25, 0.7, 0.75)
    assert bin_index(RAMP, bin_edges(RAMP, edge_u)).flatten().tolist() == [0, 0, 2, 2, 2]
    assert quantize(RAMP, edge_u, value_u).flatten().tolist() == [0.5, 0.5, 3.5, 3.5, 3.5]


@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=12),
    bins=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_few_values_inside_the_range_in_order(values, bins, seed):
    x = torch.tensor(values, dtype=torch.float32).view(1, 1, -1)
    edge_u, value_u = rand(1, 1, bins - 1, seed=seed).float(), rand(1, 1, bins, seed=seed + 1).float().round(decimals=1)
    y = quantize(x, edge_u, value_u)
    assert y.dtype == x.dtype
    assert len(y.unique()) <= bins
    assert y.min() >= x.min()
    assert y.max() <= x.max()
    assert (y.flatten()[x.flatten().argsort()].diff() >= 0).all()


def test_a_composition_is_a_quantizer_again():
    x = rand(3, 2, 50)
    once = randomized_quantization(x, num_bins=6, generator=draws(1))
    twice = randomized_quantization(once, num_bins=4, generator=draws(2))
    for values, result in zip(x.flatten(0, 1), twice.flatten(0, 1), strict=True):
        assert len(result.unique()) <= 4
        assert (result[values.argsort()].diff() >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = (100 + rand(1, 1, 400)).to(dtype)  # few numbers of this type lie between 100 and 101
    edge_u, value_u = rand(1, 1, 7, seed=1), rand(1, 1, 8, seed=2)
    assert bin_edges(x, edge_u).dtype == torch.float32
    assert (bin_edges(x, edge_u).diff() > 0).all()
    expected = quantize(x.double(), edge_u, value_u).to(dtype)
    assert quantize(x, edge_u, value_u).dtype == dtype
    torch.testing.assert_close(quantize(x, edge_u, value_u), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(quantize(x.float(), edge_u, value_u), quantize(x.float(), edge_u, value_u.float()))
        assert quantize(x.float(), edge_u, value_u).dtype == torch.float32


def test_float64_stays():
    assert randomized_quantization(rand(2, 3, 5)).dtype == torch.float64


def test_gradient_flows_through_minimum_and_maximum_only():
    x = rand(2, 3, 9).requires_grad_()
    quantize(x, rand(2, 3, 4, seed=1), rand(2, 3, 5, seed=2)).sum().backward()
    ends = torch.zeros_like(x).scatter(2, torch.stack([x.argmin(2), x.argmax(2)], 2), 1).bool()
    assert (x.grad[~ends] == 0).all()
    torch.testing.assert_close(x.grad.sum(2), torch.full((2, 3), 9.0, dtype=torch.float64))  # a shift shifts all


def test_not_contiguous_inputs():
    x = rand(2, 4, 3, 5).permute(0, 2, 1, 3)
    u, v = rand(2, 3, 4, seed=1), rand(2, 3, 5, seed=2)
    assert torch.equal(quantize(x, u, v), quantize(x.contiguous(), u, v))


@pytest.mark.parametrize("function", [bin_edges, lambda x, u: quantize(x, u, rand(2, 3, 5))])
def test_edges_refuse(function):
    x, u = rand(2, 3, 6), rand(2, 3, 4)
    for bad in (rand(2, 3), rand(0, 3, 6), rand(2, 3, 0)):
        with pytest.raises(ValueError, match="x: expected shape"):
            function(bad, u)
    for bad in (rand(2, 2, 4), rand(1, 3, 4), rand(2, 3)):
        with pytest.raises(ValueError, match="edge_u: expected shape"):
            function(x, bad)
    for bad in (u + 1, -u, u * math.nan):
        with pytest.raises(ValueError, match=r"edge_u: expected numbers in \[0, 1\]"):
            function(x, bad)
    with pytest.raises(TypeError, match="x: expected floats, got torch.int64"):
        function(x.long(), u)


def test_values_and_index_refuse():
    x, u = rand(2, 3, 6), rand(2, 3, 4)
    for bad in (rand(2, 3, 4), rand(2, 3, 6), rand(2, 2, 5), rand(2, 3)):
        with pytest.raises(ValueError, match=r"value_u: expected shape \(2, 3, 5\)"):
            quantize(x, u, bad)
    with pytest.raises(ValueError, match=r"value_u: expected numbers in \[0, 1\]"):
        quantize(x, u, 2 + rand(2, 3, 5))
    for bad in (rand(2, 2, 5), rand(2, 3), rand(2, 3, 1)):
        with pytest.raises(ValueError, match="edges: expected shape"):
            bin_index(x, bad)


# --------------------------------------------------------------------------------------------------- random views


@pytest.mark.parity("randomized_quantization.randomized_quantization", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("spacing", ["random", "uniform"])
@pytest.mark.parametrize("reproduction", ["random", "middle"])
def test_it_is_the_quantizer_of_its_draws(spacing, reproduction):
    x, generator = rand(2, 3, 11), draws(4)
    out = randomized_quantization(x, num_bins=5, spacing=spacing, reproduction=reproduction, generator=draws(4))
    edge_u = torch.rand(2, 3, 4, generator=generator) if spacing == "random" else torch.tensor([[[0.2, 0.4, 0.6, 0.8]]])
    value_u = torch.rand(2, 3, 5, generator=generator) if reproduction == "random" else torch.full((2, 3, 5), 0.5)
    edge_u = edge_u.double() if spacing == "random" else (torch.arange(1, 5).double() / 5).expand(2, 3, -1)
    torch.testing.assert_close(out, loop(x, edge_u, value_u.double())[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_are_treated_alike(shape):
    x = rand(*shape)
    out = randomized_quantization(x, generator=draws(1))
    assert out.shape == x.shape
    assert torch.equal(out.flatten(2), randomized_quantization(x.flatten(2), generator=draws(1)))


def test_same_generator_same_view():
    x = rand(2, 3, 40)
    generator = draws(1)
    first, second = (randomized_quantization(x, generator=generator) for _ in range(2))
    assert torch.equal(first, randomized_quantization(x, generator=draws(1)))
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(first, randomized_quantization(x))


def test_units_do_not_count():
    x = rand(2, 3, 40)
    out = randomized_quantization(x, generator=draws(1))
    torch.testing.assert_close(randomized_quantization(1e3 * x - 7, generator=draws(1)), 1e3 * out - 7)


def test_a_constant_channel_stays():
    x = torch.full((2, 2, 6), 0.3)
    assert torch.equal(randomized_quantization(x), x)


def test_probability_of_a_sample():
    x = rand(400, 2, 5).float()
    assert torch.equal(randomized_quantization(x, p=0.0), x)
    out = randomized_quantization(x, p=0.3, generator=draws(3))
    kept = (out == x).flatten(1).all(1)
    assert kept.double().mean().item() == pytest.approx(0.7, abs=0.08)
    changed = randomized_quantization(x, generator=draws(3))
    assert torch.equal(out[~kept], changed[~kept])


@pytest.mark.differs(
    "randomized_quantization",
    paper="not stated",
    official="as a transform of one sample, p is drawn for every channel; in a batch, for every sample",
    here="p is drawn for every sample",
)
def test_a_sample_is_changed_whole_or_not_at_all():
    x = rand(200, 3, 20)
    same = (randomized_quantization(x, p=0.5, generator=draws(0)) == x).all(2)
    assert torch.equal(same.any(1), same.all(1))
    assert 0 < same.all(1).sum() < 200


@pytest.mark.differs(
    "randomized_quantization",
    paper="not stated",
    official="1e-6 is added to the upper end of the last bin, whatever the unit of the channel",
    here="the last bin ends at the maximum and holds it",
)
def test_last_bin_is_closed():
    x, edge_u, value_u = rand(1, 1, 50), rand(1, 1, 3, seed=1), channel(0.1, 0.2, 0.3, 1.0)
    ours = quantize(x, edge_u, value_u)
    assert ours.max() == x.max()
    edges = bin_edges(x, edge_u)
    edges[..., -1] += 1e-6
    official = torch.lerp(edges[..., :-1], edges[..., 1:], value_u).gather(2, bin_index(x, edges))
    assert official.max() > x.max()
    torch.testing.assert_close(ours, official, rtol=0, atol=1.1e-6)
    tiny = 1e-8 * x  # in another unit the constant is larger than the whole range
    assert quantize(tiny, edge_u, value_u).max() <= tiny.max() < 1e-6


def test_one_bin():
    x = rand(2, 3, 8)
    middle = randomized_quantization(x, num_bins=1, reproduction="middle")
    torch.testing.assert_close(middle, ((x.amin(2) + x.amax(2)) / 2)[..., None].expand_as(x))
    assert len(randomized_quantization(x, num_bins=1)[0, 0].unique()) == 1


def test_many_bins():
    x = rand(2, 3, 100)
    for bins in (10, 1000):
        out = randomized_quantization(x, num_bins=bins, spacing="uniform", reproduction="middle")
        reach = (x.amax(2) - x.amin(2)) / (2 * bins)
        assert ((out - x).abs().amax(2) <= reach * (1 + 1e-6)).all()


def test_channels_and_samples_have_quantizers_of_their_own():
    x = rand(1, 1, 50).expand(2, 2, -1)
    out = randomized_quantization(x, generator=draws(0)).flatten(0, 1)
    assert len(out.unique(dim=0)) == 4


def test_only_without_randomness_two_views_agree():
    x = rand(1, 1, 50)
    for spacing in ("random", "uniform"):
        for reproduction in ("random", "middle"):
            options = {"spacing": spacing, "reproduction": reproduction}
            a, b = (randomized_quantization(x, **options, generator=draws(seed)) for seed in (0, 1))
            assert torch.equal(a, b) == ((spacing, reproduction) == ("uniform", "middle"))


@pytest.mark.parity("randomized_quantization.randomized_quantization", against="closed form", tolerance=0.04)
@pytest.mark.parametrize(
    ("spacing", "reproduction", "error"),
    [
        ("uniform", "middle", 1 / (12 * 64)),
        ("uniform", "random", 1 / (6 * 64)),
        ("random", "middle", 1 / 180),
        ("random", "random", 1 / 90),
    ],
)
def test_error_on_uniform_data(spacing, reproduction, error):
    x = torch.linspace(0, 1, 500).expand(2000, 1, -1)
    options = {"spacing": spacing, "reproduction": reproduction, "generator": draws(0)}
    found = (randomized_quantization(x, **options) - x).square().mean().item()
    assert found == pytest.approx(error, rel=0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_bins": 0}, "num_bins: expected at least 1, got 0"),
        ({"spacing": "middle"}, "spacing.*'middle'"),
        ({"reproduction": "uniform"}, "reproduction.*'uniform'"),
        ({"p": 1.1}, "p: expected"),
        ({"p": -0.1}, "p: expected"),
    ],
)
def test_options_are_checked(options, message):
    for call in (lambda: randomized_quantization(rand(2, 3, 4), **options), lambda: RandomizedQuantization(**options)):
        with pytest.raises(ValueError, match=message):
            call()


def test_views_refuse():
    for bad in (rand(3, 4), rand(0, 3, 4)):
        with pytest.raises(ValueError, match="x: expected shape"):
            randomized_quantization(bad)
    with pytest.raises(TypeError, match="uint8"):
        randomized_quantization(torch.zeros(1, 3, 4, dtype=torch.uint8))


def test_layer():
    x, layer = rand(2, 3, 9), RandomizedQuantization(4, spacing="uniform", generator=draws(1))
    expected = randomized_quantization(x, num_bins=4, spacing="uniform", generator=draws(1))
    assert torch.equal(layer(x), expected)
    assert layer.eval()(x) is x
    assert "num_bins=4, spacing='uniform'" in repr(layer)


# -------------------------------------------------------------------------------------------- what it is compared with


@pytest.mark.parity("randomized_quantization.same_error_noise", against="float64 loops", tolerance=1e-12)
def test_noise_has_the_error_of_the_quantizer():
    x, generator = rand(2, 3, 4, 5), draws(2)
    out = rq.same_error_noise(x, num_bins=3, generator=draws(2))
    error = randomized_quantization(x, num_bins=3, generator=generator) - x
    noise = torch.randn(x.shape, generator=generator).double()
    for b in range(2):
        for c in range(3):
            size = math.sqrt(sum(e**2 for e in error[b, c].flatten().tolist()) / 20)
            torch.testing.assert_close(out[b, c], x[b, c] + size * noise[b, c], rtol=0, atol=1e-12)


def test_masking_hides_positions_in_all_channels():
    x = rand(5, 3, 200)
    out = rq.mask_positions(x, ratio=0.3, generator=draws(0))
    hidden = (out != x).any(1)
    assert hidden.double().mean().item() == pytest.approx(0.3, abs=0.05)
    mean = x.mean(2, keepdim=True).expand_as(x)
    assert torch.equal(out, torch.where(hidden[:, None], mean, x))
    assert torch.equal(rq.mask_positions(x, ratio=0.0), x)
    with pytest.raises(ValueError, match="ratio"):
        rq.mask_positions(x, ratio=1.5)


@pytest.mark.parity("randomized_quantization.tone_curves", against="float64 loops", tolerance=1e-12)
def test_curves_increase_and_keep_the_ends():
    x = 5 * rand(2, 3, 30) - 2
    out = rq.tone_curves(x, spread=0.5, generator=draws(1))
    gamma = (0.5 * torch.randn(2, 3, 1, generator=draws(1))).double()
    for b in range(2):
        for c in range(3):
            low, high = x[b, c].min().item(), x[b, c].max().item()
            power = math.exp(gamma[b, c].item())
            expected = [low + (high - low) * ((v - low) / (high - low)) ** power for v in x[b, c].tolist()]
            torch.testing.assert_close(out[b, c], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
            assert torch.equal(out[b, c].argsort(), x[b, c].argsort())
    constant = torch.full((1, 1, 4), 2.0)
    assert torch.equal(rq.tone_curves(constant), constant)


# ------------------------------------------------------------------------------------------------------- training


class Rows(nn.Module):
    """Gives out what it gets as queries, and their negatives as keys."""

    def forward(self, x):
        return x, -x


@pytest.mark.parity("randomized_quantization.contrast", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("count", [2, 5, 6])
def test_contrast(count):
    views = rand(2, count, 4, seed=3) - 0.5
    values = rq.contrast(Rows(), tuple(views), temperature=0.2)
    q, k = F.normalize(views, dim=2), -F.normalize(views, dim=2)
    half, losses, found = (count + 1) // 2, [], []
    for v in range(2):
        parts = []
        for i in range(count):
            others = [j for j in range(count) if (j < half) != (i < half)]
            own = math.exp((q[v, i] @ k[1 - v, i]).item() / 0.2)
            rest = [math.exp((q[v, i] @ k[w, j]).item() / 0.2) for w in range(2) for j in others]
            parts.append((-math.log(own / (own + sum(rest))), own > max(rest[(1 - v) * len(others) :][: len(others)])))
        for rows in (parts[:half], parts[half:]):
            losses.append(sum(loss for loss, _ in rows) / len(rows))
            found.append(sum(hit for _, hit in rows) / len(rows))
    assert values["loss"].item() == pytest.approx(sum(losses) / 4, abs=1e-12)
    assert values["accuracy"].item() == pytest.approx(sum(found) / 4, abs=1e-6)


def test_contrast_needs_a_negative():
    with pytest.raises(ValueError, match="views: expected at least two rows each"):
        rq.contrast(Rows(), (torch.ones(1, 3), torch.ones(1, 3)), temperature=0.2)


def test_gradients_reach_the_student_alone():
    model = rq.Siamese(ConvNet(widths=(4, 8)), hidden=8, out_dim=4, momentum=0.5)
    x = torch.rand(2, 6, 3, 8, 8)
    rq.contrast(model, tuple(x), temperature=0.2)["loss"].backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in (*model.student.parameters(), *model.predictor.parameters()))
    before = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(1)
    model.update(0, 10)
    for old, new, student in zip(before, model.teacher.parameters(), model.student.parameters(), strict=True):
        torch.testing.assert_close(new, 0.5 * old + 0.5 * student)
    last = [p.clone() for p in model.teacher.parameters()]
    model.update(10, 10)  # at the end the teacher stands still
    assert all(torch.equal(p, q) for p, q in zip(last, model.teacher.parameters(), strict=True))
    plain = rq.Siamese(ConvNet(widths=(4, 8)), hidden=8, out_dim=4)
    queries, keys = plain(x[0])
    assert queries is keys
    plain.update(0, 10)


def test_task_draws_each_sample_once():
    view = lambda x, generator: x + torch.rand(x.shape, generator=generator) / 2  # noqa: E731
    job = rq.task(nn.Identity(), lambda index: index.float(), 20, batch_size=20, view=view)
    a, b = job.batch(draws(0))
    assert a.floor().sort().values.tolist() == list(range(20))
    assert torch.equal(a.floor(), b.floor())
    assert not torch.equal(a, b)
    for size in (0, 21):
        with pytest.raises(ValueError, match="batch_size: expected 1 to 20"):
            rq.task(None, None, 20, batch_size=size, view=view)


def one_step(recipe):
    assert math.isfinite(fit(recipe.task, steps=1).last())
    return recipe


def test_recipe_of_the_miniature():
    recipe = one_step(rq.recipe(batch_size=8))
    assert (recipe.steps, recipe.batch_size) == (200, 8)
    assert "1,400 pictures" in recipe.about


def test_recipe_of_the_paper_on_cifar10(cifar10):
    recipe = rq.recipe(cifar10, batch_size=4)
    assert recipe.steps == 300 * 40 // 4
    a, b = recipe.task.batch(draws(0))
    assert a.shape == b.shape == (4, 3, 32, 32)
    assert max(len(channel.unique()) for channel in a.flatten(0, 1)) <= 8
    assert recipe.task.model.teacher is not None


def test_recipe_refuses(tmp_path):
    with pytest.raises(ValueError, match="size: expected"):
        rq.recipe(size="huge")
    with pytest.raises(DataError, match="one subfolder a class"):
        rq.recipe(tmp_path)


# ----------------------------------------------------------------------------------------------------- experiment


@pytest.mark.parametrize(
    ("modality", "shape", "rows", "labelled", "classes"),
    [
        ("pictures", (1911, 3, 16, 16), 1911, 1400, 9),
        ("series", (640, 12, 24), 640, 270, 9),
        ("graph", (1, 64, 600), 600, 100, 10),
    ],
)
def test_worlds(modality, shape, rows, labelled, classes):
    world = rq.WORLDS[modality](3)
    assert world.x.shape == shape
    assert len(world.y) == len(world.train) == rows
    assert world.train.sum() == labelled
    assert int(world.y.max()) + 1 == classes
    encoder = rq.Encoder(shape[1], world.a_hat).eval()
    x = world.x[:2].expand(2, *shape[1:]) if modality == "graph" else world.x[:2]
    features = encoder(x)
    assert features.shape == (2 * rows if modality == "graph" else 2, encoder.out_dim)
    if modality == "graph":
        torch.testing.assert_close(features[:rows], features[rows:])
        assert not torch.equal(world.x, rq.WORLDS[modality](4).x)


def test_by_node_reads_a_node_as_a_sample():
    x = rand(1, 6, 40)
    out = rq.VIEWS["RQ by node"](x, draws(0))
    assert out.shape == x.shape
    assert ((out >= x.amin(1, keepdim=True)) & (out <= x.amax(1, keepdim=True))).all()
    assert max(len(column.unique()) for column in out[0].T) <= 6


def test_strength_of_views():
    x = torch.stack([channel(0, 1, 2, 3, 4)[0], channel(5, 5, 7, 9, 9)[0]])
    assert rq.compare_views("untrained", x, draws(0)) == {"distortion": 0, "gap": 0, "equal": 1}
    found = rq.compare_views("noise", x, draws(0))
    a, b = (rq.same_error_noise(x, num_bins=8, generator=g) for g in [draws(0)] for _ in range(2))
    variance = (2 + 3.2) / 2
    assert found["distortion"] == pytest.approx(100 * ((a - x) ** 2).mean().item() / variance)
    assert found["gap"] == pytest.approx(50 * ((a - b) ** 2).mean().item() / variance)
    assert rq.compare_views("nothing random", x, draws(0))["equal"] == 1


def test_arms_have_about_the_same_error_on_uniform_data():
    x = torch.linspace(0, 1, 300).expand(3000, 1, -1)
    for arm in ("nothing random", "random values", "random edges", "RQ", "noise"):
        error = (rq.VIEWS[arm](x, draws(0)) - x).square().mean().item()
        assert error == pytest.approx(1 / 90, rel=0.2), arm


class Known(nn.Module):
    """An encoder whose features are the label and, as strongly as it says, the mean of the first channel."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        flat = x[:, 0].flatten(1)
        order = flat.argsort(1).argsort(1).to(x.dtype)
        return torch.cat([order[:, :3], self.weight * flat.mean(1, keepdim=True)], 1)


def test_measures_of_known_representations(monkeypatch):
    monkeypatch.setattr(rq, "standardize", lambda train, *others: (train, *others))
    x = rand(60, 2, 10)
    order = x[:, 0].argsort(1).argsort(1)
    world = rq.World(x, (order[:, 0] > 4).long(), torch.arange(60) < 40)
    model = nn.Module()
    found = {}
    for weight in (0.0, 1e6):
        model.encoder = Known(weight)
        found[weight] = rq.measure(rq.Trained(model, None, world), seed=0)
    assert found[0.0]["curve_share"] == pytest.approx(0, abs=1e-9)  # curves keep the order
    assert found[0.0]["probe"] > 80
    bent = rq.tone_curves(x, generator=draws(0))
    plain, curved = (part[40:, 0].mean(1) for part in (x, bent))
    share = ((plain - curved) ** 2).mean() / 4 / torch.cat([plain, curved]).var(correction=0)
    assert found[1e6]["curve_share"] == pytest.approx(100 * share.item(), rel=1e-3)


def test_arms_are_paired():
    kept = {arm: rq.pretrain(arm, "series", steps=1, batch_size=8) for arm in ("untrained", "RQ", "noise")}
    start = kept["untrained"].model.state_dict()
    again = rq.pretrain("untrained", "series").model.state_dict()
    assert all(torch.equal(start[name], again[name]) for name in start)
    assert kept["untrained"].history is None
    assert not any(trained.model.training for trained in kept.values())
    moved = kept["RQ"].model.state_dict()
    assert not torch.equal(moved["student.1.0.weight"], kept["noise"].model.state_dict()["student.1.0.weight"])
    other = rq.pretrain("untrained", "series", seed=1).model.state_dict()
    assert not torch.equal(start["student.1.0.weight"], other["student.1.0.weight"])


def test_initialisation_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    rq.pretrain("untrained", "series")
    assert torch.equal(torch.rand(3), expected)


def test_unknown_names():
    with pytest.raises(ValueError, match="arm: expected one of untrained, .*'blur'"):
        rq.pretrain("blur", "series")
    with pytest.raises(ValueError, match="modality: expected one of pictures, series, graph, got 'sound'"):
        rq.pretrain("RQ", "sound")


def test_claims_name_what_runs_return(tmp_path, monkeypatch):
    monkeypatch.setitem(rq.EXPERIMENTS, "pictures", rq.EXPERIMENTS["series"])  # the same arms, faster
    record = claims.run("randomized_quantization", "smoke", seeds=1, cache=tmp_path)
    assert {e.kind for e in record.claims} == {"mechanism", "gain"}
    assert record["identical"].verdict == "exact"
    for e in record.claims:
        assert set(e.arms) <= set(rq.VIEWS)
