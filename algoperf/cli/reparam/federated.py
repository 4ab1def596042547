"""The federated study: a public model, experts trained apart, mixtures of any ranks.

Part of `algoperf reparam`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from algoperf import records
from algoperf.cli.reparam import training
from algoperf.errors import UserError, unknown_name

if TYPE_CHECKING:
    from algoperf.trials import TrialConfig
    from algoperf.workload import Workload

EXPERT_SHARE = 0.5  # of the public model's steps
# Of experts; all else is the public model's. They go on at a lower rate. Decay would
# shrink the public matrices too: a difference of full rank that nobody learnt.
EXPERT = {"learning_rate": 0.003, "weight_decay": 0.0}
MIXTURES_SEC = 40.0  # of evaluating a study's mixtures, for the estimate
MOMENT_BATCHES = 32  # of training data, for a row of the router
METRIC = "loss, mean over domains"
EVALUATED = "evaluated"  # status of a row; others are of runs that went wrong
SAME, BEST, TOP = "same rank", "ranks by energy", "top 2 of same rank"
SERIES = (SAME, BEST, TOP)
PUBLIC, SINGLE = "public model", "best single expert"
AVERAGE, OWN = "average of the experts", "each domain's own expert"
FULL = "full experts"
BASELINES = (PUBLIC, SINGLE, AVERAGE, FULL)


class Parties(NamedTuple):
    """The trained models of one study: params, the public one's first."""

    domains: "Mapping[str, Workload]"
    params: list[Any]


def study(values: flags.FlagValues, base: "Workload", axis: Sequence[float]) -> int:
    """Trains what is missing, merges at each rank, writes; returns an exit status."""
    import jax

    from algoperf.data.apart import HasDomains

    ranks = _ranks(axis)
    for name in values.series or ():
        if name not in SERIES:
            raise unknown_name("series", name, SERIES)
    domains = base.by_domain() if isinstance(base, HasDomains) else {}
    if len(domains) < 2:
        raise UserError(
            f"{base.name} does not tell domains of its data apart, and the federated "
            "study needs two; finewebedu_lm at scale mini does"
        )
    planned = {
        name: training.planned(workload, values) for name, workload in domains.items()
    }
    first = next(iter(planned.values()))
    fresh, _ = first.init_model_fn(jax.random.PRNGKey(0))
    everything = [
        run for i in range(values.studies) for run in _runs(values, planned, i, fresh)
    ]
    training.announce(everything, values.studies * MIXTURES_SEC)
    rows: list[dict[str, Any]] = []
    for number in range(values.studies):
        runs = _trained(values, planned, number)
        if runs is None:
            return 1
        found = _bad(runs) or _rows(values, _parties(planned, runs), ranks)
        rows += [{"study": number, **row} for row in found]
    _write(values, rows, list(planned))
    return 1 if any(row["status"] != EVALUATED for row in rows) else 0


def _ranks(axis: Sequence[float]) -> list[int]:
    if any(x < 1 or x != int(x) for x in axis):
        raise UserError("--values of the federated study are ranks: whole numbers")
    return sorted({int(x) for x in axis})


def _runs(
    values: flags.FlagValues, planned: "Mapping[str, Workload]", study: int, public: Any
) -> "list[TrialConfig]":
    """Returns the public model's run and the experts', which start from `public`."""
    from algoperf.reparam import trainers

    first, *others = planned
    point = training.point("adamw")
    runs = [
        training.config(
            values,
            planned[first],
            training.load("adamw"),
            point,
            study,
        )
    ]
    for name in others:
        steps = max(1, round(EXPERT_SHARE * planned[name].step_hint))
        workload = training.with_steps(planned[name], steps)
        expert = trainers.expert("expert", public)
        runs.append(training.config(values, workload, expert, point | EXPERT, study))
    return runs


def _trained(
    values: flags.FlagValues, planned: "Mapping[str, Workload]", study: int
) -> "list[TrialConfig] | None":
    """Trains the models that are missing; returns all runs, None if asked to stop.

    Without a public model there is nothing to go on with: then its run alone.
    """
    first, *_ = _runs(values, planned, study, None)  # experts of nothing: not made
    if not training.make([first]):
        return None
    if _bad([first]):
        return [first]
    runs = _runs(values, planned, study, training.restored(first)[0])
    return runs if training.make(runs) else None


def _bad(runs: "Sequence[TrialConfig]") -> list[dict[str, Any]]:
    """Returns a row for each run that failed or diverged, whose study is left out."""
    from algoperf.reparam import studies

    found = []
    for run in runs:
        status = records.read_record(training.folder_of(run))["status"]
        if status in studies.BAD:
            name = f"{run.submission.name} on {run.workload.name}"
            found.append({"series": name, "status": str(status)})
    return found


def _parties(
    planned: "Mapping[str, Workload]", runs: "Sequence[TrialConfig]"
) -> Parties:
    return Parties(planned, [training.restored(run)[0] for run in runs])


