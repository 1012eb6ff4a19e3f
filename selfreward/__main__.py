"""``python -m selfreward``, which ``accelerate launch -m`` and ``srun`` need."""

from selfreward.cli import main

if __name__ == "__main__":
    main()
