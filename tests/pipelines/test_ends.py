"""How runs of the committed pipeline end on the recorded server: one row for each kind of end.

Each row is what the exit handler writes, what `raft watch` says at last, and its exit code; they
are the table of docs/kubeflow.md.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.core.errors import ConfigError
from components.core.kubeflow import Step
from components.core.pages import for_terminal
from components.core.records import Record
from components.core.storage import find, publish, put
from components.report import summary
from components.report.summary import SummaryConfig
from pipelines.cluster import kubeflow
from pipelines.stages import config_class, run_step
from tests.conftest import REPOSITORY
from tests.core.test_kubeflow import REPORT, executor_input
from tests.gcs import Emulator
from tests.generate.teacher_server import Answer, good, teacher_server
from tests.pipelines.conftest import INPUTS, PIPELINE, PLACEHOLDER, Leave
from tests.pipelines.kubeflow.driver import Backend
from tests.pipelines.kubeflow.executors import Executor, Pod, Result
from tests.pipelines.kubeflow.nodes import UNSET, Nodes
from tests.pipelines.kubeflow.server import KfpServer
from tests.report.test_summary import GENERATED, artifact, entry, evaluated, trained

PASSED = REPORT.model_copy(update={"decision": "go"})
MISTAKE = "--rank '5000' (allowed: a whole number, >= 1, <= 512)"
AMOUNT = "--memory '64GB' (allowed: for example 64Gi)"
AWAY = "http://teacher/v1 does not answer"


class Stages:
    """Steps that write what real ones write, at once; ends of attempts come in turn."""

    def __init__(self, server: KfpServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.texts: list[str] = []
        """What the exit handler has written."""

    def finished(self, stage: str, outputs: Mapping[str, Any], **records: Record) -> Executor:
        def run(pod: Pod) -> Result:
            made = artifact(self.folder / pod.name, stage, **records)
            for path in sorted(made.iterdir(), key=lambda path: path.name == "manifest.json"):
                put(path.read_text(encoding="utf-8"), f"{results_of(pod)}/{path.name}")
            return Result(outputs=outputs)

        return run

    def all(self, decision: str = "go") -> dict[str, Executor]:
        quantized = REPORT.model_copy(update={"decision": decision})
        return {
            "generate": self.finished("generate", {}, report=GENERATED),
            "train": self.finished("train", {}, training=trained(8)),
            "quantize-check": self.finished(
                "quantize-check", {"decision": decision}, quantization=quantized
            ),
            "eval": self.finished("eval", {}, results=evaluated(0.6), training=trained(8)),
            "summary": self.summary,
        }

    def failing(self, stage: str, reason: str, repeatable: bool) -> Executor:
        def run(pod: Pod) -> Result:
            (run,) = self.server.runs.values()
            started = run.nodes.time(run.nodes.tick)
            failed = entry(stage, failed=reason, repeatable=repeatable, started=started)
            name = f"ledger.failed-{len(run.tasks.pods)}.json"
            put(failed.model_dump_json(), f"{results_of(pod)}/{name}")
            return Result(2)

        return run

    def summary(self, pod: Pod) -> Result:
        status = pod.executor_input["inputs"]["parameterValues"]["status"]
        output = self.folder / f"summary-{len(self.texts)}"
        folders = Step.parse(text_of(pod)).folders_to_read("summary")
        config = {"folders": folders, "output": str(output), "status": json.dumps(status)}
        config["state"] = pod.executor_input["inputs"]["parameterValues"]["state"]
        summary.run(SummaryConfig.parse(config))
        self.texts.append((output / "summary.md").read_text(encoding="utf-8"))
        return Result()

    def terminated(self, _: Pod) -> "Stopped":
        return Stopped(self.server)


@dataclass
class Stopped:
    """A step that works until a person terminates its run."""

    server: KfpServer
    looks: int = 0

    def poll(self) -> Result | None:
        self.looks += 1
        if self.looks == 2:
            (run,) = self.server.runs.values()
            run.terminate()
        return None

    def stop(self) -> None:
        """Nothing runs."""


def text_of(pod: Pod) -> str:
    return json.dumps(pod.executor_input)


def results_of(pod: Pod) -> str:
    """Where the step's results are to be."""
    state = pod.executor_input["inputs"]["parameterValues"].get("state", "")
    return Step.parse(text_of(pod)).results(state)


