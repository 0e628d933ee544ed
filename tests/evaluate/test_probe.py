import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from sslref.evaluate import accuracy, knn_classify, linear_probe, ridge_r2, standardize


def digits(dtype=torch.float64, classes=10):
    x, y = load_digits(return_X_y=True)
    keep = y < classes
    x, y = torch.tensor(x[keep] / 16, dtype=dtype), torch.tensor(y[keep])
    return x[::2], y[::2], x[1::2], y[1::2]


def gaussian(rows, dim, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    y = (x @ torch.randn(dim, classes, generator=generator, dtype=torch.float64)).argmax(1)
    y[::7] = torch.randint(classes, y[::7].shape, generator=generator)
    y[:classes] = torch.arange(classes)
    return x, y


def sklearn_probability(train_x, train_y, test_x, C):
    model = LogisticRegression(C=C, tol=1e-10, max_iter=20000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so when rounding ends its search
        model.fit(train_x.double().numpy(), train_y.numpy())
    return torch.from_numpy(model.predict_proba(test_x.double().numpy()))


@pytest.mark.parity("evaluate.linear_probe", against="scikit-learn", tolerance=1e-4)
@pytest.mark.parametrize("C", [1.0, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_probe_is_scikit_learns_optimum(C, dtype, classes):
    train_x, train_y, test_x, test_y = digits(dtype, classes)
    logits = linear_probe(train_x, train_y, test_x, C=C)
    assert logits.dtype == torch.float64
    assert logits.shape == (len(test_x), classes)
    expected = sklearn_probability(train_x, train_y, test_x, C)
    torch.testing.assert_close(logits.softmax(1), expected, rtol=0, atol=1e-4)
    assert accuracy(logits, test_y) > 0.85


@pytest.mark.parity("evaluate.linear_probe", against="scikit-learn", tolerance=1e-4)
@pytest.mark.parametrize("case", ["shifted", "scaled", "wide", "repeated"])
def test_probe_is_scikit_learns_optimum_on_awkward_features(case):
    x, y = gaussian(60, 12, 3)
    if case == "shifted":
        x = x + 5
    elif case == "scaled":
        x = x * torch.logspace(-2, 1, 12, dtype=torch.float64)
    elif case == "wide":
        x = gaussian(60, 90, 3)[0]
    elif case == "repeated":
        x = torch.cat([x, x, torch.ones(60, 1)], 1)
    logits = linear_probe(x, y, x + 0.1)
    torch.testing.assert_close(logits.softmax(1), sklearn_probability(x, y, x + 0.1, 1.0), rtol=0, atol=1e-4)


@pytest.mark.parity("evaluate.linear_probe", against="closed form: zero gradient at the optimum", tolerance=1e-5)
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_gradient_of_the_stated_objective_is_zero(C):
    x, y = gaussian(80, 5, 3)
    # the probe's weights, read off its logits, which are affine in the test features
    unit = torch.cat([torch.zeros(1, 5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)])
    logits = linear_probe(x, y, unit, C=C)
    bias = logits[0].clone().requires_grad_()
    weight = (logits[1:] - logits[0]).T.clone().requires_grad_()
    losses = [torch.nn.functional.cross_entropy(weight @ xi + bias, yi) for xi, yi in zip(x, y, strict=True)]
    objective = C * sum(losses) + weight.square().sum() / 2
    for gradient in torch.autograd.grad(objective, (weight, bias)):
        assert gradient.abs().max() < 1e-5 * max(1, C * 10)


def test_probe_is_quick_on_correlated_features():
    x, y = gaussian(500, 60, 5)
    x = torch.relu(x @ gaussian(60, 60, 5, seed=1)[0]) + 3  # about what a network's features look like
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_probe(x, y, x, max_iter=250)
    with pytest.warns(RuntimeWarning, match="not converged after 3 iterations"):
        linear_probe(x, y, x, max_iter=3)


def test_a_label_that_never_occurs_is_never_predicted():
    x, y = gaussian(60, 4, 3)
    y = torch.tensor([0, 2, 5])[y]
    logits = linear_probe(x, y, x)
    assert logits.shape == (60, 6)
    assert (logits[:, [1, 3, 4]] == -math.inf).all()
    compact = linear_probe(x, torch.unique(y, return_inverse=True)[1], x)
    torch.testing.assert_close(logits[:, [0, 2, 5]], compact)


def test_probe_ignores_gradients_and_autocast():
    x, y = gaussian(60, 4, 3)
    expected = linear_probe(x, y, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_probe(x.clone().requires_grad_(), y.int(), x.clone().requires_grad_())
    assert torch.equal(found, expected)
    assert not found.requires_grad


@pytest.mark.parity("evaluate.knn_classify", against="float64 loops", tolerance=1e-12)
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (30, 1.0)])
def test_knn_sums_the_votes_of_the_nearest(k, temperature):
    x, y = gaussian(30, 6, 4)
    test = gaussian(8, 6, 4, seed=2)[0]
    expected = torch.zeros(8, 4, dtype=torch.float64)
    for i in range(8):
        cosine = [(torch.dot(test[i], x[j]) / (test[i].norm() * x[j].norm())).item() for j in range(30)]
        for j in sorted(range(30), key=lambda j: -cosine[j])[:k]:
            expected[i, y[j]] += math.exp(cosine[j] / temperature)
    votes = knn_classify(x, y, test, k=k, temperature=temperature)
    torch.testing.assert_close(votes, expected, rtol=1e-12, atol=1e-12)


def test_knn_ignores_lengths_and_survives_small_temperatures():
    x, y = gaussian(30, 6, 4)
    votes = knn_classify(x, y, x, k=3)
    torch.testing.assert_close(knn_classify(x * torch.rand(30, 1, dtype=torch.float64).add(0.1), y, 9 * x, k=3), votes)
    assert knn_classify(x.float(), y, x.float(), k=3, temperature=0.005).isfinite().all()
    assert knn_classify(x, y + 2, x, k=3)[:, :2].eq(0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knn_classify(x, y, x, k=3), votes)


def test_accuracy_counts_rows_and_ties_go_to_the_lower_index():
    logits = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 2.0]])
    assert accuracy(logits, torch.tensor([0, 0, 0])) == pytest.approx(2 / 3)
    assert accuracy(logits, torch.tensor([1, 1, 1])) == pytest.approx(1 / 3)


