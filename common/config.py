"""Strict TOML into settings: the only reader of configuration.

A settings class is a frozen dataclass that checks its own values. This room adds what a file can get wrong:
unknown keys, wrong types, broken TOML, each named with its full key, its value and what is allowed.
"""

import dataclasses
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from common.errors import ConfigError

Settings = TypeVar("Settings")


def load_table(path: Path) -> dict[str, Any]:
    """The TOML file as nested tables. Raises ConfigError naming the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", "check its name and place") from None
    except (OSError, UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not readable as TOML: {error}") from error


def override(table: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """The table with every `key=value` of the command line put in. Values are TOML; a bare word is a string."""
    merged = _copy(table)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"--set {assignment!r} is not key=value", "example: --set privacy.epsilon=1.0")
        *tables, last = parts
        place = merged
        for name in tables:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {assignment!r}: {name} is a value, not a table")
        place[last] = _toml_value(text.strip())
    return merged


def fill(settings: type[Settings], table: Mapping[str, Any], prefix: str = "") -> Settings:
    """An instance of the settings dataclass from a table; keys that are absent keep their defaults.

    Raises ConfigError for a key the class does not have, a value of the wrong type, or one the class refuses.
    """
    hints = get_type_hints(settings)
    fields = {item.name: item for item in dataclasses.fields(settings)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in fields:
            raise ConfigError(f"{prefix}{name} is not a known key", f"allowed: {', '.join(prefix + n for n in fields)}")
        values[name] = _convert(hints[name], value, prefix + name)
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{prefix}{name} is missing", f"add it to the [{prefix.rstrip('.') or 'top'}] table")
    return settings(**values)


def to_table(settings: Any) -> dict[str, Any]:
    """The inverse of `fill`: nested plain values, ready for JSON or TOML."""
    return {item.name: _plain(getattr(settings, item.name)) for item in dataclasses.fields(settings)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_table(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in table.items()}


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} = {value!r} must be a table", f"write [{key}]")
        return fill(hint, value, key + ".")  # type: ignore[arg-type]
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise ConfigError(
                f"{key} = {value!r} is not possible", f"allowed: {', '.join(repr(choice) for choice in arguments)}"
            )
        return value
    if origin in (Union, types.UnionType):
        for choice in arguments:
            try:
                return _convert(choice, value, key)
            except ConfigError:
                continue
        raise _wrong_type(key, value, " or ".join(_type_name(choice) for choice in arguments))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong_type(key, value, "a list")
        return tuple(_convert(arguments[0], item, f"{key}[{place}]") for place, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong_type(key, value, "a table")
        return {name: _convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if hint is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if type(value) is not hint:
        raise _wrong_type(key, value, _type_name(hint))
    return value


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", tuple: "a list"}
    return names.get(get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))


def _wrong_type(key: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{key} = {value!r} has the wrong type", f"allowed: {wanted}")
