"""M0 from nothing: a word-level tokenizer and a Llama of about a million parameters."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfreward.tiny import world

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
JUDGE_WORDS = "Review this answer . Task : Answer : Score : 0 1 2 3 4 5 yes no of unique , \n".split(" ")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the world is one token; other words become ``<|unk|>``."""
    texts = [phrasing for phrasing in world.PHRASINGS] + list(world.ORDERS) + list(world.RULES)
    words = [word for text in texts for word in text.replace("{", " {").split()]
    plain = [w.strip(".,:") for w in words if "{" not in w]
    vocabulary = [*SPECIAL, *JUDGE_WORDS, *plain, *world.NUMBERS, *world.KINDS, *world.CHECKS]
    vocabulary += [word for kind in world.KINDS.values() for word in kind]
    ids = {word: number for number, word in enumerate(dict.fromkeys(w for w in vocabulary if w))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "removed", invert=True)
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
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        unk_token="<|unk|>",
        pad_token="<|pad|>",
        additional_special_tokens=[t for t in SPECIAL[4:]],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def document(rng: random.Random, tasks: list[world.Task]) -> str:
    """A page of the base model's corpus: a task, an answer of any quality, often a review."""
    task = rng.choice(tasks)
    if rng.random() < 0.3:
        return f"{task.text}\n{world.demonstrate(task, rng, 0.25)}"
    response = world.demonstrate(task, rng, rng.choice((0.05, 0.15, 0.25, 0.5)))
    return f"{task.text}\n{response}\n{task.verdict(response)}"


def pretrain(out: Path, steps: int, batch_size: int = 128, seed: int = 0, layers: int = 4, lr: float = 3e-3) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    print(sum(p.numel() for p in model.parameters()), len(tokenizer))
    tasks, _ = world.split()
    opt = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps, pct_start=0.05)
    t0 = time.time(); tokens = 0
    for step in range(steps):
        texts = [document(rng, tasks) for _ in range(batch_size)]
        enc = tokenizer([f"<|bos|>{t}<|eos|>" for t in texts], padding=True, return_tensors="pt", add_special_tokens=False)
        labels = enc["input_ids"].masked_fill(enc["attention_mask"] == 0, -100)
        loss = model(input_ids=enc["input_ids"], attention_mask=enc["attention_mask"], labels=labels).loss
        opt.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step(); sched.step()
        tokens += enc["input_ids"].numel()
        if step % 50 == 0:
            print(step, round(loss.item(), 4), round(time.time() - t0), round(tokens / (time.time() - t0)), flush=True)
        if step % 500 == 499:
            model.save_pretrained(out); tokenizer.save_pretrained(out)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id)
    model.save_pretrained(out); tokenizer.save_pretrained(out)


if __name__ == "__main__":
    import sys
    pretrain(Path(sys.argv[1]), int(sys.argv[2]), layers=int(sys.argv[3]), lr=float(sys.argv[4]))
