import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from sslref.evaluate import auroc, recall_at_k


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parity("evaluate.auroc", against="scikit-learn", tolerance=1e-12)
@pytest.mark.parity("evaluate.auroc", against="float64 loops over pairs", tolerance=1e-12)
@given(seed=st.integers(0, 999), levels=st.integers(1, 30))
def test_auroc_is_the_share_of_pairs_in_order(seed, levels):
    scores = (random(4, 6, seed=seed) * levels).round() / levels
    labels = random(4, 6, seed=seed + 1) > 0
    labels[0, 0], labels[0, 1] = True, False
    value = auroc(scores, labels)
    positives, negatives = scores[labels].tolist(), scores[~labels].tolist()
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    assert value == pytest.approx(wins / (len(positives) * len(negatives)), abs=1e-12)
    assert value == pytest.approx(roc_auc_score(labels.flatten(), scores.flatten()), abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - value, abs=1e-12)
    assert auroc(scores.exp(), labels.long()) == pytest.approx(value, abs=1e-12)


def test_constant_scores_are_chance():
    labels = torch.tensor([0, 1, 1, 0, 1])
    assert auroc(torch.full((5,), 3.0), labels) == 0.5
    assert auroc(labels.bfloat16(), labels) == 1.0


@pytest.mark.parity("evaluate.recall_at_k", against="float64 loops", tolerance=1e-15)
@given(seed=st.integers(0, 999), k=st.integers(1, 6), levels=st.sampled_from([1, 2, 1000]))
def test_recall_is_the_share_of_matches_among_the_first_k(seed, k, levels):
    similarity = (random(7, 6, seed=seed) * levels).round()
    match = torch.randint(6, (7,), generator=torch.Generator().manual_seed(seed))
    hits = 0
    for row, index in zip(similarity.tolist(), match.tolist(), strict=True):
        hits += index in sorted(range(6), key=lambda g: (-row[g], g))[:k]
    assert recall_at_k(similarity, match, k=k) == pytest.approx(hits / 7, abs=1e-15)


def test_recall_ties_go_to_the_lower_index():
    constant = torch.zeros(4, 4)
    assert recall_at_k(constant, torch.arange(4)) == 0.25
    assert recall_at_k(constant, torch.arange(4), k=3) == 0.75
    assert recall_at_k(torch.eye(4), torch.arange(4)) == 1
    masked = torch.eye(4).masked_fill(torch.eye(4) == 0, -torch.inf)
    assert recall_at_k(masked, torch.arange(4)) == 1


S, I = torch.zeros(3, 4), torch.tensor([0, 1, 3])  # noqa: E741


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: auroc(S[0], torch.tensor([0, 1, 0])), r"labels: expected the shape of scores, \(4,\), got \(3,\)"),
        (lambda: auroc(S[0], torch.ones(4)), "labels: expected both 0 and 1"),
        (lambda: auroc(S[0], torch.tensor([0, 1, 2, 1])), r"nothing else, got \[0, 1, 2\]"),
        (lambda: auroc(S[0] / 0, torch.tensor([0, 1, 0, 1])), "scores: expected finite"),
        (lambda: auroc(S[:0], S[:0].bool()), "labels"),
        (lambda: recall_at_k(S, I, k=5), r"k: expected a number in \[1, 4\], got 5"),
        (lambda: recall_at_k(S, I, k=0), "k: expected"),
        (lambda: recall_at_k(S, I[:2]), r"match: expected shape \(3,\), got \(2,\)"),
        (lambda: recall_at_k(S, I + 1), r"match: expected indices in \[0, 4\), got 1 to 4"),
        (lambda: recall_at_k(S[0], I), "similarity: expected shape"),
        (lambda: recall_at_k(S[:0], I[:0]), "similarity: expected shape"),
        (lambda: recall_at_k(S / 0, I), "similarity: expected numbers, got nan"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_matches_must_be_integers():
    with pytest.raises(TypeError, match="match: expected integers"):
        recall_at_k(S, I.float())
