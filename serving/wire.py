"""Reading and writing JSON at the edge of a server: forms are checked, refusals quote nothing of what was sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from dispatchgym.envs.api import DispatchGymError

_REFERENCE = "#/components/schemas/{model}"

Form = TypeVar("Form", bound=BaseModel)


class RequestError(DispatchGymError, ValueError):
    """A request that cannot be read or answered as it is; the message names the field."""


def read(form: type[Form], body: bytes) -> Form:
    """Decode a request's body.

    Raises:
        RequestError: not JSON, or not of that form; the message quotes nothing of the body.
    """
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        # Of a field that takes several kinds of values: what is wrong with the kind that comes closest.
        of_field = [each for each in found if each["loc"][:1] == found[0]["loc"][:1]]
        told = min(of_field, key=lambda each: (each["type"].endswith("_type"), -len(each["loc"])))
        where = ".".join(str(part)[:60] for part in told["loc"]) or "body"
        raise RequestError(f"{form.__name__}: {where}: {told['msg']}") from None


def write(answer: Any) -> bytes:
    """Encode an answer.

    Raises:
        RequestError: it repeats a number of the request that JSON does not have.
    """
    try:
        return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        raise RequestError("the request holds a number that is not finite") from None


def openapi_of(schema: dict[str, Any], forms: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """Add the forms of requests to an OpenAPI document whose routes name them by `body_of`."""
    _, definitions = models_json_schema([(form, "validation") for form in forms], ref_template=_REFERENCE)
    schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    return schema


def body_of(form: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI part of a route that reads `form` itself."""
    schema = {"$ref": _REFERENCE.format(model=form.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
