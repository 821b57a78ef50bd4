"""What the test server does, fact by fact as a real backend has shown it.

The numbers K1 to K24 are those of the notes on Kubeflow Pipelines 2.17.0 and 2.16.1.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl, kubernetes

from components.train.config import TrainConfig
from pipelines.cli.flags import StageCommand
from pipelines.cluster import kubeflow
from pipelines.stages import without_defaults
from tests.conftest import REPOSITORY
from tests.pipelines.conftest import FAST_LOADER
from tests.pipelines.kubeflow.driver import Backend, as_text
from tests.pipelines.kubeflow.executors import Executor, Pod, Process, Result
from tests.pipelines.kubeflow.nodes import Node
from tests.pipelines.kubeflow.run import Run
from tests.pipelines.kubeflow.server import KfpServer, serving
from tests.pipelines.kubeflow.specification import Refused, check_pipeline
from tests.pipelines.recorded_runs import pipeline_of_ed2a150, with_all_parameters

INPUTS = {
    "documents": "gs://bucket/documents",
    "questions": "gs://bucket/questions.json",
    "teacher": "extractive",
}
V2_16_1 = Backend("2.16.1", template_defaults=False)
V2_17_0 = Backend()
V2_17_1 = Backend("2.17.1")
WITHOUT_DEFAULTS = Backend(template_defaults=False)
BACKENDS = {
    "2.16.1": V2_16_1, "2.17.0": V2_17_0, "2.17.1": V2_17_1,
    "2.17.0 without templateDefaults": WITHOUT_DEFAULTS,
}  # fmt: skip
GPU = "nvidia.com/gpu"


def committed(name: str) -> list[dict[str, Any]]:
    """A pipeline as it is in the repository."""
    text = (REPOSITORY / "pipelines" / f"{name}.yaml").read_text(encoding="utf-8")
    return list(yaml.load_all(text, FAST_LOADER))


def run_of(
    documents: list[dict[str, Any]],
    /,
    backend: Backend = V2_17_0,
    executors: dict[str, Executor] | None = None,
    faults: dict[str, int] | None = None,
    **parameters: object,
) -> Run:
    """A run that has not started."""
    settings = {"parameters": parameters, "pipeline_root": "gs://bucket/root"}
    return Run({"runtime_config": settings}, documents, backend, executors, faults)


def raft(
    backend: Backend = V2_17_0,
    executors: dict[str, Executor] | None = None,
    faults: dict[str, int] | None = None,
    **parameters: object,
) -> Run:
    """A run of the committed pipeline."""
    return run_of(committed("raft"), backend, executors, faults, **INPUTS, **parameters)


def in_turn(*results: Result) -> Executor:
    """Attempts that end one way after another."""
    left = iter(results)
    return lambda _: next(left)


def pods(run: Run, task: str) -> list[Pod]:
    """The attempts at a step."""
    return [pod for pod in run.tasks.pods if pod.task == task]


def steps(run: Run) -> list[str]:
    """The steps whose pods were started, in order."""
    return [pod.task for pod in run.tasks.pods]


def attempts_at(run: Run, task: str) -> Node:
    """The node that holds a step's attempts."""
    ends = (f".{task}(0).executor", f".{task}.executor")
    (node,) = [node for name, node in run.nodes.by_name.items() if name.endswith(ends)]
    return node


def final_status(run: Run) -> str:
    """The status that the exit handler received; it ran once."""
    (pod,) = pods(run, "summary")
    return str(pod.executor_input["inputs"]["parameterValues"]["status"]["state"])


def details(run: Run) -> list[dict[str, Any]]:
    """The run's tasks as the API shows them."""
    found: list[dict[str, Any]] = run.view()["run_details"]["task_details"]
    return found


def compile_pipeline(pipeline: Any, tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    documents = list(yaml.load_all(path.read_text(encoding="utf-8"), FAST_LOADER))
    check_pipeline(documents)
    return documents


# ---- the committed pipelines -------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raft", {"hardware": 1, "generate": 1, "train": 1, "quantize-check": 1, "eval": 1,
                  "summary": 1}),
        ("study", {"hardware": 1, "generate": 1, "train": 4, "quantize-check": 4, "eval": 4,
                   "compare": 1, "summary": 1}),
    ],
)  # fmt: skip
def test_the_committed_pipelines_run_to_the_end(
    name: str, expected: dict[str, int], backend: Backend
) -> None:
    documents = committed(name)
    check_pipeline(documents)
    run = run_of(documents, backend, **INPUTS).to_the_end()
    assert run.state == "SUCCEEDED", run.tasks.driver_logs
    assert {task: steps(run).count(task) for task in steps(run)} == expected
    for step in ("train", "quantize-check", "eval"):
        for pod in pods(run, step):
            assert pod.resources["limits"] == {"cpu": "12", "memory": "64Gi", GPU: "1"}
            assert pod.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
            assert [entry["key"] for entry in pod.tolerations] == [GPU]


