"""Published schemas of two services that start machines, for requests that are checked without the service.

tests/expected/README.md says where they are from.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

from tests.helpers.paths import ROOT

__all__ = ["compute_complaints", "rayjob_complaints"]


def compute_complaints(node_config: Mapping[str, Any]) -> list[str]:
    """What Compute Engine would refuse in the body of `instances.insert`: unknown fields, wrong types and values."""
    schemas = {name: _closed(schema) for name, schema in _read("compute_instance.json.gz").items()}
    return _complaints({"$ref": "#/schemas/Instance", "schemas": schemas}, node_config)


def rayjob_complaints(job: Mapping[str, Any]) -> list[str]:
    """What Kubernetes with the KubeRay operator would refuse in a RayJob. Pods are not looked into."""
    return _complaints(_closed(_read("rayjob.json.gz")), job)


def _read(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((ROOT / "tests" / "expected" / name).read_bytes()))


def _closed(schema: Any) -> Any:
    """The schema for what is sent: both services refuse fields that they do not know.

    A JSON schema allows them, and knows neither Google's 64-bit numbers, which may be text or number, nor its short
    references.
    """
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "string" and schema.get("format") in ("int64", "uint64"):
        return {"type": ["string", "integer"]}
    if isinstance(schema.get("$ref"), str):
        return {"$ref": f"#/schemas/{schema['$ref']}"}
    closed = {key: _closed(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        closed["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    return closed


def _complaints(schema: dict[str, Any], value: Mapping[str, Any]) -> list[str]:
    Draft202012Validator.check_schema(schema)
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(value)]
