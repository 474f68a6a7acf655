"""Strict typed settings <-> YAML, with overrides and refusals that help. Mechanics only: no setting is named here."""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

RECIPES_PACKAGE = "lumiere.recipes"


class Settings(pydantic.BaseModel):
    """The base of every settings model: exact types, no unknown keys, unchanged once made."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, validate_default=True)


SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(
    cls: type[SettingsT], source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> SettingsT:
    """The settings that a YAML file (or a mapping) and then the ``overrides`` describe.

    Overrides are what stands on a command line: ``--key value``, ``--key=value`` or ``key.sub=value``, the values in
    YAML. Raises ValueError with one line per problem: the key, what was given, what is allowed.
    """
    where = str(source) if isinstance(source, str | Path) else "settings"
    data = _read_yaml(Path(source)) if isinstance(source, str | Path) else _deep_copy(source)
    for key, text in parse_overrides(overrides):
        _set(data, key, _override_value(cls, key, text))
    try:
        # JSON is the lax side of strict: a list may fill a tuple and a string a path, but never a number.
        return cls.model_validate_json(json.dumps(data, default=str))
    except pydantic.ValidationError as error:
        problems = [_explain(cls, problem) for problem in error.errors()]
    raise ValueError(f"{where}: " + "; ".join(dict.fromkeys(problems)))


def parse_overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """(dotted key, text of its value) for each override, in order; dashes in keys become underscores.

    Raises ValueError for a word that is no override, or a key without a value.
    """
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, separator, text = re.fullmatch(r"(?s)(-*[\w.-]*)(=|\s+)?(.*)", word).groups()  # type: ignore[union-attr]
        if not separator and key.startswith("--") and not text:
            if not rest or re.match(r"--[A-Za-z]", rest[0]):
                raise ValueError(f"{word} has no value (write {word} VALUE; a switch takes true or false)")
            separator, text = " ", rest.pop(0)
        name = key.removeprefix("--").replace("-", "_")
        if not separator or not name or (separator != "=" and not key.startswith("--")):
            raise ValueError(f"{word!r} is no setting (write --key value, or key.sub=value)")
        pairs.append((name, text))
    return pairs


def to_yaml(settings: Settings) -> str:
    """The settings as YAML, in the order of their fields; loading it gives equal settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def shipped_recipes() -> list[str]:
    """The names of the recipes inside the package, in order."""
    entries = resources.files(RECIPES_PACKAGE).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """The YAML file of a recipe: a file of that path, else the recipe of that name inside the package.

    Raises ValueError that lists the shipped recipes and says which is nearest.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    name, known = str(name_or_path), shipped_recipes()
    if name.removesuffix(".yaml") in known:
        return Path(str(resources.files(RECIPES_PACKAGE))) / f"{name.removesuffix('.yaml')}.yaml"
    raise ValueError(
        f"no recipe {name!r}: neither a file nor one of the shipped recipes"
        f"{did_you_mean(name, known)}; shipped are: {', '.join(known) or 'none'}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name nearest to ``name``, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, ``on`` and ``no`` are words, and a key stands only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?((\d[\d_]*)?\.\d+|\d[\d_]*\.?)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty mapping."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a settings file ({error})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if data is not None and not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}; settings are 'key: value' lines")
    return data or {}


def _deep_copy(source: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, Mapping) else value for key, value in source.items()}


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    """Put ``value`` at a dotted key, making the mappings on the way."""
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents, start=1):
        inner = data.setdefault(parent, {})
        if inner is None:
            inner = data[parent] = {}
        if not isinstance(inner, dict):
            raise ValueError(f"--{key}: '{'.'.join(parents[:depth])}' is {inner!r} and has no settings inside")
        data = inner
    data[last] = value


def _override_value(cls: type[Settings], key: str, text: str) -> Any:
    """The YAML value of an override's text, or the bare text where only that fits the setting."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text
    *parents, last = key.split(".")
    for model in _models_at(cls, parents):
        if last in model.model_fields:
            annotation: Any = model.model_fields[last].annotation
            adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
            return next((choice for choice in (value, text) if _fits(adapter, choice)), value)
    return value


def _fits(adapter: pydantic.TypeAdapter[Any], value: Any) -> bool:
    try:
        adapter.validate_json(json.dumps(value, default=str), strict=True)
    except pydantic.ValidationError:
        return False
    return True


def _models_at(cls: type[Settings], keys: Sequence[Any]) -> list[type[Settings]]:
    """The settings models that may stand at a path of keys below ``cls``; none where the path leads elsewhere."""
    models = [cls]
    for key in keys:
        fields = [model.model_fields[key].annotation for model in models if key in model.model_fields]
        found = [model for field in fields for model in _models_in(field)]
        # In a union, pydantic's path also names the member it tried.
        models = found or [model for model in models if model.__name__ == key or not isinstance(key, str)]
    return models


def _models_in(annotation: Any) -> list[type[Settings]]:
    """The settings models named in a type: itself, or a member of a union, list or mapping."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Settings) else []
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


def _explain(cls: type[Settings], problem: Any) -> str:
    """One line for one of pydantic's problems: the key, what was given, what is allowed."""
    *parents, last = problem["loc"] or ("settings",)
    key = ".".join(str(part) for part in (*parents, last))
    match problem["type"]:
        case "extra_forbidden":
            known = sorted({name for model in _models_at(cls, parents) for name in model.model_fields})
            inside = f" in '{'.'.join(str(part) for part in parents)}'" if parents else ""
            return f"unknown setting '{last}'{inside}{did_you_mean(str(last), known)}; known are: {', '.join(known)}"
        case "missing":
            return f"the setting '{key}' is missing and has no default"
        case "value_error":
            place = f"'{key}': " if problem["loc"] else ""
            return f"{place}{problem['ctx']['error']}"
    return f"'{key}' is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