def test_k24_the_hardware_step_steers_the_others() -> None:
    run = raft(
        train_gpus="2", memory="8Gi", node_selector={"pool": "a"}, tolerations=[{"key": "b"}]
    )
    assert run.to_the_end().state == "SUCCEEDED"
    (train,), (evaluation,) = pods(run, "train"), pods(run, "eval")
    assert train.resources["limits"] == {"cpu": "12", "memory": "8Gi", GPU: "2"}
    assert evaluation.resources["limits"] == {"cpu": "12", "memory": "8Gi", GPU: "1"}
    assert train.node_selector == evaluation.node_selector == {"pool": "a"}
    assert train.tolerations == evaluation.tolerations == [{"key": "b"}]


@pytest.mark.parametrize("name", ["raft", "study"])
def test_the_kind_of_gpu_steers_the_steps(name: str) -> None:
    run = run_of(committed(name), **INPUTS, gpu="l4", memory="30Gi").to_the_end()
    assert run.state == "SUCCEEDED", run.tasks.driver_logs
    for step in ("train", "quantize-check", "eval"):
        for pod in pods(run, step):
            assert pod.resources["requests"] == {"cpu": "8", "memory": "30Gi"}
            assert pod.resources["limits"] == {"cpu": "12", "memory": "30Gi", GPU: "1"}
            assert pod.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-l4"}


def trained_with(**parameters: object) -> TrainConfig:
    """The settings of the train step in a run, as its command line becomes them."""
    (pod,) = pods(raft(**parameters).to_the_end(), "train")
    command = StageCommand("train")
    given = command.settings(command.make_context("train", list(pod.started_with)))
    return TrainConfig.parse(without_defaults(TrainConfig, given))


def test_the_kind_of_gpu_sets_the_training_settings_that_fit() -> None:
    plain, l4, own = (
        trained_with(),
        trained_with(gpu="l4"),
        trained_with(gpu="l4", max_tokens=3000, rank=8),
    )
    assert (plain.batch_size, plain.gradient_accumulation, plain.max_tokens) == (4, 0, 4096)
    assert (l4.batch_size, l4.gradient_accumulation, l4.max_tokens) == (1, 0, 2048)
    assert (l4.load_in_4bit, l4.rank, plain.load_in_4bit) == (True, 64, False)
    assert (own.batch_size, own.max_tokens, own.rank) == (1, 3000, 8), "what a run says wins"


@pytest.mark.parametrize("name", ["raft", "study"])
def test_k22_the_secrets_are_those_of_the_run(name: str) -> None:
    """A name reaches the pods behind the gate and in the loop, and an empty one ends the run."""
    named = {"huggingface_secret": "hub", "teacher_secret": "key"}
    run = run_of(committed(name), **INPUTS, **named).to_the_end()
    assert run.state == "SUCCEEDED", run.tasks.driver_logs
    read = {pod.task: pod.secrets for pod in run.tasks.pods if pod.secrets}
    assert read == {
        "hardware": {"HF_TOKEN": "hub"},
        "generate": {"HF_TOKEN": "hub", "OPENAI_API_KEY": "key"},
        "train": {"HF_TOKEN": "hub"},
        "quantize-check": {"HF_TOKEN": "hub"},
        "eval": {"HF_TOKEN": "hub"},
    }
    run = run_of(committed(name), **INPUTS, huggingface_secret="").to_the_end()
    assert run.state == "FAILED"
    assert run.tasks.driver_logs["hardware"] == "Expected a non-empty string"
    assert "train" not in steps(run)


