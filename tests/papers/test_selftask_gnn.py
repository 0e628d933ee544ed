"""SelfTask: against breadth-first search and loops in Python, and the hand-computed cases."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sslref.data import embedded
from sslref.nn.gcn import undirected
from sslref.papers import selftask_gnn
from sslref.papers.selftask_gnn import (
    attribute_similarity_pairs,
    context_label_distribution,
    correct_labels,
    distance_to_cluster_targets,
    distance_to_labeled_targets,
    label_propagation,
    pairwise_distance_labels,
)
from sslref.train import fit

PATH = torch.tensor([[0, 1, 2], [1, 2, 3]])  # 0-1-2-3, and node 4 alone
TRIANGLE = torch.tensor([[0, 1, 2], [1, 2, 0]])


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _random_graph(n=14, edges=18, seed=0):
    return torch.randint(n, (2, edges), generator=_generator(seed))


def _neighbours(edge_index, n):
    sets = [set() for _ in range(n)]
    for i, j in edge_index.T.tolist():
        if i != j:
            sets[i].add(j)
            sets[j].add(i)
    return sets


def _distances(edge_index, n):
    """Breadth-first search from every node; missing keys are unreachable."""
    sets = _neighbours(edge_index, n)
    out = []
    for start in range(n):
        distance, frontier = {start: 0}, [start]
        while frontier:
            frontier = [(j, distance[i] + 1) for i in frontier for j in sets[i] if j not in distance]
            for j, d in frontier:
                distance[j] = d
            frontier = [j for j, _ in dict(frontier).items()]
        out.append(distance)
    return out


# ------------------------------------------------------------------------------------------------------ distances


@pytest.mark.parity("selftask_gnn.pairwise_distance_labels", against="breadth-first search", tolerance=0)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_classes", [2, 4, 6])
def test_pairwise_distance_by_search(seed, num_classes):
    edges, n = _random_graph(seed=seed), 14
    labels, distance = pairwise_distance_labels(edges, n, num_classes=num_classes), _distances(edges, n)
    assert labels.dtype == torch.int64
    for i, j in itertools.product(range(n), repeat=2):
        expected = -1 if i >= j else min(distance[i].get(j, num_classes), num_classes) - 1
        assert labels[i, j] == expected


def test_pairwise_distance_by_hand():
    labels = pairwise_distance_labels(PATH, 5, num_classes=3)
    assert labels[0].tolist() == [-1, 0, 1, 2, 2]
    assert labels.tril().eq(torch.full((5, 5), -1).tril()).all()
    with pytest.raises(ValueError, match="num_classes.*got 1"):
        pairwise_distance_labels(PATH, 5, num_classes=1)


@pytest.mark.parity("selftask_gnn.distance_to_cluster_targets", against="breadth-first search", tolerance=1e-7)
@pytest.mark.parametrize("seed", range(5))
def test_cluster_targets_by_search(seed):
    edges, n, centers = _random_graph(seed=seed), 14, torch.tensor([3, 0, 9])
    targets, distance = distance_to_cluster_targets(edges, n, centers), _distances(edges, n)
    for i, (k, c) in itertools.product(range(n), enumerate(centers.tolist())):
        d = distance[c].get(i, 0)
        assert targets[i, k].item() == pytest.approx(1 / d if d else 0)


@pytest.mark.differs(
    "selftask_gnn",
    paper="the centre of a part is at distance 0",
    official="the search never writes the start node: its target is 0, as for unreachable nodes",
    here="the official code's",
)
def test_cluster_targets_by_hand():
    targets = distance_to_cluster_targets(PATH, 5, torch.tensor([0]))
    assert targets[:, 0].tolist() == pytest.approx([0, 1, 1 / 2, 1 / 3, 0])
    for bad in (torch.tensor([], dtype=torch.int64), torch.tensor([5]), torch.tensor([-1]), torch.tensor(0)):
        with pytest.raises(ValueError, match="centers"):
            distance_to_cluster_targets(PATH, 5, bad)


@pytest.mark.parity("selftask_gnn.distance_to_labeled_targets", against="breadth-first search", tolerance=1e-6)
@pytest.mark.parametrize("seed", range(5))
def test_labeled_targets_by_search(seed):
    edges, n = _random_graph(seed=seed), 14
    labels = torch.randint(4, (n,), generator=_generator(seed))
    mask = torch.rand(n, generator=_generator(seed)) < 0.5
    mask[0] = True
    targets, distance = distance_to_labeled_targets(edges, n, labels, mask), _distances(edges, n)
    assert targets.shape == (n, labels.max() + 1)
    for i, c in itertools.product(range(n), range(int(labels.max()) + 1)):
        nodes = [v for v in range(n) if mask[v] and labels[v] == c]
        closeness = [1 / distance[i][v] if distance[i].get(v) else 0 for v in nodes]
        assert targets[i, c].item() == pytest.approx(sum(closeness) / len(nodes) if nodes else 0, abs=1e-6)


def test_hidden_labels_do_not_leak():
    edges, n = _random_graph(), 14
    mask = torch.arange(n) < 5
    labels = torch.randint(3, (n,), generator=_generator())
    labels[:2] = 2  # both versions have three classes
    other = torch.where(mask, labels, (labels + 1) % 3)
    for targets in (distance_to_labeled_targets, label_propagation):
        torch.testing.assert_close(targets(edges, n, labels, mask), targets(edges, n, other, mask), atol=0, rtol=0)
        with pytest.raises(ValueError, match="at least one labelled"):
            targets(edges, n, labels, torch.zeros(n, dtype=torch.bool))
        with pytest.raises(ValueError, match="train_mask: expected bool"):
            targets(edges, n, labels, mask.long())
        with pytest.raises(ValueError, match="labels"):
            targets(edges, n, labels[:-1], mask)


# --------------------------------------------------------------------------------------------- labels that spread


@pytest.mark.parity("selftask_gnn.label_propagation", against="float64 loops", tolerance=1e-6)
@pytest.mark.parametrize("iterations", [1, 2, 7, 30])
def test_propagation_by_loops(iterations):
    edges, n = _random_graph(), 14
    labels, mask = torch.randint(3, (n,), generator=_generator()), torch.arange(n) < 4
    sets, classes = _neighbours(edges, n), int(labels[mask].max()) + 1
    scores = [[0.0] * classes for _ in range(n)]
    for _ in range(iterations):
        scores = [
            [float(labels[i] == c) for c in range(classes)]
            if mask[i]
            else [sum(scores[j][c] for j in sets[i]) / max(len(sets[i]), 1) for c in range(classes)]
            for i in range(n)
        ]
    result = label_propagation(edges, n, labels, mask, num_iter=iterations)
    torch.testing.assert_close(result, torch.tensor(scores), atol=1e-6, rtol=1e-6)


def test_propagation_by_hand():
    edges = torch.tensor([[0, 1], [1, 2]])
    labels, mask = torch.tensor([0, 1, 1, 1]), torch.tensor([True, False, True, False])
    scores = label_propagation(edges, 4, labels, mask, num_iter=2)
    assert scores.tolist() == [[1, 0], [0.5, 0.5], [0, 1], [0, 0]]
    with pytest.raises(ValueError, match="num_iter"):
        label_propagation(edges, 4, labels, mask, num_iter=0)


@pytest.mark.parity("selftask_gnn.context_label_distribution", against="float64 loops", tolerance=1e-6)
@pytest.mark.parametrize("seed", range(5))
def test_context_by_loops(seed):
    edges, n = _random_graph(seed=seed), 14
    labels, sets = torch.randint(4, (n,), generator=_generator(seed)), _neighbours(edges, n)
    rows = context_label_distribution(edges, n, labels)
    for i in range(n):
        two = {k for j in sets[i] for k in sets[j]} - {i}
        counts = [
            sum(int(labels[j] == c) for j in sets[i]) + sum(int(labels[j] == c) for j in two)
            for c in range(int(labels.max()) + 1)
        ]
        expected = [c / max(sum(counts), 1) for c in counts]
        assert rows[i].tolist() == pytest.approx(expected, abs=1e-6)


def test_context_by_hand():
    rows = context_label_distribution(PATH, 5, torch.tensor([0, 1, 1, 0, 1]))
    expected = torch.tensor([[0, 1], [2 / 3, 1 / 3], [2 / 3, 1 / 3], [0, 1], [0, 0]])
    torch.testing.assert_close(rows, expected)
    triangle = context_label_distribution(TRIANGLE, 3, torch.tensor([0, 1, 2]))
    assert triangle[0].tolist() == [0, 0.5, 0.5]


# ----------------------------------------------------------------------------------------------------- attributes


@pytest.mark.parity("selftask_gnn.attribute_similarity_pairs", against="float64 loops", tolerance=1e-12)
def test_attribute_pairs_by_loops():
    x = torch.randn(11, 5, generator=_generator(), dtype=torch.float64)
    pairs, cosines = attribute_similarity_pairs(x, k=2, num_random=0)
    expected = {}
    for i in range(11):
        cosine = {j: F.cosine_similarity(x[i], x[j], dim=0).item() for j in range(11) if j != i}
        order = sorted(cosine, key=lambda j: (cosine[j], j))
        for j in order[:2] + order[-2:]:
            expected[min(i, j), max(i, j)] = cosine[j]
    assert [tuple(p) for p in pairs.T.tolist()] == sorted(expected)
    assert cosines.tolist() == pytest.approx([expected[p] for p in sorted(expected)], abs=1e-12)


@pytest.mark.differs(
    "selftask_gnn",
    paper="the most and the least similar pairs",
    official="also the nodes at three random ranks of every node's list",
    here="the official code's; num_random=0 gives the paper's",
)
def test_random_ranks_are_shared_and_lie_between():
    x = torch.randn(12, 4, generator=_generator())
    few, _ = attribute_similarity_pairs(x, num_random=0)
    one, _ = attribute_similarity_pairs(x, generator=_generator(1))
    two, _ = attribute_similarity_pairs(x, generator=_generator(1))
    assert torch.equal(one, two)
    assert {tuple(p) for p in few.T.tolist()} < {tuple(p) for p in one.T.tolist()}
    every, _ = attribute_similarity_pairs(x, num_random=100)
    assert every.shape[1] == 12 * 11 / 2
    assert (every[0] < every[1]).all()


def test_attribute_ties_go_to_the_lower_index():
    pairs, _ = attribute_similarity_pairs(torch.ones(6, 2), k=1, num_random=0)
    # all cosines are 1: ascending order is by index, least similar = lowest other index, most similar = highest
    assert pairs.T.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4], [0, 5], [1, 5], [2, 5], [3, 5], [4, 5]]
    for bad, k in ((torch.ones(6, 2), 3), (torch.ones(6), 1)):
        with pytest.raises(ValueError, match="expected"):
            attribute_similarity_pairs(bad, k=k)


# ------------------------------------------------------------------------------------------------ corrected labels


def _correct_by_loops(embeddings, labels, sampled, *, prototypes=8, percentile=40.0):
    unit = [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in embeddings.tolist()]

    def dot(a, b):
        return sum(u * v for u, v in zip(a, b, strict=True))

    chosen = []
    for c in range(int(labels.max()) + 1):
        members = [i for i in range(len(unit)) if labels[i] == c]
        s = [[dot(unit[i], unit[j]) for j in members] for i in members]
        flat = sorted(itertools.chain.from_iterable(s))
        at = percentile / 100 * (len(flat) - 1)
        threshold = flat[int(at)] + (at - int(at)) * (flat[min(int(at) + 1, len(flat) - 1)] - flat[int(at)])
        rho = [sum((v > threshold) - (v < threshold) for v in row) for row in s]
        eta = []
        for i, row in enumerate(s):
            denser = [v for j, v in enumerate(row) if rho[j] > rho[i]]
            eta.append(max(denser) if denser else min(row))
        rho = [0 if e >= 0.95 else r for r, e in zip(rho, eta, strict=True)]
        order = sorted(range(len(members)), key=lambda m: (-rho[m], m))[:prototypes]
        chosen.append([unit[members[m]] for m in order])
    result = []
    for i in sampled.tolist():
        means = [sum(dot(unit[i], p) for p in ps) / len(ps) if ps else -math.inf for ps in chosen]
        result.append(means.index(max(means)))
    return result


@pytest.mark.parity("selftask_gnn.correct_labels", against="float64 loops", tolerance=0)
@pytest.mark.parametrize("seed", range(6))
def test_correction_by_loops(seed):
    embeddings = torch.randn(40, 3, generator=_generator(seed), dtype=torch.float64)
    labels = torch.randint(3, (40,), generator=_generator(seed))
    sampled = torch.randperm(40, generator=_generator(seed))[:25]
    for prototypes, percentile in ((8, 40.0), (3, 75.0), (50, 10.0)):
        result = correct_labels(
            embeddings, labels, sampled, num_prototypes=prototypes, density_percentile=percentile
        ).tolist()
        expected = _correct_by_loops(embeddings, labels, sampled, prototypes=prototypes, percentile=percentile)
        assert result == expected


def _blobs(seed=0):
    truth = torch.arange(2).repeat_interleave(100)
    x = torch.randn(200, 8, generator=_generator(seed)) + 6 * F.one_hot(truth, 8)
    flipped = torch.randperm(200, generator=_generator(seed))[:20]
    labels = truth.clone()
    labels[flipped] = 1 - truth[flipped]
    return x, truth, labels


def test_correction_mends_flipped_labels():
    x, truth, labels = _blobs()
    corrected = correct_labels(x, labels, torch.arange(200))
    assert (labels == truth).double().mean() == 0.9
    assert (corrected == truth).double().mean() >= 0.95


def test_correction_sees_directions_only_and_no_gradient():
    x, _, labels = _blobs()
    x.requires_grad_()
    sampled = torch.tensor([5, 199, 0])
    one, other = correct_labels(x, labels, sampled), correct_labels(7 * x, labels, sampled)
    assert torch.equal(one, other)
    assert not one.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(correct_labels(x, labels, sampled), one)
    assert torch.equal(correct_labels(x.bfloat16(), labels, sampled), one)


def test_an_empty_class_never_wins():
    x, _, labels = _blobs()
    corrected = correct_labels(x, 2 * labels + 1, torch.arange(200))
    assert set(corrected.tolist()) == {1, 3}
    few = correct_labels(x, labels, torch.arange(200), max_per_class=10, generator=_generator(0))
    assert torch.equal(few, correct_labels(x, labels, torch.arange(200), max_per_class=10, generator=_generator(0)))
    with pytest.raises(ValueError, match="embeddings, labels"):
        correct_labels(x, labels[:-1], torch.arange(3))


# -------------------------------------------------------------------------------------------------- all functions


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_renaming_nodes_permutes_outputs(seed):
    n = 12
    edges = _random_graph(n, 14, seed)
    labels, mask = torch.randint(3, (n,), generator=_generator(seed)), torch.arange(n) % 3 == 0
    new = torch.randperm(n, generator=_generator(seed))  # old name -> new name
    old = new.argsort()

    def both(function, *per_node):
        return function(edges, n, *per_node), function(new[edges], n, *(v[old] for v in per_node))

    for before, after in (
        both(context_label_distribution, labels),
        both(label_propagation, labels, mask),
        both(distance_to_labeled_targets, labels, mask),
    ):
        torch.testing.assert_close(after[new], before)
    before, after = pairwise_distance_labels(edges, n), pairwise_distance_labels(new[edges], n)
    full = [m.triu(1) + m.triu(1).T for m in (before, after)]
    assert torch.equal(full[1][new][:, new], full[0])


def test_edges_are_undirected_and_counted_once():
    labels, mask = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([True, False, True, False, False])
    twice = torch.cat((PATH, PATH.flip(0), torch.tensor([[2, 4], [2, 4]])), 1)
    for function, rest in (
        (pairwise_distance_labels, ()),
        (distance_to_cluster_targets, (torch.tensor([0, 2]),)),
        (distance_to_labeled_targets, (labels, mask)),
        (label_propagation, (labels, mask)),
        (context_label_distribution, (labels,)),
    ):
        torch.testing.assert_close(function(PATH, 5, *rest), function(twice, 5, *rest))
        for bad in (PATH + 2, PATH - 1, PATH[:1], PATH[0]):
            with pytest.raises(ValueError, match="edge_index"):
                function(bad, 5, *rest)


def test_autocast_does_not_round():
    edges, n = _random_graph(40, 400), 40
    labels, mask = torch.randint(3, (n,), generator=_generator()), torch.arange(n) < 6
    plain = [f(edges, n, labels, mask) for f in (label_propagation, distance_to_labeled_targets)]
    with torch.autocast("cpu", torch.bfloat16):
        cast = [f(edges, n, labels, mask) for f in (label_propagation, distance_to_labeled_targets)]
        context = context_label_distribution(edges, n, labels)
    for a, b in zip(plain, cast, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    torch.testing.assert_close(context, context_label_distribution(edges, n, labels), atol=0, rtol=0)


# ------------------------------------------------------------------------------------------------- joint training


@pytest.fixture(scope="module")
def digits():
    graph = embedded.digits_graph(120, generator=_generator())
    return graph, selftask_gnn.few_labels(graph.y, 2, generator=_generator())


def test_few_labels():
    y = torch.randint(4, (200,), generator=_generator())
    mask = selftask_gnn.few_labels(y, 5, generator=_generator())
    assert y[mask].bincount().tolist() == [5, 5, 5, 5]
    assert torch.equal(mask, selftask_gnn.few_labels(y, 5, generator=_generator()))
    assert not torch.equal(mask, selftask_gnn.few_labels(y, 5, generator=_generator(1)))
    rare = torch.tensor([0, 0, 0, 1, 2, 2])  # a class with fewer nodes gives all it has
    assert rare[selftask_gnn.few_labels(rare, 2, generator=_generator())].tolist() == [0, 0, 1, 2, 2]


def test_network_shares_its_hidden_layer(digits):
    graph, _ = digits
    model = selftask_gnn.SelfTaskGCN(64, 10, hidden=8, head_dim=3).eval()
    a_hat = selftask_gnn.gcn_norm(graph.edge_index, 120)
    logits, hidden = model(graph.x, a_hat)
    torch.testing.assert_close(hidden, F.relu(a_hat @ graph.x @ model.gcn.first.weight.T), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, model.gcn(graph.x, a_hat), atol=0, rtol=0)
    assert model.head(hidden).shape == (120, 3)


@pytest.mark.parametrize("name", selftask_gnn.WEIGHTS)
def test_joint_training_lowers_the_joint_loss(digits, name):
    graph, mask = digits
    task = selftask_gnn.task(name, graph, mask, weight=0.1, hidden=16)
    task.model.eval()  # no dropout: the same function before and after
    optimizer = task.optimizer(task.model)
    before = task.loss(task.model, task.batch(_generator()))
    before["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in task.model.parameters())
    optimizer.step()
    after = task.loss(task.model, task.batch(_generator()))
    assert after["loss"] < before["loss"]


def test_joint_loss_is_the_weighted_sum(digits):
    graph, mask = digits
    alone, joint = (selftask_gnn.task("ContextLabel", graph, mask, weight=w, hidden=8) for w in (0.0, 50.0))
    for task in (alone, joint):
        task.model.eval()
    zero, full = (t.loss(t.model, t.batch(_generator())) for t in (alone, joint))
    torch.testing.assert_close(full["loss"], zero["loss"] + 50 * full["self"])
    logits, hidden = alone.model(*alone.batch(_generator()))
    torch.testing.assert_close(zero["loss"], F.cross_entropy(logits[mask], graph.y[mask]))
    spread = torch.where(mask, graph.y, label_propagation(graph.edge_index, 120, graph.y, mask).argmax(1))
    target = context_label_distribution(graph.edge_index, 120, spread)
    square = (alone.model.head(hidden).softmax(1) - target)[~mask].square().mean()
    torch.testing.assert_close(zero["self"], square)


def test_no_task_reads_hidden_labels(digits):
    graph, mask = digits
    other = torch.where(mask, graph.y, (graph.y + 1) % 10)
    model = selftask_gnn.SelfTaskGCN(64, 10, hidden=8, head_dim=10).eval()
    hidden = torch.rand(120, 8, generator=_generator())
    for name in ("Distance2Labeled", "ContextLabel", "CorrectedLabel"):
        pair = [selftask_gnn.pretext(name, graph, y, mask, generator=_generator()) for y in (graph.y, other)]
        for p in pair:
            if p.correct:
                p.correct(hidden)
        assert pair[0].loss(model, hidden) == pair[1].loss(model, hidden)


def test_edge_mask_hides_its_edges(digits):
    graph, mask = digits
    all_edges = {tuple(e) for e in undirected(graph.edge_index, 120).T.tolist()}
    pretext = selftask_gnn.pretext("EdgeMask", graph, graph.y, mask, generator=_generator())
    kept = {tuple(e) for e in undirected(pretext.edge_index, 120).T.tolist()}
    hidden = {(i, j) for i, j in all_edges - kept if i < j}
    assert kept < all_edges
    assert len(hidden) == len(all_edges) // 2 // 10
    # a head that knows the hidden edges (it sees |h_i - h_j| of one-hot nodes) has no loss: the rest are non-edges
    seen = []

    class Spy(torch.nn.Module):
        def head(self, difference):
            seen.extend(tuple(row.nonzero()[:, 0].tolist()) for row in difference)
            known = torch.tensor([float(e in all_edges) for e in seen])
            return 50 * torch.stack((1 - known, known), 1)

    assert pretext.loss(Spy(), torch.eye(120)).item() == pytest.approx(0, abs=1e-6)
    assert set(seen[: len(hidden)]) == hidden
    assert len(seen) == 2 * len(hidden)
    assert not set(seen[len(hidden) :]) & all_edges


def test_correction_adds_a_second_target(digits):
    graph, mask = digits
    pretext = selftask_gnn.pretext("CorrectedLabel", graph, graph.y, mask, generator=_generator())
    plain = selftask_gnn.pretext("ContextLabel", graph, graph.y, mask, generator=_generator())
    model = selftask_gnn.SelfTaskGCN(64, 10, hidden=8, head_dim=10).eval()
    h = torch.rand(120, 8, generator=_generator())
    first = pretext.loss(model, h)
    torch.testing.assert_close(first, plain.loss(model, h), atol=0, rtol=0)
    assert plain.correct is None
    space = F.one_hot(graph.y, 10) + 0.1 * torch.rand(120, 10, generator=_generator())  # tells the true classes
    pretext.correct(space)
    once = pretext.loss(model, h)
    pretext.correct(space)
    assert once > first
    torch.testing.assert_close(pretext.loss(model, h), once, atol=0, rtol=0)  # replaced, not piled up
    spread = torch.where(mask, graph.y, label_propagation(graph.edge_index, 120, graph.y, mask).argmax(1))
    fixed = torch.where(mask, graph.y, correct_labels(space, spread, torch.arange(120)))
    target = context_label_distribution(graph.edge_index, 120, fixed)
    square = (model.head(h).softmax(1) - target)[~mask].square().mean()
    torch.testing.assert_close(once - first, square)


def test_correction_waits_for_the_second_half(digits):
    graph, mask = digits
    task = selftask_gnn.task("CorrectedLabel", graph, mask, hidden=8)
    task.model.eval()
    value = []
    for step in (0, 10, 20, 25, 30):
        task.after_step(task.model, step, 40)
        value.append(task.loss(task.model, task.batch(_generator()))["self"].item())
    assert value[0] == value[1] < value[2]


def test_unknown_pretext(digits):
    graph, mask = digits
    with pytest.raises(ValueError, match="name: expected a pretext task of the paper, got 'Colour'"):
        selftask_gnn.task("Colour", graph, mask)


def test_recipe(monkeypatch):
    recipe = selftask_gnn.recipe(None, size="miniature")
    history = fit(recipe.task, steps=3, log_every=1)
    assert history.values["loss"][-1] < history.values["loss"][0]
    assert recipe.batch_size == 600
    assert "30 of them labelled" in recipe.about
    with pytest.raises(ValueError, match="size"):
        selftask_gnn.recipe(size="large")
    with pytest.raises(ValueError, match="batch_size: expected None.*got 8"):
        selftask_gnn.recipe(batch_size=8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="processes: expected one"):
        selftask_gnn.recipe(size="miniature")


@pytest.mark.parametrize("data", ["digits", "connectome"])
def test_arms_are_paired_and_repeatable(data):
    def run(arm):
        return selftask_gnn.run_nodes(arm, seed=3, device="cpu", steps=2, data=data)

    assert run("ContextLabel") == run("ContextLabel")
    spread = run("LP")
    assert spread == run("LP")
    assert 0 < spread["accuracy"] < 100


def test_leak_is_seen_where_all_labels_are_read():
    values = {arm: selftask_gnn.run_leak(arm, seed=0, device="cpu")["changed"] for arm in ("all labels", "few labels")}
    assert values["few labels"] == 0
    assert values["all labels"] > 90
