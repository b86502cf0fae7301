"""``python -m equipoise.scoring``: the evaluator's command line."""

from .evaluator import main

main()
