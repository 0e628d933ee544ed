"""What a frozen representation knows: linear probe, nearest neighbours, ridge regression."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor


def _check_matrix(name: str, x: Tensor, *, rows: int | None = None, columns: int | None = None) -> None:
    fits = x.ndim == 2 and rows in (None, len(x)) and columns in (None, x.shape[1])
    if not fits or x.numel() == 0:
        expected = f"({rows or 'N'}, {columns or 'D'})"
        raise ValueError(f"{name}: expected shape {expected}, not empty, got {tuple(x.shape)}")


def _check_labels(name: str, labels: Tensor) -> None:
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name}: expected integers, got {labels.dtype}")
    if labels.ndim != 1:
        raise ValueError(f"{name}: expected shape (N,), got {tuple(labels.shape)}")
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"{name}: expected labels >= 0, got {int(labels.min())}")


def _float64(x: Tensor) -> Tensor:
    """In double precision, on the same device where that has it."""
    return x.detach().to("cpu" if x.device.type == "mps" else x.device).double()


def linear_probe(train_x: Tensor, train_y: Tensor, test_x: Tensor, *, C: float = 1.0, max_iter: int = 500) -> Tensor:
    """The logits of a multinomial logistic regression that was fitted to convergence: scikit-learn's optimum.

    Minimises `C * sum_i CE(W x_i + b, y_i) + |W|^2 / 2`, the bias unpenalised, by SciPy's L-BFGS in float64. C
    multiplies the sum of the losses, not their mean. With two classes scikit-learn keeps one weight vector instead of
    two, which counts the penalty twice; that is followed here.

    scikit-learn hands the features to L-BFGS as they are, and may need thousands of iterations. The same optimum is
    found in tens after a rotation to principal axes, which |W| does not see, a shift, which the bias absorbs, and a
    rescaling of the unknowns by the diagonal of the Hessian. Standardise the features first if that is wanted.

    Args:
        train_x: (N, D) features.
        train_y: (N,) integer labels from 0.
        test_x: (M, D) features.
        C: inverse strength of the penalty.
        max_iter: most iterations; a RuntimeWarning says if they were not enough.

    Returns:
        (M, K) float64, K = largest label + 1. A label that never occurs has the logit -inf, which is its optimum.

    Raises:
        ValueError: shapes that do not fit, one class only, C <= 0, max_iter < 1, features that are not finite.
    """
    _check_labels("train_y", train_y)
    _check_matrix("train_x", train_x, rows=len(train_y))
    _check_matrix("test_x", test_x, columns=train_x.shape[1])
    if not C > 0:
        raise ValueError(f"C: expected > 0, got {C}")
    if max_iter < 1:
        raise ValueError(f"max_iter: expected >= 1, got {max_iter}")
    x, test = _float64(train_x), _float64(test_x)
    if not (x.isfinite().all() and test.isfinite().all()):
        raise ValueError("train_x, test_x: expected finite features, got nan or inf")
    classes, y = torch.unique(train_y.to(x.device), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"train_y: expected two classes or more, got {classes.tolist()}")
    strength = C / 2 if len(classes) == 2 else C

    mean = x.mean(0)
    x, test = _principal_axes(x - mean, test - mean)
    x, test = F.pad(x, (0, 1), value=1.0), F.pad(test, (0, 1), value=1.0)
    weight = _fit(x, F.one_hot(y).double(), strength, max_iter)
    logits = test.new_full((len(test), int(classes[-1]) + 1), -torch.inf)
    logits[:, classes] = test @ weight
    return logits


def _principal_axes(x: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both in an orthonormal basis of the row space of x, one in which x^T x is diagonal."""
    if len(x) >= x.shape[1]:
        basis = torch.linalg.eigh(x.mT @ x).eigenvectors
    else:
        values, vectors = torch.linalg.eigh(x @ x.mT)
        # directions without any variance carry no weight at the optimum
        keep = values > 1e-12 * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
        basis = x.mT @ (vectors[:, keep] / values[keep].sqrt())
    return x @ basis, test @ basis


def _fit(x: Tensor, onehot: Tensor, strength: float, max_iter: int) -> Tensor:
    """The optimal weights, (D + 1, K), the last row being the bias; the last column of x is 1."""
    from scipy.optimize import minimize

    xt = x.mT.contiguous()
    squares = xt.square()
    penalty = x.new_ones(x.shape[1], 1)
    penalty[-1] = 0
    shape = (x.shape[1], onehot.shape[1])

    def objective(unknowns, scale):
        weight = scale * torch.from_numpy(unknowns).to(x.device).view(shape)
        log_p = (x @ weight).log_softmax(1)
        shrunk = penalty * weight
        loss = 0.5 * (shrunk * weight).sum() - strength * (log_p * onehot).sum()
        gradient = scale * (strength * (xt @ (log_p.exp() - onehot)) + shrunk)
        return loss.item(), gradient.flatten().cpu().numpy()

    weight, used = x.new_zeros(shape), 0
    for tolerance in (1e-1, 1e-3, 1e-6):  # a rough solution first: the Hessian there gives the scale of the next
        p = (x @ weight).softmax(1)
        curvature = strength * (squares @ (p * (1 - p)).mean(1, keepdim=True)) + penalty
        scale = (curvature + 1e-9 * strength * len(x)).rsqrt()
        options = {"maxiter": max_iter - used, "maxfun": 20 * max_iter, "maxcor": 20, "gtol": tolerance, "ftol": 0}
        start = (weight / scale).flatten().cpu().numpy()
        result = minimize(objective, start, args=(scale,), jac=True, method="L-BFGS-B", options=options)
        weight = scale * torch.from_numpy(result.x).to(x.device).view(shape)
        used += result.nit
        if used >= max_iter:
            break
    residual = abs(result.jac).max()
    # in these coordinates the gradient is about the distance to the optimum; rounding may end the search before 1e-6
    if residual > 1e-3:
        message = f"linear_probe: not converged after {used} iterations (gradient {residual:.1g}); raise max_iter"
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return weight


