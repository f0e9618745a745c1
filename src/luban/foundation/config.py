"""Typed, closed, documented configs: the one truth for YAML, command line, JSON schema, Python and docs.

A config is a pydantic model whose fields are made with :func:`field`. Each field has a role:

``result``   what is written changes the artifact, so it is part of its fingerprint;
``machine``  how the work is done here (workers, logging): no part of the fingerprint;
``length``   how far the work goes; growing it continues the artifact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from luban.foundation.errors import ConfigError, nearest
from luban.foundation.messages import t
from luban.foundation.wrong_values import wrong_value

Auto = Literal["auto"]
Role = Literal["result", "machine", "length"]


def field(default: Any = ..., doc: str = "", *, unit: str = "", role: Role = "result", input: bool = False, short: Sequence[str] = (), later: bool = False, alike: dict[str, str] | None = None, **rules: Any) -> Any:
    """Declare a config field: its default, one sentence of documentation, its unit and its role.

    ``input=True`` marks a field whose value names other stages or paths (a string, or a list of strings). ``short`` are names that a config
    may be written as, where the field's type turns them into it. ``later=True`` marks a field that came after its config: at its default it is as if it
    were not there, so that what was made before it stays up to date.
    ``alike`` are values that make the same as another does, for which they count in a fingerprint.
    ``rules`` are pydantic's own (``ge=0``, ``min_length=1``, ``default_factory=…``).
    """
    extra = {"role": role, "unit": unit, "input": input, **({"short": list(short)} if short else {}), **({"later": True} if later else {}), **({"alike": alike} if alike else {})}
    if "default_factory" in rules:
        return Field(description=doc, json_schema_extra=extra, **rules)
    return Field(default, description=doc, json_schema_extra=extra, **rules)


class Config(BaseModel):
    """Base of every config: closed, with suggestions for what it does not know. A list of texts or numbers may be given as its only item.

    ``renamed`` maps a field's former name to its present one: still read, with a warning.
    ``foreign`` maps names that users of other trainers would type to what Luban calls them.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True, protected_namespaces=())
    renamed: ClassVar[dict[str, str]] = {}
    foreign: ClassVar[dict[str, str]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: ValidationInfo) -> Any:
        """``[value]`` for a plain value where a list of such is asked for; the empty text is the empty list."""
        if isinstance(value, str | int | float) and _is_only_item(cls.model_fields[info.field_name].annotation, value):
            return [] if value == "" else [value]
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema = handler(core_schema)
        for name, described in handler.resolve_ref_schema(schema).get("properties", {}).items():
            if plain_items(cls.model_fields[name].annotation):
                _describe_only_item(described)
        return schema

    def updated(self, **changes: Any) -> Any:
        """A validated copy with other values in some fields."""
        return build(type(self), {**self.explicit(), **changes})

    def explicit(self) -> dict[str, Any]:
        """The fields that were given rather than left to their defaults, as plain data."""
        return self.model_dump(exclude_unset=True)


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def plain_items(annotation: Any) -> set[type]:
    """The types of the plain values that a field takes a list of; none where it holds no such list, or takes text for what it is."""
    choices = _choices(annotation)
    alone = {get_args(choice)[0] if get_origin(choice) is Annotated else choice for choice in choices}  # what the field takes as it is
    found: set[type] = set()
    for item in () if str in choices else (get_args(choice)[0] for choice in choices if get_origin(choice) is list):
        item = get_args(item)[0] if get_origin(item) is Annotated else item
        found |= set(map(type, get_args(item))) if get_origin(item) is Literal else {item} & {str, int, float} - alone
    return found | {int} if float in found else found


def _is_only_item(annotation: Any, value: Any) -> bool:
    """Whether a plain value is the only item of the list that a field takes; a word that means something by itself, such as auto, is not."""
    words = [word for choice in _choices(annotation) if get_origin(choice) is Literal for word in get_args(choice)]
    return type(value) in plain_items(annotation) and value not in words


def _describe_only_item(schema: dict[str, Any]) -> None:
    """Let the JSON schema of a list field take its item alone too."""
    if "anyOf" not in schema:
        schema["anyOf"] = [{key: schema.pop(key) for key in ("type", "items", "minItems", "maxItems") if key in schema}]
    many = next(choice for choice in schema["anyOf"] if choice.get("type") == "array")
    schema["anyOf"].append(dict(many["items"]))


def role_of(info: FieldInfo) -> Role:
    return (info.json_schema_extra or {}).get("role", "result")


def unit_of(info: FieldInfo) -> str:
    return (info.json_schema_extra or {}).get("unit", "")


