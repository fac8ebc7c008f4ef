"""The policy network as one kernel, for schedulers that are asked hundreds of times a second.

For networks whose candidates meet by attention alone. A few dozen nodes of width 32 are too little for a library of
operators to be quick: most of its time goes to calling them. Matrices lie with the nodes of a decision side by side, so
that every loop runs over them, and all are of one size.
"""

# mypy: disable-error-code=no-any-return

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dispatchgym.agents.numpy_network import Stacked
from dispatchgym.envs.compiled import fused, inlined

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

LANES = 16
"""Nodes are counted in multiples of so many."""

_ZERO, _HALF, _ONE, _TWO = (np.float32(x) for x in (0.0, 0.5, 1.0, 2.0))
_EPS = np.float32(1e-5)  # of torch's layer norm

# exp(x) = 2^i 2^f, i whole and |f| <= 1/2: Taylor's series of 2^f, error below 2e-8.
_LOG2_E, _LEAST = np.float32(1.4426950408889634), np.float32(-126.0)
_E1, _E2, _E3, _E4, _E5, _E6 = (np.float32(math.log(2.0) ** k / math.factorial(k)) for k in range(1, 7))

# log(1 + f), sqrt(1/2) <= 1 + f < sqrt(2): Cephes, logf.
_L = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (np.float32(x) for x in _L)
_LN_2 = np.float32(math.log(2.0))
_ROOT_HALF, _BIAS, _MANTISSA = 0x3F3504F3, 127, 23  # of a float32's bits

# erfc as in numpy_network
_P = np.float32(0.3275911 / math.sqrt(2.0))
_A1, _A2, _A3, _A4, _A5 = (
    np.float32(a / 2) for a in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
)


def scratch(network: Stacked, most: int) -> F32:
    """Room for graphs of up to `most` candidates."""
    width, nodes = len(network.score), _padded(most + 1)
    rows = max(len(network.node_mean), 3 * width) + 3 * width + 2 * nodes + 2
    return np.zeros((rows, nodes), np.float32)


