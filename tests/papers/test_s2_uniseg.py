"""S2-UniSeg: pooling and distillation against loops in float64, closed forms and the facts of the paper."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from sslref import claims
from sslref.data import DataError
from sslref.data.worlds.hierarchy import HierarchyWorld, truth
from sslref.evaluate import best_iou, nested_share
from sslref.papers import s2_uniseg
from sslref.papers.s2_uniseg import (
    QuerySD,
    affinity_similarity,
    edge_similarity,
    greedy_merge,
    grid_edges,
    one_layer,
    pool_layer,
    pooled,
    query_map,
    querysd_loss,
    supernode_features,
    uniap,
)
from sslref.train import fit, step_generator

PAPERS_RULE = {"spatial_weight": 0.4, "temperature": 0.07}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def chain(n):
    return torch.stack([torch.arange(n - 1), torch.arange(1, n)])


def scene(seed=0, **options):
    return HierarchyWorld(**options).sample(1, torch.Generator().manual_seed(seed)).features[0].movedim(0, -1).double()


# ------------------------------------------------------------------------------------------------ graph and one layer


@pytest.mark.parity("s2_uniseg.grid_edges", against="float64 loops", tolerance=0.0)
@pytest.mark.differs(
    "s2_uniseg",
    paper="a grid graph of any shape",
    official="the grid builder stops on grids that are not square",
    here="any height and width",
)
def test_grid_edges():
    edges = grid_edges(2, 3).T.tolist()
    assert edges == [[0, 1], [1, 2], [3, 4], [4, 5], [0, 3], [1, 4], [2, 5]]
    for height, width in ((1, 1), (1, 5), (5, 1), (3, 7), (4, 4)):
        expected = set()
        for y, x in itertools.product(range(height), range(width)):
            expected |= {(y * width + x, y * width + x + 1)} if x + 1 < width else set()
            expected |= {(y * width + x, (y + 1) * width + x)} if y + 1 < height else set()
        found = grid_edges(height, width)
        assert found.dtype == torch.int64
        assert found.shape == (2, height * (width - 1) + (height - 1) * width)
        assert {tuple(e) for e in found.T.tolist()} == expected
    for sizes in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="expected at least 1, got 0"):
            grid_edges(*sizes)


@pytest.mark.parity("s2_uniseg.edge_similarity", against="float64 loops", tolerance=1e-12)
def test_edge_similarity():
    x, edges = normal(8, 5), torch.randint(8, (2, 20), generator=torch.Generator().manual_seed(0))
    found = edge_similarity(x, edges)
    for value, (i, j) in zip(found.tolist(), edges.T.tolist(), strict=True):
        assert value == pytest.approx(((x[i] @ x[j]) / (x[i].norm() * x[j].norm())).item(), abs=1e-12)
    for scale in (1e-30, 1e-3, 1e15):
        torch.testing.assert_close(edge_similarity(scale * x.float(), edges), found.float(), rtol=0, atol=1e-6)
    zero = torch.cat([torch.zeros(1, 5), x[:1].float()])
    assert edge_similarity(zero, torch.tensor([[0, 0], [1, 0]])).tolist() == [0, 0]
    free = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: edge_similarity(t, edges), free)
    assert edge_similarity(x.bfloat16(), edges).dtype == torch.float32


@pytest.mark.parity("s2_uniseg.pool_layer", against="by hand", tolerance=0.0)
def test_one_layer_by_hand():
    x = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3], [1, 1]])
    out = pool_layer(x, torch.ones(5, dtype=torch.int64), chain(5), threshold=0.9)
    assert out.cluster.tolist() == [0, 0, 1, 1, 2]
    assert out.x.tolist() == [[3, 0], [0, 4], [1, 1]]
    assert out.sizes.tolist() == [2, 2, 1]
    assert out.edge_index.tolist() == [[0, 1], [1, 2]]
    again = pool_layer(*out[:3], threshold=0.7)  # 0 and 1 / sqrt(2)
    assert again.cluster.tolist() == [0, 1, 1]
    assert again.sizes.tolist() == [2, 3]
    last = pool_layer(*again[:3], threshold=0.1)  # (3, 0) and (1, 5)
    assert last.x.tolist() == [[4, 5]]
    assert last.edge_index.shape == (2, 0)


@pytest.mark.parity("s2_uniseg.pool_layer", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize("threshold", [-0.2, 0.1, 0.4])
def test_one_layer_by_loops(threshold):
    for seed in range(6):
        x, sizes = normal(14, 4, seed=seed), torch.randint(1, 9, (14,), generator=torch.Generator().manual_seed(seed))
        edges = torch.randint(14, (2, 22), generator=torch.Generator().manual_seed(seed))
        edges = edges[:, edges[0] != edges[1]]
        group = list(range(14))
        for i, j in edges.T.tolist():
            if F.cosine_similarity(x[i], x[j], dim=0).item() > threshold:
                old, new = max(group[i], group[j]), min(group[i], group[j])
                group = [new if g == old else g for g in group]
        names = sorted(set(group))
        out = pool_layer(x, sizes, edges, threshold=threshold)
        assert out.cluster.tolist() == [names.index(g) for g in group]
        for n, name in enumerate(names):
            members = [i for i in range(14) if group[i] == name]
            torch.testing.assert_close(out.x[n], sum(x[i] for i in members))
            assert out.sizes[n] == sum(sizes[i] for i in members)
        ends = {tuple(sorted((names.index(group[i]), names.index(group[j])))) for i, j in edges.T.tolist()}
        assert out.edge_index.T.tolist() == sorted([a, b] for a, b in ends if a != b)


def test_nothing_is_merged_at_exactly_the_threshold():
    ones = torch.ones(2, dtype=torch.int64)
    cases = {0.6: [[1, 0], [3, 4]], 0.5: [[1, 1, 0], [0, 1, 1]], 0.0: [[1, 0], [0, 1]], 0.8: [[5, 0], [8, 6]]}
    for dtype in (torch.float32, torch.float64):
        for threshold, rows in cases.items():
            x = torch.tensor(rows, dtype=dtype)
            assert len(pool_layer(x, ones, chain(2), threshold=threshold).x) == 2
            assert len(pool_layer(x, ones, chain(2), threshold=threshold - 1e-6).x) == 1
        same = normal(1, 7, dtype=dtype)
        assert len(pool_layer(torch.cat([same, same]), ones, chain(2), threshold=1.0).x) == 2


def test_chaining():
    angle = torch.linspace(0, 1.5, 9, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    assert (x[0] @ x[-1]).item() == pytest.approx(0.0707, abs=1e-4)
    out = pool_layer(x, torch.ones(9, dtype=torch.int64), chain(9), threshold=0.95)
    assert out.cluster.tolist() == [0] * 9
    assert uniap(x[None], thresholds=(0.95,), min_size=1)[0].masks.shape == (0, 1, 9)
    levels = greedy_merge(x[None], thresholds=(0.95,), min_size=1)
    assert [int(m.sum()) for m in levels[0].masks] == [2, 2, 3, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": torch.ones(4)}, r"sizes: expected shape \(5,\), got \(4,\)"),
        ({"edge_index": torch.tensor([[0], [5]])}, "edge_index: expected nodes 0 to 4, got 0 to 5"),
        ({"edge_index": torch.tensor([[-1], [2]])}, "got -1 to 2"),
        ({"edge_index": torch.zeros(3, 2, dtype=torch.int64)}, "edge_index: expected int64"),
        ({"edge_index": torch.zeros(2, 2)}, "edge_index: expected int64"),
        ({"x": torch.zeros(5)}, "x: expected shape"),
        ({"x": torch.zeros(0, 3)}, "x: expected shape"),
    ],
)
def test_layer_refuses(change, message):
    given = {"x": torch.ones(5, 2), "sizes": torch.ones(5), "edge_index": chain(5)} | change
    with pytest.raises(ValueError, match=message):
        pool_layer(**given, threshold=0.5)


# -------------------------------------------------------------------------------------------------- the paper's rule


def parts(n=4, tokens=9):
    node = torch.randint(n, (tokens,), generator=torch.Generator().manual_seed(2))
    node[:n] = torch.arange(n)
    f = F.normalize(normal(tokens, 5), dim=1)
    return F.one_hot(node).T.bool(), f @ f.T, f


@pytest.mark.parity("s2_uniseg.affinity_similarity", against="float64 loops", tolerance=1e-12)
def test_affinity_similarity():
    masks, affinity, _ = parts()
    edges = torch.tensor([[0, 0, 1, 2], [1, 2, 3, 2]])
    found = affinity_similarity(masks, affinity, edges)
    for value, (i, j) in zip(found.tolist(), edges.T.tolist(), strict=True):
        total = 0.0
        for k in range(9):
            a, b = ([affinity[t, k].item() for t in range(9) if masks[n, t]] for n in (i, j))
            total += abs(sum(a) / len(a) - sum(b) / len(b))
        assert value == pytest.approx(1 - total / 9, abs=1e-12)
    assert found[3] == 1
    far = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert affinity_similarity(torch.eye(2).bool(), far, torch.tensor([[0], [1]])).tolist() == [-1]


@pytest.mark.parity("s2_uniseg.supernode_features", against="float64 loops", tolerance=1e-12)
@pytest.mark.differs(
    "s2_uniseg",
    paper="the feature of a cluster is a softmax over all tokens of its summed affinities",
    official="the sum of its members' features",
    here="the sum; the paper's where `temperature` is given",
)
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_supernode_features(temperature):
    masks, affinity, tokens = parts()
    found = supernode_features(masks, affinity, 3 * tokens, temperature=temperature)
    for n in range(4):
        logits = [sum(affinity[t, k].item() for t in range(9) if masks[n, t]) / temperature for k in range(9)]
        top = max(logits)
        weights = [math.exp(v - top) for v in logits]
        mixed = sum(w / sum(weights) * tokens[k] for k, w in enumerate(weights))
        torch.testing.assert_close(found[n], mixed / mixed.norm(), rtol=0, atol=1e-12)
    assert torch.equal(found.norm(dim=1).round(decimals=9), torch.ones(4, dtype=torch.float64))


def test_the_papers_rule_refuses():
    masks, affinity, tokens = parts()
    edges = torch.tensor([[0], [1]])
    for change, message in (
        ((masks[:, :5], affinity), "masks: expected bool"),
        ((masks.int(), affinity), "masks: expected bool"),
        ((masks, affinity[:5]), "affinity: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            affinity_similarity(*change, edges)
        with pytest.raises(ValueError, match=message):
            supernode_features(*change, tokens)
    with pytest.raises(ValueError, match="empty mask"):
        affinity_similarity(torch.cat([masks, torch.zeros(1, 9).bool()]), affinity, edges)
    with pytest.raises(ValueError, match="tokens: expected shape"):
        supernode_features(masks, affinity, tokens[:5])
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        supernode_features(masks, affinity, tokens, temperature=0)


# ------------------------------------------------------------------------------------------------------------- UniAP


def pool_by_loops(features, thresholds, min_size, weight=0.0, temperature=None):
    """UniAP with sets and loops."""
    height, width, _ = features.shape
    f = features.flatten(0, 1)
    tokens = F.normalize(f, dim=1)
    affinity = tokens @ tokens.T
    groups = [{i} for i in range(len(f))]
    levels = []

    def vector(members, fresh):
        if temperature is None:
            return sum(f[i] for i in members)
        if fresh:
            return tokens[min(members)]
        w = (sum(affinity[i] for i in members) / temperature).softmax(0)
        return F.normalize(w @ tokens, dim=0)

    def adjacent(a, b):
        return any(abs(i // width - j // width) + abs(i % width - j % width) == 1 for i in a for j in b)

    fresh = True
    for threshold in thresholds:
        rounds = 0
        while True:
            v = [vector(g, fresh) for g in groups]
            joined, near = [{n} for n in range(len(groups))], set()
            for a, b in itertools.combinations(range(len(groups)), 2):
                if not adjacent(groups[a], groups[b]):
                    continue
                near |= {a, b}
                s = (1 - weight) * F.cosine_similarity(v[a], v[b], dim=0)
                if weight:
                    seen = [sum(affinity[i] for i in groups[n]) / len(groups[n]) for n in (a, b)]
                    s = s + weight * (1 - (seen[0] - seen[1]).abs().mean())
                if s > threshold:
                    one, two = (next(j for j in joined if n in j) for n in (a, b))
                    if one is not two:
                        joined.remove(two)
                        one |= two
            if len(joined) == len(groups):
                break
            groups = sorted((set().union(*(groups[n] for n in j)) for j in joined), key=min)
            rounds, fresh = rounds + 1, False
        kept = [n for n, g in enumerate(groups) if len(g) >= min_size and n in near]
        levels.append((rounds, [v[n] for n in kept], [sorted(groups[n]) for n in kept]))
    return levels


@pytest.mark.parity("s2_uniseg.uniap", against="float64 loops", tolerance=1e-9)
@pytest.mark.parametrize(
    "rule", [{}, {"spatial_weight": 0.4}, {"temperature": 0.07}, PAPERS_RULE, {"spatial_weight": 1.0}]
)
def test_uniap_by_loops(rule):
    found_any = 0
    for seed in range(3):
        features = scene(seed, size=7, sigma=0.7)[:, :6]
        levels = uniap(features, min_size=2, **rule)
        assert [level.threshold for level in levels] == [0.8, 0.7, 0.6, 0.5, 0.4]
        loops = pool_by_loops(features, s2_uniseg.THRESHOLDS, 2, rule.get("spatial_weight", 0), rule.get("temperature"))
        for level, (rounds, vectors, members) in zip(levels, loops, strict=True):
            assert level.rounds == rounds
            assert [m.flatten().nonzero().flatten().tolist() for m in level.masks] == members
            if members:
                torch.testing.assert_close(level.features, torch.stack(vectors), rtol=0, atol=1e-9)
            found_any += len(members)
    assert found_any


def greedy_by_loops(features, thresholds, min_size):
    height, width, _ = features.shape
    x = {i: v for i, v in enumerate(features.flatten(0, 1))}
    groups = {i: {i} for i in x}
    near = {tuple(e) for e in grid_edges(height, width).T.tolist()}
    levels = []
    for threshold in thresholds:
        rounds = 0
        while near:
            best = max(near, key=lambda e: F.cosine_similarity(x[e[0]], x[e[1]], dim=0).item())
            if F.cosine_similarity(x[best[0]], x[best[1]], dim=0) < threshold:
                break
            i, j = best
            x[i], groups[i] = x[i] + x.pop(j), groups[i] | groups.pop(j)
            moved = {tuple(sorted((i if a == j else a, i if b == j else b))) for a, b in near}
            near, rounds = {e for e in moved if e[0] != e[1]}, rounds + 1
        beside = set(itertools.chain(*near))
        levels.append(
            (rounds, [sorted(groups[n]) for n in sorted(groups) if len(groups[n]) >= min_size and n in beside])
        )
    return levels


@pytest.mark.parity("s2_uniseg.greedy_merge", against="float64 loops", tolerance=0.0)
def test_greedy_by_loops():
    for seed in range(3):
        features = scene(seed, size=6, sigma=0.7)[:, :5]
        levels = greedy_merge(features, min_size=2)
        for level, (rounds, members) in zip(levels, greedy_by_loops(features, s2_uniseg.THRESHOLDS, 2), strict=True):
            assert level.rounds == rounds
            assert [m.flatten().nonzero().flatten().tolist() for m in level.masks] == members
            for vector, mask in zip(level.features, level.masks, strict=True):
                torch.testing.assert_close(vector, features[mask].sum(0))


def test_greedy_merges_at_exactly_the_threshold():
    x = torch.tensor([[[1.0, 0, 0], [3, 4, 0], [0, 0, 1]]])
    assert greedy_merge(x, thresholds=(0.6,), min_size=2)[0].masks.tolist() == [[[True, True, False]]]
    assert len(uniap(x, thresholds=(0.6,), min_size=2)[0].masks) == 0


def blocks(height, width, noise=0.02):
    """Four orthogonal regions: three quarters and an L."""
    region = torch.zeros(height, width, dtype=torch.int64)
    region[: height // 2, width // 2 :] = 1
    region[height // 2 :, : width // 2] = 2
    region[height // 2 :, width // 2 :] = 3
    region[height // 2, width // 2] = 0
    return torch.eye(6, dtype=torch.float64)[region] + noise * normal(height, width, 6), region


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (11, 5)])
@pytest.mark.parametrize("rule", ["greedy", "sums", "paper"])
def test_orthogonal_regions_are_found_exactly(size, rule):
    features, region = blocks(*size)
    pool = {"greedy": greedy_merge, "sums": uniap, "paper": lambda x: uniap(x, **PAPERS_RULE)}[rule]
    levels = pool(features)
    # the place in the middle touches its region by a corner alone, and is too small to be reported
    wanted = [
        (region == k) & (torch.arange(size[0] * size[1]).view(size) != size[0] // 2 * size[1] + size[1] // 2)
        for k in range(4)
    ]
    for level in levels:
        masks = level.masks if rule != "paper" else levels[0].masks
        assert sorted(m.flatten().tolist() for m in masks) == sorted(m.flatten().tolist() for m in wanted)
    total = sum(level.rounds for level in levels)
    assert total == size[0] * size[1] - 5 if rule == "greedy" else 1 <= total <= 3


def test_scaling_nesting_and_sums():
    for seed in range(2):
        features = scene(seed, size=11, sigma=0.8)
        for pool in (uniap, greedy_merge):
            levels = pool(features)
            for scale in (1e-3, 7.0, 1e4):
                for a, b in zip(levels, pool(scale * features), strict=True):
                    assert torch.equal(a.masks, b.masks)
            assert nested_share([level.masks for level in levels]) == 1
            for level in levels:
                assert level.masks.sum(0).max() <= 1
                assert (level.masks.sum((1, 2)) >= 4).all()
                firsts = level.masks.flatten(1).int().argmax(1)
                assert torch.equal(firsts, firsts.sort().values)
                for vector, mask in zip(level.features, level.masks, strict=True):
                    torch.testing.assert_close(vector, features[mask].sum(0))


@pytest.mark.differs(
    "s2_uniseg",
    paper="a hierarchy of masks; nothing is said of the whole picture",
    official="a cluster without neighbours is left out",
    here="a cluster without neighbours is left out",
)
def test_a_constant_map_gives_empty_levels():
    for pool in (uniap, greedy_merge, one_layer):
        for level in pool(torch.ones(5, 7, 3)):
            assert level.masks.shape == (0, 5, 7)
            assert level.features.shape == (0, 3)
    levels = uniap(torch.ones(5, 7, 3))
    assert [level.rounds for level in levels] == [1, 0, 0, 0, 0]
    assert [level.rounds for level in greedy_merge(torch.ones(1, 7, 3))] == [6, 0, 0, 0, 0]
    assert uniap(torch.ones(1, 1, 3), min_size=1)[0].masks.shape == (0, 1, 1)


def test_zero_vectors_stay_single():
    features = torch.ones(4, 4, 3)
    features[1, 1] = 0
    for pool in (uniap, greedy_merge):
        level = pool(features, min_size=1)[-1]
        assert [int(m.sum()) for m in level.masks] == [15, 1]


def test_random_properties():
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st

    @hypothesis.settings(max_examples=15, deadline=None)
    @hypothesis.given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.integers(0, 10**6))
    def check(height, width, channels, seed):
        features = normal(height, width, channels, seed=seed).round()
        for rule in ({}, PAPERS_RULE):
            levels = uniap(features, thresholds=(0.9, 0.3, -0.5), min_size=1, **rule)
            assert nested_share([level.masks for level in levels]) == 1
            for level in levels:
                assert (level.masks.sum(0) <= 1).all()

    check()


def test_uniap_in_any_precision():
    features = scene(1, size=10, sigma=0.3)
    expected = uniap(features)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for level, wanted in zip(uniap(features.to(dtype)), expected, strict=True):
                assert torch.equal(level.masks, wanted.masks)
                assert level.features.dtype == torch.float32
    free = features.clone().requires_grad_()
    level = uniap(free)[0]
    (grad,) = torch.autograd.grad(level.features.sum(), free)
    assert torch.equal(grad[..., 0], level.masks.any(0).double())
    assert not greedy_merge(free)[0].features.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.ones(4, 3)}, "features: expected shape"),
        ({"features": torch.ones(4, 0, 3)}, "features: expected shape"),
        ({"thresholds": ()}, "thresholds: expected one at least, strictly falling"),
        ({"thresholds": (0.5, 0.5)}, "strictly falling"),
        ({"thresholds": (0.5, math.nan)}, "strictly falling"),
        ({"min_size": 0}, "min_size: expected at least 1, got 0"),
        ({"spatial_weight": 1.1}, r"spatial_weight: expected a number in \[0, 1\]"),
        ({"spatial_weight": -0.1}, "spatial_weight"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
    ],
)
def test_pooling_refuses(change, message):
    given = {"features": torch.ones(3, 4, 2)} | change
    with pytest.raises(ValueError, match=message):
        uniap(**given)
    if not set(change) & {"spatial_weight", "temperature"}:
        with pytest.raises(ValueError, match=message):
            greedy_merge(**given)


# ------------------------------------------------------------------------------------------------------ distillation


@pytest.mark.parity("s2_uniseg.query_map", against="float64 loops", tolerance=1e-12)
def test_query_map():
    features, queries, logits = normal(3, 4, 5), normal(6, 5, seed=1), normal(6, 7, seed=2)
    found = query_map(features, queries, logits, temperature=0.3)
    assert found.shape == (7, 3, 4)
    for y, x in itertools.product(range(3), range(4)):
        scores = [math.exp(F.cosine_similarity(features[y, x], q, dim=0).item() / 0.3) for q in queries]
        expected = sum(s / sum(scores) * v for s, v in zip(scores, logits, strict=True))
        torch.testing.assert_close(found[:, y, x], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(query_map(features, queries, torch.ones(6, 2).double()), torch.ones(2, 3, 4).double())


def test_query_map_gives_a_gradient_to_the_logits_alone():
    free = [t.requires_grad_() for t in (normal(3, 4, 5), normal(6, 5, seed=1), normal(6, 7, seed=2))]
    query_map(*free).square().sum().backward()
    assert free[0].grad is None
    assert free[1].grad is None
    assert free[2].grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda t: query_map(free[0].detach(), free[1].detach(), t), free[2])
    low = [t.detach().float() for t in free]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(query_map(*low).double(), query_map(*free), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.ones(4, 3), torch.ones(2, 3), torch.ones(2, 5)), "features: expected"),
        ((torch.ones(4, 4, 3), torch.ones(2, 4), torch.ones(2, 5)), "queries: expected"),
        ((torch.ones(4, 4, 3), torch.ones(0, 3), torch.ones(0, 5)), "queries: expected"),
        ((torch.ones(4, 4, 3), torch.ones(2, 3), torch.ones(3, 5)), "query_logits: expected"),
    ],
)
def test_query_map_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        query_map(*given)
    with pytest.raises(ValueError, match="temperature"):
        query_map(torch.ones(4, 4, 3), torch.ones(2, 3), torch.ones(2, 5), temperature=0)


def sample(map_, x, y):
    """Bilinear value of a map (K, H, W) at relative (x, y), the border repeated."""
    _, height, width = map_.shape
    u, v = min(max(x * width - 0.5, 0), width - 1), min(max(y * height - 0.5, 0), height - 1)
    i, j = min(int(u), width - 2) if width > 1 else 0, min(int(v), height - 2) if height > 1 else 0
    a, b = u - i, v - j
    i2, j2 = min(i + 1, width - 1), min(j + 1, height - 1)
    top, bottom = ((1 - a) * map_[:, row, i] + a * map_[:, row, i2] for row in (j, j2))
    return (1 - b) * top + b * bottom


def boxes(count, seed=0):
    low, size = torch.rand(2, count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 2
    return torch.cat([low, low + size + 0.05], 1)


@pytest.mark.parity("s2_uniseg.querysd_loss", against="float64 loops", tolerance=1e-12)
@pytest.mark.differs(
    "s2_uniseg",
    paper="queries are matched by the Hungarian method and compared one by one",
    official="maps are sampled with x and y exchanged, and the class axis taken for the height",
    here="maps are sampled at (x, y), the code's evident intention",
)
def test_loss_by_loops():
    student, teacher, center = normal(2, 4, 5, 3), normal(2, 4, 6, 7, seed=1), normal(4, seed=2)
    own, other = boxes(2), boxes(2, seed=1)
    found = querysd_loss(student, teacher, center, own, other, size=(2, 3), student_temp=0.5, teacher_temp=0.3)
    total = 0.0
    for b in range(2):
        sharp = ((teacher[b] - center[:, None, None]) / 0.3).softmax(0)
        for row, column in itertools.product(range(2), range(3)):
            at = []
            for x1, y1, x2, y2 in (own[b].tolist(), other[b].tolist()):
                at.append((x1 + (column + 0.5) / 3 * (x2 - x1), y1 + (row + 0.5) / 2 * (y2 - y1)))
            log_p = sample(student[b] / 0.5, *at[0]).log_softmax(0)
            total -= (sample(sharp, *at[1]) * log_p).sum().item()
    assert found.item() == pytest.approx(total / 12, abs=1e-12)


def test_a_box_cuts_the_same_region_out_of_the_other_view():
    whole, teacher, center = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1), torch.zeros(4, dtype=torch.float64)
    part = whole[:, :, 2:6, 4:8]
    everything = torch.tensor([[0.0, 0, 1, 1]]).expand(2, -1)
    there = torch.tensor([[0.5, 0.25, 1.0, 0.75]]).expand(2, -1)
    aligned = querysd_loss(part, teacher[:, :, 2:6, 4:8], center, everything, everything, size=(4, 4))
    torch.testing.assert_close(querysd_loss(part, teacher, center, everything, there, size=(4, 4)), aligned)
    torch.testing.assert_close(querysd_loss(whole, teacher, center, there, there, size=(4, 4)), aligned)
    turned = there[:, [2, 1, 0, 3]]  # mirrored
    flipped = querysd_loss(part, teacher.flip(3), center, everything, 1 - turned[:, [0, 3, 2, 1]], size=(4, 4))
    assert flipped != aligned
    mirrored = querysd_loss(part.flip(3), teacher, center, everything, turned, size=(4, 4))
    torch.testing.assert_close(mirrored, aligned)


def test_teacher_and_centre_get_no_gradient():
    free = [t.requires_grad_() for t in (normal(2, 4, 5, 3), normal(2, 4, 6, 7), normal(4))]
    querysd_loss(*free, boxes(2), boxes(2, seed=1), size=(3, 3)).backward()
    assert free[0].grad.abs().sum() > 0
    assert free[1].grad is None
    assert free[2].grad is None
    fixed = [t.detach() for t in free[1:]]
    assert torch.autograd.gradcheck(lambda s: querysd_loss(s, *fixed, boxes(2), boxes(2), size=(2, 2)), free[0])
    low = [t.detach().bfloat16() for t in free]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = querysd_loss(*low, boxes(2), boxes(2, seed=1), size=(3, 3))
    expected = querysd_loss(*(t.double() for t in low), boxes(2), boxes(2, seed=1), size=(3, 3))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_closed_forms_of_the_loss():
    everything = torch.tensor([[0.0, 0, 1, 1]])
    flat = torch.zeros(1, 8, 3, 3)
    options = {"size": (3, 3)}
    assert querysd_loss(flat, flat, torch.zeros(8), everything, everything, **options).item() == pytest.approx(
        math.log(8)
    )
    # a centre that equals the teacher makes it uniform
    teacher, center = normal(1, 8, 1, 1).float().expand(-1, -1, 3, 3), normal(8).float()
    loss = querysd_loss(flat, center.view(1, 8, 1, 1).expand_as(teacher), center, everything, everything, **options)
    assert loss.item() == pytest.approx(math.log(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.ones(4, 3, 3)}, "student, teacher"),
        ({"teacher": torch.ones(2, 5, 3, 3)}, "student, teacher"),
        ({"teacher": torch.ones(3, 4, 3, 3)}, "student, teacher"),
        ({"center": torch.ones(5)}, r"center: expected shape \(4,\)"),
        ({"student_boxes": torch.ones(1, 4)}, "student_boxes: expected shape"),
        ({"teacher_boxes": torch.ones(2, 3)}, "teacher_boxes: expected shape"),
        ({"size": (0, 3)}, "size: expected"),
        ({"student_temp": 0}, "student_temp"),
        ({"teacher_temp": -1}, "teacher_temp"),
    ],
)
def test_loss_refuses(change, message):
    given = {
        "student": torch.ones(2, 4, 3, 3),
        "teacher": torch.ones(2, 4, 5, 5),
        "center": torch.zeros(4),
        "student_boxes": boxes(2),
        "teacher_boxes": boxes(2),
        "size": (2, 2),
    } | change
    with pytest.raises(ValueError, match=message):
        querysd_loss(**given)


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.parity("s2_uniseg.pooled", against="picture by picture", tolerance=1e-6)
def test_a_batch_is_pooled_as_its_pictures_are():
    maps = HierarchyWorld(size=11, sigma=0.6).sample(5, torch.Generator().manual_seed(0)).features[:, :, :9]
    maps[2] = 1.0  # nothing to report
    view = pooled(maps)
    assert view.queries.shape[:2] == view.there.shape
    assert view.there.any(0).all()
    for i, features in enumerate(maps.movedim(1, -1)):
        rows = view.queries[i, view.there[i]]
        levels = torch.cat([level.features for level in uniap(features)])
        expected = levels if i != 2 else features.sum((0, 1))[None]
        torch.testing.assert_close(rows, expected, rtol=0, atol=1e-4)
        assert (view.queries[i, ~view.there[i]] == 0).all()


def test_the_head_spreads_the_queries_of_each_picture():
    view = pooled(HierarchyWorld(size=9).sample(3, torch.Generator().manual_seed(0)).features)
    head = s2_uniseg.QueryHead(44, out_dim=6)
    found = head(view)
    assert found.shape == (3, 6, 9, 9)
    for i in range(3):
        queries = view.queries[i, view.there[i]]
        z = F.normalize(head.mlp(F.normalize(queries, dim=1) * 44**0.5), dim=1)
        logits = z @ F.normalize(head.prototypes, dim=1).T
        expected = query_map(view.maps[i].movedim(0, -1), queries, logits)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-5)


def network(**options):
    return s2_uniseg.seeded(0, lambda: QuerySD(44, hidden_dim=8, bottleneck=6, out_dim=5, **options))


def maps(count=6, size=8):
    return HierarchyWorld(size=size, sigma=0.0).sample(count, torch.Generator().manual_seed(0)).features


def test_a_step_by_hand():
    model = network(center_momentum=0.75)
    job = s2_uniseg.task(model, maps(), crop=5, batch_size=4, sigma=0.3)
    local, whole, box = job.batch(step_generator(0, 0))
    assert local.maps.shape == (4, 44, 5, 5)
    assert whole.maps.shape == (4, 44, 8, 8)
    sides = (box * 8).round()
    torch.testing.assert_close(sides, box * 8)
    assert ((sides[:, 2:] - sides[:, :2]) == 5).all()
    student, teacher = model.student(local), model.teacher(whole)
    everything = torch.tensor([[0.0, 0, 1, 1]]).expand(4, -1)
    expected = querysd_loss(student, teacher, torch.zeros(5), everything, box, size=(5, 5))
    out = job.loss(model.train(), (local, whole, box))
    torch.testing.assert_close(out["loss"], expected)
    torch.testing.assert_close(model.center, 0.25 * teacher.mean((0, 2, 3)))
    out["loss"].backward()
    assert all(p.grad is not None for p in model.student.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())
    before = model.center.clone()
    model.eval()(local, whole)
    assert torch.equal(model.center, before)
    still = network(center_momentum=1.0).train()
    still(local, whole)
    assert (still.center == 0).all()


def test_crops_are_cut_where_their_boxes_say():
    """With one bright place a picture, a crop shows it if and only if its box holds it."""
    clean = torch.zeros(3, 2, 6, 9)
    clean[:, 1] = 1.0
    for i, (y, x) in enumerate(((1, 7), (3, 2), (5, 5))):
        clean[i, 0, y, x] = 5.0 + i
    job = s2_uniseg.task(s2_uniseg.seeded(0, lambda: QuerySD(2)), clean, crop=4, batch_size=3)
    for step in range(4):
        local, whole, box = job.batch(step_generator(0, step))
        for small, full, (x1, y1, x2, y2) in zip(local.maps, whole.maps, box.tolist(), strict=True):
            rows, columns = slice(round(6 * y1), round(6 * y2)), slice(round(9 * x1), round(9 * x2))
            assert torch.equal(small, full[:, rows, columns])


def test_task_refuses():
    for options in ({"crop": 9, "batch_size": 2}, {"crop": 4, "batch_size": 7}, {"crop": 0, "batch_size": 2}):
        with pytest.raises(ValueError, match="expected 1 to"):
            s2_uniseg.task(network(), maps(), **options)


def test_recipes(tmp_path, monkeypatch):
    monkeypatch.setattr(s2_uniseg, "_clean", lambda seed, scenes, device: maps())
    recipe = s2_uniseg.recipe(batch_size=4)
    assert (recipe.steps, recipe.batch_size) == (300, 4)
    assert "6 pictures (hierarchy world)" in recipe.about
    history = fit(recipe.task, steps=2)
    assert set(history.values) == {"loss", "perplexity", "told apart"}
    assert math.isfinite(history.last())
    torch.save(maps().half(), tmp_path / "dino.pt")
    recipe = s2_uniseg.recipe(tmp_path / "dino.pt", batch_size=3)
    assert recipe.steps == 160_000
    assert recipe.task.model.student.mlp[0].out_features == 2048
    assert recipe.task.model.center.shape == (512,)
    assert "6 pictures (dino.pt)" in recipe.about
    (group,) = recipe.task.optimizer(recipe.task.model).param_groups
    assert group["lr"] == 6.25e-4
    torch.save({"a": 1}, tmp_path / "other.pt")
    (tmp_path / "no.pt").write_text("nothing")
    for name in ("missing.pt", "other.pt", "no.pt"):
        with pytest.raises(DataError, match=r"expected a file with a tensor \(N, C, H, W\)"):
            s2_uniseg.recipe(tmp_path / name)
    with pytest.raises(ValueError, match="size: expected"):
        s2_uniseg.recipe(size="huge")


# -------------------------------------------------------------------------------------------------------- experiment


def test_all_arms_find_parts_and_objects_of_clean_scenes():
    scenes = HierarchyWorld(size=16, sigma=0.1).sample(2, torch.Generator().manual_seed(4))
    for i, features in enumerate(scenes.features.movedim(1, -1)):
        wholes, pieces = truth(scenes, i)
        for arm in s2_uniseg.EXPERIMENTS["masks"].arms:
            levels = s2_uniseg.find(arm, features, objects=len(wholes), parts=len(pieces))
            masks = torch.cat([level.masks for level in levels])
            least = 0.6 if arm in ("k-means", "paper's rule") else 0.9
            assert best_iou(masks, wholes).mean() > least, arm
            assert best_iou(masks, pieces).mean() > least, arm


def test_one_layer_compares_once():
    features = scene(0, size=9, sigma=0.8)
    for level in one_layer(features, thresholds=(0.6, 0.4), min_size=2):
        first = pool_layer(features.flatten(0, 1), torch.ones(81), grid_edges(9, 9), threshold=level.threshold)
        masks = {tuple((first.cluster == c).tolist()) for c in range(len(first.x)) if first.sizes[c] >= 2}
        assert {tuple(m.flatten().tolist()) for m in level.masks} == masks - {(True,) * 81}


def test_arms_of_the_distillation_are_paired():
    budget = {"steps": 2, "scenes": 6}
    kept = {arm: s2_uniseg.pretrain(arm, seed=3, **budget) for arm in s2_uniseg.HEADS}
    assert not any(k.model.training for k in kept.values())
    assert all(torch.equal(k.unseen.features, kept["centre"].unseen.features) for k in kept.values())
    start = s2_uniseg.seeded(3, lambda: QuerySD(44)).student.prototypes
    assert torch.equal(kept["untrained"].model.student.prototypes, start)
    assert (kept["no centre"].model.center == 0).all()
    assert kept["centre"].model.center.abs().sum() > 0
    assert s2_uniseg.pretrain("centre", seed=3, **budget) is kept["centre"]
    with pytest.raises(ValueError, match="arm: expected one of untrained, no centre, centre"):
        s2_uniseg.pretrain("center")


def test_claims_name_what_runs_return(tmp_path):
    record = claims.run("s2_uniseg", "smoke", seeds=1, cache=tmp_path)
    assert {e.kind for e in record.claims} == {"mechanism", "gain"}
    assert record["nested"].verdict == "exact"
    assert record["rounds"].difference.mean < 0