@pytest.mark.parametrize(
    ("name", "value"),
    [("train_gpus", "two"), ("memory", "64GB"), ("memory", "lots"), ("gpu", "a200")],
)
def test_hardware_that_makes_no_sense_ends_in_the_hardware_step(name: str, value: str) -> None:
    run = raft(**{name: value}).to_the_end()
    assert run.state == "FAILED"
    (hardware,) = pods(run, "hardware")
    assert value in hardware.log
    assert "train" not in steps(run)


# ---- the pipelines of ed2a150 ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["raft", "study"])
def test_k1_ed2a150_fails_in_the_driver_of_generate(name: str) -> None:
    run = run_of(pipeline_of_ed2a150(name), **INPUTS).to_the_end()
    assert run.state == "FAILED"
    assert run.tasks.driver_logs == {
        "generate": 'failed to resolve container args: parameter "text_field" not found in '
        "executor input"
    }
    assert steps(run) == ["summary"]


@pytest.mark.parametrize("backend", [V2_16_1, V2_17_1], ids=["2.16.1", "2.17.1"])
@pytest.mark.parametrize("name", ["raft", "study"])
def test_k2_ed2a150_trains_without_a_gpu_where_k1_is_mended(name: str, backend: Backend) -> None:
    run = run_of(pipeline_of_ed2a150(name), backend, **INPUTS, train_gpus=2).to_the_end()
    assert run.state == "SUCCEEDED"
    counts = {pod.task: pod.resources["limits"].get(GPU) for pod in run.tasks.pods}
    assert counts["train"] is None
    assert counts["quantize-check"] == counts["eval"] == "1"


def test_k2_it_is_the_same_where_all_parameters_are_passed() -> None:
    run = run_of(with_all_parameters(pipeline_of_ed2a150("raft")), **INPUTS).to_the_end()
    assert run.state == "SUCCEEDED"
    assert GPU not in pods(run, "train")[0].resources["limits"]


# ---- drivers -----------------------------------------------------------------------------------


@dsl.container_component
def step(number: int):  # type: ignore[no-untyped-def]
    return dsl.ContainerSpec(image="image", command=["run"], args=["--number", number])


def with_gpus(register: bool) -> Any:
    @dsl.pipeline(name="gpus")
    def pipeline(gpus: str = "1", go: str = "yes") -> None:
        with dsl.If(go == "yes"):
            task = step(number=1)
            task.set_accelerator_type(GPU).set_accelerator_limit(gpus)
            if register:
                task.register_pipeline_channels([gpus])

    return pipeline


def test_k3_a_parameter_that_only_steers_resources_is_not_found(tmp_path: Path) -> None:
    run = run_of(compile_pipeline(with_gpus(register=False), tmp_path)).to_the_end()
    assert run.state == "FAILED"
    assert run.tasks.driver_logs["step"] == (
        "parent DAG does not have input parameter pipelinechannel--gpus"
    )


@pytest.mark.parametrize("gpus", ["0", "2"])
def test_k3_once_registered_it_is(gpus: str, tmp_path: Path) -> None:
    run = run_of(compile_pipeline(with_gpus(register=True), tmp_path), gpus=gpus).to_the_end()
    assert run.state == "SUCCEEDED", run.tasks.driver_logs
    assert pods(run, "step")[0].resources["limits"] == {GPU: gpus}


@dsl.pipeline(name="steered")
def steered(
    image: str = "mine", gpus: str = "1", memory: str = "1Gi", secret: str = "s", claim: str = "c"
) -> None:
    task = step(number=1)
    task.set_container_image(image).set_memory_limit(memory)
    task.set_accelerator_type(GPU).set_accelerator_limit(gpus)
    kubernetes.use_secret_as_env(
        task, secret_name=secret, secret_key_to_env={"token": "TOKEN"}, optional=True
    )
    kubernetes.mount_pvc(task, pvc_name=claim, mount_path="/cache")


def test_k4_image_memory_and_gpus_are_parameters(tmp_path: Path) -> None:
    run = run_of(compile_pipeline(steered, tmp_path), image="yours", gpus="2").to_the_end()
    (pod,) = pods(run, "step")
    assert (pod.image, pod.resources) == ("yours", {"limits": {"memory": "1Gi", GPU: "2"}})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("secret", "", "Expected a non-empty string"),
        ("claim", "", "Expected a non-empty string"),
        ("gpus", "", "quantities must match the regular expression"),
        ("gpus", "two", "quantities must match the regular expression"),
        ("memory", "", "quantities must match the regular expression"),
        ("memory", "64GB", "unable to parse quantity's suffix"),
    ],
)
def test_k22_k24_what_no_driver_can_parse(
    name: str, value: str, reason: str, tmp_path: Path
) -> None:
    run = run_of(compile_pipeline(steered, tmp_path), **{name: value}).to_the_end()
    assert run.state == "FAILED"
    assert reason in run.tasks.driver_logs["step"]


