"""SFT and DPO."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from selfreward.recipe import upstream
from selfreward.recipe.base import FOREIGN, SIGN_IN, PassedOn, Settings
from selfreward.recipe.effects import Effect
from selfreward.recipe.loader import OptionError, is_stored
from selfreward.recipe.losses import check_losses, loss_types

# What the loop sets itself, each with the setting to use instead.
RESERVED_TRAINER = {
    "output_dir": "it is the stage's folder of the run",
    "seed": "use the recipe's seed",
    "data_seed": "use the recipe's seed",
    "report_to": "use tracking.report_to",
    "run_name": "use name",
    "resume_from_checkpoint": "an interrupted training goes on from its last whole checkpoint by itself",
    "auto_find_batch_size": "a step would train another batch. Lower per_device_train_batch_size and raise "
    "gradient_accumulation_steps",
    "accelerator_config": "how examples are shared among processes decides what a step trains",
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
RESERVED_DPO = RESERVED_TRAINER | {
    "sync_ref_model": "TRL does not move the reference of a LoRA. Use training.reference"
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
# What touches no result: logs, checkpoints, and how data is loaded.
OPERATIONAL_TRAINER = frozenset(
    "save_steps logging_steps logging_strategy logging_first_step disable_tqdm log_level log_level_replica "
    "log_on_each_node dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataset_num_proc skip_memory_metrics include_num_input_tokens_seen ddp_timeout".split()
)
# Initialisations of PEFT that take a part of the base weights into the adapter.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
SFTOptions = Annotated[dict[str, Any], PassedOn(upstream.SFT, RESERVED_TRAINER, OPERATIONAL_TRAINER)]
DPOOptions = Annotated[dict[str, Any], PassedOn(upstream.DPO, RESERVED_DPO, OPERATIONAL_TRAINER)]
LoraOptions = Annotated[dict[str, Any], PassedOn(upstream.LORA, RESERVED_LORA)]


class TrainingSettings(Settings):
    """SFT of the seed stage and DPO of each iteration, by TRL and PEFT."""

    decides = True

    sft: SFTOptions = Field(default_factory=dict, description="SFTConfig of TRL, by its own names.")
    dpo: DPOOptions = Field(default_factory=dict, description="DPOConfig of TRL, by its own names.")
    lora: LoraOptions = Field(default_factory=dict, description="LoraConfig of PEFT, by its own names.")
    load_in_4bit: bool = Field(
        False,
        description="QLoRA: DPO's policy and its reference hold the weights of M_t in four bits (NF4, quantized twice; "
        "bitsandbytes), and the adapter is merged into the weights as they were. SFT of the seed stage trains all "
        "weights, and in full.",
    )
    rehearsal: Annotated[float, Field(ge=0.0)] = Field(
        0.0,
        description="Judging examples of the seed data that are rehearsed for each preference pair, by the "
        "NLL term of the loss (needs `sft` in training.dpo.loss_type). Keeps the judge from rotting.",
    )
    reference: Annotated[str, Field(pattern=r"^(previous|seed|iteration:[1-9][0-9]*)$"), Effect.PLAN] = Field(
        "previous",
        description="The reference model of DPO in iteration t: previous (M_t), seed (M1), or iteration:K, the model "
        "that iteration K made (M_t until there is one). Any but M_t itself is a second model in memory, before the "
        "first step alone with training.dpo.precompute_ref_log_probs.",
    )
    consistency: Annotated[Literal["none", "set", "pair"], Effect.PLAN] = Field(
        "none",
        description="From iteration 2 on M_{t-1} judges too, and the sigmoid loss counts with C, and turned around "
        "with 1 - C, where C is how far the two rankings agree: over the whole set, or pair by pair "
        "(arXiv 2410.12735).",
    )
    replay: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Pairs of earlier iterations that are trained on again for each pair of this one."
    )
    schedule: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Options of training.dpo by iteration, such as {beta: [0.1, 0.2]}; the last value stays.",
    )

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        init = self.lora.get("init_lora_weights")
        if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
            raise ValueError(
                f"lora.init_lora_weights is {init!r}, which changes the base weights, so that with the adapter off "
                "the policy would no longer be M_t, the reference. Write true, or gaussian"
            )
        # An entry of the schedule holds from its iteration on; consistency begins with the second.
        for iteration in range(1, max([2, *map(len, self.schedule.values())]) + 1):
            options = self.dpo_options(iteration)
            if not is_stored(info):
                check_losses(options)
            self._check_blocks(options, iteration)
        return self

    def _check_blocks(self, options: dict[str, Any], iteration: int) -> None:
        """Checks what the loop adds to the loss of an iteration."""
        losses = loss_types(options)
        if self.rehearsal and "sft" not in losses:
            raise ValueError(
                f"rehearsal is {self.rehearsal}, and loss_type is {options.get('loss_type', 'sigmoid')!r}, which has "
                "no NLL term to rehearse with. Write loss_type: [sigmoid, sft] with loss_weights, or rehearsal: 0"
            )
        if self.consistency == "none" or iteration == 1:
            return
        if losses.count("sigmoid") != 1 or not {*losses} <= {"sigmoid", "sft"}:
            raise ValueError(
                f"consistency is {self.consistency}, and loss_type is {losses}: it weighs the sigmoid loss. "
                "Write sigmoid, alone or beside sft, or consistency: none"
            )
        if options.get("f_divergence_type") == "js_divergence":
            raise ValueError(
                f"consistency is {self.consistency}, and f_divergence_type is js_divergence, in which TRL's "
                "sigmoid stands a second time. Use another divergence, or consistency: none"
            )

    @field_validator("schedule")
    @classmethod
    def _known_options(cls, value: dict[str, list[Any]], info: ValidationInfo) -> dict[str, list[Any]]:
        for name, values in value.items() if not is_stored(info) else ():
            if name == "max_length":
                raise OptionError(name, "pairs are chosen by it, and may be replayed later. Write it in training.dpo")
            for each in values:
                upstream.check({name: each}, upstream.DPO, RESERVED_DPO)
            if name in info.data.get("dpo", {}):
                raise OptionError(name, f"training.dpo.{name} is set too. Take one of the two out")
        return value

    def dpo_options(self, iteration: int) -> dict[str, Any]:
        """DPOConfig's options in an iteration, the schedule's among them."""
        return self.dpo | {name: values[min(iteration, len(values)) - 1] for name, values in self.schedule.items()}
