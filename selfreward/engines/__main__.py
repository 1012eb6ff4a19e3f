"""``python -m selfreward.engines``: the process of one replica."""

from selfreward.engines.worker import main

main()