@pytest.mark.parity("evaluate.ridge_r2", against="scikit-learn", tolerance=1e-12)
@pytest.mark.parametrize("targets", [(), (3,)])
def test_ridge_is_scikit_learns(targets):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    y = torch.randn(50, *targets, generator=generator, dtype=torch.float64) + x[:, :1].reshape(-1, *[1] * len(targets))
    for alpha in (0.1, 10.0):
        model = Ridge(alpha=alpha).fit(x[:30].numpy(), y[:30].numpy())
        expected = r2_score(y[30:].numpy(), model.predict(x[30:].numpy()))
        assert ridge_r2(x[:30], y[:30], x[30:], y[30:], alpha=alpha) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parity("evaluate.ridge_r2", against="closed form", tolerance=1e-10)
def test_ridge_solves_the_normal_equations_with_a_free_intercept():
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(20, 3, generator=generator).double() + 2, torch.randn(20, generator=generator).double()
    centred = x - x.mean(0)
    gram = centred.T @ centred + 1.5 * torch.eye(3, dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ (y - y.mean()))
    residual = y - (centred @ weight + y.mean())
    expected = 1 - residual.square().sum() / (y - y.mean()).square().sum()
    assert ridge_r2(x, y, x, y, alpha=1.5) == pytest.approx(expected.item(), abs=1e-10)
    assert ridge_r2(torch.cat([x, x], 1), y, torch.cat([x, x], 1), y, alpha=0.0) <= 1  # repeated features: no error


@pytest.mark.parity("evaluate.standardize", against="scikit-learn", tolerance=1e-12)
def test_standardize_uses_training_statistics_only():
    x, _ = gaussian(40, 5, 2)
    x = 3 * x + 7
    x[:, 2] = 0.1  # a constant column whose mean is not exact in binary
    train, test = standardize(x[:30], x[30:])
    scaler = StandardScaler().fit(x[:30].numpy())
    torch.testing.assert_close(train, torch.from_numpy(scaler.transform(x[:30].numpy())), rtol=0, atol=1e-12)
    torch.testing.assert_close(test, torch.from_numpy(scaler.transform(x[30:].numpy())), rtol=0, atol=1e-12)
    torch.testing.assert_close(train.std(0, correction=0), torch.tensor([1.0, 1, 0, 1, 1]).double())
    assert standardize(x.float())[0].dtype == torch.float32
    assert len(standardize(x, x, x)) == 3


X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: linear_probe(X, Y[:3], X), r"train_x: expected shape \(3, D\), not empty, got \(4, 3\)"),
        (lambda: linear_probe(X, Y, X[:, :2]), r"test_x: expected shape \(N, 3\)"),
        (lambda: linear_probe(X, Y, X[0]), "test_x"),
        (lambda: linear_probe(X, 0 * Y, X), r"train_y: expected two classes or more, got \[0\]"),
        (lambda: linear_probe(X, Y - 1, X), "train_y: expected labels >= 0, got -1"),
        (lambda: linear_probe(X, Y[:, None], X), "train_y: expected shape"),
        (lambda: linear_probe(X, Y, X, C=0), "C: expected > 0, got 0"),
        (lambda: linear_probe(X, Y, X, max_iter=0), "max_iter"),
        (lambda: linear_probe(X / 0, Y, X), "finite"),
        (lambda: linear_probe(X[:0], Y[:0], X), "train_x"),
        (lambda: knn_classify(X, Y, X, k=5), r"k: expected a number in \[1, 4\], got 5"),
        (lambda: knn_classify(X, Y, X, k=0), "k: expected"),
        (lambda: knn_classify(X, Y[:2], X, k=1), "train_x: expected shape"),
        (lambda: knn_classify(X, Y, X[:, :1], k=1), "test_x: expected shape"),
        (lambda: knn_classify(X, Y, X, k=1, temperature=0), "temperature"),
        (lambda: accuracy(X, Y[:3]), "logits: expected shape"),
        (lambda: accuracy(X[:0], Y[:0]), "logits"),
        (lambda: ridge_r2(X, Y[:3], X, Y), "train_x: expected shape"),
        (lambda: ridge_r2(X, Y, X, Y[:3]), "test_x: expected shape"),
        (lambda: ridge_r2(X, Y, X, X), r"train_y, test_y: expected shapes .* got \(4,\) and \(4, 3\)"),
        (lambda: ridge_r2(X, Y, X[:1], Y[:1]), "two rows"),
        (lambda: ridge_r2(X, Y, X, Y, alpha=-1.0), "alpha"),
        (lambda: standardize(X[0]), r"train: expected shape \(N, D\)"),
        (lambda: standardize(X, X[:, :2]), r"others\[0\]: expected shape \(N, 3\)"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words), np.errstate(all="ignore"):
        make()


def test_labels_must_be_integers():
    with pytest.raises(TypeError, match="train_y: expected integers, got torch.float32"):
        linear_probe(X, Y.float(), X)