@dsl.container_component
def write(dataset: dsl.Output[dsl.Dataset]):  # type: ignore[no-untyped-def]
    return dsl.ContainerSpec(image="image", command=["run"], args=["--output", dataset.path])


@dsl.container_component
def read(dataset: dsl.Input[dsl.Dataset]):  # type: ignore[no-untyped-def]
    return dsl.ContainerSpec(image="image", command=["run"], args=["--input", dataset.path])


@pytest.mark.parametrize(("kind", "producer"), [("small", "write"), ("large", "write-2")])
def test_k5_one_of_two_variants_hands_its_artifact_on(
    kind: str, producer: str, tmp_path: Path
) -> None:
    @dsl.pipeline(name="variants")
    def variants(kind: str = "small") -> None:
        with dsl.If(kind == "small"):
            small = write()
        with dsl.Else():
            large = write()
        read(dataset=dsl.OneOf(small.outputs["dataset"], large.outputs["dataset"]))

    run = run_of(compile_pipeline(variants, tmp_path), kind=kind).to_the_end()
    assert run.state == "SUCCEEDED", run.tasks.driver_logs
    assert steps(run) == [producer, "read"]
    (artifact,) = pods(run, "read")[0].executor_input["inputs"]["artifacts"]["dataset"]["artifacts"]
    assert f"/{producer}/" in artifact["uri"]


def test_k10_a_task_that_ignores_failures_runs_for_each_task_before_it(tmp_path: Path) -> None:
    @dsl.pipeline(name="early")
    def early() -> None:
        first = step(number=1).set_display_name("first")
        second = step(number=2).after(first)
        step(number=3).after(first, second).ignore_upstream_failure()

    run = run_of(compile_pipeline(early, tmp_path)).to_the_end()
    assert steps(run) == ["step", "step-3", "step-2", "step-3"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.003, "0.003"), (1.0, "1"), (1e-05, "0.00001"), (1e6, "1000000"), (True, "true"),
     (["a", 1.0], '["a",1]'), ({"b": 1, "a": {}}, '{"a":{},"b":1}'), ("", "")],
)  # fmt: skip
def test_k19_parameters_as_text(value: object, text: str) -> None:
    assert as_text(value) == text


def test_k23_without_a_pipeline_root_artifacts_go_to_the_store_of_the_install() -> None:
    run = Run({"runtime_config": {"parameters": INPUTS}}, committed("raft")).to_the_end()
    outputs = pods(run, "train")[0].executor_input["outputs"]
    (adapter,) = outputs["artifacts"]["adapter"]["artifacts"]
    assert adapter["uri"].startswith(f"minio://mlpipeline/v2/artifacts/raft/{run.id}/train/")
    assert outputs["outputFile"].startswith("/minio/mlpipeline/v2/artifacts/raft/")


# ---- attempts ----------------------------------------------------------------------------------

REFUSED, KILLED, DELETED = Result(2), Result(137), Result(deleted=True)


@pytest.mark.parametrize(
    ("backend", "results", "state", "message"),
    [
        pytest.param(V2_17_0, [REFUSED], "FAILED", "main: Error (exit code 1)", id="failed"),
        pytest.param(V2_17_0, [DELETED, Result()], "SUCCEEDED", "", id="deleted"),
        pytest.param(
            V2_17_0, [DELETED] * 4, "FAILED", "No more retries left", id="deleted for ever"
        ),
        pytest.param(
            WITHOUT_DEFAULTS, [KILLED, Result()], "SUCCEEDED", "", id="failed, without defaults"
        ),
        pytest.param(
            WITHOUT_DEFAULTS, [REFUSED] * 4, "FAILED", "No more retries left",
            id="failed for ever, without defaults",
        ),
        pytest.param(
            WITHOUT_DEFAULTS, [DELETED], "FAILED", "pod deleted", id="deleted, without defaults"
        ),
    ],
)  # fmt: skip
def test_k6_what_is_retried(
    backend: Backend, results: list[Result], state: str, message: str
) -> None:
    run = raft(backend, {"train": in_turn(*results)}).to_the_end()
    assert run.state == state
    assert [pod.attempt for pod in pods(run, "train")] == list(range(len(results)))
    executor = attempts_at(run, "train")
    assert executor.message == message


