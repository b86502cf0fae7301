"""These tests need SGLang's wheel: ``make test-engines-sglang`` runs them in a virtual environment of its own."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("sglang") else ["*.py"]
