"""What trainings replace in TRL, transformers and accelerate, or use though it is private. No other module does.

Each is looked up when it is used, so that another version ends in an error that names the one to install.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig, PreTrainedModel, Trainer
from transformers.integrations import TensorBoardCallback
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, hub

from selfreward.runtime.library import Library

if TYPE_CHECKING:
    from trl import DPOTrainer

TRL = Library("trl", "1.16.0")
TRANSFORMERS = Library("transformers", "5.19.0")
ACCELERATE = Library("accelerate", "1.15.0")


# TRL's DPO trainer


@contextmanager
def consistent_loss(consistency: torch.Tensor) -> Iterator[None]:
    """Takes (1 - C) x from the log sigmoid of each pair's margin x, where TRL's sigmoid loss computes it.

    That loss weighs no single pairs, and is one branch of a long function. What TRL's other options do (loss_weights,
    ld_alpha, use_weighting) stays around it.

    Args:
        consistency: the C of each pair of the batch, of shape (pairs,).

    Raises:
        ValueError: the loss that was computed inside has not called ``logsigmoid`` once with the pairs' margins.
    """
    with _ShiftedLogSigmoid(consistency) as shifted:
        yield
    if shifted.calls != 1:
        raise TRL.changed(
            f"calls logsigmoid {shifted.calls} times for the sigmoid loss of a batch, and training.consistency changes "
            "the one call that it knows"
        )


class _ShiftedLogSigmoid(TorchFunctionMode):
    def __init__(self, consistency: torch.Tensor) -> None:
        super().__init__()
        self._consistency = consistency
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.logsigmoid and args[0].shape == self._consistency.shape:
            self.calls += 1
            return result - (1 - self._consistency) * args[0]
        return result


def drop_reference(trainer: DPOTrainer) -> None:
    """Frees a reference whose figures are in the rows by now, before the training begins."""
    TRL.get(trainer, "ref_model")
    trainer.ref_model = None


# The trainer of transformers


class WidePrecision(Trainer):
    """Keeps accelerate from rounding to half precision what FSDP2 hands over: outputs, and gradients to be summed.

    The outputs are the log-probabilities of tokens. In bfloat16 their sum over a completion, of some hundred nats, has
    steps of 1 or 2, and DPO's loss is a difference of such sums.
    """

    _widened = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises ValueError if upstream makes its accelerator without the method that is replaced here."""
        super().__init__(*args, **kwargs)
        if not self._widened:
            raise TRANSFORMERS.changed("calls no create_accelerator_and_postprocess when it makes a Trainer")

    def create_accelerator_and_postprocess(self) -> None:
        """As upstream's, before a model is prepared."""
        super().create_accelerator_and_postprocess()
        plugin = self.accelerator.state.fsdp_plugin if self.accelerator.is_fsdp2 else None
        if plugin is not None:
            _widen(plugin)
        self._widened = True


def _widen(plugin: Any) -> None:
    policy = ACCELERATE.get(plugin, "mixed_precision_policy")
    if policy is None:
        return
    if not {"output_dtype", "reduce_dtype"} <= set(getattr(policy, "__dataclass_fields__", ())):
        raise ACCELERATE.changed(f"has a mixed_precision_policy of another kind for FSDP2, {type(policy).__name__}")
    plugin.mixed_precision_policy = replace(policy, output_dtype=None, reduce_dtype=torch.float32)


def keep_event_files(trainer: Trainer, folder: Path) -> None:
    """TensorBoard's files would stand beside the checkpoints, and be removed with them."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and TRANSFORMERS.get(callback, "logging_dir") is None:
            callback.logging_dir = str(folder)


# Models and files of transformers


def stays_in_float32(model: PreTrainedModel) -> bool:
    """Whether transformers loads parts of a model in float32 where all of it is to have another dtype."""
    names = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    return any(TRANSFORMERS.get(model, name) for name in names)


def whole_layers(model: torch.nn.Module) -> set[str]:
    """The classes of a model's layers that reach into their modules without calling them."""
    TRANSFORMERS.get(PreTrainedModel, "_no_split_modules")
    return set(getattr(model, "_no_split_modules", None) or ())


def is_converted(model: PreTrainedModel, names: Iterable[str]) -> bool:
    """Whether transformers renames or changes stored tensors with some of these names when it loads a model."""
    with TRANSFORMERS.importing():
        from transformers.conversion_mapping import get_model_conversion_mapping
    changes: list[Any] = get_model_conversion_mapping(model)
    return any(TRANSFORMERS.get(change, "rename_source_key")(name)[1] for change in changes for name in names)


def find_file(path: str, name: str, revision: str | None) -> str | None:
    """A file of a model, which is fetched if it is on the hub; None if there is none."""
    option = "_raise_exceptions_for_missing_entries"
    # It takes any option, and would raise again for files that are missing.
    TRANSFORMERS.require_parameter(hub.cached_files, option)
    found: str | None = hub.cached_file(path, name, revision=revision, **{option: False})
    return found


def load_generation_config(model: PreTrainedModel, path: str, revision: str | None) -> None:
    """As ``from_pretrained`` does it: from its own file, or from the options that older models have in theirs."""
    TRANSFORMERS.get(GenerationConfig(), "_from_model_config")
    known = find_file(path, GENERATION_CONFIG_NAME, revision)
    source: dict[str, Any] = {} if known else {"config_file_name": CONFIG_NAME, "_from_model_config": True}
    model.generation_config = GenerationConfig.from_pretrained(path, **source, revision=revision or "main")
