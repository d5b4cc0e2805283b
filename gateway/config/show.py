"""The effective configuration: every default filled in, every secret masked."""

import io
from dataclasses import asdict
from decimal import Decimal
from typing import Any

import yaml

from gateway.config.load import Loaded
from gateway.config.models import RetrySection
from gateway.core.target import Chain, Retry, Timeouts
from gateway.wire import json


def effective(loaded: Loaded) -> dict[str, Any]:
    """The file with every default filled in, as plain values; secrets are `…`."""
    made = loaded.document.model_dump(by_alias=True, exclude_none=True, warnings=False)
    said = loaded.document.defaults
    clocks = {name: getattr(said, name) or value for name, value in _clocks().items()}
    whole = said.model_copy(update={**clocks, "retry": _retry(said.retry)})
    # what a target does not say is unknown, or that of the one it is like: no default to fill in
    made["targets"] = (
        loaded.document.model_dump(
            by_alias=True, exclude_none=True, exclude_unset=True, include={"targets"}
        )["targets"]
        if loaded.document.targets
        else {}
    )
    made["defaults"] = whole.model_dump(by_alias=True, exclude_none=True)
    plain = _plain(made)
    return plain if isinstance(plain, dict) else {}


def _clocks() -> dict[str, Any]:
    chain = Chain("", ())
    return {
        **asdict(Timeouts()),
        "deadline": chain.deadline,
        "keepalive": chain.keepalive,
        "midstream": chain.midstream,
    }


def _retry(section: RetrySection | None) -> RetrySection:
    said = section.model_dump(exclude_none=True) if section else {}
    own = {name: getattr(section, name) for name in said}
    return RetrySection.model_construct(**{**asdict(Retry()), **own})


def show(loaded: Loaded) -> str:
    """`effective` as JSON."""
    return json.pretty(_in_json(effective(loaded)))


def as_yaml(loaded: Loaded) -> str:
    """`effective` as YAML that can be loaded again, once its secrets are written back."""
    out = io.StringIO()
    yaml.dump(
        effective(loaded), out, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return out.getvalue()


def _in_json(value: Any) -> Any:
    """Decimals as the JSON numbers of the same digits."""
    if isinstance(value, dict):
        return {key: _in_json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_json(inner) for inner in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value


class _Dumper(yaml.SafeDumper):
    """Decimals as they are, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _decimal(dumper: yaml.SafeDumper, value: Decimal) -> yaml.ScalarNode:
    if value == value.to_integral_value():
        return dumper.represent_int(int(value))
    return dumper.represent_scalar("tag:yaml.org,2002:float", f"{value:f}")


_Dumper.add_representer(Decimal, _decimal)
_Dumper.add_representer(float, lambda dumper, value: _decimal(dumper, Decimal(repr(value))))


def _plain(value: Any) -> Any:
    """Maps, lists and scalars without what is empty."""
    if isinstance(value, dict):
        found = {str(key): _plain(inner) for key, inner in value.items()}
        return {key: inner for key, inner in found.items() if inner not in ({}, [])}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