def _padded(nodes: int) -> int:
    return -(-nodes // LANES) * LANES


@fused
def score(network: Stacked, room: F32, x: F32, context: F32, count: int, logits: F64) -> None:
    """Write the logits of the first `count` rows of x, whose context is that one; all nodes are candidates.

    Args:
        room: of `scratch`. x: (rows, features). context: (features of it,). logits: (rows,).
    """
    w = network
    width, features = w.score.shape[0], x.shape[1]
    layers, heads = w.qkv.shape[0], w.heads
    size = width // heads
    n = (count + LANES) // LANES * LANES
    most = room.shape[1]
    tall = max(features, 3 * width)
    wide, rows = room[:tall], room[tall : tall + width]
    normed, other = room[tall + width : tall + 2 * width], room[tall + 2 * width : tall + 3 * width]
    at = tall + 3 * width
    seen, keys = room[at : at + most], room[at + most : at + 2 * most]
    low, high = room[at + 2 * most], room[at + 2 * most + 1]

    for c in range(features):
        for t in range(count):
            wide[c, t] = x[t, c]
        mean, inverse = w.node_mean[c], w.node_inverse[c]
        for t in range(n):
            wide[c, t] = _compressed((wide[c, t] - mean) * inverse)
    _linear(normed, w.node_in, w.node_in_bias, wide, n)
    _gelu(normed, width, n)
    _linear(rows, w.node_out, w.node_out_bias, normed, n)
    # the context, behind the candidates
    for c in range(context.shape[0]):
        low[c] = _compressed((context[c] - w.context_mean[c]) * w.context_inverse[c])
    for j in range(width):
        y = w.context_in_bias[j]
        for c in range(context.shape[0]):
            y += w.context_in[j, c] * low[c]
        other[j, 0] = y
    _gelu(other, width, 1)
    for j in range(width):
        y = w.context_out_bias[j]
        for k in range(width):
            y += w.context_out[j, k] * other[k, 0]
        rows[j, count] = y

    for i in range(layers):
        _norm(normed, rows, low, high, width, n)
        _linear(wide, w.qkv[i], w.qkv_bias[i], normed, n)
        for h in range(heads):
            query, key = wide[h * size : (h + 1) * size], wide[width + h * size : width + (h + 1) * size]
            value = wide[2 * width + h * size : 2 * width + (h + 1) * size]
            for j in range(count + 1):
                for d in range(size):
                    keys[j, d] = key[d, j]
                for t in range(n):
                    seen[j, t] = _ZERO
            _add_product(seen, keys, query, count + 1, size, n)
            _softmax(seen, low, high, count + 1, n)
            mine = normed[h * size : (h + 1) * size]
            for d in range(size):
                for t in range(n):
                    mine[d, t] = _ZERO
            _add_product(mine, value, seen, size, count + 1, n)
            for d in range(size):
                for t in range(n):
                    mine[d, t] *= high[t]
        _linear(other, w.out[i], w.out_bias[i], normed, n)
        _add(rows, other, width, n)
        _norm(normed, rows, low, high, width, n)
        _linear(wide, w.mix_in[i], w.mix_in_bias[i], normed, n)
        _gelu(wide, 2 * width, n)
        _linear(other, w.mix_out[i], w.mix_out_bias[i], wide, n)
        _add(rows, other, width, n)

    _norm(normed, rows, low, high, width, n)
    for j in range(width):
        y = w.score_bias[j]
        for k in range(width):
            y += w.score_context[j, k] * normed[k, count]
        for t in range(n):
            other[j, t] = y
    _add_product(other, w.score_node, normed, width, width, n)
    _gelu(other, width, n)
    for t in range(n):
        low[t] = _ZERO
    for k in range(width):
        for t in range(n):
            low[t] += w.score[k] * other[k, t]
    for t in range(count):
        y = low[t]
        for c in range(features):
            if w.rule[c] != _ZERO:
                y += w.rule[c] * x[t, c]
        logits[t] = y


@fused
def _linear(out: F32, weight: F32, bias: F32, x: F32, n: int) -> None:
    for j in range(weight.shape[0]):
        for t in range(n):
            out[j, t] = bias[j]
    _add_product(out, weight, x, weight.shape[0], weight.shape[1], n)


@fused
def _add_product(out: F32, weight: F32, x: F32, outputs: int, inputs: int, n: int) -> None:
    """out (outputs, n) += weight (outputs, inputs) @ x (inputs, n), two outputs and four inputs at a time."""
    pairs, fours = outputs - outputs % 2, inputs - inputs % 4
    for j in range(0, pairs, 2):
        y, z, v, w = out[j], out[j + 1], weight[j], weight[j + 1]
        for k in range(0, fours, 4):
            v0, v1, v2, v3 = v[k], v[k + 1], v[k + 2], v[k + 3]
            w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
            x0, x1, x2, x3 = x[k], x[k + 1], x[k + 2], x[k + 3]
            for t in range(n):
                a, b, c, d = x0[t], x1[t], x2[t], x3[t]
                y[t] = y[t] + v0 * a + v1 * b + v2 * c + v3 * d
                z[t] = z[t] + w0 * a + w1 * b + w2 * c + w3 * d
        for k in range(fours, inputs):
            _add_one(y, v[k], x[k], n)
            _add_one(z, w[k], x[k], n)
    for j in range(pairs, outputs):
        for k in range(inputs):
            _add_one(out[j], weight[j, k], x[k], n)


@inlined
def _add_one(y: F32, weight: float, x: F32, n: int) -> None:
    for t in range(n):
        y[t] += weight * x[t]


@fused
def _add(rows: F32, other: F32, width: int, n: int) -> None:
    for k in range(width):
        for t in range(n):
            rows[k, t] += other[k, t]


@fused
def _norm(out: F32, x: F32, mean: F32, spread: F32, width: int, n: int) -> None:
    """Columns of mean 0 and variance 1."""
    share = _ONE / np.float32(width)
    for t in range(n):
        mean[t] = _ZERO
        spread[t] = _EPS
    for k in range(width):
        for t in range(n):
            mean[t] += share * x[k, t]
    for k in range(width):
        for t in range(n):
            y = x[k, t] - mean[t]
            spread[t] += share * (y * y)
    for t in range(n):
        spread[t] = _ONE / np.sqrt(spread[t])
    for k in range(width):
        for t in range(n):
            out[k, t] = (x[k, t] - mean[t]) * spread[t]


@fused
def _softmax(x: F32, most: F32, total: F32, count: int, n: int) -> None:
    """exp of the first `count` rows, less each column's largest; one over the columns' sums into `total`."""
    for t in range(n):
        most[t] = x[0, t]
        total[t] = _ZERO
    for j in range(1, count):
        for t in range(n):
            most[t] = max(most[t], x[j, t])
    for j in range(count):
        for t in range(n):
            y = _exp(x[j, t] - most[t])
            x[j, t] = y
            total[t] += y
    for t in range(n):
        total[t] = _ONE / total[t]


@fused
def _gelu(x: F32, width: int, n: int) -> None:
    for k in range(width):
        for t in range(n):
            v = x[k, t]
            z = abs(v)
            u = _ONE / (_ONE + _P * z)
            y = ((((_A1 * u + _A2) * u + _A3) * u + _A4) * u + _A5) * u
            x[k, t] = max(v, _ZERO) - z * y * _exp(-_HALF * v * v)


@inlined
def _exp(x: float) -> float:
    """Of a number that is not positive; what is none stays none."""
    y = x * _LOG2_E
    if y < _LEAST:
        y = _LEAST
    whole = np.floor(y + _HALF)
    f = y - whole
    power = np.int32((np.int32(whole) + _BIAS) << _MANTISSA).view(np.float32)
    return power * (_ONE + f * (_E1 + f * (_E2 + f * (_E3 + f * (_E4 + f * (_E5 + f * _E6))))))


@inlined
def _compressed(z: float) -> float:
    """log(1 + |z|) with the sign of z."""
    a = abs(z)
    u = np.float32(_ONE + a)
    bits = u.view(np.int32)
    power = np.int32((bits - _ROOT_HALF) >> _MANTISSA)
    f = np.int32(bits - (power << _MANTISSA)).view(np.float32) - _ONE
    p = _L0 * f + _L1
    p = p * f + _L2
    p = p * f + _L3
    p = p * f + _L4
    p = p * f + _L5
    p = p * f + _L6
    p = p * f + _L7
    p = p * f + _L8
    y = f * f * f * p - _HALF * f * f + f + np.float32(power) * _LN_2
    y += (a - (u - _ONE)) / u  # what is lost of a small one; nan stays nan
    return math.copysign(y, z)
