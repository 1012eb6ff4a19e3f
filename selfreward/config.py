"""The recipe: typed, strict, free of torch.

A recipe is one YAML file. Settings that the loop itself reads are typed here; the blocks
``training.sft``, ``training.dpo``, ``training.lora`` and ``engine.vllm`` are handed to ``SFTConfig``,
``DPOConfig``, ``LoraConfig`` and vLLM's ``EngineArgs`` under upstream's own names, and are checked
against the fields of the installed versions (:mod:`selfreward.upstream`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from selfreward import secrets, upstream
from selfreward.recipe_file import (
    STORED,
    OptionError,
    RecipeError,
    RecipeFile,
    RecipePath,
    edit,
    is_stored,
    read,
    shown,
    texts,
)

__all__ = ["Recipe", "RecipeError", "load_recipe"]

PositiveInt = Annotated[int, Field(gt=0)]
Rule = Literal["drop", "keep"]
SIGN_IN = "sign in with HF_TOKEN in the environment, or with `hf auth login`"
FOREIGN = "the library's own stays, as this names Python code to import. Extend selfreward instead: MODULE:CLASS"
# What the loop sets itself, each with the setting to use instead.
RESERVED_TRAINER = {
    "output_dir": "it is the stage's folder of the run",
    "seed": "use the recipe's seed",
    "data_seed": "use the recipe's seed",
    "report_to": "use tracking.report_to",
    "run_name": "use name",
    "resume_from_checkpoint": "an interrupted training goes on from its last whole checkpoint by itself",
    "save_only_model": "a checkpoint without its optimizer can't be resumed",
    "save_total_limit": "the last whole checkpoint is kept until the stage is done",
    "save_strategy": "checkpoints are what a run resumes from; how often: save_steps",
    "load_best_model_at_end": "the model of the last step is the iteration's",
    "enable_jit_checkpoint": "SIGTERM makes a checkpoint already, within launch.grace",
    "logging_nan_inf_filter": "a loss that is not a number must be seen",
    "push_to_hub": "push the finished model yourself, a run never publishes anything",
    "hub_token": SIGN_IN,
    "model_init_kwargs": "use model.dtype, model.revision and model.trust_remote_code",
    "trust_remote_code": "use model.trust_remote_code",
}
RESERVED_LORA = {
    "task_type": "it is always CAUSAL_LM",
    "inference_mode": "the adapter is trained",
    "base_model_name_or_path": "use model.path",
    "revision": "use model.revision",
    "auto_mapping": FOREIGN,
    "megatron_core": FOREIGN,
    "megatron_config": "Megatron's layers are not trained here",
}
# Initialisations of PEFT that take a part of the base weights into the adapter.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
RESERVED_VLLM = {
    "model": "use model.path",
    "tokenizer": "it is the model's own",
    "dtype": "use model.dtype",
    "revision": "use model.revision",
    "tokenizer_revision": "use model.revision",
    "trust_remote_code": "use model.trust_remote_code",
    "seed": "each request has a seed of its own, derived from the recipe's",
    "logprobs_mode": "the proof of the hand-over reads them as the model gives them",
    "enable_lora": "the adapter is merged into the model that is served",
    "hf_token": SIGN_IN,
    "code_revision": "use model.revision",
    "load_format": "it is safetensors: other formats can run code when they are loaded",
    **dict.fromkeys(
        "worker_cls worker_extension_cls scheduler_cls model_class_overrides logits_processors io_processor_plugin "
        "reasoning_parser_plugin kv_transfer_config ec_transfer_config ec_manager_config weight_transfer_config "
        "logging_config log_config_file".split(),
        FOREIGN,
    ),
}
# Options of vLLM that take names of its own, and the path of any Python object as well.
VLLM_NAMES = ("distributed_executor_backend", "compilation_config", "speculative_config")


def _upstream(source: upstream.Source, reserved: dict[str, str]) -> AfterValidator:
    def check(options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if not is_stored(info):
            upstream.check(options, source, reserved)
        return options

    return AfterValidator(check)


def _no_code(options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    for name in () if is_stored(info) else VLLM_NAMES:
        for text in texts(options.get(name)):
            if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", text):
                raise OptionError(name, f"set by the loop where it is {text!r}: {FOREIGN}")
    return options


SFTOptions = Annotated[dict[str, Any], _upstream(upstream.SFT, RESERVED_TRAINER)]
DPOOptions = Annotated[dict[str, Any], _upstream(upstream.DPO, RESERVED_TRAINER)]
LoraOptions = Annotated[dict[str, Any], _upstream(upstream.LORA, RESERVED_LORA)]
VLLMOptions = Annotated[dict[str, Any], _upstream(upstream.VLLM, RESERVED_VLLM), AfterValidator(_no_code)]


class Settings(BaseModel):
    """A block of the recipe: unknown keys and values of a wrong type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """The model that the run starts from."""

    path: RecipePath = Field(description="A folder (relative to the recipe) or the name of a model on the hub.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="In which numbers each merged model is stored, served and trained."
    )
    chat_template: RecipeFile | None = Field(
        None, description="A Jinja file used in place of the tokenizer's own chat template."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Leave off unless you wrote that code."
    )

    @field_validator("path")
    @classmethod
    def _folder_or_hub_name(cls, value: str, info: ValidationInfo) -> str:
        hub_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value, re.ASCII) and ".." not in value
        if is_stored(info) or os.path.isdir(value) or hub_name:
            return value
        raise ValueError(
            f"no such folder: {value}, nor is it the OWNER/NAME of a hub model. "
            "Give a folder that holds config.json and *.safetensors, or a hub name"
        )


