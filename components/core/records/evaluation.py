"""What eval reports: the scores of every arm, their differences, and every judged generation."""

from typing import ClassVar, Literal

from pydantic import Field

from components.core.records.record import Record

Bits = Literal[4, 16]
"""Of an arm's weights; 16 stands for the type that the stage's `dtype` chose, also 32 bits."""


class ArmResult(Record):
    """Scores of one arm (a model variant under test), each a mean over `n` questions in [0, 1].

    label, tuned (with an adapter, whose name is `adapter`), bits, prompt: what the arm is, from
    eval's registry. f1, em,
    precision, recall: the official HotpotQA script's. contains: a right answer occurs somewhere in
    the generation. truncated: cut off at the token limit; looping: of these, those that repeat
    themselves. unanswered: no answer marker, or empty
    where the prompt asks for none. quoted_oracle: quotes word for word from an oracle document.
    quotes_verbatim: share of all quotes that are word for word in a document shown; null where
    nothing is quoted. official: what the data set's own script says of all answers together.
    fabricated: quotes something that no document shown holds. Intervals are
    95 % percentile bootstraps over questions.
    """

    name: str
    label: str
    tuned: bool
    bits: Bits
    prompt: str
    f1: float
    em: float
    precision: float
    recall: float
    n: int
    contains: float
    truncated: float
    unanswered: float
    f1_ci: tuple[float, float]
    em_ci: tuple[float, float]
    contains_ci: tuple[float, float]
    empty: float = 0.0
    looping: float = 0.0
    quoted: float = 0.0
    quoted_oracle: float = 0.0
    quotes_verbatim: float | None = None
    fabricated: float = 0.0
    fabricated_ci: tuple[float, float] = (0.0, 0.0)
    weight_bytes: int | None
    adapter: str = ""
    official: dict[str, float] = Field(default_factory=dict)


class Comparison(Record):
    """Paired difference `arm - baseline` of one metric, question by question.

    ci: 95 % percentile bootstrap over questions; p_value: two-sided, from the same resamples.
    """

    arm: str
    baseline: str
    metric: str
    difference: float
    ci: tuple[float, float]
    p_value: float


Oracle = Literal["present", "absent", "first", "last"]
"""Where the oracle paragraphs stand among those shown: as the question has them, nowhere, …"""


class CurvePoint(Record):
    """One arm's scores where the documents were shown in another way than in the comparison.

    distractors: paragraphs shown beside the oracle ones; -1 is all that a question has.
    """

    arm: str
    distractors: int
    oracle: Oracle
    n: int
    f1: float
    f1_ci: tuple[float, float]
    em: float
    contains: float
    truncated: float
    unanswered: float
    fabricated: float = 0.0
    fabricated_ci: tuple[float, float] = (0.0, 0.0)


class Abstention(Record):
    """How well an arm refuses (`raft_form.REFUSAL`) where the oracle is absent, and only there.

    quotes_checked: whether an answer with a fabricated quote counts as a refusal too, as `raft ask`
    marks it. f1: of the first layout with the oracle, a refusal counted as 0; null where there is
    none.

    recall: share of the `absent` questions without their oracle that were refused. precision: share
    of all `refused` questions, in any layout, that were without it; null where none was refused or
    none was asked with its oracle. Intervals as in `ArmResult`.
    """

    arm: str
    absent: int
    refused: int
    recall: float
    recall_ci: tuple[float, float]
    precision: float | None = None
    precision_ci: tuple[float, float] | None = None
    quotes_checked: bool = False
    f1: float | None = None
    f1_ci: tuple[float, float] | None = None


class OtherScore(Record):
    """One arm's score in a further task of lm-evaluation-harness, a mean over n examples.

    difference: to the same weights without the adapter, example by example; null for these.
    Intervals are 95 % percentile bootstraps over examples.
    """

    task: str
    metric: str
    arm: str
    n: int
    value: float
    ci: tuple[float, float]
    difference: float | None
    difference_ci: tuple[float, float] | None


class Evaluation(Record):
    """What `eval` found: `evaluation/results.json`.

    The arms are compared with the documents shown as `distractors` and `oracle` say; `curve` has
    every way that was asked, that one included, and is empty where it is the only one.
    task: the data set; metric: what it calls the arms' `f1`. retrieve: what found the documents, if
    they did not come with the questions; recall: the mean share of a question's golden documents
    among them, null where no question names any. dtype: of the weights of the 16-bit arms.
    retention: F1 of the adapter in 4 bits over its F1 in `dtype`. memory_ratio: weight bytes in 4
    bits over those in `dtype`, as quantize-check measured them, else as measured in the arms.
    """

    FILE: ClassVar[str] = "results.json"

    task: str
    metric: str = "F1"
    retrieve: str = ""
    recall: float | None = None
    recall_ci: tuple[float, float] | None = None
    base_model: str
    dtype: Literal["bfloat16", "float32"]
    questions: int
    max_new_tokens: int
    seed: int
    arms: list[ArmResult]
    comparisons: list[Comparison]
    retention: float | None
    memory_ratio: float | None
    warnings: list[str]
    engine: Literal["transformers", "vllm"] = "transformers"
    distractors: int = -1
    oracle: Oracle = "present"
    curve: list[CurvePoint] = Field(default_factory=list)
    other_tasks: list[OtherScore] = Field(default_factory=list)
    abstention: list[Abstention] = Field(default_factory=list)

    def arm(self, name: str) -> ArmResult:
        """The result of one arm."""
        return next(arm for arm in self.arms if arm.name == name)

    def tuning_effect(self, metric: str) -> Comparison | None:
        """A tuned arm against its untuned baseline: in 16 bits, else in 4, else nothing.

        RAFT's own, asked in the same way as its baseline, comes before others.
        """
        arms = {arm.name: arm for arm in self.arms}
        effects = [
            item
            for item in self.comparisons
            if item.metric == metric and {item.arm, item.baseline} <= arms.keys()
            and arms[item.arm].tuned and not arms[item.baseline].tuned
        ]  # fmt: skip
        return max(effects, key=self._rank, default=None)

    def _rank(self, item: Comparison) -> tuple[bool, ...]:
        arm, baseline = self.arm(item.arm), self.arm(item.baseline)
        same = arm.prompt == baseline.prompt
        return arm.bits == 16, arm.adapter == "raft", arm.prompt == "raft", same


class Sample(Record):
    """One generation, judged: a line of `evaluation/samples.jsonl` or `robustness.jsonl`.

    kind, sources: as in eval's examples, the type of the question and the names of its oracle
    documents.
    """

    question_id: str
    arm: str
    question: str
    gold: list[str]
    generation: str
    answer: str
    f1: float
    em: float
    precision: float
    recall: float
    contains: bool
    truncated: bool
    answered: bool
    documents: list[str]
    oracle_indices: list[int]
    quotes: int = 0
    quotes_verbatim: int = 0
    quotes_oracle: int = 0
    distractors: int = -1
    oracle: Oracle = "present"
    kind: str = ""
    sources: list[str] = Field(default_factory=list)
    official: dict[str, float] = Field(default_factory=dict)
