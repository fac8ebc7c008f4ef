"""What an ONNX file holds, read from its bytes: enough to refuse one that is not a policy of ours.

onnxruntime runs whatever a file says, endless loops and reads of other files included. So before it sees a file
from elsewhere, the operators must be among those that a policy needs, and external data must lie in the bundle's
own weights. Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator

from dispatchgym.envs.api import DispatchGymError

OPERATORS = frozenset(
    (
        "Abs", "Add", "And", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Erf", "Exp",
        "Expand", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "Greater", "GreaterOrEqual",
        "Identity", "LayerNormalization", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not",
        "Or", "Pad", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Round", "Shape",
        "Sigmoid", "Sign", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
        "Where",
    )
)  # fmt: skip
"""Plain arithmetic: no control flow, no functions, nothing of another domain."""

_GRAPH, _FUNCTIONS = 7, 25  # of ModelProto
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15  # of GraphProto
_OPERATOR, _ATTRIBUTE, _DOMAIN = 4, 5, 7  # of NodeProto
_TENSOR, _OF_GRAPH, _OF_GRAPHS, _SPARSE_TENSOR = 5, 6, 11, 22  # of AttributeProto
_EXTERNAL_DATA = 13  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto


class OnnxFileError(DispatchGymError, ValueError):
    """An ONNX file that is damaged or does more than a policy does."""


def check(data: bytes, weights: str) -> None:
    """Raise OnnxFileError unless `data` is a model of plain arithmetic whose external data lies in file `weights`."""
    graphs = 0
    for number, part in _fields(data):
        if number == _FUNCTIONS:
            raise OnnxFileError("it defines functions of its own")
        if number == _GRAPH:
            graphs += 1
            _check_graph(_message(part), weights)
    if graphs != 1:
        raise OnnxFileError(f"it holds {graphs} graphs, not one")


def _check_graph(graph: bytes, weights: str) -> None:
    for number, part in _fields(graph):
        if number == _NODE:
            _check_node(_message(part), weights)
        elif number == _INITIALIZER:
            _check_tensor(_message(part), weights)
        elif number == _SPARSE:
            raise OnnxFileError("it holds a sparse tensor")


def _check_node(node: bytes, weights: str) -> None:
    for number, part in _fields(node):
        if number == _OPERATOR and _text(part) not in OPERATORS:
            raise OnnxFileError(f"it has operator {_text(part)!r:.40}, which no policy needs")
        if number == _DOMAIN and _text(part) not in ("", "ai.onnx"):
            raise OnnxFileError(f"it has an operator of domain {_text(part)!r:.40}")
        if number == _ATTRIBUTE:
            for kind, value in _fields(_message(part)):
                if kind in (_OF_GRAPH, _OF_GRAPHS, _SPARSE_TENSOR):
                    raise OnnxFileError("it has an attribute that is a graph or a sparse tensor")
                if kind == _TENSOR:
                    _check_tensor(_message(value), weights)


def _check_tensor(tensor: bytes, weights: str) -> None:
    for number, part in _fields(tensor):
        if number == _EXTERNAL_DATA:
            entry = {k: _text(v) for k, v in _fields(_message(part))}
            if entry.get(_KEY) == "location" and entry.get(_VALUE) != weights:
                raise OnnxFileError(f"it wants to read file {entry.get(_VALUE)!r:.80}; only {weights} is allowed")


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value) of a protobuf message: bytes of texts and messages, else a number."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise OnnxFileError("it is not an ONNX model")
        if at + size > len(message):
            raise OnnxFileError("it is cut short or is not an ONNX model")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise OnnxFileError("it is cut short or is not an ONNX model")


def _message(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise OnnxFileError("it is not an ONNX model")
    return value


def _text(value: bytes | int) -> str:
    return _message(value).decode("utf-8", "replace")