@pytest.mark.parametrize(
    ("backend", "attempts", "minutes"),
    [(V2_17_0, 1, 1), (WITHOUT_DEFAULTS, 4, 1 + 2 + 4)],
    ids=["as installed", "without defaults"],
)
def test_k6_the_backoff_is_waited_for(backend: Backend, attempts: int, minutes: int) -> None:
    run = raft(backend, {"train": lambda _: REFUSED}).to_the_end()
    executor = attempts_at(run, "train")
    assert executor.finished is not None
    assert (executor.finished - executor.started) * 10 == minutes * 60 + attempts * 10


def test_k12_the_launchers_exit_code_is_1() -> None:
    run = raft(executors={"train": lambda _: REFUSED}).to_the_end()
    assert [pod.exit_code for pod in pods(run, "train")] == [1]


def test_k17_a_step_knows_its_attempt() -> None:
    run = raft(executors={"train": in_turn(DELETED, Result())}).to_the_end()
    first, second = pods(run, "train")
    assert first.environment["KFP_RETRY_INDEX"] == "0"
    assert second.environment["KFP_RETRY_INDEX"] == "1"
    assert first.name != second.name
    assert first.executor_input == second.executor_input


# ---- Retry -------------------------------------------------------------------------------------

FAILURES: dict[str, Callable[[], Run]] = {
    "refused": lambda: raft(executors={"train": in_turn(REFUSED, Result())}),
    "killed": lambda: raft(executors={"eval": in_turn(KILLED, Result())}),
    "deleted for ever": lambda: raft(executors={"train": in_turn(*[DELETED] * 4, Result())}),
    "driver": lambda: raft(faults={"quantize-check": 1}),
    "gate's driver": lambda: raft(faults={"condition-2": 1}),
}


@pytest.mark.parametrize("failed", FAILURES.values(), ids=FAILURES)
def test_k7_k8_a_retry_keeps_what_has_succeeded(failed: Callable[[], Run]) -> None:
    run = failed().to_the_end()
    assert run.state == "FAILED"
    before = {pod.task: pod.executor_input for pod in run.tasks.pods}
    succeeded = {pod.task for pod in run.tasks.pods if pod.phase == "Succeeded"}
    count = len(run.tasks.pods)
    run.retry()
    assert run.to_the_end().state == "SUCCEEDED"
    again = run.tasks.pods[count:]
    assert again[-1].task == "eval"
    assert not succeeded & {pod.task for pod in again}, "also not the exit handler"
    for pod in again:
        assert pod.executor_input == before.get(pod.task, pod.executor_input)
        assert pod.attempt == 0
    assert [entry["state"] for entry in run.history] == [
        "PENDING", "RUNNING", "FAILED", "RUNNING", "SUCCEEDED",
    ]  # fmt: skip


def test_a_retry_of_a_study_repeats_the_failed_trial_only() -> None:
    trains = in_turn(Result(), REFUSED, Result(), Result(), Result())
    run = run_of(committed("study"), V2_17_0, {"train": trains}, **INPUTS).to_the_end()
    assert (run.state, final_status(run)) == ("FAILED", "FAILED")
    run.retry()
    assert run.to_the_end().state == "SUCCEEDED"
    assert [steps(run).count(task) for task in ("train", "eval", "compare")] == [5, 4, 1]
    (compare,) = pods(run, "compare")
    assert len(compare.executor_input["inputs"]["artifacts"]["evaluations"]["artifacts"]) == 4


def test_k9_without_a_root_driver_there_is_no_summary_but_a_retry() -> None:
    run = raft(faults={"root": 1}).to_the_end()
    assert (run.state, steps(run)) == ("FAILED", [])
    run.retry()
    assert run.to_the_end().state == "SUCCEEDED"


def test_a_retry_can_fail_again() -> None:
    run = raft(executors={"train": lambda _: KILLED}).to_the_end()
    run.retry()
    assert run.to_the_end().state == "FAILED"
    assert len(pods(run, "train")) == 2


# ---- terminate ---------------------------------------------------------------------------------


