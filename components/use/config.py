"""Settings of the commands that use an adapter."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from components.core.base_model import BaseModelConfig
from components.core.config import (
    Options,
    Settings,
    TextList,
    input_option,
    option,
    option_group,
    output_option,
)
from components.core.corpus.options import CorpusOptions
from components.core.locations import InputLocation, Location

NAME = "raft"
"""What a server calls the adapter, by default."""
SHOWN = 4
"""Chunks that `raft ask` shows where it does not know how many the adapter was trained with."""
BASE = "Chat model that the adapter was trained on: hub id, local folder or gs:// folder. Empty: "
BASE += "the one that its training.json names."

question_option = option_group("Question")
model_option = option_group("Model")
server_option = option_group("Server")


class AskConfig(CorpusOptions, Options):
    """A question and documents in, an answer out."""

    stage: ClassVar[str] = "ask"

    question: str = question_option(
        "", help="The question. Without one, questions are read from the terminal, a line each."
    )
    top_k: int = question_option(
        0,
        ge=0,
        le=100,
        help="Maximum chunks to show (BM25). 0: as many as the rows that the adapter was trained "
        f"on showed, or {SHOWN} where that is not known.",
    )
    min_score: float = question_option(
        0.65,
        ge=0,
        le=1,
        help="Chunks with less than this share of the best one's score are not shown, except for "
        "the best two. 0 shows all.",
    )
    order: Literal["best-first", "best-last"] = question_option(
        "best-last", help="Order of the chunks shown; best-last puts the best next to the question."
    )
    adapter: InputLocation = model_option(
        "", help="Folder with the adapter of train. Empty: the base model alone."
    )
    base_model: InputLocation = model_option("", help=BASE)
    endpoint: str = model_option(
        "",
        help="OpenAI-compatible server with the adapter, such as one that raft serve starts; "
        "nothing is loaded here. For example http://localhost:8000/v1.",
    )
    model: str = model_option(NAME, help="The adapter's name on the endpoint.")
    max_new_tokens: int = model_option(800, ge=1, le=32_768, help="Maximum tokens in an answer.")
    dtype: Literal["auto", "bfloat16", "float32"] = model_option(
        "auto", help="Type of the weights; auto is bfloat16 on a GPU that supports it."
    )

    @model_validator(mode="after")
    def _something_answers(self) -> Self:
        if not (self.adapter or self.base_model or self.endpoint):
            raise ValueError("--adapter is missing: give the folder of raft train, or --endpoint")
        if self.endpoint and (self.adapter or self.base_model):
            raise ValueError("--endpoint has its own model: omit --adapter and --base-model")
        return self


class ServeConfig(Options):
    """An adapter in, the command of its server out."""

    stage: ClassVar[str] = "serve"

    adapter: Location = input_option(help="Folder (local or gs://) with the adapter of train.")
    base_model: Location = input_option("", help=BASE)
    copy_to: Location = input_option(
        "", help="Local folder that receives copies of an adapter or a base model on gs://."
    )
    run: bool = option(False, help="Start the server instead of printing its command.", group="Run")
    name: str = server_option(NAME, pattern=r"^\w[\w.-]*$", help="Name of the adapter in requests.")
    host: str = server_option("127.0.0.1", help="Address to listen on.")
    port: int = server_option(8000, ge=1, le=65_535, help="Port to listen on.")
    dtype: Literal["auto", "bfloat16", "float32"] = server_option(
        "auto", help="Type of the weights; auto is that of the base model."
    )
    vllm_flags: TextList = server_option(
        (), help="Further flags of vllm serve, separated by commas."
    )


class MergeConfig(BaseModelConfig):
    """An adapter and its base model in, one model out."""

    stage: ClassVar[str] = "merge-adapter"

    adapter: InputLocation = input_option(help="Folder with the adapter of train.")
    bits: Literal["16", "4"] = output_option(
        "16", help="Bits per weight: 16 (bfloat16), or 4 (NF4, as bitsandbytes saves it)."
    )
    quantize_lm_head: bool = output_option(
        False, help="Quantize the output head too, which bitsandbytes keeps in 16 bits."
    )


class CardConfig(Settings):
    """An adapter and its evaluation in, a folder to publish out."""

    stage: ClassVar[str] = "card"

    adapter: InputLocation = input_option(help="Folder with the adapter of train.")
    evaluation: InputLocation = input_option(
        "", help="Folder of eval, whose figures go into the card."
    )
    push_to_hub: str = output_option(
        "",
        pattern=r"^([\w-][\w.-]*/[\w-][\w.-]*)?$",
        help="Also push adapter and card to this repository of the hub, ORGANISATION/NAME, with "
        "HF_TOKEN; a repository that does not exist is created, as a private one.",
    )


class RowsConfig(Options):
    """A dataset in, a page to review it out."""

    stage: ClassVar[str] = "rows"

    dataset: InputLocation = input_option(help="Folder of generate.")
    output: str = output_option("rows.html", min_length=1, help="The page, a file on this machine.")
    max_rows: int = output_option(2000, ge=1, help="Maximum rows on the page: the first ones.")
