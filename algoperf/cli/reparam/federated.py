"""The federated study: a public model, experts trained apart, mixtures of any ranks.

Part of `algoperf reparam`.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from algoperf import records
from algoperf.cli.reparam import federated_report as report
from algoperf.cli.reparam import training
from algoperf.errors import UserError, unknown_name

if TYPE_CHECKING:
    from algoperf.trials import TrialConfig
    from algoperf.workload import Workload

EXPERT_SHARE = 0.5  # of the public model's steps
# Of experts; all else is the public model's. They go on at a lower rate. Decay would
# shrink the public matrices too: a difference of full rank that nobody learnt.
EXPERT = {"learning_rate": 0.003, "weight_decay": 0.0}
MIXTURES_SEC = 80.0  # of evaluating a study's mixtures, for the estimate
MOMENT_BATCHES = 32  # of training data, for a row of the router
SPLITS = ("validation", "test")  # together: a domain has few sequences in either
TOP_K = {report.TOP: 2, report.FULL_TOP: 2}  # experts of a token; else all are mixed


class Parties(NamedTuple):
    """The trained models of one study."""

    domains: "Mapping[str, Workload]"
    params: list[Any]  # of each domain, the public one's first
    joint: Any  # params of the model that saw all domains, in as many steps

    @property
    def workload(self) -> "Workload":
        """The public one; all have the same model and loss."""
        return next(iter(self.domains.values()))


def study(values: flags.FlagValues, base: "Workload", axis: Sequence[float]) -> int:
    """Trains what is missing, merges at each rank, writes; returns an exit status."""
    import jax

    from algoperf.data.apart import HasDomains

    ranks = _ranks(axis)
    for name in values.series or ():
        if name not in report.SERIES:
            raise unknown_name("series", name, report.SERIES)
    domains = base.by_domain() if isinstance(base, HasDomains) else {}
    if len(domains) < 2:
        raise UserError(
            f"{base.name} does not tell domains of its data apart, and the federated "
            "study needs two; finewebedu_lm at scale mini does"
        )
    planned = {name: training.planned(w, values) for name, w in domains.items()}
    joint = _joint(training.planned(base, values), list(planned.values()))
    first = next(iter(planned.values()))
    fresh, _ = first.init_model_fn(jax.random.PRNGKey(0))

    def runs_of(number: int, public: Any) -> "list[TrialConfig]":
        return _runs(values, planned, joint, number, public)

    everything = [run for i in range(values.studies) for run in runs_of(i, fresh)]
    training.announce(everything, values.studies * MIXTURES_SEC)
    rows: list[dict[str, Any]] = []
    for number in range(values.studies):
        runs = _trained(functools.partial(runs_of, number))
        if runs is None:
            return 1
        found = _bad(runs) or _rows(values, _parties(planned, runs), ranks)
        rows += [{"study": number, **row} for row in found]
    report.write(values, rows, planned)
    return 1 if any(row["status"] != report.EVALUATED for row in rows) else 0


def _ranks(axis: Sequence[float]) -> list[int]:
    if any(x < 1 or x != int(x) for x in axis):
        raise UserError("--values of the federated study are ranks: whole numbers")
    return sorted({int(x) for x in axis})


def _joint(whole: "Workload", planned: "Sequence[Workload]") -> "Workload":
    """Returns the workload on all domains, in the steps of all parties together."""
    _, *others = planned
    steps = planned[0].step_hint + sum(map(_expert_steps, others))
    return training.with_steps(whole, steps)


def _expert_steps(planned: "Workload") -> int:
    return max(1, round(EXPERT_SHARE * planned.step_hint))


def _runs(
    values: flags.FlagValues,
    planned: "Mapping[str, Workload]",
    joint: "Workload",
    study: int,
    public: Any,
) -> "list[TrialConfig]":
    """Returns the runs of all parties, then that of all domains together.

    The first is the public model's; the experts start from its params, `public`.
    """
    from algoperf import study_submissions

    first, *others = planned.values()
    adamw, point = training.load("adamw"), training.point("adamw")
    runs = [training.config(values, first, adamw, point, study)]
    for whole in others:
        workload = training.with_steps(whole, _expert_steps(whole))
        expert = study_submissions.expert("expert", public)
        runs.append(training.config(values, workload, expert, point | EXPERT, study))
    return [*runs, training.config(values, joint, adamw, point, study)]


def _trained(
    runs_of: "Callable[[Any], list[TrialConfig]]",
) -> "list[TrialConfig] | None":
    """Trains the models that are missing; returns all runs, None if asked to stop.

    Without a public model there is nothing to go on with: then its run alone.

    Args:
      runs_of: what the study's runs are, from the params of the public model.
    """
    first, *_ = runs_of(None)  # experts of nothing: not made
    if not training.make([first]):
        return None
    if _bad([first]):
        return [first]
    runs = runs_of(training.restored(first)[0])
    return runs if training.make(runs) else None


def _bad(runs: "Sequence[TrialConfig]") -> list[dict[str, Any]]:
    """Returns a row for each run that failed or diverged, whose study is left out."""
    from algoperf.reparam import studies

    found = []
    for run in runs:
        status = records.read_record(run.folder)["status"]
        if status in studies.BAD:
            name = f"{run.submission.name} on {run.workload.name}"
            found.append({"series": name, "status": str(status)})
    return found


def _parties(
    planned: "Mapping[str, Workload]", runs: "Sequence[TrialConfig]"
) -> Parties:
    *own, joint = (training.restored(run)[0] for run in runs)
    return Parties(planned, own, joint)


def _rows(
    values: flags.FlagValues, parties: Parties, ranks: Sequence[int]
) -> list[dict[str, Any]]:
    """Evaluates the models as they are, and the mixtures at each rank."""
    data = {
        name: [batch for split in SPLITS for batch in workload.batches(split)]
        for name, workload in parties.domains.items()
    }
    wanted = values.series or report.SERIES
    return _model_rows(parties, data) + _mixture_rows(parties, data, wanted, ranks)


def _row(series: str, losses: Mapping[str, float], numbers: int) -> dict[str, Any]:
    """Returns a row of what was evaluated, from the loss of each domain."""
    return {
        "series": series,
        "status": report.EVALUATED,
        "best": math.fsum(losses.values()) / len(losses),
        "trainable_parameters": numbers,
        **{f"loss_{name}": loss for name, loss in losses.items()},
    }


def _model_rows(parties: Parties, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Evaluates the models that are no mixtures."""
    from algoperf.reparam import federated

    public, *trained = parties.params
    plain = federated.make_plain_evaluate(parties.workload)

    def losses(params: Any) -> dict[str, float]:
        return {name: plain(params, batches) for name, batches in data.items()}

    apart = [losses(params) for params in parties.params]
    own = {name: found[name] for name, found in zip(data, apart, strict=True)}
    single = min(apart[1:], key=lambda found: math.fsum(found.values()))
    size = parties.workload.num_parameters
    # Who gives each domain its own expert holds them all; the domain is the router.
    full: list[None] = [None] * len(trained)
    all_of_them = federated.num_parameters(public, full, has_router=False)
    return [
        _row(report.PUBLIC, apart[0], size),
        _row(report.SINGLE, single, size),
        _row(report.AVERAGE, losses(federated.average(trained)), size),
        _row(report.JOINT, losses(parties.joint), size),
        _row(report.OWN, own, all_of_them),
    ]


