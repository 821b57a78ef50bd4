"""Killed anywhere, the same command ends with the same artifact, and pays for nothing twice.

Real processes are ended from outside: by SIGKILL, by SIGTERM, and by the kernel for lack of memory
(a cgroup), at random moments of their lives, before a random change of a file, or after a random
upload; several times in a row, on this machine or on another one (where only the bucket is left).
"""

import json
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from components.core.records import read_json
from components.core.storage import MANIFEST, PARTIAL_MANIFEST, SCHEME, Manifest, fetch, verify
from components.generate import generate
from components.generate.config import GenerateConfig
from pipelines.demo.world import articles, write_documents, write_questions
from tests.conftest import lacking
from tests.faults import memory
from tests.faults.conftest import Tally
from tests.faults.warm import Mother, Order, Run
from tests.gcs import BUCKET, Emulator, emulator, upload_files
from tests.generate.teacher_server import TeacherServer, teacher_server

pytestmark = pytest.mark.timeout(3600)

WIDTH = 4  # calls to the teacher at once
INTERVAL = 3  # optimizer steps between checkpoints
GRACE = 15.0  # seconds between SIGTERM and SIGKILL on a spot node
TERMINATED = 128 + signal.SIGTERM
PLACES = ["folder", "bucket"]


# ---- what is run -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command, what it reads, what of its artifact must be the same, and what is counted.

    flags: a word in braces is an input. files: compared byte for byte. records: JSON files, with
    the keys that tell of time or memory. near: keys of records whose figures may differ by 1 %.
    counted: the method whose calls are the work.
    """

    name: str
    flags: str
    files: tuple[str, ...] = ()
    records: dict[str, set[str]] = field(default_factory=dict)
    near: tuple[str, ...] = ()
    counted: str = ""

    def same(self, artifact: Path, whole: Path) -> None:
        """Hold an artifact against that of a run that was not disturbed."""
        assert names_in(artifact) == names_in(whole)
        for name in self.files:
            assert (artifact / name).read_bytes() == (whole / name).read_bytes(), name
        for name, apart in self.records.items():
            pair = [json.loads((place / name).read_text("utf-8")) for place in (artifact, whole)]
            one, other = ({k: v for k, v in item.items() if k not in apart} for item in pair)
            for key in self.near:
                assert one.pop(key) == pytest.approx(other.pop(key), rel=0.01), key
            assert one == other, name


def names_in(folder: Path) -> list[str]:
    """The files of an artifact; its manifest names them all, and there is nothing else."""
    listed = {entry.path for entry in read_json(folder / MANIFEST, Manifest).files}
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert there == listed | {MANIFEST}
    return sorted(re.sub(r"tfevents\..*", "tfevents", name) for name in listed)


DATASET = ("train.jsonl", "validation.jsonl", "report.json", "README.md")
TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes", "settings", "base_model"}

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "generate",
            "--documents {towns} --max-chunks 0 --teacher openai --teacher-model teacher "
            f"--teacher-endpoint {{teacher}} --teacher-concurrency {WIDTH}",
            files=DATASET,
        ),
        Command(
            "train",
            "--dataset {dataset} --base-model {model} --epochs 2 --batch-size 6 --rank 4 "
            "--gradient-accumulation 1 --dropout 0.1 --gradient-checkpointing false "
            f"--learning-rate 2e-3 --checkpoint-steps {INTERVAL}",
            files=("adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"),
            records={"training.json": TIMES | {"mfu"}},
            counted="transformers.trainer:Trainer.training_step",
        ),
        Command(
            "quantize-check",
            "--dataset {dataset} --base-model {model} --adapter {adapter} --max-rows 8 "
            "--max-new-tokens 24",
            files=("answers.jsonl",),
            records={"quantization.json": set()},
            # On one kind of CPU bfloat16 gave other last digits in one process than in the next.
            near=("mean_kl", "perplexity_16bit", "perplexity_4bit"),
        ),
        Command(
            "eval",
            "--questions {questions} --base-model {model} --adapter {adapter} --batch-size 4 "
            "--arms base,raft,raft-4bit --max-new-tokens 24",
            files=("samples.jsonl", "results.json", "f1.svg"),
            counted="components.core.decoding:complete",
        ),
        Command("export", "--dataset {dataset} --format chat", files=DATASET[:2]),
    )
}  # fmt: skip
STAGES = ["generate", "train", "quantize-check", "eval"]


@dataclass
class Workshop:
    """What all tests here share: the mother process, inputs in a folder and in a bucket."""

    mother: Mother
    inputs: Path
    bucket: Emulator
    teacher: TeacherServer
    scratch: Path
    wholes: dict[str, "Whole"] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    def line(self, command: Command, output: str) -> list[str]:
        """The command line, reading where it writes: in folders or in the bucket."""
        place = f"{SCHEME}{BUCKET}/in" if output.startswith(SCHEME) else str(self.inputs)
        names = ("towns", "dataset", "model", "adapter", "questions.json")
        inputs = {name.split(".")[0]: f"{place}/{name}" for name in names}
        flags = command.flags.format(teacher=self.teacher.endpoint, **inputs)
        return [command.name, *flags.split(), "--output", output]

    def whole(self, command: Command) -> "Whole":
        """The command's run that nobody disturbs; once."""
        if command.name not in self.wholes:
            self.wholes[command.name] = Whole(self, command)
        return self.wholes[command.name]


