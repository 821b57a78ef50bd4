"""`raft serve`: the command that an adapter needs, in a shell and in k8s/base/serve."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from components.core.errors import ConfigError, ModelError
from components.core.raft_form import TEMPLATE
from components.core.storage import finish_artifact, publish
from components.use import serve
from components.use.config import ServeConfig
from pipelines.manifests import BASE
from tests.conftest import Raft
from tests.gcs import BUCKET, Emulator
from tests.use.vllm_server import deployment


def test_the_printed_command_has_what_the_adapter_needs(
    raft: Raft, world_adapter: Path, demo_model: Path
) -> None:
    done = raft("serve", "--adapter", world_adapter, "--port", 8123, "--vllm-flags", "--a,--b=1")
    assert done.returncode == 0, done.stderr
    program, verb, base, *flags = shlex.split(done.stdout)
    assert (program, verb, base) == ("vllm", "serve", str(demo_model))
    assert {
        "--enable-lora", "--max-lora-rank=64", "--max-loras=2", "--generation-config=vllm",
        f"--lora-modules=raft={world_adapter}", "--port=8123", "--host=127.0.0.1", "--a", "--b=1",
        f"--chat-template={world_adapter / 'chat_template.jinja'}",
    } <= set(flags)  # fmt: skip
    assert (world_adapter / "chat_template.jinja").read_text("utf-8").startswith(TEMPLATE)


def changed(adapter: Path, copy: Path, **settings: object) -> str:
    shutil.copytree(adapter, copy, ignore=shutil.ignore_patterns("manifest.json", "ledger.json"))
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), encoding="utf-8")
    return str(copy)


@pytest.mark.parametrize(
    ("settings", "slot"),
    [({"r": 8}, 8), ({"r": 65}, 128), ({"r": 4, "rank_pattern": {"q_proj": 300}}, 320)],
)
def test_the_rank_is_the_largest_of_the_adapter(
    settings: dict[str, object], slot: int, world_adapter: Path, tmp_path: Path
) -> None:
    adapter = changed(world_adapter, tmp_path / "adapter", **settings)
    command = serve.server_command(ServeConfig(adapter=adapter), adapter, "base")
    assert f"--max-lora-rank={slot}" in command


def test_another_base_is_an_error(world_adapter: Path, demo_model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(demo_model, tmp_path / "other"))
    config = (other / "config.json").read_text("utf-8")
    (other / "config.json").write_text(config.replace("1e-06", "1e-05"))
    with pytest.raises(ModelError, match="another model than"):
        serve.run(ServeConfig(adapter=str(world_adapter), base_model=str(other)))
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        serve.run(ServeConfig(adapter=str(tmp_path)))


def test_an_adapter_in_a_bucket_is_copied(
    gcs: Emulator,
    world_adapter: Path,
    demo_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, base = f"gs://{BUCKET}/run", f"gs://{BUCKET}/base"
    publish(world_adapter, f"{run}/adapter")
    model = Path(shutil.copytree(demo_model, tmp_path / "base"))
    finish_artifact(model)
    publish(model, base)
    with pytest.raises(ConfigError, match="vLLM reads folders of this machine"):
        serve.run(ServeConfig(adapter=f"{run}/adapter", base_model=base))
    fetching, starting = (
        [argument.replace("$(RAFT_RUN)", run) for argument in one["args"]]
        for one in (*deployment()["initContainers"], *deployment()["containers"])
    )
    arguments = dict(argument[2:].split("=", 1) for argument in fetching)
    arguments |= {"base-model": base, "copy-to": str(tmp_path / "models")}
    config = ServeConfig.parse({name.replace("-", "_"): text for name, text in arguments.items()})
    serve.run(config)
    command = shlex.split(capsys.readouterr().out)
    adapter = tmp_path / "models" / "adapter"
    assert command[2] == str(tmp_path / "models" / "base-model")
    assert f"--lora-modules=raft={adapter}" in command
    assert (adapter / "adapter_model.safetensors").read_bytes() == (
        world_adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert set(fetching) < set(starting)


def test_the_deployment_has_the_gpu_of_the_jobs_and_known_variables() -> None:
    pod = deployment()
    job = yaml.safe_load((BASE / "eval.yaml").read_text())["spec"]["template"]["spec"]
    (server,), (evaluation,) = pod["containers"], job["containers"]
    for field in ("nodeSelector", "tolerations", "securityContext", "serviceAccountName"):
        assert pod[field] == job[field], field
    for field in ("resources", "securityContext", "image", "envFrom"):
        assert server[field] == evaluation[field], field
    (fetcher,) = pod["initContainers"]
    assert server["command"] == fetcher["command"] == ["raft", "serve"]
    assert server["args"] == [*fetcher["args"], "--host=0.0.0.0", "--run=true"]
    variables = yaml.safe_load((BASE / "settings.yaml").read_text())["data"]
    for argument in fetcher["args"]:
        if "$(" in argument:
            assert argument.split("$(")[1].split(")")[0] in variables
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in (fetcher, server):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