def until_running(run: Run, task: str) -> Run:
    while not any(pod.task == task and pod.phase == "Running" for pod in run.tasks.pods):
        assert run.state in ("PENDING", "RUNNING")
        run.advance()
    return run


@pytest.mark.parametrize("backend", [V2_17_0, V2_16_1], ids=["2.17.0", "2.16.1"])
def test_k13_terminate_ends_in_failed_after_the_exit_handler(backend: Backend) -> None:
    run = until_running(raft(backend, {"train": lambda _: Result(ticks=99)}), "train")
    run.terminate()
    assert run.state == "CANCELING"
    run.advance()
    assert pods(run, "train")[0].phase == "Running", "the signal comes a hop later"
    run.to_the_end()
    assert [entry["state"] for entry in run.history] == [
        "PENDING", "RUNNING", "CANCELING", "FAILED",
    ]  # fmt: skip
    assert [pod.exit_code for pod in pods(run, "train")] == [143]
    assert final_status(run) == "RUNNING"
    messages = {node.message for node in run.nodes.by_name.values() if node.kind == "Retry"}
    assert any(message.startswith("retry exceeded workflow deadline") for message in messages)


@pytest.mark.parametrize("wait", [0, 1, 3, 8, 14])
def test_a_run_can_be_terminated_at_any_time(wait: int) -> None:
    run = raft(executors={"eval": lambda _: Result(ticks=99)})
    for _ in range(wait):
        run.advance()
    run.terminate()
    assert run.to_the_end(ticks=20).state == "FAILED"


SCRIPT = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
def stop(*_):
    for tenth in range(50):
        with (folder / "tenths").open("a") as stream:
            stream.write("x")
        time.sleep(0.1)
signal.signal(signal.SIGTERM, stop)
(folder / "started").touch()
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
    "stop",
    [Run.terminate, lambda run: run.delete_pod("train")],
    ids=["terminate", "deleted pod"],
)
def test_k11_a_signalled_process_has_less_than_a_second(
    tmp_path: Path, stop: Callable[[Run], None]
) -> None:
    processes = []

    def train(_: Pod) -> Process:
        processes.append(Process([sys.executable, "-c", SCRIPT, str(tmp_path)]))
        return processes[-1]

    run = until_running(raft(WITHOUT_DEFAULTS, {"train": train}), "train")
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    stop(run)
    run.to_the_end()
    (process,) = processes
    assert process.process.poll() == -signal.SIGKILL
    assert len((tmp_path / "tenths").read_text()) <= 10


def test_a_process_that_ends_by_itself() -> None:
    def train(pod: Pod) -> Process:
        process = Process([sys.executable, "-c", f"raise SystemExit({1 - pod.attempt})"])
        process.process.wait()
        return process

    run = raft(WITHOUT_DEFAULTS, {"train": train}).to_the_end()
    assert run.state == "SUCCEEDED"
    assert [pod.exit_code for pod in pods(run, "train")] == [1, 0]


# ---- what is seen of a run ---------------------------------------------------------------------

GATE_CLOSED: dict[str, Executor] = {
    "quantize-check": lambda _: Result(outputs={"decision": "stop"})
}


@pytest.mark.parametrize(
    ("backend", "executors", "faults", "state", "status"),
    [
        pytest.param(V2_17_0, {}, {}, "SUCCEEDED", "COMPLETE", id="success"),
        pytest.param(V2_16_1, {}, {}, "SUCCEEDED", "RUNNING", id="success on 2.16.1"),
        pytest.param(V2_17_0, GATE_CLOSED, {}, "SUCCEEDED", "RUNNING", id="gate"),
        pytest.param(
            V2_17_0, {"train": lambda _: REFUSED}, {}, "FAILED", "FAILED", id="user's error"
        ),
        pytest.param(
            V2_17_0, {"train": lambda _: DELETED}, {}, "FAILED", "RUNNING", id="killed pods"
        ),
        pytest.param(
            V2_17_0, {"eval": lambda _: KILLED}, {}, "FAILED", "FAILED", id="killed process"
        ),
        pytest.param(V2_17_0, {}, {"train": 1}, "FAILED", "RUNNING", id="driver"),
    ],
)
def test_k14_the_status_that_the_exit_handler_receives(
    backend: Backend,
    executors: dict[str, Executor],
    faults: dict[str, int],
    state: str,
    status: str,
) -> None:
    run = raft(backend, executors, dict(faults)).to_the_end()
    assert (run.state, final_status(run)) == (state, status)


