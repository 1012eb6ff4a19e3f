"""The stages: one function each, ``stage(run, step, engines)``, which is also one command.

A stage reads the records of the stages before it, writes its own, and returns its summary: counts and
figures for ``stage.json`` and ``metrics.jsonl``.
"""
