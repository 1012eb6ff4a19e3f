"""What a setting decides. Each field of a settings class says it, by a mark or by its class."""

from __future__ import annotations

from enum import Enum


class Effect(Enum):
    """What of a setting decides the results of a run.

    A field is marked as ``Annotated[int, Effect.OPERATIONAL]``; see ``decides`` of
    :class:`selfreward.recipe.base.Settings` for those that are not marked.
    """

    VALUE = "its value"
    OPERATIONAL = "nothing: it says where and how a run works, not what it makes"
    PLAN = "which stages there are and what each reads, which is compared itself"
    FILE = "the bytes of the file that it names"
    FOLDER = "the bytes of the folder that it names; its value where it names no folder"
    MODEL = "the bytes of the model that it names, in a folder or on the hub"
    EMBEDDER = "the bytes of the model that it names, as sentence-transformers loads it"

    @property
    def touches_results(self) -> bool:
        """Whether another value makes other records or weights of a stage."""
        return self not in (Effect.OPERATIONAL, Effect.PLAN)