def is_input(info: FieldInfo) -> bool:
    return bool((info.json_schema_extra or {}).get("input"))


def chooser(info: FieldInfo) -> str | None:
    """The key that says which of a field's configs is meant, such as ``name`` or ``method``; None where it holds no config."""
    for cls in config_classes_of(info.annotation):
        for name, own in cls.model_fields.items():
            if get_origin(own.annotation) is Literal:
                return name
    return None


def short_names(info: FieldInfo) -> list[str]:
    """The names that the field's config may be written as."""
    return (info.json_schema_extra or {}).get("short", [])


def one_of(key: str, *classes: type[Config]) -> Any:
    """The type of a field that holds one of several configs; the value of ``key`` in it says which, the first where it is not given.

    Each class declares ``key``, its first field of that kind, as a Literal of the names it goes by.
    """
    names = {name: cls.__name__ for cls in classes for name in get_args(cls.model_fields[key].annotation)}

    def tag(value: Any) -> str | None:
        name = value.get(key, next(iter(names))) if isinstance(value, dict) else getattr(value, key, None)
        return names.get(name) if isinstance(name, str) else None

    members = Union[tuple(Annotated[cls, Tag(cls.__name__)] for cls in classes)]  # noqa: UP007
    known = ", ".join(names)
    return Annotated[members, Discriminator(tag, custom_error_type="unknown_choice", custom_error_message=f"{key} is one of: {known}")]


def config_classes_of(annotation: Any) -> list[type[Config]]:
    """The Config classes inside an annotation such as ``ShapeConfig | str``, or the several of a :func:`one_of`."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, Config) else []
    return [found for choice in get_args(annotation) for found in config_classes_of(choice)]


def config_class_of(annotation: Any, value: Any = None) -> type[Config] | None:
    """The Config class of a field; of several the one that the plain ``value`` chooses by its first Literal field, or else the first."""
    classes = config_classes_of(annotation)
    for cls in classes if isinstance(value, dict) and len(classes) > 1 else ():
        key, info = next(pair for pair in cls.model_fields.items() if get_origin(pair[1].annotation) is Literal)
        if value.get(key) in get_args(info.annotation):
            return cls
    return classes[0] if classes else None


def walk_fields(cls: type[Config], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf field under ``cls`` with its dotted name, in order; a name that several choices of a field share comes once."""
    for name, info in cls.model_fields.items():
        nested = [] if is_input(info) or get_origin(info.annotation) is list else config_classes_of(info.annotation)
        if nested:
            if str in get_args(info.annotation) or short_names(info):  # it may also be written short, as a name
                yield f"{prefix}{name}", info
            leaves: dict[str, FieldInfo] = {}
            for dotted, leaf in (pair for choice in nested for pair in walk_fields(choice, f"{prefix}{name}.")):
                leaves.setdefault(dotted, leaf)
            yield from leaves.items()
        else:
            yield f"{prefix}{name}", info


def fields_with_role(config: Config, role: Role) -> dict[str, Any]:
    """The config's values (plain data) under fields of one role, nested as in YAML."""
    chosen: dict[str, Any] = {}
    plain = config.model_dump(mode="json")
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if (info.json_schema_extra or {}).get("later") and value == info.default:
            continue
        if isinstance(value, Config) and role_of(info) == "result":
            if inner := fields_with_role(value, role):
                chosen[name] = inner
        elif role_of(info) == role:
            alike = (info.json_schema_extra or {}).get("alike", {})
            chosen[name] = alike.get(value, plain[name]) if isinstance(value, str) else plain[name]
    return chosen


class Source:
    """Where plain data came from, so that an error can name the file, the line and the field."""

    def __init__(self, file: str = "", lines: dict[str, int] | None = None, prefix: str = ""):
        self.file, self.lines, self.prefix = file, lines or {}, prefix

    def under(self, name: str) -> Source:
        return Source(self.file, self.lines, f"{self.prefix}{name}.")

    def at(self, path: str) -> str:
        """``recipe.yaml:12: base.learning_rate`` for a dotted path below the prefix."""
        full = (self.prefix + path).strip(".")
        line, probe = None, full
        while probe and line is None:
            line, probe = self.lines.get(probe), probe.rpartition(".")[0]
        place = f"{self.file}:{line}" if self.file and line else self.file
        return f"{place}: {full}" if place else full


def build(cls: type[Config], data: dict[str, Any], source: Source | None = None) -> Any:
    """Make a config from plain data, or raise a ConfigError that names each wrong field and the nearest right one."""
    source = source or Source()
    data = _with_present_names(cls, data, source)
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise _explain(cls, error, source) from None


