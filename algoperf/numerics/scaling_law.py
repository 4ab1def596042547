"""The scaling law of low precision: what a recipe costs in parameters and in data.

    L(N, D) = (A / (N effN)^alpha + B / (D effD)^beta)^gamma + E

for N parameters trained on D tokens (Panferov et al. 2025, arXiv:2505.14669, section
4.1, Quartet; the form with gamma is Busbridge et al. 2025, arXiv:2502.08606). The
baseline has effN = effD = 1; a recipe with effN = 0.6 is as good as the baseline with
0.6 times the parameters. As there, the law is fitted to the baseline's runs first, then
both efficiencies to each recipe's.
"""

import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from algoperf.errors import UserError

HUBER = 1e-3  # of the logarithm of the loss (Hoffmann et al. 2022, arXiv:2203.15556)
LAW_PARAMETERS = 6
EXPONENTS = (0.02, 3.0)  # between which alpha, beta and gamma are looked for
EFFICIENCIES = (1e-4, 1e2)
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Observation:
    """One run: parameters N, tokens D, final loss in nats, and the recipe."""

    parameters: float
    tokens: float
    loss: float
    recipe: str


@dataclasses.dataclass(frozen=True)
class Law:
    """The law of the baseline; names as in the formula."""

    a: float
    alpha: float
    b: float
    beta: float
    gamma: float
    e: float

    def loss(
        self,
        parameters: Any,
        tokens: Any,
        parameter_efficiency: Any = 1.0,
        data_efficiency: Any = 1.0,
    ) -> Any:
        """Returns L(N, D); arguments broadcast."""
        of_model = (
            self.a / (np.asarray(parameters) * parameter_efficiency) ** self.alpha
        )
        of_data = self.b / (np.asarray(tokens) * data_efficiency) ** self.beta
        return (of_model + of_data) ** self.gamma + self.e


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """What a recipe keeps, and how well the law fits its runs.

    Attributes:
      parameters, data: effN and effD; NaN where a run of the recipe diverged and the
        baseline's of that size and budget did not, for those that are left are the
        ones in which the recipe does well.
      error: the root mean square of the residuals of log L; NaN there too.
      used: the runs that it is fitted to, those with a finite loss.
      made: all runs of the recipe.
    """

    parameters: float
    data: float
    error: float
    used: int
    made: int


@dataclasses.dataclass(frozen=True)
class Fit:
    """The law, and the efficiency of each recipe, of the baseline 1 and 1."""

    law: Law
    efficiencies: Mapping[str, Efficiency]


def fit(
    observations: Iterable[Observation], baseline: str, near: Law | None = None
) -> Fit:
    """Fits the law to the baseline's runs, then each recipe's efficiencies.

    Least squares with Huber's loss on residuals of log L, from many starts; exponents
    stay in EXPONENTS. One that ends there says that the runs do not tell it. With
    `near`, a law that is close, from there alone. Runs whose loss is not finite are
    left out, and counted.

    Raises:
      UserError: the baseline has fewer than 7 runs or fewer than 3 sizes or budgets,
        or a recipe has fewer than 3.
    """
    groups: dict[str, list[Observation]] = {}
    for one in observations:
        groups.setdefault(one.recipe, []).append(one)
    made = groups.get(baseline, [])
    base = [one for one in made if np.isfinite(one.loss)]
    sizes, budgets = ({getattr(o, k) for o in base} for k in ("parameters", "tokens"))
    if len(base) <= LAW_PARAMETERS or min(len(sizes), len(budgets)) < 3:
        raise UserError(
            f"the law has 6 parameters, and {baseline} has {len(base)} finite runs of "
            f"{len(sizes)} sizes and {len(budgets)} budgets; give at least 7, of 3 each"
        )
    law, error = fit_law(base, near)
    found = {baseline: Efficiency(1.0, 1.0, error, len(base), len(made))}
    for recipe, own in groups.items():
        if recipe != baseline:
            found[recipe] = fit_efficiency(law, own, {_place(one) for one in base})
    return Fit(law, found)


def _place(one: Observation) -> tuple[float, float]:
    return one.parameters, one.tokens


def intervals(
    observations: Sequence[Observation], baseline: str, fitted: Fit
) -> dict[str, tuple[Interval, Interval]]:
    """Returns 95 % intervals of effN and effD of each recipe but the baseline.

    `fitted` is what `fit` gave of the same observations.
    The jackknife over places (N, D) of the grid (Efron and Stein 1981), Student's t on
    logarithms: each is left out in turn, of the baseline too, so that the law's own
    uncertainty is in them. NaN where so few are left that nothing can be fitted, and
    for a recipe without efficiencies.
    """
    unknown = math.nan, math.nan
    result: dict[str, tuple[Interval, Interval]] = {
        name: (unknown, unknown) for name in fitted.efficiencies if name != baseline
    }
    whole = _logarithms(fitted, baseline)
    told = [one for one in observations if one.recipe in (baseline, *whole)]
    parts = []
    for place in sorted({_place(one) for one in told}):
        rest = [one for one in told if _place(one) != place]
        try:
            found = fit(rest, baseline, near=fitted.law)
        except UserError:
            return result
        parts.append(_logarithms(found, baseline))
    for name, center in whole.items():
        half = half_widths(np.array([part[name] for part in parts]))
        low, high = np.exp(center - half), np.exp(center + half)
        of_model, of_data = zip(low.tolist(), high.tolist(), strict=True)
        result[name] = of_model, of_data
    return result


