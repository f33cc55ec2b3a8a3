"""The field's small networks on CPUs (numba): value, loss and gradient in one pass over a few hundred samples.

In torch each layer writes its [N, 64] result to memory and reads it again, which takes longer than the arithmetic. Here
a chunk goes through the network and back while it stays in a core's cache. The loss of a distance is an absolute error,
so its gradient is a sign over a count that is known before: nothing has to wait for the whole batch.

Arrays that matrices are taken from are padded to whole tiles (`lanes_cpu.padded`) with zeros, which change nothing. All
gradients are added to what the arrays hold; every caller's part of the batch has arrays of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .lanes_cpu import matmul

CHUNK = 256
"""Samples that pass through a network together: 64 wide, their values and gradients fit a core's cache."""

OPTIONS: Any = {
    "nogil": True, "cache": True, "error_model": "numpy",
    # sums in any order, but what is not a number stays so
    "fastmath": {"reassoc", "contract", "nsz", "arcp", "afn"},
}  # fmt: skip


@njit(inline="always")
def _fill(rows, row):
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            rows[i, j] = row[j]


@njit(inline="always")
def _rectify(rows):
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            rows[i, j] = max(rows[i, j], np.float32(0))


@njit(inline="always")
def _mask(grad, hidden, grad_bias):
    """The way back through a rectifier, and to the bias before it."""
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            g = grad[i, j] if hidden[i, j] > 0 else np.float32(0)
            grad[i, j] = g
            grad_bias[j] += g


@njit(**OPTIONS)
def distances(first, last, edges, encoded, target, slope, weights, grad_encoded, grads, errors):
    """|distance - target| of rays edges[first] .. edges[last], and the gradient of slope times it.

    encoded [R * S, I], target [R, S] in truncations, slope [S]; weights: [I, H], [H, I padded], [H], [H], [1] of
    relu(x A + b) w + c; grad_encoded [R * S, I] is overwritten; of each part [P, ...] grads: of [I, H], [H], [H], [1];
    errors [P, S] float64.
    """
    for part in range(first, last):
        grad_a, grad_b, grad_w, grad_c = grads
        _distances(
            edges[part], edges[part + 1], encoded, target, slope, weights, grad_encoded,
            grad_a[part], grad_b[part], grad_w[part], grad_c[part], errors[part],
        )  # fmt: skip


