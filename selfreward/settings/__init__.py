"""The blocks of the recipe: typed and strict. :mod:`selfreward.config` puts them together. No torch."""
