"""The model, how it is sampled, and what serves it."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from selfreward.recipe import upstream
from selfreward.recipe.base import FOREIGN, SIGN_IN, PassedOn, PositiveInt, Settings
from selfreward.recipe.effects import Effect
from selfreward.recipe.loader import OptionError, RecipeFile, RecipePath, is_stored, texts
from selfreward.runtime import redact

# What the loop sets itself, each with the setting to use instead.
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
# What touches no result: memory, batching, logs.
OPERATIONAL_VLLM = frozenset(
    "disable_log_stats use_tqdm_on_load gpu_memory_utilization kv_cache_memory_bytes max_num_seqs "
    "max_num_batched_tokens".split()
)
# Options of vLLM that take names of its own, and the path of any Python object as well.
VLLM_NAMES = ("distributed_executor_backend", "compilation_config", "speculative_config")


def _no_code(options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    for name in () if is_stored(info) else VLLM_NAMES:
        for text in texts(options.get(name)):
            if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", text):
                raise OptionError(name, f"set by the loop where it is {text!r}: {FOREIGN}")
    return options


VLLMOptions = Annotated[
    dict[str, Any], PassedOn(upstream.VLLM, RESERVED_VLLM, OPERATIONAL_VLLM), AfterValidator(_no_code)
]


class ModelSettings(Settings):
    """The model that the run starts from."""

    decides = True

    path: Annotated[RecipePath, Effect.MODEL] = Field(
        description="A folder (relative to the recipe) or the name of a model on the hub."
    )
    # Whatever it names, the bytes tell.
    revision: Annotated[str | None, Effect.OPERATIONAL] = Field(
        None, description="Branch, tag or commit of a hub model."
    )
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


class SamplingSettings(Settings):
    """How an engine samples; the names are vLLM's."""

    decides = True

    temperature: Annotated[float, Field(ge=0.0)] = Field(0.7, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(0.9, description="Nucleus sampling.")
    max_tokens: PositiveInt = Field(1024, description="Most new tokens; a longer output is truncated.")


class TransformersSettings(Settings):
    """Settings of the transformers engine."""

    decides = False

    batch_size: PositiveInt = Field(32, description="Sequences in one padded batch.")


class OpenAISettings(Settings):
    """Settings of an OpenAI-compatible server."""

    base_url: Annotated[str, Effect.VALUE] = Field(description="Such as http://localhost:8000/v1.")
    model: Annotated[str, Effect.VALUE] = Field(description="The model's name on that server.")
    api_key_env: Annotated[str, Effect.OPERATIONAL] = Field(
        "OPENAI_API_KEY", description="The environment variable that holds the key."
    )
    max_concurrency: Annotated[PositiveInt, Effect.OPERATIONAL] = Field(
        32, description="Most requests under way at once."
    )
    max_retries: Annotated[int, Field(ge=0), Effect.OPERATIONAL] = Field(
        5,
        description="How often a request is tried again that fails in passing (status 408, 409, 425, 429 or from 500 "
        "on, timeout, broken connection, an answer that can't be read), after pauses that grow to 8 s or that the "
        "server asks for; four times as often once the server has answered anything. Then the run stops, and goes on "
        "from there when it is resumed.",
    )
    timeout: Annotated[float, Field(gt=0), Effect.OPERATIONAL] = Field(
        120.0, description="Seconds that one try of a request may take."
    )

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, value: str, info: ValidationInfo) -> str:
        # A long mixture of letters and digits is no name that anyone gives.
        key = re.fullmatch(r"(?=.*[0-9])[A-Za-z0-9]{20,}", value) or redact.is_token(value)
        name = re.fullmatch(r"[A-Za-z_]\w{0,99}", value, re.ASCII)
        if not is_stored(info) and (key or not name):
            raise ValueError(
                "the value is not shown, as it is no variable's name and may be a key. Keys come from the environment "
                "alone: export the key as OPENAI_API_KEY, and write api_key_env: OPENAI_API_KEY"
            )
        return value


class EngineSettings(Settings):
    """What samples and judges."""

    decides = True

    name: str = Field(
        "vllm",
        description="{names}, or MODULE:CLASS. classifier serves a reward model, for judges alone.",
        json_schema_extra={"names": "ENGINES"},
    )
    max_in_flight: Annotated[PositiveInt, Effect.OPERATIONAL] = Field(
        256, description="Prompts that each replica works on at once."
    )
    max_restarts: Annotated[int, Field(ge=0), Effect.OPERATIONAL] = Field(
        2, description="How often an engine that died is started again; after that the run stops."
    )
    stall_timeout: Annotated[float, Field(gt=0), Effect.OPERATIONAL] = Field(
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
