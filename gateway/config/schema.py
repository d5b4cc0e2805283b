"""The JSON Schema of a file, made from the models."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from gateway.config.models import Document


class _Schema(GenerateJsonSchema):
    """Without `title`s: an editor shows the key itself."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema() -> dict[str, Any]:
    """Draft 2020-12; for editors. `gateway check` knows more: names, places, what will hurt."""
    made = Document.model_json_schema(by_alias=True, schema_generator=_Schema, mode="validation")
    cleaned = _cleaned(made)
    chain = cleaned["$defs"]["ChainSection"]
    cleaned["$defs"]["ChainSection"] = {
        "anyOf": [chain, {"type": "array", "items": chain["properties"]["try"]["items"]}]
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gateway.yaml",
        **{key: value for key, value in cleaned.items() if key != "title"},
    }


def _cleaned(value: Any) -> Any:
    """Without titles of models, and without `null`: a key is left out, not emptied."""
    if isinstance(value, list):
        return [_cleaned(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if "properties" in value:  # their names are keys of the file: one may be called `default`
        named = {name: _cleaned(inner) for name, inner in value["properties"].items()}
        return _cleaned({k: v for k, v in value.items() if k != "properties"}) | {
            "properties": named
        }
    made = {
        key: _cleaned(inner)
        for key, inner in value.items()
        if not (key == "title" and isinstance(inner, str))
        and not (key == "default" and not isinstance(inner, str | int | bool))
    }
    if made.get("type") == "string" and not isinstance(made.get("default", ""), str):
        del made["default"]  # seconds and bytes as the core counts them, not as a file says them
    choices = made.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        rest = [choice for choice in choices if choice != {"type": "null"}]
        del made["anyOf"]
        made |= rest[0] if len(rest) == 1 else {"anyOf": rest}
    return made