@njit(**OPTIONS)
def _distances(
    first, last, encoded, target, slope, weights, grad_encoded, grad_a, grad_b, grad_w, grad_c, errors
):
    a, a_back, b, w, c = weights
    samples, wide = target.shape[1], a.shape[1]
    rays = max(1, CHUNK // samples)
    hidden = np.empty((rays * samples, wide), np.float32)
    back = np.empty((rays * samples, a_back.shape[1]), np.float32)
    for ray in range(first, last, rays):
        count = min(rays, last - ray)
        n, start = count * samples, ray * samples
        x, h, e = encoded[start : start + n], hidden[:n], back[:n]
        _fill(h, b)
        matmul(x, a, h)
        for r in range(count):
            for s in range(samples):
                row = h[r * samples + s]
                value = c[0]
                for j in range(wide):
                    v = max(row[j], np.float32(0))
                    row[j] = v
                    value += v * w[j]
                error = value - target[ray + r, s]
                errors[s] += abs(error)
                g = slope[s] if error > 0 else -slope[s] if error < 0 else np.float32(0)
                grad_c[0] += g
                for j in range(wide):
                    v = row[j]
                    grad_w[j] += g * v
                    u = g * w[j] if v > 0 else np.float32(0)
                    grad_b[j] += u
                    row[j] = u
        matmul(x.T, h, grad_a)
        e[:] = 0
        matmul(h, a_back, e)
        grad_encoded[start : start + n] = e[:, : x.shape[1]]


@njit(**OPTIONS)
def colours(first, last, edges, encoded, picks, viewing, target, factor, weights, grad_encoded, grads, errors):
    """The squared error of a colour head of two hidden layers, and the gradient of factor times it, for rays
    edges[first] .. edges[last].

    encoded [N, I], its rows picks [R], viewing [R, V], target [R, C]; weights: [I + V, H], [H, I + V padded], [H];
    [H, H], its transpose, [H]; [C, H], [C] of sigmoid; grad_encoded [N, I] is added to; of each part [P, ...] grads: of
    [I + V, H], [H], [H, H], [H], [C, H], [C]; errors [P] float64.
    """
    for part in range(first, last):
        grad_a, grad_b, grad_d, grad_f, grad_w, grad_c = grads
        errors[part] += _colours(
            edges[part], edges[part + 1], encoded, picks, viewing, target, factor, weights, grad_encoded,
            grad_a[part], grad_b[part], grad_d[part], grad_f[part], grad_w[part], grad_c[part],
        )  # fmt: skip


@njit(**OPTIONS)
def _colours(
    first, last, encoded, picks, viewing, target, factor, weights, grad_encoded,
    grad_a, grad_b, grad_d, grad_f, grad_w, grad_c,
):  # fmt: skip
    a, a_back, b, d, d_back, f, w, c = weights
    errors = 0.0
    inner, width, wide, channels = encoded.shape[1], a.shape[0], a.shape[1], w.shape[0]
    rows = 64
    inputs = np.empty((rows, width), np.float32)
    one, two = np.empty((rows, wide), np.float32), np.empty((rows, wide), np.float32)
    three, back = np.empty((rows, wide), np.float32), np.empty((rows, a_back.shape[1]), np.float32)
    for start in range(first, last, rows):
        n = min(rows, last - start)
        x, h, k, g, e = inputs[:n], one[:n], two[:n], three[:n], back[:n]
        for i in range(n):
            for j in range(inner):
                x[i, j] = encoded[picks[start + i], j]
            for j in range(width - inner):
                x[i, inner + j] = viewing[start + i, j]
        _fill(h, b)
        matmul(x, a, h)
        _rectify(h)
        _fill(k, f)
        matmul(h, d, k)
        _rectify(k)
        g[:] = 0
        for i in range(n):
            for o in range(channels):
                value = c[o]
                for j in range(wide):
                    value += k[i, j] * w[o, j]
                value = np.float32(1) / (np.float32(1) + np.exp(-value))
                error = value - target[start + i, o]
                errors += error * error
                upstream = np.float32(2) * factor * error * value * (np.float32(1) - value)
                grad_c[o] += upstream
                for j in range(wide):
                    grad_w[o, j] += upstream * k[i, j]
                    g[i, j] += upstream * w[o, j]
        _mask(g, k, grad_f)
        matmul(h.T, g, grad_d)
        k[:] = 0
        matmul(g, d_back, k)
        _mask(k, h, grad_b)
        matmul(x.T, k, grad_a)
        e[:] = 0
        matmul(k, a_back, e)
        for i in range(n):
            for j in range(inner):
                grad_encoded[picks[start + i], j] += e[i, j]
    return errors


@njit(**OPTIONS)
def unit_means(first, last, points, share, encoded, weights, gram, hidden, turned, length, means):
    """Groups first..last of so many `points`: weighted means of what a unit head composites, [relu(x A + b), 1] / |its
    output|.

    encoded [G * points, I]; share [G * points]: weights; weights: [I, H], [H, I padded], [H]; gram: [H, H], [H], [1],
    the blocks of the last layer's Gram matrix. Kept for the way back: hidden [G * points, H], turned = hidden gram,
    length [G * points] = 1 / |output|. means [G, H + 1].
    """
    a, _, b = weights
    square, cross, constant = gram
    wide = a.shape[1]
    end = last * points
    for start in range(first * points, end, CHUNK):
        stop = min(end, start + CHUNK)
        h, t = hidden[start:stop], turned[start:stop]
        _fill(h, b)
        matmul(encoded[start:stop], a, h)
        _rectify(h)
        _fill(t, cross)
        matmul(h, square, t)
        for i in range(stop - start):
            total = constant[0]
            for j in range(wide):
                total += h[i, j] * (t[i, j] + cross[j])
            length[start + i] = np.float32(1) / np.sqrt(max(total, np.float32(1e-12)))
    for group in range(first, last):
        means[group] = 0
        for i in range(group * points, (group + 1) * points):
            factor = share[i] * length[i]
            for j in range(wide):
                means[group, j] += factor * hidden[i, j]
            means[group, wide] += factor


@njit(**OPTIONS)
def unit_means_back(
    first, last, edges, points, share, encoded, weights, hidden, turned, length, grad_means, grad_encoded, grads
):
    """The way back of `unit_means` for groups edges[first] .. edges[last]; grad_encoded is overwritten; of each part
    [P, ...] grads: of [I, H], [H], and of the Gram matrix's blocks [H, H], [H], [1]."""
    for part in range(first, last):
        grad_a, grad_b, grad_square, grad_cross, grad_constant = grads
        _unit_means_back(
            edges[part], edges[part + 1], points, share, encoded, weights, hidden, turned, length, grad_means,
            grad_encoded, grad_a[part], grad_b[part], grad_square[part], grad_cross[part], grad_constant[part],
        )  # fmt: skip


@njit(**OPTIONS)
def _unit_means_back(
    first, last, points, share, encoded, weights, hidden, turned, length, grad_means, grad_encoded,
    grad_a, grad_b, grad_square, grad_cross, grad_constant,
):  # fmt: skip
    a, a_back, _ = weights
    wide = a.shape[1]
    scaled = np.empty((CHUNK, wide), np.float32)
    grad = np.empty((CHUNK, wide), np.float32)
    back = np.empty((CHUNK, a_back.shape[1]), np.float32)
    end = last * points
    for start in range(first * points, end, CHUNK):
        n = min(end - start, CHUNK)
        x, h = encoded[start : start + n], hidden[start : start + n]
        for i in range(n):
            at = start + i
            upstream, r, t = grad_means[at // points], length[at], turned[at]
            along = upstream[wide]
            for j in range(wide):
                along += upstream[j] * h[i, j]
            # below this length the forward pass does not divide by it
            bend = np.float32(-0.5) * share[at] * along * r * r * r if r < np.float32(9.99e5) else np.float32(0)
            factor, twice = share[at] * r, np.float32(2) * bend
            grad_constant[0] += bend
            for j in range(wide):
                v = h[i, j]
                scaled[i, j] = bend * v
                grad_cross[j] += bend * v
                g = factor * upstream[j] + twice * t[j] if v > 0 else np.float32(0)
                grad[i, j] = g
                grad_b[j] += g
        matmul(h.T, scaled[:n], grad_square)
        matmul(x.T, grad[:n], grad_a)
        back[:n] = 0
        matmul(grad[:n], a_back, back[:n])
        grad_encoded[start : start + n] = back[:n, : x.shape[1]]


@njit(**OPTIONS)
def pairs(first, last, edges, encoded, share, weights, gram, grad_encoded, grads, losses):
    """The loss sqrt(1 - cos + .001) of the cosines between a unit head's outputs at pairs edges[first] .. edges[last],
    weighted by share [N], and its gradient.

    encoded [2 N, I]: all first ends, then all second ones; weights, gram as in `unit_means`; grad_encoded [2 N, I] is
    overwritten; grads as in `unit_means_back`; losses [P] float64.
    """
    for part in range(first, last):
        grad_a, grad_b, grad_square, grad_cross, grad_constant = grads
        losses[part] += _pairs(
            edges[part], edges[part + 1], encoded, share, weights, gram, grad_encoded,
            grad_a[part], grad_b[part], grad_square[part], grad_cross[part], grad_constant[part],
        )  # fmt: skip


@njit(**OPTIONS)
def _pairs(
    first, last, encoded, share, weights, gram, grad_encoded, grad_a, grad_b, grad_square, grad_cross, grad_constant
):
    a, a_back, b = weights
    square, cross, constant = gram
    wide, total, rows = a.shape[1], 0.0, CHUNK // 2
    hidden, turned = np.empty((CHUNK, wide), np.float32), np.empty((CHUNK, wide), np.float32)
    scaled, back = np.empty((CHUNK, wide), np.float32), np.empty((CHUNK, a_back.shape[1]), np.float32)
    half, tiny = np.float32(0.5), np.float32(1e-12)
    for start in range(first, last, rows):
        n = min(rows, last - start)
        other = len(share) + start
        h, t, scale, e = hidden[: 2 * n], turned[: 2 * n], scaled[: 2 * n], back[: 2 * n]
        _fill(h, b)
        matmul(encoded[start : start + n], a, h[:n])
        matmul(encoded[other : other + n], a, h[n:])
        _rectify(h)
        _fill(t, cross)
        matmul(h, square, t)
        for i in range(n):
            p, q, tp, tq = h[i], h[n + i], t[i], t[n + i]
            pp, qq, pq = constant[0], constant[0], constant[0]
            for j in range(wide):
                pp += p[j] * (tp[j] + cross[j])
                qq += q[j] * (tq[j] + cross[j])
                pq += q[j] * tp[j] + p[j] * cross[j]
            rp, rq = np.float32(1) / np.sqrt(max(pp, tiny)), np.float32(1) / np.sqrt(max(qq, tiny))
            cosine = pq * rp * rq
            loss = np.sqrt(np.float32(1) - cosine + np.float32(1e-3))
            total += share[start + i] * loss
            slope = -half * share[start + i] / loss
            both, own_p, own_q = slope * rp * rq, -slope * cosine * rp * rp, -slope * cosine * rq * rq
            grad_constant[0] += both + half * (own_p + own_q)
            for j in range(wide):
                u, v, tu, tv = p[j], q[j], tp[j], tq[j]
                scale[i, j] = half * (both * v + own_p * u)
                scale[n + i, j] = half * (both * u + own_q * v)
                grad_cross[j] += half * ((both + own_p) * u + (both + own_q) * v)
                tp[j], tq[j] = both * tv + own_p * tu, both * tu + own_q * tv
        matmul(h.T, scale, grad_square)
        _mask(t, h, grad_b)
        e[:] = 0
        matmul(t, a_back, e)
        matmul(encoded[start : start + n].T, t[:n], grad_a)
        matmul(encoded[other : other + n].T, t[n:], grad_a)
        grad_encoded[start : start + n] = e[:n, : encoded.shape[1]]
        grad_encoded[other : other + n] = e[n:, : encoded.shape[1]]
    return total