def _rows(
    values: flags.FlagValues, parties: Parties, ranks: Sequence[int]
) -> list[dict[str, Any]]:
    """Evaluates the baselines, and the mixtures at each rank."""
    from algoperf.reparam import federated

    domains, (public, *trained) = parties
    workload = next(iter(domains.values()))
    data = {name: list(w.batches("validation")) for name, w in domains.items()}
    plain = federated.make_plain_evaluate(workload)
    size = workload.num_parameters

    def row(series: str, losses: Mapping[str, float], numbers: int) -> dict[str, Any]:
        mean = math.fsum(losses.values()) / len(losses)
        named = {f"loss_{name}": loss for name, loss in losses.items()}
        return {
            "series": series,
            "status": EVALUATED,
            "best": mean,
            "trainable_parameters": numbers,
            **named,
        }

    single = [
        {name: plain(params, batches) for name, batches in data.items()}
        for params in parties.params
    ]
    own = {name: losses[name] for name, losses in zip(data, single, strict=True)}
    best = min(single[1:], key=lambda losses: sum(losses.values()))
    average = federated.average(trained)
    found = [
        row(PUBLIC, single[0], size),
        row(SINGLE, best, size),
        row(AVERAGE, {n: plain(average, b) for n, b in data.items()}, size),
        row(OWN, own, size),
    ]
    routers = _routers(parties)
    evaluate: dict[int | None, Any] = {None: federated.make_evaluate(workload)}
    wanted = values.series or SERIES
    if TOP in wanted:
        evaluate[2] = federated.make_evaluate(workload, top_k=2)

    def merge(series: str, own_ranks: Sequence[int | None]) -> dict[str, Any]:
        top_k = 2 if series == TOP else None
        longest = workload.num_parameters  # above every rank
        mixtures = federated.merged(public, trained, [r or longest for r in own_ranks])
        losses = {
            name: evaluate[top_k](public, mixtures, routers, batches)
            for name, batches in data.items()
        }
        return row(series, losses, federated.num_parameters(public, own_ranks))

    found.append(merge(FULL, [None] * len(trained)))
    energies = federated.spectra(public, trained)
    for rank in ranks:
        same = [rank] * len(trained)
        chosen = {
            SAME: same,
            BEST: federated.ranks_by_energy(energies, rank),
            TOP: same,
        }
        for series in wanted:
            text = "/".join(map(str, chosen[series]))
            found.append({**merge(series, chosen[series]), "x": rank, "ranks": text})
    return found


def _routers(parties: Parties) -> dict[str, Any]:
    """Returns the router of each MLP, from each party's own mean vectors."""
    import jax.numpy as jnp

    from algoperf.reparam import federated

    domains, (public, *_) = parties
    moments = federated.make_moments(next(iter(domains.values())))
    found = []
    for workload in domains.values():
        dataset = workload.dataset("train", workload.default_batch_size, seed=0)
        found.append(moments(public, [dataset[i] for i in range(MOMENT_BATCHES)]))
    return {
        name: federated.router(
            jnp.stack([own[name].mean_D for own in found]),
            found[0][name].covariance_DxD,
        )
        for name in found[0]
    }


def _write(
    values: flags.FlagValues, rows: Sequence[Mapping[str, Any]], domains: Sequence[str]
) -> None:
    """Writes the rows, the tables and the plot; prints the tables."""
    from algoperf.reparam import studies

    out = Path(values.out)
    records.write_measurements(out / "federated.csv", rows)
    bad = [row for row in rows if row["status"] != EVALUATED]
    rows = [row for row in rows if row["status"] == EVALUATED]
    lines = studies.summary(rows)
    text = studies.table(lines, "rank", METRIC, has_target=False)
    text += "\n" + _domain_table(rows, domains) + "\n" + _break_even_text(rows)
    text += "".join(
        "\nStudy {study} is left out: {series} {status}.\n".format(**row) for row in bad
    )
    records.write_text(out / "federated.md", text)
    print(text, end="")
    if values.plot and rows:
        for line in lines:
            if "x" in line:
                line["x"] = line["trainable_parameters"]
        path = out / "federated.svg"
        studies.plot(lines, "parameters", f"validation {METRIC}", path)


def _domain_table(rows: Sequence[Mapping[str, Any]], domains: Sequence[str]) -> str:
    """Returns the mean validation loss of each domain, as Markdown."""
    from algoperf.reparam import studies

    heading = ["series", "rank", *domains]
    table = []
    for (series, rank), group in studies.grouped(rows).items():
        means = [
            math.fsum(row[f"loss_{name}"] for row in group) / len(group)
            for name in domains
        ]
        label = "" if rank is None else f"{rank:g}"
        table.append([series, label, *(f"{mean:.4g}" for mean in means)])
    return studies.markdown(heading, table)


def _break_even_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the smallest ranks at which mixtures beat the baselines, as Markdown."""
    from algoperf.reparam import federated, studies

    numbers = sorted({row["study"] for row in rows})
    table = []
    for series in SERIES:
        for baseline in BASELINES:
            found = []
            for number in numbers:
                own = [row for row in rows if row["study"] == number]
                losses = {r["x"]: r["best"] for r in own if r["series"] == series}
                (level,) = [r["best"] for r in own if r["series"] == baseline]
                found.append(federated.break_even(losses, level))
            if not any(r["series"] == series for r in rows):
                continue
            beaten = [rank for rank in found if rank is not None]
            shown = ", ".join("never" if r is None else f"{r:g}" for r in found)
            mean, bounds = "", ""
            if len(beaten) == len(found):
                mean = f"{math.fsum(beaten) / len(beaten):.3g}"
                if len(found) > 1:
                    bounds = "{:.3g} to {:.3g}".format(*studies.interval(beaten))
            table.append([series, baseline, shown, mean, bounds])
    heading = ["mixture", "beats", "from rank, by study", "mean", "95 %"]
    return studies.markdown(heading, table)