def _with_present_names(cls: type[Config], data: Any, source: Source) -> Any:
    """Rename former keys, with a warning; recurse into nested configs."""
    if not isinstance(data, dict):
        return data
    from luban.foundation.console import warn

    present: dict[str, Any] = {}
    for key, value in data.items():
        name = cls.renamed.get(key, key)
        if name != key:
            warn("{where} is now called {name}; the old name is still read", where=source.at(str(key)), name=name)
            if name in data:
                raise ConfigError("{where}: both {old} and {new} are given", "they are one field", "keep {new}", where=source.at(key), old=key, new=name)
        info = cls.model_fields.get(name)
        nested = config_class_of(info.annotation, value) if info else None
        present[name] = _with_present_names(nested, value, source.under(name)) if nested else value
    return present


def _explain(cls: type[Config], error: ValidationError, source: Source) -> ConfigError:
    problems, hints = [], []
    details = error.errors(include_url=False)
    for detail in _most_telling(cls, details):
        path = [str(part) for part in detail["loc"] if not _is_type_tag(part)]
        owner = _owner(cls, list(map(str, detail["loc"][:-1])))
        where = source.at(".".join(path))
        if detail["type"] == "extra_forbidden":
            key = path[-1]
            problems.append(t("{where}: unknown key", where=where))
            if key in owner.foreign:
                hints.append(t("{key} is written {ours} here", key=key, ours=owner.foreign[key]))
            elif guess := nearest(key, owner.model_fields) or _nested_name(owner, key):
                hints.append(t("did you mean {guess}?", guess=guess))
            else:
                hints.append(t("known keys: {keys}", keys=", ".join(owner.model_fields)))
        elif detail["type"] == "missing":
            problems.append(t("{where}: a value is required", where=where))
            info = owner.model_fields.get(path[-1])
            hints.append(f"{path[-1]}: {t(info.description or '')}" if info else "")
        else:
            problems.append(wrong_value(where, detail["alternatives"]))
            info = owner.model_fields.get(path[-1]) if path else None
            if info and info.description:
                hints.append(f"{path[-1]}: {t(info.description)}")
    return ConfigError("\n".join(dict.fromkeys(problems)), "", "\n     ".join(dict.fromkeys(h for h in hints if h)))


def _nested_name(owner: type[Config], key: str) -> str | None:
    """``optimizer.learning_rate`` for ``learning_rat``: a field of a config inside this one that is called nearly so."""
    inner = {name.rpartition(".")[2]: name for name, _ in walk_fields(owner)}
    guess = nearest(key, inner)
    return inner[guess] if guess else None


def _most_telling(cls: type[Config], details: list[dict]) -> list[dict]:
    """Of a union's many complaints keep the ones about the member the user evidently meant; those about one value are its ``alternatives``."""
    deepest: dict[str, list[dict]] = {}
    for detail in details:
        deepest.setdefault(str(detail["loc"][0]) if detail["loc"] else "", []).append(detail)
    chosen = []
    for group in deepest.values():
        inner = [d for d in group if d["type"] in ("extra_forbidden", "missing") or len([p for p in d["loc"] if not _is_type_tag(p)]) > 1]
        places: dict[tuple, list[dict]] = {}
        for detail in inner or group:
            known = detail["type"] in ("extra_forbidden", "missing")
            places.setdefault((known, *(part for part in detail["loc"] if not _is_type_tag(part))), []).append(detail)
        chosen += [{**alternatives[-1], "alternatives": alternatives} for alternatives in places.values()]
    return chosen


def _is_type_tag(part: Any) -> bool:
    """pydantic names the member of a union in an error's path; such parts are no keys of the user's."""
    return isinstance(part, str) and (
        part in ("str", "int", "float", "bool", "none", "dict", "list") or part.startswith(("literal[", "function-", "list[", "dict[", "constrained-", "union[", "tagged-", "nullable[")) or part.endswith("Config")
    )


def _owner(cls: type[Config], path: list[str]) -> type[Config]:
    """The config class that owns the key at a path, in which pydantic names the chosen members of unions."""
    choices: list[type[Config]] = []
    for part in path:
        if chosen := next((choice for choice in choices if choice.__name__ == part), None):
            cls, choices = chosen, []
        elif not _is_type_tag(part) and not part.isdecimal():  # a number is a place in a list
            info = cls.model_fields.get(part)
            choices = config_classes_of(info.annotation) if info else []
            if not choices:
                return cls
            cls = choices[0]
    return cls
