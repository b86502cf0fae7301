"""What a server is asked to do: variables ``EQUIPOISE_*``, or the TOML file that ``EQUIPOISE_CONFIG`` names.

Read and checked once, when an engine starts; nothing heavy is imported for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, FormatError
from ..formats.toml import nearest, read_toml
from ..policy.registry import DEFAULT, policies
from ..trace import UNITS

if TYPE_CHECKING:
    from ..control import Balancer, CostModel
    from ..topology import Topology

PREFIX = "EQUIPOISE_"
CONFIG = PREFIX + "CONFIG"
STATIC = "static"
"""the policy that keeps the placement which was planned ahead"""
MODES = ("on", "observe")
SWITCHES = {"vllm": PREFIX + "VLLM", "sglang": PREFIX + "SGLANG"}
"""engines, and the variables that switch their plug-in on"""
NO_SETTINGS = {
    PREFIX
    + "RECORD_PAIRS": "engines hand over counts, which tell nothing of pairs: a recording of LiveBalancer "
    "(pairs_every=) has them, and token routes of SGLang's recorder (per_token) are read with --routes"
}
"""variables that might be looked for, and why there are none"""
OTHERS = {PREFIX + name for name in ("NUM_THREADS", "TRACE", "PROTOCOL", "SALT", "FUZZ_EXAMPLES")}
"""variables that are no settings of a server"""
BYTES = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}


def _text(value: str) -> str:
    return value


def _whole(value: str) -> int:
    return int(value.replace("_", ""))


def _share_or_count(value: str) -> int | float | None:
    """``5%`` and ``0.05`` are a share of all slots, ``100`` a number of fetches, ``none`` no limit."""
    if value.lower() == "none":
        return None
    if value.endswith("%"):
        return float(value[:-1]) / 100.0
    return float(value) if any(mark in value for mark in ".eE") else int(value)


def _switch(value: str) -> bool:
    words = {"on": True, "true": True, "yes": True, "1": True}
    words |= {"off": False, "false": False, "no": False, "0": False}
    return words[value.lower()]


def _bytes(value: str) -> int:
    number = value.upper().removesuffix("B").strip()
    unit = number[-1:] if number[-1:] in BYTES else ""
    return round(float(number.removesuffix(unit)) * BYTES[unit])


def _lower(value: str) -> str:
    return value.lower()


_Key = tuple[Callable[[str], Any], str]
# How the text of a setting is read, and what it must be, in words.
_KEYS: dict[str, _Key] = {
    "policy": (_text, f"a policy or {STATIC!r}"),
    "history": (_whole, "a number of windows, at least 1"),
    "max_moves": (_share_or_count, "fetches (100), a share of all slots (5% or 0.05), or none"),
    "mode": (_lower, " or ".join(MODES)),
    "gate": (_switch, "on or off"),
    "horizon": (_whole, "a number of windows, at least 1"),
    "model": (_lower, "a preset's name"),
    "accelerator": (_lower, "a preset's name"),
    "intra": (_lower, "a preset's name"),
    "inter": (_lower, "a preset's name"),
    "record": (Path, "a folder"),
    "record_unit": (_lower, " or ".join(UNITS)),
    "record_max_bytes": (_bytes, "a number of bytes, as 500M or 2G"),
    "placement": (Path, "a file"),
    "deadline_s": (float, "seconds, above 0"),
    "stop_file": (Path, "a file"),
    "seed": (_whole, "a whole number, not negative"),
}


@dataclass(frozen=True)
class Settings:
    """What a server is asked to do, checked.

    Parameters
    ----------
    policy : a name in `equipoise.policies`, or ``static``, which keeps the placement that was planned ahead
    history : windows that a plan is made from
    max_moves : budget of a re-planning, as in `Balancer`
    mode : ``on``, or ``observe``: log what would be done and move nothing
    gate : whether plans have to pay for their moves, by the cost model of the presets below
    horizon : windows over which they must; ``history`` unless given
    model : preset of the model; found by layers and experts unless given
    accelerator, intra, inter : presets of the accelerator and of the links inside nodes and between them
    record : folder that windows are recorded to, by `TraceWriter`
    record_unit : what a recording counts: ``tokens``, or ``batches`` in which an expert was hit, see `LoadTrace`;
        plans are made from tokens in either case
    record_max_bytes : size that a recording keeps to
    placement : file of a placement that was planned ahead
    deadline_s : seconds after which a plan that is not ready is given up
    stop_file : as soon as this file is there, nothing is moved any more
    seed : handed to the policy
    origins : where each setting that was given comes from, in words

    Raises
    ------
    ArgumentError
        naming the setting that is out of its range, and what it must be
    """

    policy: str = DEFAULT
    history: int = 8
    max_moves: int | float | None = 0.05
    mode: str = "on"
    gate: bool = False
    horizon: int | None = None
    model: str | None = None
    accelerator: str = "h100"
    intra: str = "nvlink4"
    inter: str = "ib-400g"
    record: Path | None = None
    record_unit: str = "tokens"
    record_max_bytes: int = 1 << 28
    placement: Path | None = None
    deadline_s: float = 60.0
    stop_file: Path | None = None
    seed: int = 0
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        known = (STATIC, *policies)
        if self.policy not in known:
            raise ArgumentError(f"{self._wrong('policy', _KEYS['policy'][1])}{nearest(self.policy, known)}")
        if self.policy == STATIC and self.placement is None:
            raise self._wrong("policy", f"something else, or {self._name('placement')} set to what it keeps")
        fits = {
            "history": self.history >= 1,
            "horizon": self.horizon is None or self.horizon >= 1,
            "max_moves": self.max_moves is None
            or (self.max_moves >= 0 and (isinstance(self.max_moves, int) or self.max_moves <= 1)),
            "mode": self.mode in MODES,
            "record_unit": self.record_unit in UNITS,
            "record_max_bytes": self.record_max_bytes > 0,
            "deadline_s": 0 < self.deadline_s < math.inf,
            "seed": 0 <= self.seed < 1 << 63,
        }
        for name, fit in fits.items():
            if not fit:
                raise self._wrong(name, _KEYS[name][1])
        self._check_presets()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """The settings that variables give, and, where they leave something open, the file of ``EQUIPOISE_CONFIG``.

        Raises
        ------
        ArgumentError, FormatError
            for a setting that is not known (names the nearest one that is) or out of its range
        FileAccessError
            if the file cannot be read
        """
        variables = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
        known = {PREFIX + name.upper() for name in _KEYS} | OTHERS | set(SWITCHES.values()) | {CONFIG}
        for name in variables:
            if name in NO_SETTINGS:
                raise ArgumentError(f"{name} is no setting: {NO_SETTINGS[name]}")
            if name not in known:
                raise ArgumentError(f"{name} is no setting{nearest(name, known - OTHERS)}")
        config = variables.get(CONFIG)
        texts = _from_file(Path(config)) if config else {}
        for name in _KEYS:
            if value := variables.get(PREFIX + name.upper()):
                texts[name] = (value, PREFIX + name.upper())
        return cls._of(texts)

    @classmethod
    def _of(cls, texts: Mapping[str, tuple[str, str]]) -> Settings:
        """Settings from texts, each with where it comes from."""
        origins = {name: origin for name, (_, origin) in texts.items()}
        values = {}
        for name, (text, origin) in texts.items():
            parse, wanted = _KEYS[name]
            try:
                values[name] = parse(text.strip())
            except (ValueError, KeyError, OverflowError):
                raise ArgumentError(f"{origin} must be {wanted}, got {text!r}") from None
        return cls(**values, origins=MappingProxyType(origins))

    def balancer(self, topology: Topology, num_layers: int, num_experts: int) -> Balancer:
        """The balancer that decides, for MoE layers ``L`` with experts ``E`` each; imports what plans.

        With the policy ``static`` it plans with the default policy, in case that what is kept is no longer legal.

        Raises `ArgumentError` if the gate is on and no preset of a model fits.
        """
        from ..control import Balancer

        return Balancer(
            topology,
            num_layers,
            num_experts,
            policy=DEFAULT if self.policy == STATIC else self.policy,
            history=self.history,
            max_moves=self.max_moves,
            seed=self.seed,
            cost=self._cost(num_layers, num_experts) if self.gate else None,
            horizon=self.horizon,
        )

    @property
    def records_batches(self) -> bool:
        """Whether hits are needed beside tokens."""
        return self.record is not None and self.record_unit == "batches"

    def as_dict(self) -> dict[str, Any]:
        """The settings by name, for JSON."""
        values = {part.name: getattr(self, part.name) for part in fields(self) if part.name in _KEYS}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def _cost(self, num_layers: int, num_experts: int) -> CostModel:
        from ..control.cost import cost_model
        from ..control.presets import MODELS, model_of_shape

        found = None if self.model is None else MODELS[self.model]
        found = found or model_of_shape(num_layers, num_experts)
        if found is None:
            raise ArgumentError(
                f"the gate needs a cost model, and no preset has {num_layers} layers x {num_experts} experts: "
                f"set {self._name('model')} to one of {', '.join(MODELS)}, or {self._name('gate')} to off"
            )
        return cost_model(found.name, accelerator=self.accelerator, intra=self.intra, inter=self.inter)

    def _check_presets(self) -> None:
        names = ("model", "accelerator", "intra", "inter")
        if all(getattr(self, name) == getattr(Settings, name) for name in names):
            return  # nothing to look up, and nothing to import for it
        from ..control.presets import ACCELERATORS, LINKS, MODELS

        tables: tuple[Mapping[str, Any], ...] = (MODELS, ACCELERATORS, LINKS, LINKS)
        for name, presets in zip(names, tables, strict=True):
            value = getattr(self, name)
            if value is not None and value not in presets:
                raise self._wrong(name, f"one of {', '.join(presets)}")

    def _name(self, name: str) -> str:
        """What a setting is called where it was set, or would be."""
        return self.origins.get(name, PREFIX + name.upper())

    def _wrong(self, name: str, wanted: str) -> ArgumentError:
        return ArgumentError(f"{self._name(name)} must be {wanted}, got {getattr(self, name)!r}")


def _from_file(path: Path) -> dict[str, tuple[str, str]]:
    """The settings of a TOML file as texts, each with where it comes from."""
    content = read_toml(path, f"{CONFIG} must name a TOML file")
    texts = {}
    for name, value in content.items():
        if name not in _KEYS:
            raise FormatError(path, f"has the key {name[:40]!r}, no setting{nearest(name, set(_KEYS))}")
        if not isinstance(value, (str, int, float)):
            raise FormatError(path, f"{name} must be {_KEYS[name][1]}, got {type(value).__name__}")
        texts[name] = (str(value), f"{path}: {name}")
    return texts


def made_for_batches(path: Path) -> str:
    """Why a placement file is not served, which was made for batches that are split by their load."""
    return (
        f"{path} was made for batches that are split by their load, and engines split evenly: "
        "plan it without --split batch"
    )
