"""scikit-learn estimators on the solver: linear readouts of rows of features, with a certificate.

scikit-learn is optional, so the package imports this file only on demand.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .convex import Logistic, Loss, Solution, make_loss, solve
from .errors import DataError, OptionError
from .options import Options
from .stages.stream import Split
from .stages.strength import Samples, choose_strength

try:
    from scipy.sparse import issparse
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    found = f"no scikit-learn that can be used ({error})"
    raise OptionError(found, "scikit-learn 1.7 or later", "pip install 'scikit-learn>=1.7'") from error

_EACH = 5  # one row of so many is held out to choose the strength, as in the default of convex_init_
_PRODUCTS = 2  # of an epoch of gradient descent: scores of all rows, and the gradient


class _Readout(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Parameters, fit and scores that classifier and regressor share."""

    _reads: ClassVar[dict[str, bool]] = {}  # options by which scikit-learn checks rows and targets
    _usual: ClassVar[str]  # the loss that "auto" stands for
    _fix: ClassVar[str]  # what to type for a loss of another kind

    def __init__(
        self,
        loss: str | Loss = "auto",
        *,
        penalty: str = "ridge",
        strength: float | str = "auto",
        tol: float = 1e-6,
        solver: str = "auto",
        max_cost: float = math.inf,
        random_state: Any = 0,
    ) -> None:
        self.loss, self.penalty, self.strength = loss, penalty, strength
        self.tol, self.solver, self.max_cost, self.random_state = tol, solver, max_cost, random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Solve the program on rows X (n, P) with targets y, and weights (n,); rows of weight zero take no part."""
        device = X.device if isinstance(X, Tensor) else torch.device("cpu")
        X, y = validate_data(self, _as_array(X), _as_array(y), accept_sparse="csr", **self._reads)
        weights = _checked_weights(np.ones(len(y)) if sample_weight is None else _as_array(sample_weight), len(y))
        kept = slice(None) if weights.all() else weights > 0
        X, y, weights = X[kept], y[kept], weights[kept]
        loss = self._loss
        if loss.fits_values != make_loss(self._usual).fits_values:
            kind = "classes" if loss.fits_values else "values"
            raise OptionError(f"loss={loss.name!r} for {kind}", f"a loss of {kind}", self._fix)
        targets, loss, outputs = self._prepare(y, weights)
        rows, wanted, shares = (_as_tensor(values, device) for values in (X, targets, weights))
        solution = self._solve(Samples(rows, wanted, 1.0, outputs, weights=shares), loss)
        self.certificate_, self.n_iter_ = solution.certificate, solution.statistics.iterations
        if not solution.certificate.reached:
            warnings.warn(solution.outcome.value, ConvergenceWarning, stacklevel=2)
        self._keep(solution.weight.cpu().numpy(), solution.bias.cpu().numpy())
        return self

    @property
    def _loss(self) -> Loss:
        return make_loss(self._usual if isinstance(self.loss, str) and self.loss == "auto" else self.loss)

    def _solve(self, samples: Samples, loss: Loss) -> Solution:
        given = {name: getattr(self, name) for name in ("penalty", "strength", "solver", "tol")}
        options = Options(max_cost=self.max_cost, **given)  # an invalid value is refused here
        most, rows, self.path_ = _PRODUCTS * options.max_cost, samples.features, None
        if isinstance(self.strength, str) and not torch.equal(rows.amin(0), rows.amax(0)):
            split = _hold_out(samples.targets.cpu(), check_random_state(self.random_state))
            problem, self.path_, finish = choose_strength(samples, split, loss, options, max_products=most)
            self.strength_ = problem.strength
            return finish()
        self.strength_ = 1.0 if isinstance(self.strength, str) else float(self.strength)  # constant features: any will do
        problem = samples.problem(loss, options.penalty).with_strength(self.strength_)
        return solve(problem, solver=self.solver, tol=self.tol, max_products=most)

    def _scores(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, _as_array(X), accept_sparse="csr", reset=False) @ self.coef_.T + self.intercept_

    def to_linear(self) -> nn.Linear:
        """Return the solution as a layer of torch's default precision; for two classes it has one output."""
        check_is_fitted(self)
        weight, bias = torch.from_numpy(np.atleast_2d(self.coef_)), torch.from_numpy(np.atleast_1d(self.intercept_))
        layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device="cpu")  # draws no random numbers
        layer.load_state_dict({"weight": weight, "bias": bias})
        return layer

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse, tags.target_tags.multi_output = True, self._reads.get("multi_output", False)
        return tags


