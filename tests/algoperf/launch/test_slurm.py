"""What is submitted to Slurm, and what a job does, with a submitit that only notes."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import types

import pytest

from algoperf import cli, locks, records
from algoperf.errors import UserError
from algoperf.launch import jobs, local, slurm
from algoperf.launch.cluster import Hardware, Slurm
from algoperf.records import Status


class FakeError(Exception):
    """What submitit raises when sbatch fails."""


class FakeSubmitit:
    """Notes what is submitted; job ids count from 100."""

    def __init__(self):
        self.arrays = []
        self.refuse = None
        noted = self

        class SlurmExecutor:
            def __init__(self, folder, max_num_timeout):
                assert folder.is_absolute()
                self.parameters, self.tasks = {}, []

            def update_parameters(self, **parameters):
                self.parameters = parameters

            @contextlib.contextmanager
            def batch(self):
                yield
                if noted.refuse:
                    raise FakeError(noted.refuse)
                number = 100 + len(noted.arrays)
                noted.arrays.append((self.parameters, self.tasks))
                for index, (_, job) in enumerate(self.tasks):
                    alone = len(self.tasks) == 1
                    job.job_id = str(number) if alone else f"{number}_{index}"

            def submit(self, task):
                self.tasks.append((task, types.SimpleNamespace()))
                return self.tasks[-1][1]

        self.SlurmExecutor = SlurmExecutor
        self.core = types.SimpleNamespace(
            utils=types.SimpleNamespace(FailedJobError=FakeError)
        )
        self.helpers = types.SimpleNamespace(DelayedSubmission=lambda task: task)


@pytest.fixture
def submitit(monkeypatch):
    fake = FakeSubmitit()
    monkeypatch.setattr(slurm, "_submitit", lambda: fake)
    return fake


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Puts `squeue`, which prints a file, and `scancel`, which notes, on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "queue").touch()
    lines = {
        "squeue": f"cat {folder}/queue",
        "scancel": f"echo $1 >> {folder}/cancelled",
    }
    for name, line in lines.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def job(out, workload="wmt_mini", trial=1):
    folder = records.trial_folder(out, "adamw", 0, workload, trial)
    return jobs.Job((f"--workload={workload}",), folder)


def finish(wanted, status=Status.COMPLETED):
    wanted.folder.mkdir(parents=True, exist_ok=True)
    content = {"schema_version": 1, "status": status, "message": ""}
    records.write_json(wanted.folder / records.RECORD_FILE, content)


GPU = Hardware(
    name="a100",
    gpus=8,
    cpus=96,
    memory_gb=500,
    time_min=600,
    grace_sec=200,
    slurm=Slurm(partition="gpu", account="me", setup=("module load x",)),
)


def test_an_array_for_each_type_of_hardware_then_scoring(out, submitit, commands):
    two = [job(out, trial=1), job(out, trial=2)]
    one = [job(out, "ogbg_mini")]
    trials = {GPU: two, Hardware(name="cpu"): one}
    submitted = slurm.submit(trials, out, ["OUT"])
    assert list(submitted.values()) == ["100_0", "100_1", "101", "102"]
    (gpu, tasks), (cpu, _), (scoring, score) = submitit.arrays
    assert [task.job for task, _ in tasks] == two
    assert gpu["gpus_per_node"] == 8
    assert gpu["cpus_per_task"] == 96
    assert "--cpus-per-task=96" in gpu["srun_args"]
    assert (gpu["mem"], gpu["time"], gpu["signal_delay_s"]) == ("500GB", 600, 200)
    assert (gpu["partition"], gpu["account"]) == ("gpu", "me")
    assert gpu["setup"] == ["module load x"]
    assert gpu["exclusive"] is cpu["exclusive"] is True
    assert gpu["additional_parameters"]["requeue"] is True
    assert "partition" not in cpu
    assert scoring["dependency"] == "afterany:100_0:100_1:101"
    assert "gpus_per_node" not in scoring
    assert score[0][0].arguments == ("OUT",)


def test_what_is_finished_or_in_the_queue_is_not_submitted_again(
    out, submitit, commands
):
    wanted = [job(out, trial=trial) for trial in (1, 2, 3)]
    slurm.submit({GPU: wanted}, out, [])
    (commands / "queue").write_text("100_0\n100_1\n100_2\n101\n")
    assert slurm.submit({GPU: wanted}, out, []) == {}
    # The first has its result, the second runs, the third was cancelled.
    finish(wanted[0])
    (commands / "queue").write_text("100_1\n101\n")
    submitted = slurm.submit({GPU: wanted}, out, [])
    third = str(wanted[2].folder.relative_to(out))
    assert submitted == {third: "102", "score": "103"}
    assert submitit.arrays[-1][0]["dependency"] == "afterany:100_1:102"
    # The scoring job from before would not have waited for the third.
    assert (commands / "cancelled").read_text().split() == ["101"]
    for one in wanted:
        finish(one, Status.FAILED)
    (commands / "queue").write_text("")
    assert slurm.submit({GPU: wanted}, out, []) == {}


def test_what_was_submitted_before_a_refusal_is_not_forgotten(
    out, submitit, commands, monkeypatch
):
    two = {GPU: [job(out)], Hardware(name="cpu"): [job(out, "ogbg_mini")]}
    once = slurm._submit

    def refuse_the_second(hardware, *arguments):
        if hardware.name == "cpu":
            submitit.refuse = "sbatch: error:\nInvalid partition"
        return once(hardware, *arguments)

    monkeypatch.setattr(slurm, "_submit", refuse_the_second)
    with pytest.raises(UserError, match=r"Slurm refuses cpu: .*Invalid partition"):
        slurm.submit(two, out, [])
    submitit.refuse = None
    monkeypatch.setattr(slurm, "_submit", once)
    (commands / "queue").write_text("100\n")
    submitted = slurm.submit(two, out, [])
    assert list(submitted.values()) == ["101", "102"]
    assert submitit.arrays[-1][0]["dependency"] == "afterany:100:101"


def test_a_scoring_job_that_was_refused_comes_with_the_next_call(
    out, submitit, commands, monkeypatch
):
    wanted = {GPU: [job(out)]}
    once = slurm._submit

    def refuse_scoring(hardware, tasks, *arguments):
        if isinstance(tasks[0], slurm.Score):
            raise UserError("Slurm refuses score: QOSMaxSubmitJobPerUserLimit")
        return once(hardware, tasks, *arguments)

    monkeypatch.setattr(slurm, "_submit", refuse_scoring)
    with pytest.raises(UserError, match="refuses score"):
        slurm.submit(wanted, out, [])
    monkeypatch.setattr(slurm, "_submit", once)
    (commands / "queue").write_text("100\n")
    assert list(slurm.submit(wanted, out, [])) == [slurm.SCORE]
    assert submitit.arrays[-1][0]["dependency"] == "afterany:100"
    assert slurm.submit(wanted, out, []) == {}


def test_no_slurm_is_one_line(out, submitit, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="squeue is not there"):
        slurm.submit({GPU: [job(out)]}, out, [])


def test_no_submitit_is_one_line(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"algoperf\[slurm\]"):
        slurm.submit({GPU: [job(out)]}, out, [])


def test_a_failing_squeue_is_one_line(out, submitit, commands):
    (commands / "squeue").write_text("#!/bin/sh\necho down >&2; exit 1\n")
    with pytest.raises(UserError, match="squeue fails: down"):
        slurm.submit({GPU: [job(out)]}, out, [])


def test_our_parameters_are_submitits(tmp_path, commands):
    """The real one takes them all, and writes them into the batch file."""
    submitit = pytest.importorskip("submitit")
    (commands / "srun").write_text("#!/bin/sh\n")
    (commands / "srun").chmod(0o755)
    executor = submitit.SlurmExecutor(folder=tmp_path)
    executor.update_parameters(**slurm.parameters(GPU, "algoperf-a100", ["7_0", "8"]))
    text = executor._make_submission_file_text("run", "uid")
    assert "#SBATCH --dependency=afterany:7_0:8" in text
    executor = submitit.SlurmExecutor(folder=tmp_path)
    executor.update_parameters(**slurm.parameters(GPU, "algoperf-a100"))
    text = executor._make_submission_file_text("run", "uid")
    for line in ("exclusive", "requeue", "signal=USR2@200", "gpus-per-node=8"):
        assert f"#SBATCH --{line}\n" in text
    assert "module load x" in text


@pytest.fixture
def shell_job(tmp_path, monkeypatch):
    """Makes a job whose process is a shell command."""
    command = tmp_path / "command"

    def make(shell, status=Status.RUNNING):
        command.write_text(f"#!/bin/sh\n{shell}\n")
        command.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(command))
        wanted = job(tmp_path / "out")
        finish(wanted, status)
        return wanted

    return make


@pytest.fixture
def _handlers():
    """Puts back the handlers that a job sets."""
    numbers = (signal.SIGUSR2, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _send_when(path, *numbers):
    """Sends signals to this process once a file is there."""

    def send():
        while not path.exists():
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()


@pytest.mark.usefixtures("_handlers")
def test_a_job_returns_the_status_of_its_trial(shell_job):
    assert slurm.Trial(shell_job("exit 1", Status.DIVERGED))() == 1
    with pytest.raises(RuntimeError, match="has no result"):
        slurm.Trial(shell_job("exit 1"))()


@pytest.mark.usefixtures("_handlers")
def test_when_the_time_is_up_the_trial_is_saved_and_the_job_requeued(
    shell_job, tmp_path, submitit
):
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    task = slurm.Trial(
        shell_job(
            f"trap 'touch {saved}; exit 0' TERM\ntouch {ready}\n"
            "while :; do sleep 0.05; done"
        )
    )
    seen = []

    def requeue(number, frame):  # submitit's handler
        seen.append((number, saved.exists(), task.checkpoint().job))
        raise SystemExit(-1)

    signal.signal(signal.SIGUSR2, requeue)
    # Slurm sends SIGTERM too, before the checkpoint is written.
    _send_when(ready, signal.SIGUSR2, signal.SIGTERM)
    with pytest.raises(SystemExit):
        task()
    assert seen == [(signal.SIGUSR2, True, task.job)]


@pytest.mark.usefixtures("_handlers")
def test_a_preempted_job_saves_and_leaves_requeueing_to_slurm(shell_job, tmp_path):
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    task = slurm.Trial(
        shell_job(
            f"trap 'touch {saved}; exit 0' TERM\ntouch {ready}\n"
            "while :; do sleep 0.05; done"
        )
    )
    signal.signal(signal.SIGUSR2, lambda *_: pytest.fail("not asked for"))
    _send_when(ready, signal.SIGTERM)
    with pytest.raises(RuntimeError, match="has no result"):
        task()
    assert saved.exists()


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_job_that_is_stopped_while_another_ends_its_trial_has_not_failed(
    number, shell_job, tmp_path, monkeypatch, capsys
):
    signal.signal(signal.SIGUSR2, lambda *_: pytest.fail("nothing is left to run"))
    began, waits = tmp_path / "began", tmp_path / "waits"
    task = slurm.Trial(shell_job(f"touch {began}", Status.COMPLETED))
    run_jobs = local.run_jobs

    def noticed(*arguments, notice):
        return run_jobs(*arguments, notice=lambda line: (print(line), waits.touch()))

    monkeypatch.setattr(local, "run_jobs", noticed)
    _send_when(waits, number)
    with locks.hold(task.job.folder):
        assert task() == 0
    assert not began.exists()
    says = capsys.readouterr().out.splitlines()
    assert says[-1] == f"{task.job.folder} has its result already"


@pytest.mark.usefixtures("_handlers")
def test_a_trial_that_slurm_kills_after_its_grace_has_not_failed(shell_job, tmp_path):
    """The children may go before the parent: that is no sign of a lack of memory."""
    ready = tmp_path / "ready"
    task = slurm.Trial(
        shell_job(
            f"trap 'kill -KILL $$' TERM\ntouch {ready}\nwhile :; do sleep 0.05; done"
        )
    )
    _send_when(ready, signal.SIGTERM)
    with pytest.raises(RuntimeError, match="has no result"):
        task()
    assert records.read_record(task.job.folder)["status"] is Status.RUNNING


def test_the_command_submits(out, tmp_path, submitit, commands, capsys):
    cluster = tmp_path / "cluster.json"
    content = {"a100": {"workloads": ["wmt*"], "gpus": 1}, "cpu": {"cpus": 2}}
    cluster.write_text(json.dumps(content))
    arguments = ["sweep", "--submissions=adamw,momentum", "--workloads=wmt,ogbg"]
    arguments += ["--max_steps=4", f"--out={out}", "--executor=slurm"]
    assert cli.main([*arguments, f"--cluster={cluster}"]) == 0
    text = capsys.readouterr().out
    assert "4 waiting" in text
    assert "submitted 4 trials, and job 102" in text
    (gpu, on_gpu), (cpu, _), (_, score) = submitit.arrays
    assert (gpu["gpus_per_node"], cpu["cpus_per_task"]) == (1, 2)
    assert {task.job.folder.parent.name for task, _ in on_gpu} == {"wmt_mini_jax"}
    assert "--benchmark=mini" in score[0][0].arguments
    assert cli.main(["status", str(out)]) == 0
    assert "4 waiting" in capsys.readouterr().out
    (commands / "queue").write_text("100_0\n100_1\n101_0\n101_1\n102\n")
    assert cli.main([*arguments, f"--cluster={cluster}"]) == 0
    assert "nothing to submit" in capsys.readouterr().out
    assert len(submitit.arrays) == 3


@pytest.mark.parametrize(
    ("given", "benchmark"),
    [
        (["--suite=mini_fast"], "mini_fast"),
        (["--suite=full"], "v0.6"),
        (["--suite=full", "--benchmark=v0.5"], "v0.5"),
    ],
)
def test_what_is_scored_by(out, submitit, commands, given, benchmark):
    from scoring.rules import known_rules

    arguments = ["sweep", "--submissions=adamw", "--ruleset=self", f"--out={out}"]
    assert cli.main([*arguments, *given, "--executor=slurm"]) == 0
    score = submitit.arrays[-1][1][0][0].arguments
    assert f"--benchmark={benchmark}" in score
    assert "--ruleset=self" in score
    assert benchmark in known_rules()


def test_results_lie_beside_the_folder_that_a_dot_names(
    out, submitit, commands, monkeypatch
):
    out.mkdir()
    monkeypatch.chdir(out)
    arguments = ["sweep", "--submissions=adamw", "--workloads=ogbg", "--out=."]
    assert cli.main([*arguments, "--executor=slurm"]) == 0
    score = submitit.arrays[-1][1][0][0].arguments
    assert score[0] == str(out)
    assert f"--report={out}-score.html" in score