@pytest.fixture(scope="module")
def workshop(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("kills")
    inputs = folder / "inputs"
    known = articles(40, seed=7)
    write_documents(known, inputs / "documents")
    for number in range(40):
        town = inputs / "towns" / f"{number}.txt"
        town.parent.mkdir(exist_ok=True)
        town.write_text(f"Town{number} was founded in {1800 + number}. It lies by the sea.\n")
    unseen = articles(24, seed=8, exclude={article.title for article in known})
    write_questions(unseen, 12, 3, 8, inputs / "questions.json")
    shutil.copytree(demo_model, inputs / "model")
    generate.run(
        GenerateConfig(
            teacher="extractive", documents=str(inputs / "documents"),
            output=str(inputs / "dataset"),
            validation_fraction=0.2,
        )
    )  # fmt: skip
    with (
        emulator() as bucket,
        teacher_server(seconds=0.03) as teacher,
        pytest.MonkeyPatch.context() as patch,
        Mother() as mother,
    ):
        patch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
        made = Workshop(mother, inputs, bucket, teacher, folder)
        shutil.copytree(made.whole(COMMANDS["train"]).output, inputs / "adapter")
        upload_files(inputs, "in")
        yield made


class Whole:
    """An undisturbed run: its artifact, how long it takes, how much there is to do."""

    def __init__(self, workshop: Workshop, command: Command) -> None:
        chain = Chain(workshop, command, "folder", random.Random(0))
        with memory.limit() as limit:
            run = chain.start(group=str(limit.folder) if limit else "")
            assert run.wait() == 0, run.printed()
            self.memory = limit.most() if limit is not None else 0
        self.output = Path(chain.output)
        verify(self.output, "--output")
        self.seconds = run.seconds
        self.changes = chain.changes.stat().st_size
        self.calls = chain.calls_of_attempt
        self.prompts = Counter(map(prompt_of, workshop.teacher.seen[chain.first_call :]))


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


# ---- attempts at one output --------------------------------------------------------------------


class Chain:
    """One output, from the first attempt at it to the one that is left to finish."""

    def __init__(
        self, workshop: Workshop, command: Command, place: str, rng: random.Random
    ) -> None:
        self.workshop, self.command, self.rng = workshop, command, rng
        self.folder = workshop.scratch / f"{command.name}-{next(workshop.numbers)}"
        self.folder.mkdir()
        self.remote = place == "bucket"
        where = f"{SCHEME}{BUCKET}/{self.folder.name}" if self.remote else str(self.folder)
        self.output = f"{where}/out"
        self.first_call = len(workshop.teacher.seen)
        self.changes, self.calls = self.folder / "changes", self.folder / "calls"
        self.calls.touch()
        self.kills: list[str] = []
        self.lost_with_a_machine = False
        self.is_up_to_date = 0  # attempts that were killed when the artifact was whole
        self.attempts = 0
        self.calls_before = 0
        self.reached = 0  # optimizer steps, of the last attempt that trained
        self.reached_until = ""  # what ended it
        self.lost: list[tuple[str, int]] = []  # what ended an attempt, and the steps it lost
        self.new_machine()

    def new_machine(self) -> None:
        """Nothing local is left of what lies in a bucket: another pod, on another node."""
        if self.remote and self.kills and self.kills[-1] != "SIGTERM":
            self.lost_with_a_machine = True
        self.machine = self.folder / f"machine{self.attempts}"
        self.machine.mkdir()

    def start(self, kill_at: int = 0, group: str = "") -> Run:
        self.attempts += 1
        self.calls_before = self.calls.stat().st_size
        environment = {
            "STORAGE_EMULATOR_HOST": self.workshop.bucket.url,
            "GOOGLE_CLOUD_PROJECT": "test",
            "TMPDIR": str(self.machine),
        }
        order = Order(
            self.workshop.line(self.command, self.output),
            log=str(self.folder / f"log{self.attempts}"),
            environment=environment,
            group=group,
            under=[str(self.folder / "out"), str(self.machine)],
            changes=str(self.changes),
            kill_at=kill_at,
            method=self.command.counted,
            calls=str(self.calls),
        )
        return self.workshop.mother.start(order)

    @property
    def calls_of_attempt(self) -> int:
        return self.calls.stat().st_size - self.calls_before

    @cached_property
    def whole(self) -> Whole:
        return self.workshop.whole(self.command)

    def ended(self, run: Run, kind: str) -> bool:
        """Whether the kill of an attempt has met it alive; what it left is looked at.

        One that was done before it could be killed has finished, as it should.
        """
        if run.code == 0:
            self.check_finished(run)
            return False
        self.check_log(run, kind)
        self.kills.append(kind)
        whole = self.check_unfinished()
        if self.command.name == "train":
            self.count_steps(run, kind)
        if whole:  # it was done but for its last breath; the same command begins anew
            self.reached_until = ""
            self.is_up_to_date += 1
        return True

    def check_log(self, run: Run, kind: str) -> None:
        log = run.printed()
        assert "Traceback" not in log and "Exception" not in log, log
        if kind != "SIGTERM":
            # Where the kernel takes a process of its own instead, the command says what happened.
            explained = kind == "out of memory" and "error: " in log
            assert run.code == -signal.SIGKILL or explained, (run.code, log)
            return
        if run.code == -signal.SIGTERM:  # before the command had begun to listen
            assert not log, log
            return
        assert run.code == TERMINATED, (run.code, log)
        assert "SIGTERM" in log.splitlines()[-1], log

    def check_unfinished(self) -> bool:
        """What a killed run has left is never taken for a whole artifact, unless it is one."""
        copy = self.folder / "seen"
        shutil.rmtree(copy, ignore_errors=True)
        try:
            if self.remote:
                fetch(self.output, copy)
            else:
                shutil.copytree(self.output, copy)
            verify(copy, "--output")
        except Exception as error:
            assert re.search("not finished|nothing there|listed in|No such file", str(error)), error
            return False
        if not (copy / MANIFEST).exists():
            assert all(path.name.startswith(".") for path in copy.iterdir())
            return False
        for resume_state in ("checkpoints", "generations.partial.jsonl", PARTIAL_MANIFEST):
            remove(copy / resume_state)
        self.command.same(copy, self.whole.output)
        return True

    def finish(self) -> None:
        """Give the same command once more, and leave it alone."""
        run = self.start()
        run.wait()
        self.check_finished(run)

    def check_finished(self, run: Run) -> None:
        assert run.code == 0, run.printed()
        artifact = Path(self.output)
        if self.remote:
            artifact = self.folder / "fetched"
            shutil.rmtree(artifact, ignore_errors=True)
            fetch(self.output, artifact)
        verify(artifact, "--output")
        self.command.same(artifact, self.whole.output)
        left = [p.name for p in self.machine.rglob("*") if p.is_file() and p.suffix != ".lock"]
        assert not left, f"left in TMPDIR: {left}"
        if self.command.name == "train":
            self.count_steps(run, "")
            self.check_steps()
        elif self.command.name == "generate" and not self.lost_with_a_machine:
            self.check_paid()
        elif self.command.name == "eval" and not self.lost_with_a_machine:
            self.check_batches()

    def check_paid(self) -> None:
        """Calls: none is missing, and only what was under way at a kill was made twice."""
        prompts = Counter(map(prompt_of, self.workshop.teacher.seen[self.first_call :]))
        assert prompts.keys() == self.whole.prompts.keys()
        assert prompts.total() - len(prompts) <= WIDTH * len(self.kills)

    def count_steps(self, run: Run, kind: str) -> None:
        """Keep how far an attempt came, and what the one before it has lost."""
        log = run.printed()
        resumed = re.search(r"resuming after step (\d+)", log)
        begun = int(resumed[1]) if resumed else 0
        if "already trained" in log:
            begun = self.whole.calls
        elif not resumed and not self.calls_of_attempt:
            return  # it was killed before it could go on
        if self.reached_until:
            self.lost.append((self.reached_until, self.reached - begun))
        self.reached, self.reached_until = begun + self.calls_of_attempt, kind

    def check_steps(self) -> None:
        """Optimizer steps: none is lost to SIGTERM, and no more than the interval to a kill."""
        # One checkpoint is copied while the next is trained, and may go with the machine.
        most = 2 * INTERVAL if self.lost_with_a_machine else INTERVAL
        for kind, lost in self.lost:
            assert 0 <= lost <= (0 if kind == "SIGTERM" else most), self.lost

    def check_batches(self) -> None:
        """Batches: only the one under way at a kill was generated twice."""
        again = self.calls.stat().st_size - (1 + self.is_up_to_date) * self.whole.calls
        assert again <= len(self.kills)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


# ---- the attacks -------------------------------------------------------------------------------


class Attack:
    """Chains of kills: an attempt, and perhaps the next, is killed; then one is left to finish."""

    def __init__(self, workshop: Workshop, command: Command, place: str, tally: Tally) -> None:
        self.workshop, self.command, self.place, self.tally = workshop, command, place, tally
        self.rng = random.Random(f"{command.name} {place}")
        self.lost: list[tuple[str, int]] = []
        self.chain: Chain | None = None
        self.seconds = workshop.whole(command).seconds

    def kill(self, kind: str, act: Callable[[Chain], Run]) -> None:
        """Kill an attempt; one that is done before is looked at, and another is tried."""
        for _ in range(20):
            if self.chain is None:
                self.chain = Chain(self.workshop, self.command, self.place, self.rng)
            elif self.rng.random() < 0.5:
                self.chain.new_machine()
            run = act(self.chain)
            if self.chain.ended(run, kind):
                break
            self._close()
        else:
            pytest.fail("no kill met it alive")
        if self.rng.random() < 0.5:
            self.finish()

    def finish(self) -> None:
        if self.chain is not None:
            self.chain.finish()
            self._close()

    def _close(self) -> None:
        assert self.chain is not None
        self.lost += self.chain.lost
        shutil.rmtree(self.chain.folder)
        self.chain = None

    def at_random(self, kind: str) -> None:
        """Send a signal at a moment of the run's life; all are equally likely."""
        number = signal.Signals[kind]

        def act(chain: Chain) -> Run:
            moment = self.rng.uniform(0, self.seconds)
            run = chain.start()
            if not run.ended_within(moment):
                run.signal(number)
            run.wait(GRACE)
            return run

        self.kill(kind, act)

    def at_a_change(self) -> None:
        """SIGKILL before a change of a file: each of them is equally likely."""
        whole = self.workshop.whole(self.command)

        def act(chain: Chain) -> Run:
            run = chain.start(kill_at=self.rng.randint(1, whole.changes))
            run.wait()
            return run

        self.kill("SIGKILL", act)

    def at_an_upload(self, kind: str) -> None:
        """Send a signal once so many objects have arrived."""
        number = signal.Signals[kind]
        bucket = self.workshop.bucket

        def act(chain: Chain) -> Run:
            wanted = len(bucket.uploads) + self.rng.randint(1, 12)
            run = chain.start()
            while not run.ended_within(0.001):
                if len(bucket.uploads) >= wanted:
                    run.signal(number)
                    break
            run.wait(GRACE)
            return run

        self.kill(kind, act)

    def out_of_memory(self) -> None:
        """Less memory than it needs: the kernel kills it when it asks for more."""
        share = self.rng.uniform(0.3, 0.9)

        def act(chain: Chain) -> Run:
            nonlocal share
            with memory.limit() as limit:
                assert limit is not None
                limit.allow(int(share * self.workshop.whole(self.command).memory))
                run = chain.start(group=str(limit.folder))
                run.wait()
                assert run.code == 0 or limit.kills(), run.printed()
            share *= 0.8  # what was kept in caches needed not be there
            return run

        self.kill("out of memory", act)

    def note(self) -> None:
        """Say in the table what training has lost."""
        words = []
        for kind in sorted({kind for kind, _ in self.lost}):
            lost = [steps for end, steps in self.lost if end == kind]
            words.append(f"at most {max(lost)} to {kind} (mean {sum(lost) / len(lost):.1f})")
        if words:
            self.tally.note(f"training, {self.place}: steps lost {', '.join(words)}")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.fault(
    "Killed anywhere",
    "SIGKILL and SIGTERM by turns at random moments of `generate`, `train`, `quantize-check` and "
    "`eval`, often several in a row, on the same machine or the next; the same command then",
    "the same bytes; no call, step or batch again but those under way (training: since the last "
    "checkpoint, and none at SIGTERM); 143 and a word at SIGTERM",
)
def test_killed_at_random_moments(workshop: Workshop, stage: str, place: str, tally: Tally) -> None:
    attack = Attack(workshop, COMMANDS[stage], place, tally)
    for number in tally.tries(2):
        attack.at_random(("SIGTERM", "SIGKILL")[number % 2])
    attack.finish()
    attack.note()


@pytest.mark.parametrize("name", list(COMMANDS))
@pytest.mark.fault(
    "Killed anywhere",
    "SIGKILL before a random change of a file (open, rename, remove, …) of every stage and `raft "
    "export`: while the marker, the rows, a checkpoint, the manifest are written",
    "the same bytes; nothing half-written is taken for whole",
)
def test_killed_before_a_change_of_a_file(workshop: Workshop, name: str, tally: Tally) -> None:
    attack = Attack(workshop, COMMANDS[name], "folder", tally)
    for _ in tally.tries(1):
        attack.at_a_change()
    attack.finish()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.fault(
    "Killed anywhere",
    "SIGKILL and SIGTERM by turns once a random number of objects (1 to 12) has arrived in the "
    "bucket: responses, checkpoints, the artifact while it is published",
    "the same bytes; a reader finds the whole artifact or none",
)
def test_killed_while_publishing(workshop: Workshop, stage: str, tally: Tally) -> None:
    attack = Attack(workshop, COMMANDS[stage], "bucket", tally)
    for number in tally.tries(1):
        attack.at_an_upload(("SIGKILL", "SIGTERM")[number % 2])
    attack.finish()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.fault(
    "Killed anywhere",
    "Out of memory: a cgroup with 30 to 90 % of what the stage needs, and the kernel kills it; "
    "folders and buckets by turns",
    "exit code 137 (SIGKILL); with more memory the same command ends with the same bytes",
)
def test_out_of_memory(workshop: Workshop, stage: str, tally: Tally) -> None:
    with memory.limit() as made:
        if made is None:
            lacking("no memory cgroup can be made here (needs root and /sys/fs/cgroup)")
    attacks = [Attack(workshop, COMMANDS[stage], place, tally) for place in PLACES]
    for number in tally.tries(1):
        attacks[number % 2].out_of_memory()
        attacks[number % 2].finish()  # calls to the teacher are counted from a chain's start
