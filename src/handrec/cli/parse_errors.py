"""Says in one line what a parser says in twenty."""

import importlib
import inspect
import re
import typing

from handrec.cli.experiments import did_you_mean

UNKNOWN_KEY = (
    r"unrecognized arguments: -*([\w.+-]+)",
    r"Option '([\w.]+)' is not accepted",
    r"does not accept option '([\w.]+)'",
)
#: What a wrapper says of a value: its alternatives and itself are in the lines it wraps.
NOISE = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value|Expected a <class 'NoneType'>$"
    r"|Problem with given class_path|Parser key|either not accessible or invalid"
)


def shorten(message: str) -> str:
    """Return the essential line of a jsonargparse error, with the full name of the key."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    groups = re.findall(r"Group '([\w.]+)' does not accept", message)
    prefix = ".".join([*keys, *groups])
    class_paths = re.findall(r"Problem with given class_path '([\w.]+)'", message)
    for pattern in UNKNOWN_KEY:
        found = re.search(pattern, message)
        if found:
            return unknown_key(prefix, found.group(1), groups, class_paths)
    if prefix:
        return f"{prefix}: {reason(message)}"
    return " ".join(message.split())


def unknown_key(prefix: str, key: str, groups: list[str], class_paths: list[str]) -> str:
    """Return what to say of a key that no constructor takes."""
    full = f"{prefix}.{key}" if prefix and not key.startswith(f"{prefix}.") else key
    full = full.replace("init_args.", "")
    inner = ".".join([*groups, key]).replace("init_args.", "")
    owner = class_paths[-1] if class_paths else None
    if owner is None and full.startswith("trainer."):
        owner, inner = "pytorch_lightning.Trainer", full.removeprefix("trainer.")
    return f"unknown key {full}{suggestion(owner, inner) if owner else ''}"


def suggestion(class_path: str, key: str) -> str:
    """Return the closest parameter of a constructor, following nested groups such as weights."""
    module, _, name = class_path.rpartition(".")
    owner = getattr(importlib.import_module(module), name)
    *groups, last = key.split(".")
    for position, group in enumerate([*groups, last]):
        known = list(inspect.signature(owner).parameters)
        if group not in known:
            return did_you_mean(group, known)
        if position < len(groups):
            owner = typing.get_type_hints(owner.__init__).get(group)
            if not isinstance(owner, type):
                break
    return ""


def reason(message: str) -> str:
    """Return why a value was refused: the alternatives it failed, or the last telling line."""
    expected = [readable(text) for text in re.findall(r"Expected an? (.+?)(?:\. Got|$)", message, re.M)]
    lines = [line.strip(" -") for line in message.splitlines() if not NOISE.search(line)]
    telling = [line for line in lines if line and not line.startswith("Expected a")]
    if telling:
        return re.sub(r"^Parser key \"[^\"]+\": ?", "", telling[-1])
    given = re.findall(r"Got value: (.+)$", message, re.M) or re.findall(r"val='?(.*?)'?\)$", message)
    given = given or re.findall(r"Given value: (.+)$", message, re.M)
    wanted = " or ".join(dict.fromkeys(name for name in expected if name != "NoneType"))
    value = f", got {given[-1]}" if given else ""
    return f"expected {wanted}{value}" if wanted else message.splitlines()[-1].strip()


def readable(type_name: str) -> str:
    """Return a type as a user would write it."""
    name = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", type_name)
    return re.sub(r"typing\.(Literal)?", "", name)