def in_turn(*executors: Executor) -> Executor:
    """Attempts that end one way after another, the last of them for ever."""
    left = list(executors)

    def run(pod: Pod) -> Any:
        return (left.pop(0) if len(left) > 1 else left[0])(pod)

    return run


def killed(_: Pod) -> Result:
    """As by the kernel, for memory."""
    return Result(137)


def deleted(_: Pod) -> Result:
    return Result(deleted=True)


Faults = Callable[[Stages, dict[str, Executor]], dict[str, Executor]]


@dataclass(frozen=True)
class End:
    """A row: what happens, and what is said of it."""

    what: str
    handler: str
    """The first line of what the exit handler writes."""
    watch: str
    """The first line of the summary that `raft watch` ends with."""
    code: int = 0
    retries: int = 0
    """How often the server was asked for a Retry."""
    faults: Faults = lambda stages, steps: {}
    driver_faults: Mapping[str, int] = field(default_factory=dict)
    backend: Backend = field(default_factory=Backend)
    decision: str = "go"
    flags: tuple[object, ...] = ()


WITHOUT_DEFAULTS = Backend(template_defaults=False)
FAILED, SUCCEEDED, COMPLETE = "**Failed.**", "**Succeeded.**", "**Complete.**"
ENDS = [
    End("all steps succeed", COMPLETE, SUCCEEDED),
    End("all steps succeed, on 2.16.1", COMPLETE, SUCCEEDED,
        backend=Backend("2.16.1", template_defaults=False)),
    End("`gate` is `stop` and closed", COMPLETE, SUCCEEDED, decision="stop"),
    End("train refuses a setting", FAILED, f"**Train failed at attempt 1:** {MISTAKE}", 2,
        faults=lambda stages, _: {"train": stages.failing("train", MISTAKE, False)}),
    End("the same without `templateDefaults`", FAILED,
        f"**Train failed at attempt 4:** {MISTAKE}", 2, backend=WITHOUT_DEFAULTS,
        faults=lambda stages, _: {"train": stages.failing("train", MISTAKE, False)}),
    End("hardware refuses an amount", FAILED, f"**Hardware failed at attempt 1:** {AMOUNT}", 2,
        faults=lambda stages, _: {"hardware": stages.failing("hardware", AMOUNT, False)}),
    End("train's pod is deleted", COMPLETE, SUCCEEDED,
        faults=lambda _, steps: {"train": in_turn(deleted, steps["train"])}),
    End("train's pod is deleted four times", "**Ended early, before train had a result.**",
        SUCCEEDED, retries=1,
        faults=lambda _, steps: {"train": in_turn(*[deleted] * 4, steps["train"])}),
    End("train's pod is deleted, then its process killed", FAILED, SUCCEEDED, retries=1,
        faults=lambda _, steps: {"train": in_turn(deleted, killed, steps["train"])}),
    End("eval's process is killed", FAILED, SUCCEEDED, retries=1,
        faults=lambda _, steps: {"eval": in_turn(killed, steps["eval"])}),
    End("train's process is killed each time", FAILED,
        "**Train failed at attempt 4:** it left no ledger entry", 1, 3,
        faults=lambda *_: {"train": killed}),
    End("the teacher is away for a while", FAILED, SUCCEEDED, retries=1,
        faults=lambda stages, steps: {
            "generate": in_turn(stages.failing("generate", AWAY, True), steps["generate"])}),
    End("train's driver fails once", "**Ended early, before train had a result.**", SUCCEEDED,
        retries=1, driver_faults={"train": 1}),
    End("the same with `--retries 0`", "**Ended early, before train had a result.**",
        "**Train did not start:** its driver failed", 1, flags=("--retries", 0),
        driver_faults={"train": 1}),
    End("the gate's driver fails once", "**Ended early, before eval had a result.**", SUCCEEDED,
        retries=1, driver_faults={"condition-2": 1}),
    End("the root driver fails once", COMPLETE, SUCCEEDED, retries=1, driver_faults={"root": 1}),
    End("a person terminates the run in train", "**Ended early, before train had a result.**",
        "**Terminated in train:** it is not retried", 1,
        faults=lambda stages, _: {"train": stages.terminated}),
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=[end.what for end in ENDS])
def test_ends(end: End, server: KfpServer, submitted: Leave, leave: Leave, tmp_path: Path) -> None:
    stages = Stages(server, tmp_path)
    steps = stages.all(end.decision)
    server.backend, server.driver_faults = end.backend, dict(end.driver_faults)
    server.executors = {**steps, **end.faults(stages, steps)}
    assert submitted("--wait", "false", "--pipeline-root", "gs://bucket/root")[0] == 0
    (run,) = server.runs.values()
    code, _, err = leave("watch", run.id, "--host", server.url, *end.flags)
    assert code == end.code, err
    text = err[err.index("# RAFT run") :]
    assert text.splitlines()[2].startswith(end.watch)
    assert ("**The gate is closed:**" in text) is (end.decision == "stop")
    assert err.count("resumes it") == end.retries
    assert [entry["state"] for entry in run.history].count("FAILED") == end.retries + bool(code)
    # What has succeeded is not done, and not paid for, again.
    done = [pod.task for pod in run.tasks.pods if pod.phase == "Succeeded"]
    assert len(done) == len(set(done))
    assert ("gs://bucket/root/raft" in text and "Adapter: `" in text) is ("train" in done)
    (written,) = stages.texts
    assert written.splitlines()[2].startswith(end.handler)
    assert (f"`raft summary {run.id}` asks" in written) is (end.handler != COMPLETE)
    code, out, err = leave("summary", run.id, "--host", server.url)
    shown = for_terminal(out)
    assert (code, shown) == (0, text[: len(shown)]), "the same as raft watch"