def half_widths(parts_PK: np.ndarray) -> np.ndarray:
    """Returns half of the 95 % intervals (K,), of estimates that lack a place each."""
    from scipy.stats import t as student

    number = len(parts_PK)
    squares = np.square(parts_PK - parts_PK.mean(axis=0)).sum(axis=0)
    error = np.sqrt((number - 1) / number * squares)
    return student.ppf(0.975, number - 1) * error


def _logarithms(found: Fit, baseline: str) -> dict[str, np.ndarray]:
    """Returns log effN and log effD of the recipes that have them."""
    return {
        name: np.log([one.parameters, one.data])
        for name, one in found.efficiencies.items()
        if name != baseline and not math.isnan(one.data)
    }


def fit_law(own: Sequence[Observation], near: Law | None = None) -> tuple[Law, float]:
    """Returns the law of these runs, and the root mean square of log residuals."""
    n, d, loss = _arrays(own)
    n_mid, d_mid = (np.exp(np.mean(np.log(x))) for x in (n, d))
    least = loss.min()

    def law_of(theta: np.ndarray) -> Law:
        log_a, log_b, log_alpha, log_beta, log_gamma, logit_e = theta
        alpha, beta, gamma = np.exp([log_alpha, log_beta, log_gamma])
        # Both terms at the middle of the runs are optimised: they are well known.
        return Law(
            a=np.exp(log_a) * n_mid**alpha,
            alpha=alpha,
            b=np.exp(log_b) * d_mid**beta,
            beta=beta,
            gamma=gamma,
            e=least / (1 + np.exp(-logit_e)),
        )

    def theta_of(law: Law) -> np.ndarray:
        terms = law.a / n_mid**law.alpha, law.b / d_mid**law.beta
        share = law.e / least
        return np.log([*terms, law.alpha, law.beta, law.gamma, share / (1 - share)])

    starts = _starts(loss) if near is None else [theta_of(near)]
    exponents = np.log([EXPONENTS] * 3)
    bounds = np.array([(-50.0, 50.0)] * 2 + [*exponents] + [(-8.0, 8.0)]).T
    theta = _best(lambda t: np.log(law_of(t).loss(n, d) / loss), starts, bounds)
    law = Law(*(float(value) for value in dataclasses.astuple(law_of(theta))))
    return law, _rms(np.log(law.loss(n, d) / loss))


def _starts(loss: np.ndarray) -> list[list[float]]:
    """Returns laws as `fit_law` has them, at which a fit of these losses may begin."""
    starts = []
    for alpha, beta, gamma, share in itertools.product(
        (0.3, 0.8), (0.3, 0.8), (0.3, 1.0), (0.3, 0.8)
    ):
        excess = (np.median(loss) - share * loss.min()) ** (1 / gamma) / 2
        logs = np.log([excess, excess, alpha, beta, gamma])
        starts.append([*logs, np.log(share / (1 - share))])
    return starts


def fit_efficiency(
    law: Law, made: Sequence[Observation], places: Collection[tuple[float, float]]
) -> Efficiency:
    """Returns effN and effD of a recipe's runs under a law.

    Args:
      law: of the baseline.
      made: the runs of one recipe.
      places: (N, D) of the baseline's runs with a finite loss.

    Raises:
      UserError: there are fewer than 3, though none is lost.
    """
    own = [one for one in made if np.isfinite(one.loss)]
    lost = [one for one in made if not np.isfinite(one.loss)]
    counts = len(own), len(made)
    if any(_place(one) in places for one in lost):
        return Efficiency(math.nan, math.nan, math.nan, *counts)
    if len(own) < 3:
        raise UserError(
            f"{made[0].recipe} has {len(own)} finite runs; effN and effD need at least "
            "3"
        )
    n, d, loss = _arrays(own)

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.log(law.loss(n, d, *np.exp(theta)) / loss)

    starts = [
        list(pair) for pair in itertools.product(np.log([0.05, 0.3, 0.9]), repeat=2)
    ]
    bounds = np.log([EFFICIENCIES] * 2).T
    theta = _best(residuals, starts, bounds)
    parameters, data = map(float, np.exp(theta))
    return Efficiency(parameters, data, _rms(residuals(theta)), *counts)


def _arrays(own: Sequence[Observation]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = zip(*((o.parameters, o.tokens, o.loss) for o in own), strict=True)
    n, d, loss = (np.array(column, np.float64) for column in columns)
    return n, d, loss


def _best(residuals: Any, starts: Sequence[Any], bounds: np.ndarray) -> np.ndarray:
    """Returns the parameters with the least Huber loss that any start leads to."""
    from scipy.optimize import least_squares

    def finite(theta: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.nan_to_num(residuals(theta), nan=1e3, posinf=1e3, neginf=-1e3)

    options: Any = {"loss": "huber", "f_scale": HUBER, "x_scale": "jac"}
    options |= {"max_nfev": 2000, "xtol": 1e-12, "ftol": 1e-12}
    found = [
        least_squares(finite, np.clip(start, *bounds), bounds=bounds, **options)
        for start in starts
    ]
    return min(found, key=lambda result: result.cost).x


def _rms(residuals: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(residuals))))
