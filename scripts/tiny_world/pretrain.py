"""M0 from nothing: a word-level tokenizer and a Llama of 0.9 million parameters.

Its corpus is plain text, pages with a task, an answer of any quality and often a review. The base model
has thus seen what answers and reviews look like, but no chat and no judge prompt: those it learns in
the seed stage.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfreward.runtime.progress import console, track
from selfreward.tiny import world

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
REVIEW_WORDS = "Review this answer . Task : Answer : Score : 0 1 2 3 4 5 yes no none count stranger disorder repeat ,"

STEPS, BATCH_SIZE, LEARNING_RATE = 5000, 64, 3e-3
FLAWS = (0.1, 0.25, 0.4)  # How careless the writers of the pages are.
KIND_OF = {noun: kind for kind, nouns in world.KINDS.items() for noun in nouns}
NOUNS = tuple(KIND_OF)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the world is one token; other words become ``<|unk|>``."""
    phrases = " ".join([*world.PHRASINGS, *world.ORDERS, *world.RULES]).replace("{", " {").split()
    words = [word.strip(".,:") for word in phrases if "{" not in word]
    nouns = [noun for kind in world.KINDS.values() for noun in kind]
    vocabulary = [*SPECIAL, *REVIEW_WORDS.split(), "\n", *words, *world.NUMBERS, *world.KINDS, *world.CHECKS, *nouns]
    ids = {word: number for number, word in enumerate(dict.fromkeys(filter(None, vocabulary)))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "removed", invert=True)
    # Words are joined by spaces, and none stands before a punctuation mark or beside a line break.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(r" (?=[,.:\n])"), ""),
            decoders.Replace("\n ", "\n"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        unk_token="<|unk|>",
        additional_special_tokens=list(SPECIAL[4:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 4 layers and width 128 with random weights."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        **special,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(**special)
    return model


def page(rng: random.Random, tasks: list[world.Task]) -> str:
    """A page of the corpus: a task with an answer and perhaps a review, or a page of a primer.

    The primer (lists copied out twice, words with their kinds) is where the model learns to look words up
    and to compare them; from tasks and reviews alone that takes many times as long.
    """
    choice = rng.random()
    if choice < 0.15:
        words = " ".join(rng.choices(NOUNS, k=rng.randrange(4, 9)))
        return f"{words}\n{words}"
    if choice < 0.25:
        return ", ".join(f"{word} {KIND_OF[word]}" for word in rng.choices(NOUNS, k=8))
    task = rng.choice(tasks)
    if choice < 0.4:
        return f"{task.text}\n{world.demonstrate(task, rng, 0.25)}"
    response = world.demonstrate(task, rng, rng.choice(FLAWS))
    return f"{task.text}\n{response}\n{task.verdict(response)}"


def pretrain(out: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Trains M0 and writes it to ``out``: 20 minutes on two cores."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    tasks, _ = world.split()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    with track("pretraining steps", steps) as counter:
        for step in range(steps):
            pages = [f"<|bos|>{page(rng, tasks)}<|eos|>" for _ in range(BATCH_SIZE)]
            batch = tokenizer(pages, padding=True, return_tensors="pt", add_special_tokens=False)
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            counter.advance(tokens=batch["input_ids"].numel())
            if step % 500 == 499:
                console.print(f"  step {step}: loss {loss.item():.3f}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