def test_the_table_of_the_docs() -> None:
    page = (REPOSITORY / "docs" / "kubeflow.md").read_text(encoding="utf-8")
    for end in ENDS:
        row = (end.what, end.handler, str(end.retries or "–"), end.watch, str(end.code))
        assert f"| {' | '.join(row).replace('**', '')} |" in page


def test_a_run_of_an_uploaded_pipeline_is_summed_up_too(server: KfpServer, leave: Leave) -> None:
    client = kubeflow.connect(server.url)
    uploaded = client.upload_pipeline(str(PIPELINE), "mine")
    version = server.versions[0]["pipeline_version_id"]
    run_id = client.run_pipeline(
        client.create_experiment("raft").experiment_id, "run", pipeline_id=uploaded.pipeline_id,
        version_id=version, params=INPUTS, pipeline_root="gs://bucket/root",
    ).run_id  # fmt: skip
    failed = entry("train", failed="no GPU").model_dump_json()
    put(failed, f"gs://bucket/root/raft/{run_id}/train/9f/adapter/ledger.failed-1.json")
    code, out, err = leave("summary", run_id, "--host", server.url)
    assert code == 0, err
    assert "# RAFT run\n\n**Running:**" in out and "| train | no GPU |" in out
    assert leave("summary", run_id, "--folders", "a", "--host", server.url)[0] == 2
    assert leave("summary", run_id)[0] == 2


