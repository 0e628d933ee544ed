import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from sslref.evaluate import ari, foreground_ari, hungarian_miou, nmi


def labels(*shape, classes=4, seed=0):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def pair_ari(a, b):
    """By counting pairs of points, from the definition."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    together_a = sum(a[i] == a[j] for i, j in pairs)
    together_b = sum(b[i] == b[j] for i, j in pairs)
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    expected = together_a * together_b / len(pairs) if pairs else 0
    largest = (together_a + together_b) / 2
    return 1.0 if largest == expected else (both - expected) / (largest - expected)


@pytest.mark.parity("evaluate.ari", against="scikit-learn", tolerance=1e-12)
@pytest.mark.parity("evaluate.nmi", against="scikit-learn", tolerance=1e-12)
def test_ari_and_nmi_are_scikit_learns():
    a, b = labels(50), labels(50, classes=3, seed=1) * 7 - 3
    assert ari(a, b) == pytest.approx(adjusted_rand_score(a.numpy(), b.numpy()), abs=1e-12)
    assert nmi(a, b) == pytest.approx(normalized_mutual_info_score(a.numpy(), b.numpy()), abs=1e-12)
    assert ari(a.view(5, 10), b.view(5, 10)) == ari(a, b)


@pytest.mark.parity("evaluate.ari", against="float64 loops", tolerance=1e-12)
@pytest.mark.parity("evaluate.nmi", against="float64 loops", tolerance=1e-12)
def test_ari_and_nmi_by_counting():
    a, b = labels(20).tolist(), labels(20, classes=3, seed=1).tolist()
    assert ari(torch.tensor(a), torch.tensor(b)) == pytest.approx(pair_ari(a, b), abs=1e-12)

    def entropy(items):
        return -sum(items.count(i) / 20 * np.log(items.count(i) / 20) for i in set(items))

    joint = entropy(list(zip(a, b, strict=True)))
    information = entropy(a) + entropy(b) - joint
    expected = information / ((entropy(a) + entropy(b)) / 2)
    assert nmi(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, abs=1e-12)


@given(seed=st.integers(0, 999), order=st.permutations(range(4)))
def test_names_and_order_of_clusters_do_not_matter(seed, order):
    a, b = labels(2, 4, 5, seed=seed), labels(2, 4, 5, seed=seed + 1)
    renamed = torch.tensor(order)[a]
    assert ari(renamed, b) == pytest.approx(ari(a, b), abs=1e-12)
    assert nmi(renamed, b) == pytest.approx(nmi(a, b), abs=1e-12)
    assert ari(a, b) == pytest.approx(ari(b, a), abs=1e-12)
    assert hungarian_miou(renamed, a, num_classes=4) == 1
    torch.testing.assert_close(foreground_ari(renamed, b), foreground_ari(a, b), equal_nan=True)
    shuffle = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    a_shuffled, b_shuffled = (t.flatten(1)[:, shuffle].view(2, 4, 5) for t in (a, b))
    torch.testing.assert_close(foreground_ari(a_shuffled, b_shuffled), foreground_ari(a, b), equal_nan=True)
    assert hungarian_miou(a_shuffled, b_shuffled, num_classes=4) == hungarian_miou(a, b, num_classes=4)


@pytest.mark.parity("evaluate.foreground_ari", against="scikit-learn", tolerance=1e-12)
@pytest.mark.parametrize("background", [0, 2, 9])
def test_foreground_ari_is_that_of_the_foreground_pixels(background):
    pred, target = labels(6, 5, 7) * 100 - 5, labels(6, 5, 7, seed=1)
    target[1] = background  # nothing but background
    target[2] = torch.where(target[2] == background, background, 3)  # one object
    pred[3] = 11  # one segment
    pred[4] = target[4]
    target[5] = background
    target[5, 0, 0] = 3  # a single pixel
    found = foreground_ari(pred, target, background=background)
    assert found.dtype == torch.float64
    for i in range(6):
        inside = target[i] != background
        if not inside.any():
            assert found[i].isnan()
            continue
        expected = adjusted_rand_score(target[i][inside].numpy(), pred[i][inside].numpy())
        assert found[i].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parity("evaluate.foreground_ari", against="float64 loops", tolerance=1e-12)
def test_foreground_ari_by_counting_pairs():
    pred, target = labels(3, 4, 5, classes=3), labels(3, 4, 5, classes=3, seed=1)
    for i, value in enumerate(foreground_ari(pred, target)):
        inside = target[i] > 0
        expected = pair_ari(pred[i][inside].tolist(), target[i][inside].tolist())
        assert value.item() == pytest.approx(expected, abs=1e-12)


def test_foreground_ari_ignores_the_prediction_on_background():
    pred, target = labels(4, 6, 6), labels(4, 6, 6, seed=1)
    other = torch.where(target == 0, labels(4, 6, 6, classes=9, seed=2), pred)
    assert torch.equal(foreground_ari(other, target), foreground_ari(pred, target))
    assert not torch.equal(foreground_ari(other, target, background=1), foreground_ari(pred, target, background=1))


def brute_force_miou(pred, target, num_classes):
    pairs = list(zip(pred, target, strict=True))
    best = max(sum(p[a] == b for a, b in pairs) for p in itertools.permutations(range(num_classes)))
    values = set()
    for p in itertools.permutations(range(num_classes)):
        if sum(p[a] == b for a, b in pairs) == best:  # more than one renaming may match as many pixels
            scores = []
            for c in sorted(set(target)):
                both = sum(p[a] == c and b == c for a, b in pairs)
                scores.append(both / sum(p[a] == c or b == c for a, b in pairs))
            values.add(round(sum(scores) / len(scores), 12))
    return values


@pytest.mark.parity("evaluate.hungarian_miou", against="all renamings, by loops", tolerance=1e-12)
@given(seed=st.integers(0, 999), classes=st.integers(1, 4))
def test_miou_is_that_of_the_renaming_that_matches_most_pixels(seed, classes):
    pred, target = labels(10, classes=classes, seed=seed), labels(10, classes=classes, seed=seed + 1)
    found = hungarian_miou(pred, target, num_classes=classes)
    allowed = brute_force_miou(pred.tolist(), target.tolist(), classes)
    assert any(found == pytest.approx(value, abs=1e-11) for value in allowed)


def test_miou_by_hand():
    pred, target = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]]), torch.tensor([[1, 1, 0, 0], [1, 0, 2, 2]])
    expected = (2 / 3 + 2 / 3 + 1 / 2) / 3
    assert hungarian_miou(pred, target, num_classes=3) == pytest.approx(expected, abs=1e-12)
    assert hungarian_miou(pred, target, num_classes=7) == pytest.approx(expected, abs=1e-12)  # absent classes
    ignored = torch.cat([target, torch.full((1, 4), 255)])
    anything = torch.cat([pred, torch.tensor([[0, 99, -4, 2]])])
    assert hungarian_miou(anything, ignored, num_classes=3, ignore_index=255) == pytest.approx(expected, abs=1e-12)


def test_the_assignment_is_one_to_one():
    # class 0 of the prediction covers both classes of the target; only one may claim it
    pred, target = torch.zeros(10, dtype=torch.long), torch.tensor([0] * 6 + [1] * 4)
    assert hungarian_miou(pred, target, num_classes=2) == pytest.approx((6 / 10 + 0) / 2)


A = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ari(A, A[:1]), r"a: expected the shape of b, \(1, 3\), got \(2, 3\)"),
        (lambda: nmi(A, A[:, :2]), "a: expected the shape"),
        (lambda: ari(A[:0], A[:0]), "one element"),
        (lambda: hungarian_miou(A, A.T, num_classes=2), "pred: expected the shape of target"),
        (lambda: hungarian_miou(A + 2, A, num_classes=2), r"pred: expected labels in \[0, 2\), got 2 to 2"),
        (lambda: hungarian_miou(A, A - 1, num_classes=2), "target: expected labels"),
        (lambda: hungarian_miou(A, A + 255, num_classes=2), "target: expected labels"),
        (lambda: hungarian_miou(A, A, num_classes=2, ignore_index=0), "ignore_index 0, got none"),
        (lambda: hungarian_miou(A, A, num_classes=0), "num_classes"),
        (lambda: foreground_ari(A, A), r"pred: expected shape \(B, H, W\)"),
        (lambda: foreground_ari(A[None], A[None, :, :2]), "pred: expected the shape of target"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("function", [ari, nmi, lambda a, b: hungarian_miou(a, b, num_classes=2)])
def test_labels_must_be_integers(function):
    with pytest.raises(TypeError, match="expected integers"):
        function(A.float(), A)