class ReadoutClassifier(ClassifierMixin, _Readout):  # type: ignore[misc]
    """Linear classifier whose fit comes with a bound on its distance to the optimum.

    ``fit``, ``predict`` and ``score`` take arrays, data frames, tensors and SciPy sparse matrices, which ``fit`` makes dense.
    ``fit`` solves on a tensor's device.  Results are NumPy arrays.  A fit that misses ``tol`` gives a ConvergenceWarning.

    Args:
        loss: a loss of classes in ``convex.LOSSES`` by name, such as "cross_entropy" or "hinge", or a ``convex.Loss``; "auto"
            (default) is the squared hinge.  Cross-entropy and logistic loss have probabilities.
        penalty: "ridge" (default), "group_l1" (drops whole features) or another name in ``convex.PENALTIES``.
        strength: factor of the penalty, a positive number: 1 / (n C) for LogisticRegression's C.  "auto" (default) takes the best
            of a path by the loss on a fifth of the rows, then fits all.  "one_se" takes the largest one within a standard error.
        tol: relative duality gap to reach; default 1e-6.
        solver: as for ``convex.solve``; default "auto".
        max_cost: bound on the work of path and solution together, in epochs of gradient descent on all rows; default none.
        random_state: int (default 0), RandomState or None, for the draw of the held-out rows.

    Attributes:
        coef_, intercept_: weights (C, P) and biases (C,), float64; one row for two classes.
        classes_: labels (C,) in ascending order.
        certificate_: bound on the distance to the optimum, a ``Certificate``.
        strength_, path_: strength that was used, and its ``convex.Path``; None for a given strength.
        n_iter_: iterations of the last solve.

    Raises:
        OptionError: in ``fit``, an unknown name, or a number out of range.
        DataError: in ``fit``, rows, labels or weights that can't be used.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from snn_recon_plugin import ReadoutClassifier
        >>> images, labels = load_digits(return_X_y=True)
        >>> model = ReadoutClassifier().fit(images[::2], labels[::2])
        >>> model.certificate_.reached, bool(model.score(images[1::2], labels[1::2]) > 0.94)
        (True, True)
    """

    _usual, _fix = "squared_hinge", "pass loss='squared_hinge', or use ReadoutRegressor"

    def _prepare(self, y: Any, weights: Any) -> tuple[Any, Loss, int]:
        loss = self._loss
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        count = len(self.classes_)
        if count < 2:
            raise DataError("labels of one class", "at least two classes", "pass rows of all classes, with weights above zero")
        if count == 2 and loss.name == "cross_entropy":
            loss = Logistic()  # the same loss of one score, at the strength of LogisticRegression
        return labels, loss, count if count > 2 or loss.softmax else 1

    def _keep(self, weight: Any, bias: Any) -> None:
        pair = len(weight) == 2  # of a softmax of two classes, whose difference decides
        self.coef_, self.intercept_ = (np.diff(weight, axis=0), np.diff(bias)) if pair else (weight, bias)

    def decision_function(self, X: Any) -> Any:
        """Return the scores of rows X (n, P): (n, C), or (n,) for two classes, above 0 for the second one."""
        scores = self._scores(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> Any:
        """Return the class of each row of X (n, P), (n,)."""
        scores = self.decision_function(X)
        return self.classes_[scores.argmax(1) if scores.ndim > 1 else (scores > 0).astype(int)]

    @available_if(lambda self: self._loss.has_temperature)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class, (n, C); only with ``loss="cross_entropy"`` or "logistic"."""
        scores = torch.from_numpy(self._scores(X))
        if scores.shape[1] == 1:
            return torch.sigmoid(torch.cat([-scores, scores], 1)).numpy()
        separate = nn.functional.normalize(torch.sigmoid(scores), p=1)  # one class against the rest
        return (torch.softmax(scores, 1) if self._loss.softmax else separate).numpy()


class ReadoutRegressor(RegressorMixin, _Readout):  # type: ignore[misc]
    """Linear regression whose fit comes with a bound on its distance to the optimum.

    Parameters, attributes and errors are those of ``ReadoutClassifier``, but for these.

    Args:
        loss: a loss of values in ``convex.LOSSES`` by name, such as "huber", or a ``convex.Loss``; "auto" (default) is "squared".

    Attributes:
        coef_, intercept_: weights (P,) and a number, float64; (K, P) and (K,) for targets (n, K).

    Example:
        >>> from sklearn.datasets import load_diabetes
        >>> from snn_recon_plugin import ReadoutRegressor
        >>> X, y = load_diabetes(return_X_y=True)
        >>> round(ReadoutRegressor().fit(X, y).score(X, y), 1)
        0.5
    """

    _reads: ClassVar[dict[str, bool]] = {"multi_output": True, "y_numeric": True}
    _usual, _fix = "squared", "pass loss='squared', or use ReadoutClassifier"

    def _prepare(self, y: Any, weights: Any) -> tuple[Any, Loss, int]:
        self._centre = np.average(y, axis=0, weights=weights)  # gaps are relative to the loss of zero scores
        return np.asarray(y - self._centre, dtype=np.float64), self._loss, 1 if y.ndim == 1 else y.shape[1]

    def _keep(self, weight: Any, bias: Any) -> None:
        self.coef_, intercept = (weight, bias) if np.ndim(self._centre) else (weight[0], bias[0])
        self.intercept_ = intercept + self._centre

    def predict(self, X: Any) -> Any:
        """Return the values at rows X (n, P), (n,) or (n, K)."""
        return self._scores(X)


def _as_array(values: Any) -> Any:
    if isinstance(values, Tensor):
        dense = values.detach().cpu().to_dense()
        return (dense.float() if dense.dtype is torch.bfloat16 else dense).numpy()
    return values


def _as_tensor(rows: Any, device: torch.device) -> Tensor:
    """Return rows as a dense tensor, of the same memory where torch can use it."""
    dense = rows.toarray() if issparse(rows) else rows
    dtype = np.dtype(np.float64) if dense.dtype.kind == "u" and dense.dtype.itemsize > 1 else dense.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(dense, dtype, ["C", "W"])).to(device)


def _checked_weights(weights: Any, count: int) -> Any:
    checked = np.asarray(weights, dtype=np.float64)
    if checked.shape != (count,) or not np.isfinite(checked).all() or (checked < 0).any() or not checked.any():
        found = f"sample_weight of shape {checked.shape} with {int((checked > 0).sum())} values above zero"
        raise DataError(found, f"{count} finite weights, none below zero, at least one above", "pass one weight a row")
    return checked


def _hold_out(targets: Tensor, random: Any) -> Split:
    """Draw one row of ``_EACH`` to hold out, of each class alike; one row of each class is always fitted."""
    groups = np.zeros(len(targets), dtype=int) if targets.is_floating_point() else targets.numpy()
    order = random.permutation(len(groups))
    order = order[np.argsort(groups[order], kind="stable")]
    held = order[np.diff(groups[order], prepend=-1) == 0][::_EACH]
    if not len(held):
        needed = "a class of two rows, one of them to choose the strength"
        raise DataError(f"{len(groups)} rows, each of another class", needed, "pass a number as strength")
    return Split(torch.from_numpy(np.setdiff1d(order, held)), torch.from_numpy(np.sort(held)))