class SeedDataSettings(Settings):
    """Data of the seed stage, which makes M1 from M0 by SFT (section 2.1 of arXiv 2401.10020)."""

    ift: RecipeFile = Field(description="Instruction data: JSONL with `prompt` and `response`.")
    eft: RecipeFile = Field(description="Judging data: JSONL with `prompt`, `response` and `judgement`.")


class PromptSettings(Settings):
    """Where the prompts of each iteration come from."""

    source: str = Field("dataset", description="A prompt source by name, or MODULE:CLASS.")
    path: RecipeFile = Field(description="JSONL with `prompt` (text) or `messages` (chat).")
    num: PositiveInt | None = Field(
        None, description="Prompts an iteration; each iteration takes the next ones. Empty: all, each time."
    )
    max_characters: PositiveInt = Field(8000, description="A longer prompt is a bad line.")
    on_bad_line: Literal["error", "skip"] = Field(
        "error",
        description="Malformed, empty, duplicate or over-long lines: stop and name them, or skip and count them.",
    )


class SamplingSettings(Settings):
    """How an engine samples; the names are vLLM's."""

    temperature: Annotated[float, Field(ge=0.0)] = Field(0.7, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.9, description="Nucleus sampling.")
    max_tokens: PositiveInt = Field(1024, description="Most new tokens; a longer output is truncated.")


class ResponseSettings(SamplingSettings):
    """N responses to each prompt, sampled from M_t."""

    n: Annotated[int, Field(ge=2)] = Field(4, description="Responses to each prompt; at least 2.")
    on_empty: Rule = Field("drop", description="Responses without text: drop them from selection, or keep them.")
    on_truncated: Rule = Field("drop", description="Responses cut at max_tokens: drop or keep.")
    on_duplicate: Rule = Field("keep", description="Responses with the text of an earlier one: drop or keep.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.temperature == 0:
            raise ValueError(f"temperature is 0, and all {self.n} responses to a prompt would be the same. Raise it")
        return self


class TransformersSettings(Settings):
    """Settings of the transformers engine."""

    batch_size: PositiveInt = Field(32, description="Sequences in one padded batch.")


class OpenAISettings(Settings):
    """Settings of an OpenAI-compatible server."""

    base_url: str = Field(description="Such as http://localhost:8000/v1.")
    model: str = Field(description="The model's name on that server.")
    api_key_env: str = Field("OPENAI_API_KEY", description="The environment variable that holds the key.")
    max_concurrency: PositiveInt = Field(32, description="Most requests under way at once.")
    max_retries: Annotated[int, Field(ge=0)] = Field(5, description="Retries of a request, with backoff.")
    timeout: Annotated[float, Field(gt=0)] = Field(120.0, description="Seconds that one request may take.")

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, value: str, info: ValidationInfo) -> str:
        # A long mixture of letters and digits is no name that anyone gives.
        key = re.fullmatch(r"(?=.*[0-9])[A-Za-z0-9]{20,}", value) or secrets.is_token(value)
        name = re.fullmatch(r"[A-Za-z_]\w{0,99}", value, re.ASCII)
        if not is_stored(info) and (key or not name):
            raise ValueError(
                "the value is not shown, as it is no variable's name and may be a key. Keys come from the environment "
                "alone: export the key as OPENAI_API_KEY, and write api_key_env: OPENAI_API_KEY"
            )
        return value


