"""The published schemas of the manifests, made strict: like the API server, they refuse a key that they do not name."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.conftest import RECORDINGS

OPEN = ("additionalProperties", "x-kubernetes-preserve-unknown-fields")
FOREIGN = ("format", "nullable")
"""Keys of OpenAPI that JSON Schema does not have."""


def schema_file(name: str) -> Path:
    """A published schema, from the folder `schemas` next to the recordings; the test is skipped without it."""
    file = RECORDINGS.parent / "schemas" / name
    if not file.is_file():
        pytest.skip(f"no schema at {file}: put the published CRDs into the folder schemas next to RECORDINGS")
    return file


@cache
def definition_in(file: Path) -> Any:
    """A custom resource's definition. The largest has 600 KB, for which libyaml is fast enough."""
    return yaml.load(file.read_text(), yaml.CSafeLoader)


def schema_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The strict schema of the manifest's kind."""
    kind = manifest["kind"].lower()
    if kind == "hyperpodpytorchjob":
        return strict(json.loads(schema_file("hyperpodpytorchjob.unofficial.schema.json").read_text()))
    prefix = "" if kind == "pytorchjob" else "kueue-"
    definition = definition_in(schema_file(f"{prefix}{kind}.crd.yaml"))
    group, version = manifest["apiVersion"].split("/")
    assert definition["spec"]["group"] == group
    assert definition["spec"]["names"]["kind"] == manifest["kind"]
    served = {
        each["name"]: each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["served"]
    }
    return strict(served[version])


def faults(manifest: dict[str, Any]) -> list[str]:
    """The violations of its schema in `manifest`, each with its place."""
    validator = jsonschema.Draft202012Validator(schema_of(manifest))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(manifest)]


def strict(schema: Any) -> Any:
    """`schema` in which every object is closed that names its properties and is not marked as open."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(value) for name, value in schema.items() if name not in FOREIGN or isinstance(value, dict)}
    if schema.get("x-kubernetes-int-or-string") is True:
        closed.pop("type", None)
    if (
        isinstance(closed.get("properties"), dict)
        and closed.get("type", "object") == "object"
        and not set(OPEN) & set(closed)
    ):
        closed["additionalProperties"] = False
    metadata = closed.get("properties", {}).get("metadata") if isinstance(closed.get("properties"), dict) else None
    if isinstance(metadata, dict) and "kind" in closed["properties"]:
        closed["properties"]["metadata"] = METADATA
    return closed


METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 253, "pattern": "^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"},
        "namespace": {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "labels": {
            "additionalProperties": {
                "type": "string",
                "maxLength": 63,
                "pattern": "^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$",
            }
        },
        "annotations": {"additionalProperties": {"type": "string"}},
    },
}
"""An object's metadata, which definitions leave to the API server. Source: Kubernetes' API conventions."""
