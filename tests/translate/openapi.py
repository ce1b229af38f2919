"""The fields of a type as an API server's OpenAPI v3 document describes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

# Types that are one value to a user, whatever the schema says.
_VALUES = frozenset(
    (
        "io.k8s.apimachinery.pkg.api.resource.Quantity",
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time",
    )
)


def fields(document: Json, type_name: str, path: str) -> Iterator[str]:
    """Paths such as `spec.containers[].image` of everything that is no object of its own. A map
    is one field."""
    yield from _walk(document["components"]["schemas"], {"$ref": f"/{type_name}"}, path)


def _walk(schemas: Json, schema: Json, path: str) -> Iterator[str]:
    schema = _resolved(schemas, schema)
    if "items" in schema:
        inner = _resolved(schemas, schema["items"])
        if inner.get("properties"):
            yield from _walk(schemas, inner, f"{path}[]")
        else:
            yield path
        return
    properties = schema.get("properties")
    if not properties:
        yield path
        return
    for name, inner in properties.items():
        yield from _walk(schemas, inner, f"{path}.{name}")


def _resolved(schemas: Json, schema: Json) -> Json:
    """The schema itself: a reference is wrapped in allOf where it has a default beside it."""
    reference = schema.get("$ref") or next(
        (one["$ref"] for one in schema.get("allOf", ()) if "$ref" in one), None
    )
    if reference is None:
        return schema
    name = reference.rsplit("/", 1)[1]
    return {} if name in _VALUES else schemas[name]