class EngineSettings(Settings):
    """What samples and judges."""

    name: str = Field("vllm", description="vllm, transformers, openai, or MODULE:CLASS.")
    max_in_flight: PositiveInt = Field(256, description="Prompts that are worked on at once.")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        2, description="How often an engine that died is started again; after that the run stops."
    )
    stall_timeout: Annotated[float, Field(gt=0)] = Field(
        300.0, description="Seconds without a sign of life after which an engine in a process of its own is dead."
    )
    vllm: VLLMOptions = Field(default_factory=dict, description="vLLM's engine arguments, by their own names.")
    transformers: TransformersSettings = TransformersSettings()
    openai: OpenAISettings | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == "openai" and self.openai is None:
            raise ValueError("the openai engine needs engine.openai with base_url and model")
        return self


class JudgeSettings(SamplingSettings):
    """The judge: by default M_t itself with the additive prompt of the paper."""

    name: str = Field("additive", description="A judge by name, or MODULE:CLASS.")
    votes: PositiveInt = Field(3, description="Judgements of each response; the score is their mean.")
    template: RecipeFile | None = Field(
        None,
        description="A text file with {prompt} and {response} in place of the paper's judge prompt.",
    )
    min_score: int = Field(0, description="Lowest score the judge may give.")
    max_score: int = Field(5, description="Highest score the judge may give.")
    max_tokens: PositiveInt = Field(512, description="Most new tokens of a judgement.")
    min_parse_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.5, description="The run stops where a smaller share of judgements has a readable score."
    )
    engine: EngineSettings | None = Field(
        None, description="Another engine to judge with. Empty: the model judges itself."
    )

    model: ModelSettings | None = Field(None, description="Another model to judge with, served by that engine.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine is not None and self.engine.name in ("vllm", "transformers") and self.model is None:
            raise ValueError(f"engine.name is {self.engine.name}, and model is missing: name the model to judge with")
        if self.engine is not None and self.engine.name == "openai" and self.model is not None:
            raise ValueError("engine.name is openai, whose model is engine.openai.model: take judge.model out")
        if self.temperature == 0 and self.votes > 1:
            raise ValueError(
                f"temperature is 0, and all {self.votes} votes would be the same. Raise it, or set votes to 1"
            )
        if self.min_score >= self.max_score:
            raise ValueError(
                f"min_score is {self.min_score} and max_score is {self.max_score}: no score lies between them"
            )
        return self


class SelectionSettings(Settings):
    """From judged responses to preference pairs."""

    name: str = Field("best_worst", description="A selector by name, or MODULE:FUNCTION.")


class TrainingSettings(Settings):
    """SFT of the seed stage and DPO of each iteration, by TRL and PEFT."""

    sft: SFTOptions = Field(default_factory=dict, description="SFTConfig of TRL, by its own names.")
    dpo: DPOOptions = Field(default_factory=dict, description="DPOConfig of TRL, by its own names.")
    lora: LoraOptions = Field(default_factory=dict, description="LoraConfig of PEFT, by its own names.")
    rehearsal: Annotated[float, Field(ge=0.0)] = Field(
        0.0,
        description="Judging examples of the seed data that are rehearsed for each preference pair, by the "
        "NLL term of the loss (needs `sft` in training.dpo.loss_type). Keeps the judge from rotting.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        init = self.lora.get("init_lora_weights")
        if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
            raise ValueError(
                f"lora.init_lora_weights is {init!r}, which changes the base weights, so that with the adapter off "
                "the policy would no longer be M_t, the reference. Write true, or gaussian"
            )
        losses = self.dpo.get("loss_type", "sigmoid")
        if self.rehearsal and "sft" not in ([losses] if isinstance(losses, str) else losses):
            raise ValueError(
                f"rehearsal is {self.rehearsal}, and training.dpo.loss_type is {losses!r}, which has no NLL term "
                "to rehearse with. Write loss_type: [sigmoid, sft] with loss_weights, or rehearsal: 0"
            )
        return self


class EvaluationSettings(Settings):
    """Measurements on held-out data, of M1 and of the model of each iteration."""

    prompts: RecipeFile | None = Field(None, description="Held-out prompts, in the format of prompts.path.")
    n: PositiveInt = Field(1, description="Responses sampled for each held-out prompt, besides one greedy.")
    scorer: str | None = Field(
        None, description="MODULE:FUNCTION from (prompt, response) to a number: measures, never trains."
    )
    pass_score: float | None = Field(None, description="From which gold score on a response passes, for pass rates.")
    judging: RecipeFile | None = Field(
        None, description="Held-out judging data, in the format of seed_data.eft: how well the model judges."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scorer is not None and self.prompts is None:
            raise ValueError("a scorer needs evaluation.prompts to score responses to")
        if self.pass_score is not None and self.scorer is None:
            raise ValueError(f"pass_score is {self.pass_score}, and there is no scorer whose scores could pass")
        return self


class LaunchSettings(Settings):
    """Where training runs, and what stays in memory meanwhile."""

    train: Literal["inline", "process", "accelerate"] | None = Field(
        None,
        description="In this process, in one of its own, or under `accelerate launch`. "
        "Empty: inline on a CPU, a process of its own on a GPU.",
    )
    keep_engine: bool | None = Field(
        None,
        description="Keep the engine up while training and hand it the new weights. "
        "Empty: yes on a CPU, no on a GPU, whose memory training needs.",
    )
    accelerate_config: RecipeFile | None = Field(None, description="A file of configs/accelerate/ for `accelerate`.")
    grace: Annotated[float, Field(ge=0)] = Field(
        60.0, description="Seconds after SIGTERM or Ctrl-C in which what is in flight may finish."
    )
    private: bool = Field(True, description="Make the run folder readable by its owner alone.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.train == "accelerate") != (self.accelerate_config is not None):
            raise ValueError(
                f"launch.train is {self.train!r} and accelerate_config is {self.accelerate_config}: "
                "`accelerate` and its file go together"
            )
        return self


class TrackingSettings(Settings):
    """Where loop metrics and trainer logs go besides ``metrics.jsonl``."""

    report_to: list[str] = Field(
        default_factory=list, description="accelerate's trackers: tensorboard, wandb, trackio, mlflow, ..."
    )
    project: str = Field("selfreward", description="The project's name in the tracker.")

    @field_validator("project")
    @classmethod
    def _plain_name(cls, value: str, info: ValidationInfo) -> str:
        # Trackers that write files make a folder of it.
        if not is_stored(info) and not re.fullmatch(r"\w[\w .-]{0,99}", value):
            raise ValueError(f"{shown(value)} is not a project's name: use letters, digits, ' ', '.', '_' and '-'")
        return value


class Recipe(Settings):
    """Everything that decides what a run does."""

    name: str = Field(description="The run's name: its folder is RUN_DIR/NAME.")
    run_dir: Path = Field(
        Path("runs"), strict=False, description="The folder of runs, relative to where you start from."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="Every random choice of the run derives from it."
    )
    iterations: PositiveInt = Field(3, description="T: from M1 to M(T+1).")
    model: ModelSettings
    seed_data: SeedDataSettings | None = Field(
        None, description="Makes M1 by SFT. Empty: the model can judge already and is M1."
    )
    prompts: PromptSettings
    responses: ResponseSettings = ResponseSettings()
    judge: JudgeSettings = JudgeSettings()
    selection: SelectionSettings = SelectionSettings()
    training: TrainingSettings = TrainingSettings()
    engine: EngineSettings = EngineSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    launch: LaunchSettings = LaunchSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.training.rehearsal and self.seed_data is None:
            raise ValueError(
                f"training.rehearsal is {self.training.rehearsal}, and there is no seed_data to rehearse. "
                "Add seed_data, or set training.rehearsal to 0"
            )
        return self

    @field_validator("engine")
    @classmethod
    def _policy_engine(cls, value: EngineSettings) -> EngineSettings:
        if value.name == "openai":
            raise ValueError(
                "engine.name is openai, and the weights of a server can't be replaced by the model that was trained. "
                "Use vllm or transformers here; a server can be the judge: judge.engine"
            )
        return value

    @field_validator("name")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError(f"{shown(value)} is not a run name: use letters, digits, '.', '_' and '-'")
        return value


def stored_recipe(resolved: dict[str, Any]) -> Recipe:
    """The recipe of an existing run, whose files may have moved and whose libraries may have changed since."""
    return Recipe.model_validate_json(json.dumps(resolved), context=STORED)


def edited_recipe(resolved: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of an existing run with ``key=value`` overrides, checked anew.

    Raises:
        RecipeError: it can't be run any more, or with these values.
    """
    return edit(Recipe, resolved, overrides)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: the YAML file.
        overrides: ``key=value`` strings that win over the file, such as ``training.dpo.beta=0.2``.

    Raises:
        RecipeError: the recipe can't be run; the message has a line for each thing to mend.
    """
    return read(Recipe, Path(path), overrides)
