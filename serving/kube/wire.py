"""What a scheduler extender is asked and answers, as kube-scheduler writes it: Go structs without JSON names.

Source: k8s.io/kube-scheduler, extender/v1/types.go. Pods and nodes inside keep their own spelling; they stay plain
objects here and are read by `convert`.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic.json_schema import models_json_schema

from dispatchgym.serving.kube.quantity import PayloadError

MOST_PRIORITY = 10
"""Highest score of a node in a HostPriorityList; 0 is the lowest."""


class NodeList(BaseModel):
    """Whole Node objects, as sent when `nodeCacheCapable` is off."""

    items: list[dict[str, Any]] | None = None


class ExtenderArgs(BaseModel):
    """A pod and the nodes left for it: whole, or by name when `nodeCacheCapable` is on."""

    Pod: dict[str, Any]
    Nodes: NodeList | None = None
    NodeNames: list[str] | None = None


class Victims(BaseModel):
    """Pods that kube-scheduler would evict from a node."""

    Pods: list[dict[str, Any]] | None = None
    NumPDBViolations: int = 0


class MetaPod(BaseModel):
    UID: str


class MetaVictims(BaseModel):
    """The same by uid, when `nodeCacheCapable` is on."""

    Pods: list[MetaPod] | None = None
    NumPDBViolations: int = 0


class ExtenderPreemptionArgs(BaseModel):
    """A pod and, by node, whom kube-scheduler would evict for it."""

    Pod: dict[str, Any]
    NodeNameToVictims: dict[str, Victims] | None = None
    NodeNameToMetaVictims: dict[str, MetaVictims] | None = None


class ExtenderBindingArgs(BaseModel):
    """A pod and the node that it shall be bound to."""

    PodName: str = Field(min_length=1, max_length=253)
    PodNamespace: str = Field(min_length=1, max_length=253)
    PodUID: str = Field(max_length=253)
    Node: str = Field(min_length=1, max_length=253)


class PodOnly(BaseModel):
    """A pod to be explained, as in a manifest; ours, kube-scheduler does not send it."""

    Pod: dict[str, Any]


FORMS: tuple[type[BaseModel], ...] = (ExtenderArgs, ExtenderPreemptionArgs, ExtenderBindingArgs, PodOnly)
_REFERENCE = "#/components/schemas/{model}"

Args = TypeVar("Args", bound=BaseModel)


def read(form: type[Args], body: bytes) -> Args:
    """Decode a request's body.

    Raises:
        PayloadError: not JSON, or not of that form; the message quotes nothing of the body.
    """
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"]) or "body"
        raise PayloadError(f"{form.__name__}: {where}: {first['msg']}") from None


def write(answer: Any) -> bytes:
    """Encode an answer.

    Raises:
        PayloadError: it repeats a number of the request that JSON does not have.
    """
    try:
        return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        raise PayloadError("a node holds a number that is not finite") from None


def openapi_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Add the forms of requests to an OpenAPI document whose routes name them by `body_of`."""
    _, definitions = models_json_schema([(form, "validation") for form in FORMS], ref_template=_REFERENCE)
    schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    return schema


def body_of(form: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI part of a route that reads `form` itself."""
    schema = {"$ref": _REFERENCE.format(model=form.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