@torch.no_grad()
def knn_classify(train_x: Tensor, train_y: Tensor, test_x: Tensor, *, k: int = 20, temperature: float = 0.07) -> Tensor:
    """The votes of the k nearest neighbours by cosine similarity s, each of weight exp(s / temperature).

    As in Wu et al. 2018, Sec. 3.4.

    Args:
        train_x: (N, D) features.
        train_y: (N,) integer labels from 0.
        test_x: (M, D) features.
        k: number of neighbours.
        temperature: of the weights.

    Returns:
        (M, K) float64, the summed weights of each class, K = largest label + 1.

    Raises:
        ValueError: shapes that do not fit, k outside [1, N], temperature <= 0.
    """
    _check_labels("train_y", train_y)
    _check_matrix("train_x", train_x, rows=len(train_y))
    _check_matrix("test_x", test_x, columns=train_x.shape[1])
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k: expected a number in [1, {len(train_x)}], got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected > 0, got {temperature}")
    bank, queries = F.normalize(_float64(train_x), dim=1), F.normalize(_float64(test_x), dim=1)
    classes = int(train_y.max()) + 1
    votes = []
    # bounded memory: at most 2**25 similarities, 256 MB, at a time
    for rows in queries.split(max(1, 2**25 // len(bank))):
        similarity, nearest = (rows @ bank.mT).topk(k, dim=1)
        votes.append(
            similarity.new_zeros(len(rows), classes).scatter_add_(
                1, train_y.to(bank.device)[nearest], (similarity / temperature).exp()
            )
        )
    return torch.cat(votes)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of rows (N, K) whose largest entry, ties to the lower index, is the label (N,).

    Raises:
        ValueError: shapes that do not fit, or no row.
    """
    _check_labels("labels", labels)
    _check_matrix("logits", logits, rows=len(labels))
    return (logits.argmax(1) == labels).double().mean().item()


def ridge_r2(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, alpha: float = 1.0) -> float:
    """R^2 on the test rows of scikit-learn's ridge regression, the mean over targets.

    1 is a perfect prediction, 0 is no better than the mean of the test targets.

    Args:
        train_x: (N, D) features.
        train_y: (N,) or (N, T) targets.
        test_x: (M, D) features.
        test_y: (M,) or (M, T) targets.
        alpha: strength of the penalty, which is added to the sum of squared errors.

    Raises:
        ValueError: shapes that do not fit, fewer than two test rows, alpha < 0.
    """
    _check_matrix("train_x", train_x, rows=len(train_y))
    _check_matrix("test_x", test_x, rows=len(test_y), columns=train_x.shape[1])
    if train_y.ndim not in (1, 2) or train_y.shape[1:] != test_y.shape[1:]:
        got = f"{tuple(train_y.shape)} and {tuple(test_y.shape)}"
        raise ValueError(f"train_y, test_y: expected shapes (N,) and (M,), or (N, T) and (M, T), got {got}")
    if len(test_y) < 2:
        raise ValueError(f"test_y: expected two rows at least, got {len(test_y)}")
    if not alpha >= 0:
        raise ValueError(f"alpha: expected >= 0, got {alpha}")
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score

    fit_x, fit_y, x, y = (t.detach().cpu().double().numpy() for t in (train_x, train_y, test_x, test_y))
    # the singular value decomposition also answers where features repeat each other
    return float(r2_score(y, Ridge(alpha=alpha, solver="svd").fit(fit_x, fit_y).predict(x)))


@torch.no_grad()
def standardize(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All tensors shifted and scaled so that each column of the first has mean 0 and (population) deviation 1.

    A constant column is only shifted. Statistics come from `train` alone, so nothing leaks from a test set.

    Args:
        train: (N, D).
        others: (M, D) each.

    Returns:
        As many tensors as were given, of their own dtypes.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_matrix("train", train)
    for i, other in enumerate(others):
        _check_matrix(f"others[{i}]", other, columns=train.shape[1])
    x = _float64(train)
    mean, std = x.mean(0), x.std(0, correction=0)
    # rounding leaves a constant column a deviation of a few units in the last place of its mean
    std = std.where(std > 10 * torch.finfo(x.dtype).eps * mean.abs(), 1)
    return tuple(((_float64(t) - mean) / std).to(t) for t in (train, *others))
