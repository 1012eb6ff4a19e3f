"""Words that are stored in a run or hashed into it: another word makes another run of the same recipe. No torch.

What code calls a thing may change; what stands here may not. Fields of records are the other half of what is stored
(:mod:`selfreward.records`), names of settings the third (:mod:`selfreward.recipe`).
"""

from __future__ import annotations

# Files and folders of a run.
RECIPE = "resolved.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
ORIGIN = "origin.json"
SET_ASIDE = "set_aside"
SEED_FOLDER, ITERATION_FOLDER = "seed", "iter_"
# Files and folders of a stage. The last three are there while it is not finished.
MARKER = "stage.json"
STARTED = "begun.json"
JOURNAL = "journal.jsonl"
CHECKPOINTS = "checkpoints"
PROBES = "probes.json"

# Who answers requests that share a journal.
POLICY, JUDGE, META_JUDGE, WRITER = "policy", "judge", "meta", "writer"
# Requests in a journal other than generated texts.
OPTION_PROBS, REWARD, LOGPROB = "chances", "rate", "logprob"

# What a random choice is for: the words are hashed into its seed.
SEED_OF_TRAINING, SEED_OF_REPLAY, SEED_OF_REHEARSAL, SEED_OF_ROUNDING = "train", "replay", "rehearsal", "round"
SEED_OF_JUDGE, SEED_OF_META_JUDGE, SEED_OF_MATCHES = "judge", "meta", "rounds"
SEED_OF_PRINCIPLES, SEED_OF_CRITIQUE, SEED_OF_REVISION = "principles", "critique", "revision"
SEED_OF_EVALUATION, SEED_OF_HELD_OUT_JUDGE = "evaluate", "held-out"
SEED_OF_PROMPTS, SEED_OF_PART, SEED_OF_ORDER = "prompts", "part", "order"
SEED_OF_EXAMPLES, SEED_OF_ROUND = "examples", "round"
SEED_OF_INSTANCES, SEED_OF_SHOTS = "instances", "shots"
SEED_OF_TRIAL_EXAMPLES, SEED_OF_TRIAL, SEED_OF_JUDGED_TRIALS = "trial examples", "trial", "judged"
SEED_OF_VARIANT, SEED_OF_QUALITY = "variant", "quality"
SEED_OF_EVOLUTION, SEED_OF_BREADTH, SEED_OF_OPERATOR = "evolve", "breadth", "operator"
SEED_OF_BACKTRANSLATION, SEED_OF_EXPLANATION = "backtranslation", "explain"
# The requests of one task.
WRITE, COMPARE, ANSWER, RATE, MESSAGE = "write", "compare", "answer", "rate", "message"
SEED_OF_EFT, SEED_OF_HELD_OUT, SEED_OF_THINNING, SEED_OF_EFT_PROMPTS = "eft", "held out", "thin", "prompt"

# Kinds of things whose ids are hashes of their content; those of records are in :mod:`selfreward.records`.
ID_OF_HELD_OUT, ID_OF_RANKED, ID_OF_DOCUMENT, ID_OF_TEMPLATE = "held-out", "ranked", "document", "template"
