"""A model's sizes from its config.json alone, without weights and without a GPU.

transformers builds the model itself, on the meta device, where tensors have a shape and no content. That takes seconds
for a model of any size, and is exact for every architecture that transformers knows, where formulas would know a few.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfreward.estimates.disk import BYTES_A_WEIGHT
from selfreward.recipe.engine_settings import ModelSettings
from selfreward.text.chat import model_errors

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

# Kinds of layers that keep a state of fixed size in the place of keys and values.
WITHOUT_CACHE = ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "rwkv")


@dataclass(frozen=True)
class Architecture:
    """Numbers of parameters, and what a token leaves in the KV cache.

    ``active`` are those that compute on a token: all but the experts that it does not go to. ``embeddings`` are the
    rows for the vocabulary, in and out, once if they are tied; ``output`` those of the output layer alone.
    ``largest_inner`` is the largest tensor of a layer. ``uniform`` says whether all layers are alike. ``kv_elements``
    are of one token in one layer, of all heads; ``kv_heads`` is 1 where the heads share them, as in multi-head latent
    attention (arXiv 2405.04434).
    """

    parameters: int
    active: int
    embeddings: int
    output: int
    largest_tensor: int
    largest_layer: int
    largest_inner: int
    layers: int
    uniform: bool
    heads: int
    hidden: int
    intermediate: int
    vocabulary: int
    context: int
    kv_layers: int
    kv_elements: int
    kv_heads: int

    def weight_bytes(self, dtype: str) -> int:
        return self.parameters * BYTES_A_WEIGHT[dtype]

    def kv_bytes(self, dtype: str, tensor: int = 1, pipeline: int = 1) -> int:
        """Bytes of the KV cache that a token takes on one device, with heads and layers divided among several.

        Layers with a sliding window are counted as if they kept all. Heads that are fewer than devices are repeated.
        """
        heads = -(-self.kv_heads // tensor)
        layers = -(-self.kv_layers // pipeline)
        return layers * self.kv_elements // self.kv_heads * heads * BYTES_A_WEIGHT[dtype]


@cache
def read(model: ModelSettings) -> Architecture:
    """The sizes of a model folder, or of a hub model, whose config.json is fetched unless it is there already.

    Raises:
        ValueError: transformers can't read its configuration.
    """
    config = configuration(model)
    text = config.get_text_config()
    built = build(model, config)
    sizes = {name: weight.numel() for name, weight in built.named_parameters()}
    layers = [
        [(name, weight.shape, weight.numel()) for name, weight in layer.named_parameters()]
        for layer in decoder_layers(built, text)
    ]
    inner, outer = (_weight(module) for module in (built.get_input_embeddings(), built.get_output_embeddings()))
    ends = {id(weight): weight.numel() for weight in (inner, outer) if weight is not None}
    kinds = layer_kinds(text)
    elements, heads = _kv(text)
    return Architecture(
        parameters=sum(sizes.values()),
        active=sum(sizes.values()) - _idle(text, sizes),
        embeddings=sum(ends.values()),
        output=0 if outer is None else outer.numel(),
        largest_tensor=max(sizes.values()),
        largest_layer=max(sum(size for *_, size in layer) for layer in layers),
        largest_inner=max(size for layer in layers for *_, size in layer),
        layers=len(layers),
        uniform=all(layer == layers[0] for layer in layers) and len(set(kinds)) == 1,
        heads=text.num_attention_heads,
        hidden=text.hidden_size,
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        vocabulary=text.vocab_size,
        context=int(getattr(text, "max_position_embeddings", None) or 2048),
        kv_layers=sum(kind not in WITHOUT_CACHE for kind in kinds),
        kv_elements=elements,
        kv_heads=heads,
    )


def configuration(model: ModelSettings) -> PretrainedConfig:
    """A model's configuration, a copy of its own for each caller."""
    from transformers import AutoConfig

    with model_errors(model.path):
        found: PretrainedConfig = AutoConfig.from_pretrained(
            model.path,
            revision=None if Path(model.path).is_dir() else model.revision,
            trust_remote_code=model.trust_remote_code,
        )
    return found


def build(model: ModelSettings, config: PretrainedConfig, dtype: str | None = None) -> PreTrainedModel:
    """A model on the meta device, in the recipe's dtype unless another is given."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), model_errors(model.path):
        built: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype or model.dtype), trust_remote_code=model.trust_remote_code
        )
    built.tie_weights()
    return built


def with_adapter(built: PreTrainedModel, lora: dict[str, Any]) -> PeftModel:
    """A model on the meta device with a LoRA of the recipe's options over the loop's own defaults."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    from selfreward.training.dpo import LORA_DEFAULTS

    with torch.device("meta"):
        policy = get_peft_model(built, LoraConfig(**{**LORA_DEFAULTS, **lora}, task_type="CAUSAL_LM"))
    assert isinstance(policy, PeftModel)
    return policy


def adapter_parameters(model: ModelSettings, lora: dict[str, Any]) -> int:
    """How many parameters the LoRA of a recipe trains."""
    return _adapter_parameters(model, json.dumps(lora, sort_keys=True))


@cache
def _adapter_parameters(model: ModelSettings, lora: str) -> int:
    policy = with_adapter(build(model, configuration(model)), json.loads(lora))
    return sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)


def decoder_layers(built: PreTrainedModel, text: PretrainedConfig) -> Sequence[Any]:
    """The layers of a model: the list of modules that is as long as its configuration says."""
    from torch.nn import ModuleList

    modules: list[Any] = [each for each in built.modules() if isinstance(each, ModuleList)]
    found: list[Any] = [each for each in modules if len(each) == text.num_hidden_layers]
    if not found:
        raise ValueError(f"{type(built).__name__} has no list of {text.num_hidden_layers} layers: it can't be planned")
    return list(max(found, key=_size))


def _size(module: Any) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _weight(module: Any) -> Any:
    """The weights of an embedding or an output layer, or None where a model has no such layer."""
    return None if module is None else module.weight


def layer_kinds(text: PretrainedConfig) -> list[str]:
    """What each layer is, by transformers' own names."""
    return list(getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers)


def _kv(text: PretrainedConfig) -> tuple[int, int]:
    """The elements that a token leaves in the cache of one layer, and the heads that they are of."""
    if rank := getattr(text, "kv_lora_rank", None):
        return int(rank) + int(text.qk_rope_head_dim), 1
    heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * heads * int(size), heads


def _idle(text: PretrainedConfig, sizes: dict[str, int]) -> int:
    """The parameters of the experts that a token does not go to."""
    every = next(
        (n for name in ("num_local_experts", "num_experts", "n_routed_experts") if (n := getattr(text, name, None))),
        None,
    )
    chosen = getattr(text, "num_experts_per_tok", None)
    if not every or not chosen:
        return 0
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    return int(experts * (1 - chosen / every))
