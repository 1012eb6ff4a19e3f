"""Self-rewarding language models: a model that samples, judges and trains itself.

The loop is that of *Self-Rewarding Language Models* (arXiv 2401.10020). From a notebook::

    import selfreward

    recipe = selfreward.load_recipe("recipes/quickstart/run.yaml", ["iterations=1"])
    run = selfreward.run(recipe)
    pairs = run.dataset("pairs", iteration=1)  # a datasets.Dataset, ready for DPOTrainer
"""

from selfreward.loop import run
from selfreward.recipe.recipe import Recipe, load_recipe
from selfreward.runs.run import Run

__version__ = "0.1.0"
__all__ = ["Recipe", "Run", "__version__", "load_recipe", "run"]