def _mixture_rows(
    parties: Parties,
    data: Mapping[str, Any],
    wanted: Sequence[str],
    ranks: Sequence[int],
) -> list[dict[str, Any]]:
    """Evaluates the mixtures of full experts, and at each rank of each wanted series.

    Full experts are mixed in each way that the wanted series mix theirs, so that a
    series may be compared with those that differ in rank alone.
    """
    from algoperf.reparam import federated

    public, *trained = parties.params
    workload, routers = parties.workload, _routers(parties)
    longest = workload.num_parameters  # above every rank
    evaluate = {top_k: federated.make_evaluate(workload, top_k) for top_k in (None, 2)}

    def row(series: str, own_ranks: Sequence[int | None]) -> dict[str, Any]:
        mixtures = federated.merged(public, trained, [r or longest for r in own_ranks])
        losses = {
            name: evaluate[TOP_K.get(series)](public, mixtures, routers, batches)
            for name, batches in data.items()
        }
        return _row(series, losses, federated.num_parameters(public, own_ranks))

    full = dict.fromkeys([report.FULL, *(report.LIKE[series] for series in wanted)])
    found = [row(series, [None] * len(trained)) for series in full]
    energies = federated.spectra(public, trained)
    for rank in ranks:
        for series in wanted:
            chosen = [rank] * len(trained)
            if series == report.BEST:
                chosen = federated.ranks_by_energy(energies, rank)
            text = "/".join(map(str, chosen))
            found.append({**row(series, chosen), "x": rank, "ranks": text})
    return found


def _routers(parties: Parties) -> dict[str, Any]:
    """Returns the router of each MLP, from each party's own mean vectors."""
    import jax.numpy as jnp

    from algoperf.reparam import federated

    public, *_ = parties.params
    moments = federated.make_moments(parties.workload)
    found = []
    for workload in parties.domains.values():
        dataset = workload.dataset("train", workload.default_batch_size, seed=0)
        found.append(moments(public, [dataset[i] for i in range(MOMENT_BATCHES)]))
    return {
        name: federated.router(
            jnp.stack([own[name].mean_D for own in found]),
            found[0][name].covariance_DxD,
        )
        for name in found[0]
    }