def test_without_a_bucket_the_summary_says_where_the_results_lie(
    server: KfpServer, submitted: Leave
) -> None:
    root = "minio://mlpipeline/v2/artifacts"
    lost = "checkpoints and paid responses are lost with a pod that fails"
    code, _, err = submitted("--pipeline-root", root, "--set", "state=gs://bucket/state")
    assert code == 0 and lost not in err
    code, _, err = submitted("--pipeline-root", root)
    assert code == 0 and lost in err
    assert f"> The results are below {root}, which is not read here" in err
    assert "**Succeeded.**" in err


MINIO, STATE = "minio://mlpipeline/v2/artifacts", "gs://bucket/state"
ROOTS = [("gs://bucket", "", "gs://bucket"), (MINIO, STATE, f"{STATE}/runs")]
"""Pipeline root, the field `state`, and where the runs' summaries are."""


@pytest.mark.parametrize(("root", "state", "runs"), ROOTS, ids=["gs", "minio"])
def test_a_step_that_fails_writes_the_summary_of_its_run(
    root: str, state: str, runs: str, gcs: Emulator, capfd: pytest.CaptureFixture[str]
) -> None:
    text = executor_input(f"{root}/raft/1a2b/train", adapter="Model")
    settings: dict[str, object] = {
        "dataset": "d", "base_model": "m", "rank": "5000", "output": "adapter", "state": state,
    }  # fmt: skip
    with pytest.raises(ConfigError):
        run_step(config_class("train"), dict(settings), text)
    ((place, written),) = find("gs://bucket", lambda name: name == "summary.md")
    assert place == f"{runs}/raft/1a2b/summary.md"
    assert "**train failed:** --rank" in written and "no such folder" not in written
    ((ledger, _),) = find("gs://bucket", lambda name: name.startswith("ledger.failed-"))
    assert ledger.startswith(f"{runs}/raft/1a2b/train/step/adapter/ledger.failed-")
    gcs.fault = lambda method, path: 403
    with pytest.raises(ConfigError):
        run_step(config_class("train"), dict(settings), text)
    assert f"{runs}/raft/1a2b/summary.md is not up to date" in capfd.readouterr().err


# ---- with real stages --------------------------------------------------------------------------

LAUNCHER = """
import sys
from pathlib import Path
from components.core import kubeflow
from pipelines.cli import main
pod = Path(sys.argv[1])
kubeflow._Artifact.path = property(lambda artifact: pod / artifact.uri.partition("://")[2])
main(sys.argv[2:])
"""
"""Kubeflow's launcher, which has put artifacts below /gcs or /minio; here it is another folder."""


class Launched:
    """A step that is the real command in a process of its own; what it has made is uploaded."""

    def __init__(self, pod: Pod, folder: Path, until: Callable[[], bool]) -> None:
        self.pod, self.folder, self.until = pod, folder, until
        text = re.sub("/(gcs|minio)/", f"{folder}/", json.dumps(pod.executor_input))
        args = [self._filled(text, argument) for argument in pod.started_with]
        command = [sys.executable, "-c", LAUNCHER, str(folder), *pod.command[1:], *args]
        with (folder / f"{pod.name}.log").open("a") as log:
            self.process = subprocess.Popen(command, stderr=log, cwd=REPOSITORY)

    def _filled(self, text: str, argument: str) -> str:
        if argument == "{{$}}":
            return text
        match = PLACEHOLDER.fullmatch(argument)
        if not match:
            return argument
        side = "inputs" if ".inputs." in argument else "outputs"
        (entry,) = self.pod.executor_input[side]["artifacts"][match[2]]["artifacts"]
        return str(self.folder / entry["uri"].partition("://")[2])

    def poll(self) -> Result | None:
        time.sleep(0.3)  # each look takes the processor that the step works on
        if self.until():
            self.process.kill()
        code = self.process.poll()
        uri = Step.parse(text_of(self.pod)).place[0]
        if code == 0 and uri.startswith("gs://"):  # of the other store, the folder is all there is
            publish(self.folder / uri.removeprefix("gs://"), uri)
        return None if code is None else Result(code)

    def stop(self) -> None:
        self.process.kill()


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's time is that of the steps, as their ledgers have it."""
    moments: dict[int | None, datetime] = {}

    def time(_: Nodes, tick: int | None) -> str:
        return UNSET if tick is None else moments.setdefault(tick, datetime.now(UTC)).isoformat()

    monkeypatch.setattr(Nodes, "time", time)


