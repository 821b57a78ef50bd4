"""Settings that are meant to do harm, through the real command: an error that a person can act on.

Each attack ends with exit code 2, names the file, line or value, shows no traceback, runs no code
of the attacker, and leaves what was there as it was.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.core.errors import ModelError
from components.core.model_files import check_adapter
from components.core.models import load_model, load_tokenizer
from components.core.storage import checksum
from tests.conftest import REPOSITORY, Raft, edit_json
from tests.faults.conftest import Leave, Tally, refused
from tests.gcs import Emulator
from tests.generate.teacher_server import good, teacher_server

KIND = "Hostile configuration"


def generate(documents: object, output: object, *more: object) -> list[object]:
    """A command line, in which later flags take the place of earlier ones."""
    flags = {"--teacher": "extractive", "--documents": documents, "--output": output}
    flags |= dict(zip(more[::2], more[1::2], strict=True))
    return ["generate", *(word for pair in flags.items() for word in pair)]


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): checksum(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- where things lie --------------------------------------------------------------------------

NAMES = {
    "gs://": "no bucket named",
    "gs:///x": "no bucket named",
    "gs://b/../x": "no empty part, no . and no ..",
    "gs://b/x/..": "no empty part, no . and no ..",
    "gs://b/./x": "no empty part, no . and no ..",
    "gs://b//x": "no empty part, no . and no ..",
    "gs://b//": "no empty part, no . and no ..",
    "gs://b%2Fx": "no bucket is called 'b%2Fx'",
    "gs://B/x": "no bucket is called 'B'",
    "gs://b?c/x": "no bucket is called 'b?c'",
    "gs://b c/x": "no bucket is called 'b c'",
    "gs://bücket/x": "no bucket is called 'bücket'",
    "gs://b/x\ny": "a line end",
    "gs://b/x\x1b[31m": "a line end",
    "gs://b/\u202ex": "a line end",
    "GS://b/x": "GS:// is not read here",
    "s3://b/x": "s3:// is not read here",
    "file:///etc": "file:// is not read here",
    "https://storage.googleapis.com/b/x": "https:// is not read here",
}


@pytest.mark.fault(
    KIND, "gs:// names that are none, and other schemes, as every kind of location",
    "refused before anything is read, paid for or written",
)  # fmt: skip
def test_locations(raft: Raft, leave: Leave, texts: Path, tmp_path: Path, tally: Tally) -> None:
    for name, complaint in NAMES.items():
        for flag in ("--documents", "--output", "--responses"):
            command = generate(texts, tmp_path / "out", flag, name)
            refused(leave(*command), f"error: {flag} {name!r}: ", complaint)
            assert not (tmp_path / "out").exists()
            tally.tried(1)
    done = raft(*command)
    assert done.stdout == "" and refused((done.returncode, done.stderr), complaint)


@pytest.mark.fault(
    KIND, "gs:// paths with spaces, quotes, +, unicode, a slash at the end",
    "taken as they are: the artifact lies there, under that very name",
)  # fmt: skip
def test_odd_paths_on_gs(
    texts: Path, gcs: Emulator, tmp_path: Path, tally: Tally, leave: Leave
) -> None:
    for name in ("a b'\"+&=", "ü/漢", "a/", "*", "$(touch x)"):
        code, text = leave(*generate(texts, f"gs://bucket/{name}"))
        assert code == 0, text
        code, text = leave("export", "--dataset", f"gs://bucket/{name}",
                           "--output", tmp_path / "back")  # fmt: skip
        assert code == 0, text
        assert len((tmp_path / "back" / "train.jsonl").read_text().splitlines()) == 9
        shutil.rmtree(tmp_path / "back")
        tally.tried(1)


@pytest.mark.fault(
    KIND,
    "an output in, around or equal to an input; `/`; a file; another stage's artifact; a link to "
    "an input",
    "refused; every input is as it was",
)
def test_outputs_on_inputs(
    leave: Leave, texts: Path, demo_model: Path, tmp_path: Path, tally: Tally
) -> None:
    dataset, other, file = tmp_path / "dataset", tmp_path / "other", tmp_path / "file"
    assert leave(*generate(texts, dataset))[0] == 0
    shutil.copytree(dataset, other)
    file.write_text("kept")
    link = tmp_path / "link"
    link.symlink_to(dataset)
    exported, new = tmp_path / "exported", tmp_path / "new"
    export = ["export", "--dataset", dataset, "--output"]
    assert leave(*export, exported)[0] == 0
    before = contents(tmp_path)
    attacks: list[tuple[list[object], str]] = [
        *(
            (generate(texts, output), "overlap")
            for output in (texts, texts / "sub", tmp_path, "/", texts / "Townaa.txt")
        ),
        (generate(texts, new, "--responses", texts), "overlap"),
        (generate(texts, new, "--responses", new / "kept"), "all of which becomes the artifact"),
        (generate(texts, exported), "holds what raft export wrote"),
        *(
            ([*export, output], "overlap")
            for output in (dataset, dataset / "adapter", link, tmp_path)
        ),
        ([*export, other], "holds what raft generate wrote"),
        ([*export, file], "is a file"),
        (["demo", "--output", "gs://b/x"], "is no folder on this machine"),
        (["compare", dataset, "--output", "gs://b/x"], "is no folder on this machine"),
        # The stages that load models ask the same, before they load any.
        (["train", "--dataset", dataset, "--base-model", demo_model, "--output", dataset],
         "overlap"),
    ]  # fmt: skip
    for command, complaint in attacks:
        refused(leave(*command), complaint, (command[command.index("--output") + 1], texts))
        tally.tried(1)
    assert contents(tmp_path) == before


@pytest.mark.fault(
    KIND, "a pipe or a device as an input", "refused at once; not read until memory or time end"
)
def test_inputs_that_never_end(leave: Leave, texts: Path, tmp_path: Path, tally: Tally) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for flag in ("--question-prompt", "--eval-questions", "--documents"):
        for source in (pipe, Path("/dev/zero")):
            command = generate(texts, tmp_path / "out", flag, source)
            refused(leave(*command), f"{flag} {source}: neither a file nor a folder")
            tally.tried(1)


# ---- what they say -----------------------------------------------------------------------------


@pytest.mark.fault(KIND, "a flag given twice", "refused: the last would win without a word")
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--seed", "1", "--output", "o", "--seed=2"],
        ["train", "--rank", "16", "--rank", "16"],
        ["compile", "--tag", "2", "--tag", "3"],
        ["plan", "--rank", "8", "--gpu", "l4", "--rank", "16"],
    ],
    ids=lambda words: words[0],
)
def test_a_flag_twice(command: list[str], leave: Leave) -> None:
    refused(leave(*command), "is given 2 times")


PROMPTS = {
    "": "lacks $chunk, lacks $count",
    "$chunk": "lacks $count",
    "$chunk $count $evil": "does not know $evil",
    "$chunk $count $question": "does not know $question",
    "$chunk $count $": "begins no placeholder",
    "${chunk.__class__} $count": "begins no placeholder",
    "$$chunk $count": "lacks $chunk",
    b"$chunk $count \xff": "cannot be read",
}


@pytest.mark.fault(
    KIND, "prompts with missing, unknown and malformed placeholders", "refused by the name"
)
def test_prompts(texts: Path, tmp_path: Path, tally: Tally, leave: Leave) -> None:
    prompt = tmp_path / "prompt.md"
    for text, complaint in PROMPTS.items():
        prompt.write_bytes(text if isinstance(text, bytes) else text.encode())
        command = generate(
            texts, tmp_path / "out", "--teacher", "openai", "--teacher-model", "m",
            "--teacher-endpoint", "http://127.0.0.1:9/v1", "--question-prompt", prompt,
        )  # fmt: skip
        refused(leave(*command), f"--question-prompt {prompt}: ", complaint)
        tally.tried(1)


@pytest.mark.fault(
    KIND, "braces, format strings, repeated placeholders and dollars in a prompt and a document",
    "sent to the teacher as they are; nothing in a document is a placeholder",
)  # fmt: skip
def test_a_prompt_is_no_format_string(
    texts: Path, tmp_path: Path, leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = "{chunk.__class__} {0} %s %(chunk)s {{x}} {% raw %} \\g<0>"
    (tmp_path / "prompt.md").write_text(f"{attack} $$5\n<DOCUMENT>\n$chunk\n</DOCUMENT>\n$count")
    for path in texts.iterdir():
        path.write_text(path.read_text() + "It costs $chunk and ${count} and $evil.\n")
    monkeypatch.setenv("OPENAI_API_KEY", "")  # set, and empty: as not set
    with teacher_server(good) as server:
        code, text = leave(*generate(
            texts, tmp_path / "out", "--teacher", "openai", "--teacher-model", "m",
            "--teacher-endpoint", server.endpoint, "--question-prompt", tmp_path / "prompt.md",
        ))  # fmt: skip
    assert code == 0, text
    prompts = [body["messages"][0]["content"] for body in server.seen]
    assert sum(prompt.startswith(f"{attack} $5\n") for prompt in prompts) == 10
    assert all("It costs $chunk and ${count} and $evil." in prompt for prompt in prompts)


QUESTIONS = {
    "[" * 100_000 + "]" * 100_000: "not JSON (recursion limit exceeded",
    '[{"_id": ' + "9" * 100_000 + "}]": "not JSON (number out of range",
    '[{"_id": "\\ud800"}]': "not JSON",
    "[]": "contains no questions",
    "": "contains no questions",
    "{}": "_id: Field required",
    "null": "questions.json:1: ",
    '[{"_id": {}, "question": [], "answer": 1, "supporting_facts": 1, "context": 1}]': "row 1: ",
    '[{"_id": "1", "question": "q", "answer": "a", "supporting_facts": [["T", 0]], '
    '"context": [["T", ["s"]]], "\\u001b[31m": 1}]': "Extra inputs are not permitted",
    "\xff\xfe": "questions.json:1: ",
    "__import__('os').system('touch owned')": "not JSON",
}


@pytest.mark.fault(KIND, "questions that are no questions", "refused with file and row")
def test_questions(
    demo_model: Path, world_adapter: Path, tmp_path: Path, tally: Tally, leave: Leave
) -> None:
    path = tmp_path / "questions.json"
    for text, complaint in QUESTIONS.items():
        path.write_text(text, encoding="utf-8")
        result = leave(
            "eval", "--questions", path, "--base-model", demo_model, "--adapter", world_adapter,
            "--output", tmp_path / "out",
        )  # fmt: skip
        refused(result, f"error: {path}", complaint)
        tally.tried(1)
    assert not (tmp_path / "out").exists()


# ---- YAML --------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
JOB = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: x}\n"
MANIFESTS = {
    LAUGHS + JOB + "spec: *a11\n": ":1: a0: not understood",
    JOB + "spec: {template: {spec: {containers: *a}}}\n": ":4: not YAML",
    "a: !!python/object/apply:os.system [touch owned]\n": ":1: could not determine a con",
    "a: !!python/name:os.system\n": ":1: could not determine a con",
    JOB + "spec: !evil {}\n": ":4: could not determine a constructor for the tag '!evil'",
    "kind: Job\nkind: Pod\n": ":2: kind is written twice, first in line 1",
    "a:\n\t- b\n": ":2: not YAML",
    'a: "\\ud800"\n': ":1: not YAML",
    "[" * 50_000 + "]" * 50_000: ":1: nested more than 100 deep",
    "a: " + "{a: " * 5_000 + "1" + "}" * 5_000: ":1: nested more than 100 deep",
    "- " * 5_000 + "a": ":1: nested more than 100 deep",
    "? {a: b}\n: c\n": ":1: a key that is not a text",
    "a: 2001-99-99\n": ":1: 2001-99-99: month must be in 1..12",
    "a: !!int x\n": ":1: x: ",
    "a: !!timestamp x\n": ":1: x: ",
    "a: !!bool x\n": ":1: x: ",
    "<<: {kind: Job}\n": ":1: could not determine a constructor",
    "a: &a [*a]\n": ": holds no Job",
    "just a text\n": ": holds no Job",
    "apiVersion: v1\nkind: [Job]\n": ": holds no Job",
    "apiVersion: v1\nkind: Job\nmetadata: 7\n": ":3: metadata 7: Input should be a valid dict",
    JOB + "spec: {}\n---\n" + JOB + "spec: {}\n": ":9: ",
    "%YAML 9.9\n---\na: b\n": ":1: not YAML",
    "": "holds no Job",
    "\0": "not YAML",
    b"\xff\xfe": "not UTF-8",
}


@pytest.mark.fault(
    KIND,
    "YAML: a billion laughs, Python objects, other tags, keys twice or no text, deep nesting, "
    "impossible dates, several documents, wrong types, a tab",
    "every one refused with its file, and with the line that is to blame, at once; no code runs",
)
def test_manifests(
    raft: Raft, leave: Leave, tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, (text, complaint) in enumerate(MANIFESTS.items()):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        refused(leave("check", path), (f"{path.name}{complaint}", complaint))
        tally.tried(1)
    # What crashes an interpreter would have ended this one too; and once as a process of its own.
    done = raft("check", tmp_path / "8.yaml", timeout=60)
    assert refused((done.returncode, done.stderr), "nested more than 100 deep")
    assert not (tmp_path / "owned").exists()


@pytest.mark.fault(
    KIND, "an overlay whose patch is one of these", "refused with file and line of the patch"
)
@pytest.mark.parametrize(
    ("patch", "complaint"),
    [
        ("a: !!python/object/apply:os.system [touch owned]\n", "could not determine a constructor"),
        ("- a\n", "patches"),
        (JOB + "spec: {$patch: replace}\n", "patches Job x"),
        ("? [a]\n: b\n", "a key that is not a text"),
        ("[" * 50_000, "nested more than 100 deep"),
    ],
    ids=["object", "list", "directive", "key", "deep"],
)
def test_overlays(patch: str, complaint: str, leave: Leave, tmp_path: Path) -> None:
    base = REPOSITORY / "k8s" / "base"
    (tmp_path / "patch.yaml").write_text(patch)
    (tmp_path / "kustomization.yaml").write_text(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [{base}]\npatches: [{{path: patch.yaml}}]\n"
    )
    refused(leave("check", tmp_path), "patch.yaml:1: ", complaint)


# ---- models ------------------------------------------------------------------------------------


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.fault(
    KIND, "weights that are pickles: pytorch_model.bin, or named model.safetensors",
    "refused; nothing is unpickled",
)  # fmt: skip
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickles(name: str, model: Path, tmp_path: Path) -> None:
    import torch

    (model / "model.safetensors").unlink()
    torch.save({"weight": Evil(tmp_path / "owned")}, model / name)
    with pytest.raises(ModelError, match="safetensors") as refusal:
        load_model(str(model), torch.float32)
    assert str(model) in str(refusal.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.fault(
    KIND, "a model folder with code: auto_map in config.json and tokenizer_config.json",
    "the code is never run; where there is no way without it, refused",
)  # fmt: skip
@pytest.mark.parametrize("kind", ["llama", "evil"])
def test_code_of_a_model(kind: str, model: Path, tmp_path: Path) -> None:
    import torch

    (model / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'owned')!r}).touch()\n"
        "from transformers import LlamaConfig as C, LlamaForCausalLM as M, "
        "PreTrainedTokenizerFast as T\n"
    )
    edit_json(
        model / "config.json", model_type=kind,
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    )  # fmt: skip
    edit_json(
        model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]},
        **({"tokenizer_class": "EvilTokenizer"} if kind == "evil" else {}),
    )  # fmt: skip
    for load in (lambda: load_tokenizer(str(model)), lambda: load_model(str(model), torch.float32)):
        if kind == "llama":
            load()
        else:
            with pytest.raises(ModelError, match=str(model)):
                load()
    assert not (tmp_path / "owned").exists()


TEMPLATES = {
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "unsafe",
    "{{ lipsum.__globals__['os'].popen('touch owned').read() }}": "unsafe",
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}": "unsafe",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}": "unsafe",
    "{{ messages.append(1) }}": "unsafe",
    "{% include '/etc/passwd' %}": "no loader",
    "{% for a in range(10 ** 12) %}a{% endfor %}": "Range too big",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "recursion",
    "{{ 'x' * 10 ** 15 }}": "MemoryError",
    "{% for %}": "Expected an expression",
    "{{ raise_exception('no') }}": "no",
    "{{ a.b.c }}": "undefined",
    "always the same": "omits the messages",
}


@pytest.mark.fault(
    KIND, "chat templates that leave the sandbox, fill memory, or say nothing",
    "refused by the template's fault; no code runs",
)  # fmt: skip
def test_chat_templates(
    model: Path, tmp_path: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for template, complaint in TEMPLATES.items():
        (model / "chat_template.jinja").write_text(template, encoding="utf-8")
        with pytest.raises(ModelError, match=complaint) as refusal:
            load_tokenizer(str(model))
        assert f"--base-model {model}: its chat template cannot be used" in str(refusal.value)
        tally.tried(1)
    assert not (tmp_path / "owned").exists()


ADAPTERS: dict[str, dict[str, object]] = {
    "peft_type": {"peft_type": "evil"},
    "r": {"r": 10**9},
    "target_modules": {"target_modules": "(a+)+$"},
    "rank_pattern.q_proj": {"rank_pattern": {"q_proj": 10**9}},
    "layer_replication": {"layer_replication": [[0, 10**9]]},
    "auto_mapping": {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}},
}


@pytest.mark.fault(
    KIND, "an adapter_config.json with huge sizes, a pattern, layers without number, other classes",
    "refused by the field",
)  # fmt: skip
def test_adapters(world_adapter: Path, tmp_path: Path, tally: Tally) -> None:
    check_adapter(str(world_adapter))
    adapter = Path(shutil.copytree(world_adapter, tmp_path / "adapter"))
    good = (adapter / "adapter_config.json").read_text("utf-8")
    for field, values in ADAPTERS.items():
        (adapter / "adapter_config.json").write_text(good)
        edit_json(adapter / "adapter_config.json", **values)
        with pytest.raises(ModelError, match=f"adapter_config.json: {field}"):
            check_adapter(str(adapter))
        tally.tried(1)
    for text in ("[]", "null", "{", "[" * 100_000, '{"r": ' + "9" * 10_000 + "}"):
        (adapter / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match="adapter_config.json: "):
            check_adapter(str(adapter))
        tally.tried(1)


@pytest.mark.fault(
    KIND, "an adapter that names another base, on the hub", "the base that was given is used"
)
def test_an_adapter_with_another_base(
    world_adapter: Path, demo_model: Path, tmp_path: Path
) -> None:
    import torch

    from components.core.models import load_tuned

    adapter = Path(shutil.copytree(world_adapter, tmp_path / "adapter"))
    edit_json(
        adapter / "adapter_config.json",
        base_model_name_or_path="evil/model", revision="../../evil",
    )  # fmt: skip
    tuned = load_tuned(str(demo_model), str(adapter), torch.float32)
    assert tuned.get_base_model().name_or_path == str(demo_model)


@pytest.mark.fault(KIND, "environment variables that are set and empty", "as if they were not set")
@pytest.mark.parametrize(
    "name",
    ["OPENAI_API_KEY", "OPENAI_API_KEY_FILE", "HF_TOKEN", "TMPDIR", "HOME", "PYTHONPATH", "LANG"],
)
def test_empty_variables(
    name: str, raft: Raft, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "PYTHONPATH":
        monkeypatch.setenv(name, "")
    else:
        monkeypatch.setenv(name, os.pathsep + os.environ.get(name, ""))
    done = raft(*generate(texts, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
