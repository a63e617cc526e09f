"""The components of docs/api.json as a judge: also of what they do not name."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from openapi_schema_validator import OAS31Validator, oas31_format_checker

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.json"


@cache
def described() -> dict[str, Any]:
    """The whole document."""
    found: dict[str, Any] = json.loads(DOCUMENT.read_text())
    return found


def strict(part: Any) -> Any:
    """The same, but no object may have a field that is not named; those in ``allOf`` apart."""
    if isinstance(part, list):
        return [strict(one) for one in part]
    if not isinstance(part, dict):
        return part
    made = {key: value if key == "allOf" else strict(value) for key, value in part.items()}
    if "$ref" in part:
        made["unevaluatedProperties"] = False
    return made


@cache
def _components() -> Any:
    return strict(described()["components"])


def complaints(name: str, value: Any) -> list[str]:
    """What is wrong with a value of a component, where, one line each."""
    validator = OAS31Validator(
        {
            "$ref": f"#/components/schemas/{name}",
            "unevaluatedProperties": False,
            "components": _components(),
        },
        format_checker=oas31_format_checker,
    )
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def reply_of(method: str) -> str:
    """The component of what a method answers; KeyError where it has none."""
    content = described()["paths"][f"/{method}"]["post"]["responses"]["200"]["content"]
    (media,) = content.values()
    return str(media["schema"]["$ref"]).rpartition("/")[2]
