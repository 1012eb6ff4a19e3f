"""vLLM, on CPU and GPU.

The engine core is driven step by step, so that each request is handed over as soon as it finishes, be
the core in this process (the CPU default: starts in a tenth of the time, 1.6 times the throughput for
a tiny model) or in one of its own (the GPU default: its memory is free once it ends).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import exp
from typing import TYPE_CHECKING, Any

import torch
from vllm import EngineArgs, RequestOutput
from vllm import SamplingParams as VLLMParams
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.metrics.reader import Counter

from selfreward.engines import vllm_core
from selfreward.engines.base import TOO_LONG, Completion, SamplingParams
from selfreward.errors import EngineDied
from selfreward.text.chat import ChatEncoder, load_tokenizer

if TYPE_CHECKING:
    from vllm.logprobs import Logprob

    from selfreward.recipe.engine_settings import EngineSettings, ModelSettings
    from selfreward.records import FinishReason, Message

# Other formats of weights than safetensors can run code when they are loaded.
DEFAULTS: dict[str, Any] = {"load_format": "safetensors", "disable_log_stats": True, "use_tqdm_on_load": False}
# Measured on the CPU build: compiling at start takes longer than a small run; half of the node's memory is
# more than there may be; requests with a seed crash when a prefill is chunked.
CPU_DEFAULTS: dict[str, Any] = {
    "enforce_eager": True,
    "gpu_memory_utilization": 0.2,
    "kv_cache_memory_bytes": 1 << 30,
    "enable_chunked_prefill": False,
}
# Of how many tokens at most a request may ask the log-probabilities.
MAX_LOGPROBS = 128


class VLLMEngine:
    """Implements :class:`selfreward.engines.base.Engine` with ``vllm.LLMEngine``."""

    own_model = False
    library = "vllm"
    sleep_option = "enable_sleep_mode"

    def __init__(self, model_path: str, model: ModelSettings, settings: EngineSettings) -> None:
        """Starts vLLM; a core in its own process ends with the thread that calls this.

        Raises:
            EngineDied: the core did not start.
        """
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        else:
            # A forked engine could not use CUDA once this process has.
            os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        tokenizer = load_tokenizer(model_path, model)
        self._chat = ChatEncoder(tokenizer)
        options = {**(CPU_DEFAULTS if on_cpu else {}), **settings.vllm}
        if on_cpu and "max_model_len" in options:
            options.setdefault("max_num_batched_tokens", max(2048, options["max_model_len"]))
        self._args = EngineArgs(
            model=model_path,
            dtype=model.dtype,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            **{**DEFAULTS, **options},
        )
        self._stall_timeout = settings.stall_timeout
        self._asleep = False
        self._start(model_path)
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[RequestOutput]] = {}
        self._pump: asyncio.Task[None] | None = None

    async def generate(
        self, messages: Sequence[Message], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Completion]:
        ids = self._chat.encode(messages)
        if len(ids) + params.max_tokens > self._max_model_len:
            return [TOO_LONG] * len(seeds)
        outputs = await asyncio.gather(
            *(
                self._submit(
                    ids,
                    temperature=params.temperature,
                    top_p=params.top_p,
                    max_tokens=params.max_tokens,
                    presence_penalty=params.presence_penalty,
                    seed=seed if params.temperature else None,
                )
                for seed in seeds
            )
        )
        return [self._completion(output) for output in outputs]

    async def logprobs(self, ids: Sequence[int], last: int | None = None) -> list[float]:
        if last is None:
            # Such a request reads no prefix cache.
            given = (await self._submit(ids, temperature=0.0, max_tokens=1, prompt_logprobs=0)).prompt_logprobs
            assert given is not None
            return [_logprob(place, token) for place, token in zip(given[1:], ids[1:], strict=True)]
        ends = range(len(ids) - last, len(ids))
        figures = await asyncio.gather(*(self._next_logprobs(ids[:end], [ids[end]]) for end in ends))
        return [figure for [figure] in figures]

    async def option_probs(
        self, messages: Sequence[Message], prefix: str, options: Sequence[str]
    ) -> list[float] | None:
        groups = [self._chat.option_ids(option) for option in options]
        ids = self._chat.begin(messages, prefix)
        if len(ids) + 1 > self._max_model_len:
            return None
        tokens = list(itertools.chain(*groups))
        parts = [tokens[start : start + MAX_LOGPROBS] for start in range(0, len(tokens), MAX_LOGPROBS)]
        figures = itertools.chain(*await asyncio.gather(*(self._next_logprobs(ids, part) for part in parts)))
        return [sum(exp(figure) for figure in itertools.islice(figures, len(group))) for group in groups]

    def prefix_cache(self) -> tuple[int, int]:
        """How many tokens of prompts were looked up in the prefix cache since the start, and how many were found.

        vLLM counts for the engine that was started last in this process.

        Raises:
            ValueError: vLLM was not told to count.
        """
        if self._args.disable_log_stats:
            raise ValueError("vLLM does not count the hits of its prefix cache. Set vllm.disable_log_stats to false")
        metrics = self._engine.get_metrics()
        queries, hits = (
            sum(metric.value for metric in metrics if isinstance(metric, Counter) and metric.name == f"vllm:{name}")
            for name in ("prefix_cache_queries", "prefix_cache_hits")
        )
        return queries, hits

    def sleep(self) -> None:
        if self._args.enable_sleep_mode:
            # Level 2 drops the weights, as those that come after a training are others.
            self._core.call(partial(self._engine.sleep, level=2))
            self._asleep = True

    def reload(self, model_path: str) -> None:
        assert not self._waiting, "weights must not change under a request"
        if not self._replace_weights(model_path):
            self.close()
            del self._engine, self._step
            self._start(model_path)
        self._asleep = False
        self.model = model_path

    def close(self) -> None:
        self._core.close()

    def _start(self, model_path: str) -> None:
        self._engine = vllm_core.start(replace(self._args, model=model_path))
        self._core = vllm_core.Core(self._engine, self._stall_timeout)
        # The first request would otherwise ask, and wait for ever if the core is dead.
        self._core.call(self._engine.get_supported_tasks)
        self._step = self._engine.step
        if current_platform.is_cpu() and self._args.enforce_eager:
            # vLLM compiles how it ranks log-probabilities all the same: 3 to 14 s for figures that nobody reads.
            self._step = torch.compiler.set_stance("force_eager")(self._step)
        self._max_model_len = int(self._engine.model_config.max_model_len)
        self.model = model_path

    def _replace_weights(self, model_path: str) -> bool:
        """Loads weights into the running engine; False where it must be started again to serve them and them alone."""
        if self._engine.model_config.hf_text_config.tie_word_embeddings:
            # Weights are reloaded layer by layer, and an output layer that is tied to the embeddings keeps its
            # old ones: the engine would go on as a mixture of two models.
            return False
        if self._asleep:
            self._core.call(partial(self._engine.wake_up, tags=["weights"]))
        self._core.call(partial(self._engine.collective_rpc, "reload_weights", kwargs={"weights_path": model_path}))
        if self._asleep:
            # Only now, so that the cache's memory is not there beside what loading needs.
            self._core.call(partial(self._engine.wake_up, tags=["kv_cache"]))
        # Blocks computed with the old weights would otherwise serve as prefixes (vllm#42125). It can't be done
        # while a request still holds one.
        return self._core.call(self._engine.reset_prefix_cache)

    async def _next_logprobs(self, ids: Sequence[int], tokens: list[int]) -> list[float]:
        """The log-probabilities, in nats at temperature 1, of at most MAX_LOGPROBS tokens as the next one."""
        output = await self._submit(ids, temperature=0.0, max_tokens=1, logprob_token_ids=tokens)
        places = output.outputs[0].logprobs
        return [_logprob(places[0] if places else None, token) for token in tokens]

    def _submit(self, ids: Sequence[int], **params: Any) -> asyncio.Future[RequestOutput]:
        """Hands a request over, with vLLM's own sampling parameters. Raises EngineDied."""
        name = str(next(self._numbers))
        with vllm_core.deaths():
            self._engine.add_request(
                name,
                {"prompt_token_ids": list(ids)},
                VLLMParams(output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False, skip_clone=True, **params),
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RequestOutput] = loop.create_future()
        self._waiting[name] = future
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._run())
        return future

    async def _run(self) -> None:
        """Steps the engine while anything waits, letting the coroutines speak between two steps."""
        try:
            while self._waiting:
                await self._core.output()
                with vllm_core.deaths():
                    outputs = self._step()
                for output in outputs:
                    self._hand_over(output)  # type: ignore[arg-type]
        except Exception as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
        finally:
            # An error, or the end of the event loop, may leave requests that nobody waits for any more.
            left_over = list(self._waiting)
            self._waiting.clear()
            self._engine.abort_request(left_over)

    def _hand_over(self, output: RequestOutput) -> None:
        if not output.finished:
            return
        # A core that is told to end, by SIGTERM to all processes of a job, gives back what it has as if it were whole.
        if (reason := output.outputs[0].finish_reason) not in ("stop", "length"):
            raise EngineDied(f"vLLM's core gave up its requests ({reason})")
        # A future is done already if the coroutine that waits for it was cancelled.
        if not (future := self._waiting.pop(output.request_id)).done():
            future.set_result(output)

    def _completion(self, output: RequestOutput) -> Completion:
        result = output.outputs[0]
        text = self._chat.tokenizer.decode(list(result.token_ids), skip_special_tokens=True)
        reason: FinishReason = "length" if result.finish_reason == "length" else "stop"
        return Completion(str(text), reason, len(result.token_ids))


def _logprob(place: Mapping[int, Logprob] | None, token: int) -> float:
    assert place is not None, "it was asked for"
    return place[token].logprob