@pytest.mark.usefixtures("wall_clock")
@pytest.mark.parametrize(("root", "state", "runs"), ROOTS, ids=["gs", "minio"])
def test_a_retry_pays_no_teacher_again_and_trains_on_from_the_last_checkpoint(
    root: str, state: str, runs: str,
    server: KfpServer, leave: Leave, gcs: Emulator, texts: Path, demo_model: Path, tmp_path: Path,
) -> None:  # fmt: skip
    documents = list(yaml.safe_load_all(PIPELINE.read_text(encoding="utf-8")))
    tasks = documents[0]["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    tasks["train"]["inputs"]["parameters"]["checkpoint_steps"]["runtimeValue"]["constant"] = 1
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    stages = Stages(server, tmp_path)
    quota, paid = [5], []
    """Answers that the teacher still gives before it refuses, and what it has answered."""

    def reply(body: dict[str, Any]) -> Answer:
        if len(paid) == quota[0]:
            return Answer("no credit", status=402)
        paid.append(json.dumps(body))
        return good(body)

    def real(until: Callable[[], bool] = lambda: False) -> Executor:
        return lambda pod: Launched(pod, tmp_path, until)

    def has_credit_again(pod: Pod) -> Any:
        quota[0] = 1000
        return real()(pod)

    def a_checkpoint() -> bool:
        names = gcs.names("state/checkpoints/")
        return any(re.search(r"/checkpoint-\d+/manifest.json$", name) for name in names)

    server.executors = stages.all() | {
        "generate": in_turn(real(), has_credit_again),
        "train": in_turn(real(a_checkpoint), real()),
    }
    with teacher_server(reply) as teacher:
        run_id = kubeflow.connect(server.url).create_run_from_pipeline_package(
            str(pipeline),
            {
                "documents": str(texts),
                "base_model": str(demo_model), "teacher": "openai", "teacher_model": "m",
                "teacher_endpoint": teacher.endpoint, "epochs": 1, "distractors": 1,
                "state": state,
            },
            pipeline_root=root,
        ).run_id  # fmt: skip
        code, _, err = leave("watch", run_id, "--host", server.url)
    assert code == 0, err
    assert "generate failed at attempt 1: --teacher-endpoint" in err
    assert "train failed at attempt 1: it left no ledger entry" in err
    assert "Attempts: generate 2, train 2; each resumes what the one before has stored." in err
    assert "**generate failed:** --teacher-endpoint" in stages.texts[0], "the exit handler's"
    assert len(paid) == len(set(paid)) == 20, "a question and an answer for each document"
    generate, train = (
        next(tmp_path.glob(f"{pod.name}.log")).read_text(encoding="utf-8")
        for pod in server.runs[run_id].tasks.pods
        if pod.task in ("generate", "train") and pod.phase == "Succeeded"
    )
    assert "5 responses stored in gs://bucket/state/responses/" in generate
    assert re.search(r"resuming after step (\d+), from checkpoint-\1\n", train)
    # What train wrote, the last of the real steps; the exit handler ran before the Retries.
    ((_, written),) = find(f"{runs}/raft/{run_id}", lambda name: name == "summary.md")
    assert "no credit" in written and "**generate failed" not in written
    assert "## train" in written and "Without a result: quantize-check, eval." in written
    adapter = f"Adapter: `{root}/raft/{run_id}/train/"
    assert adapter in written and adapter in err, "also where only copies can be read"
    assert ("## use it" in written) is (root == "gs://bucket")