def test_k15_tasks_have_states_only_from_their_start() -> None:
    run = until_running(raft(executors={"train": lambda _: Result(ticks=99)}), "train")
    seen = {task["display_name"]: task["state"] for task in details(run)}
    assert seen["train"] == seen["executor(0)"] == "RUNNING"
    assert seen["generate-driver"] == seen["generate"] == "SUCCEEDED"
    assert not seen.keys() & {"quantize-check", "quantize-check-driver", "eval", "summary"}
    assert {task["end_time"] for task in details(run) if task["state"] == "RUNNING"} == {
        "1970-01-01T00:00:00Z"
    }
    run.terminate()
    run.to_the_end()
    omitted = {task["display_name"] for task in details(run) if "state" not in task}
    assert omitted == {
        "quantize-check", "quantize-check-driver", "condition-2", "condition-2-driver",
    }  # fmt: skip


def test_k15_the_children_lead_from_a_step_to_its_attempts() -> None:
    run = raft(executors={"train": in_turn(DELETED, Result())}).to_the_end()
    ids = {run.nodes.id(name): task for name, task in run.nodes.details.items()}
    train = next(task for task in details(run) if task["display_name"] == "train")
    for name in ("train(0)", "executor"):
        train = ids[train["child_tasks"][0]["pod_name"]]
        assert train["display_name"] == name
    attempts = [ids[child["pod_name"]] for child in train["child_tasks"]]
    assert [task["display_name"] for task in attempts] == ["executor(0)", "executor(1)"]
    assert [task["state"] for task in attempts] == ["FAILED", "SUCCEEDED"]


# ---- over HTTP, with kfp's own client ----------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with serving(KfpServer()) as kfp:
        yield kfp


def started(client: Any) -> str:
    home = client.create_experiment("raft")
    path = str(REPOSITORY / "pipelines" / "raft.yaml")
    return str(client.run_pipeline(home.experiment_id, "run", path, INPUTS).run_id)


def state_at_the_end(client: Any, run_id: str) -> str:
    for _ in range(200):
        run = client.get_run(run_id)
        if run.state in ("SUCCEEDED", "FAILED"):
            return str(run.state)
    raise AssertionError(run.state)


def test_a_run_fails_and_is_retried_through_the_api(server: KfpServer) -> None:
    server.executors = {"train": in_turn(REFUSED, Result())}
    client = kubeflow.connect(server.url)
    run_id = started(client)
    with pytest.raises(Exception, match="must be Failed/Error to retry"):
        client._run_api.run_service_retry_run(run_id=run_id)
    assert state_at_the_end(client, run_id) == "FAILED"
    client._run_api.run_service_retry_run(run_id=run_id)
    assert client.get_run(run_id).state == "RUNNING"
    assert state_at_the_end(client, run_id) == "SUCCEEDED"
    tasks = client.get_run(run_id).run_details.task_details
    assert {task.state for task in tasks} == {"SUCCEEDED"}
    with pytest.raises(Exception, match="cannot be terminated"):
        client.terminate_run(run_id)


def test_a_run_is_terminated_through_the_api(server: KfpServer) -> None:
    server.executors = {"train": lambda _: Result(ticks=99)}
    client = kubeflow.connect(server.url)
    run_id = started(client)
    until_running(server.runs[run_id], "train")
    client.terminate_run(run_id)
    assert client.get_run(run_id).state == "CANCELING"
    assert state_at_the_end(client, run_id) == "FAILED"


def test_a_server_of_another_version(server: KfpServer) -> None:
    server.backend = V2_16_1
    client = kubeflow.connect(server.url)
    run_id = started(client)
    assert state_at_the_end(client, run_id) == "SUCCEEDED"
    assert final_status(server.runs[run_id]) == "RUNNING"


def test_an_input_that_no_graph_declares_is_refused_unless_the_driver_finds_out() -> None:
    documents = committed("raft")
    inner = documents[0]["components"]["comp-exit-handler-1"]["dag"]["tasks"]["generate"]
    inner["inputs"]["parameters"]["seed"]["componentInputParameter"] = "pipelinechannel--none"
    with pytest.raises(Refused, match="unknown pipeline input"):
        check_pipeline(documents)
