"""Attention written out in PyTorch, and how far arithmetic in float32 may move its results."""

import math

import torch

from libattnd import UNBOUNDED



def high_product(factor, x):
    """The upper 32 bits of the product of two 32-bit numbers, without overflowing 63 bits."""
    return (factor * (x >> 16) + ((factor * (x & 0xFFFF)) >> 16)) >> 16


def philox(counter, seed):
    key = [seed & 0xFFFFFFFF, seed >> 32]
    c0, c1, c2, c3 = counter
    for _ in range(10):
        low0 = (0xD2511F53 * (c0 & 0xFFFF) + ((0xD2511F53 * (c0 >> 16) & 0xFFFF) << 16))
        low2 = (0xCD9E8D57 * (c2 & 0xFFFF) + ((0xCD9E8D57 * (c2 >> 16) & 0xFFFF) << 16))
        c0, c1, c2, c3 = (high_product(0xCD9E8D57, c2) ^ c1 ^ key[0], low2 & 0xFFFFFFFF,
                          high_product(0xD2511F53, c0) ^ c3 ^ key[1], low0 & 0xFFFFFFFF)
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return torch.stack((c0, c1, c2, c3))


def keep_mask(case, b, rows, keys):
    """What dropout multiplies (head, i, j) of sequence b with, in float64."""
    i = torch.arange(rows).view(1, -1, 1)
    j = torch.arange(keys).view(1, 1, -1)
    lane = (b * case.heads_q + torch.arange(case.heads_q)).view(-1, 1, 1)
    whole = torch.zeros((case.heads_q, rows, keys), dtype=torch.int64)
    counter = [(i >> 4) * 8 + (i & 7) + whole, (j >> 4) * 4 + ((j & 7) >> 1) + whole, lane + whole,
               whole + case.dropout_offset]
    number = 4 * ((i >> 3) & 1) + 2 * ((j >> 3) & 1) + (j & 1) + whole
    words = philox(counter, case.dropout_seed)
    word = torch.gather(words, 0, (number >> 1).unsqueeze(0))[0]
    value = (word >> (16 * (number & 1))) & 0xFFFF
    return (value >= case.threshold).double() * (65536 / (65536 - case.threshold))


def visible_of(case, rows, keys):
    offset = 0 if case.top_left else keys - rows
    distance = torch.arange(keys).view(1, -1) - torch.arange(rows).view(-1, 1) - offset
    visible = torch.ones((rows, keys), dtype=torch.bool)
    if case.right != UNBOUNDED:
        visible &= distance <= case.right
    if case.left != UNBOUNDED:
        visible &= distance >= -case.left
    return visible, distance.abs()


def added_scores(case, b, inputs, rows, keys, distance):
    """Bias and ALiBi of one sequence: (heads or 1, rows, keys)."""
    added = torch.zeros((1, rows, keys), dtype=inputs["q"].dtype)
    if "bias" in inputs:
        bias = inputs["bias"]
        bias = bias[b if bias.shape[0] > 1 else 0]
        bias = bias[:, :rows if bias.shape[1] > 1 else 1, :keys if bias.shape[2] > 1 else 1]
        added = added + bias
    if "slopes" in inputs:
        slopes = inputs["slopes"]
        slopes = slopes[b if slopes.shape[0] > 1 else 0]
        added = added - slopes.view(-1, 1, 1) * distance
    return added


def sequences(case, tensors):
    """b and the tensors of each sequence: its rows, kv heads repeated for every query head."""
    group = case.heads_q // case.heads_kv
    row, key = 0, 0
    for b in range(case.batch):
        rows, keys = slice(row, row + case.rows[b]), slice(key, key + case.keys[b])
        parts = {}
        for name in ("q", "k", "v", "dout"):
            if name in tensors:
                side = keys if name in ("k", "v") else rows
                part = tensors[name][side] if case.varlen else tensors[name][b]
                parts[name] = part.repeat_interleave(group, 1) if name in ("k", "v") else part
        row, key = rows.stop, keys.stop
        yield b, parts


def attend(case, b, parts, inputs):
    """One sequence's out (rows, heads, dim), lse (heads, rows), p and p dropped (heads, i, j)."""
    q, k, v = parts["q"], parts["k"], parts["v"]
    rows, keys = q.shape[0], k.shape[0]
    visible, distance = visible_of(case, rows, keys)
    scores = torch.einsum("ihd,jhd->hij", q, k) * case.scale
    if case.softcap > 0:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    scores = scores + added_scores(case, b, inputs, rows, keys, distance)
    scores = scores.masked_fill(~visible, -math.inf)
    sink = inputs.get("sinks")
    columns = [scores, torch.full((case.heads_q, rows, 1), -math.inf, dtype=q.dtype)]
    if sink is not None:
        columns[1] = sink.view(-1, 1, 1).expand(-1, rows, 1)
    scores = torch.cat(columns, dim=2)
    top = scores.detach().amax(dim=2, keepdim=True)
    weights = torch.exp(scores - torch.where(torch.isfinite(top), top, 0))
    total = weights.sum(dim=2, keepdim=True)
    empty = total == 0
    total = torch.where(empty, 1, total)
    p = weights[:, :, :keys] / total
    lse = torch.where(empty, -math.inf, torch.log(total) + torch.where(empty, 0, top))[:, :, 0]
    dropped = p * keep_mask(case, b, rows, keys).to(p.dtype) if case.threshold > 0 else p
    return torch.einsum("hij,jhd->ihd", dropped, v), lse, p, dropped


def by_formula(case, inputs):
    """out and lse of the whole request, in the inputs' own layout and dtype."""
    outs, lses = [], []
    for b, parts in sequences(case, inputs):
        out, lse, _, _ = attend(case, b, parts, inputs)
        outs.append(out)
        lses.append(lse)
    if case.varlen:
        return torch.cat(outs), torch.cat(lses, dim=1)
    return torch.stack(outs), torch.stack(lses)


def root_of_squares(equation, a, b):
    return torch.einsum(equation, a * a, b * b).sqrt()


def sum_errors(errors, ones):
    """(heads, i, j) summed over the dimensions that are one, as independent errors."""
    dims = [dim for dim, one in enumerate(ones) if one]
    return (errors * errors).sum(dim=dims, keepdim=True).sqrt() if dims else errors


def noise_of_sequence(case, b, parts, wide, unit, add):
    """Adds to the noise of every result what rounding in one sequence may do.

    A score is as wrong as what cancels in q . k is large, p in proportion; delta, the row sum of
    dout * out, gets out as it was rounded to the dtype, the same error for all of its row. Other
    errors of a sum's terms are independent, so that their squares add up."""
    fine = 2.0**-24
    out, lse, p, dropped = attend(case, b, parts, wide)
    q, k, v, dout = (parts[name] for name in ("q", "k", "v", "dout"))
    rows, keys = q.shape[0], k.shape[0]
    _, distance = visible_of(case, rows, keys)
    known_lse = torch.where(torch.isfinite(lse), lse, 0)
    size = (case.scale * q.norm(dim=2).max() * k.norm(dim=2).max() + known_lse.abs().max() + 1
            + added_scores(case, b, wide, rows, keys, distance).abs().max())
    score = fine * float(size)
    keep = torch.where(p > 0, dropped / torch.where(p > 0, p, 1), 0)
    dp = keep * torch.einsum("ihd,jhd->hij", dout, v)
    dp_error = fine * keep * root_of_squares("ihd,jhd->hij", dout, v)
    delta = (dout * out).sum(dim=2).t().unsqueeze(2)
    delta_error = unit * (dout * out).norm(dim=2).t().unsqueeze(2) + fine * delta.abs()
    alone = p * ((dp - delta).abs() * (score + fine) + dp_error)
    by_row = p * delta_error
    weight = dropped * (score + fine)
    shared = math.sqrt(case.batch if case.ones[0] else 1)  # sequences that one bias or slope is for
    group = math.sqrt(case.heads_q // case.heads_kv)
    add("out", root_of_squares("hij,jhd->ihd", weight, v))
    add("lse", torch.full_like(lse, score))
    add("dq", case.scale * (root_of_squares("hij,jhd->ihd", alone, k)
                            + torch.einsum("hij,jhd->ihd", by_row, k).abs()))
    add("dk", group * case.scale * root_of_squares("hij,ihd->jhd", alone + by_row, q))
    add("dv", group * root_of_squares("hij,ihd->jhd", weight, dout))
    over_keys = by_row.sum(dim=2, keepdim=True) if case.ones[3] else by_row
    add("dbias", shared * (sum_errors(alone, case.ones[1:]) + sum_errors(over_keys, case.ones[1:])))
    add("dslopes", shared * ((alone * distance).flatten(1).norm(dim=1)
                             + (by_row * distance).sum(dim=2).norm(dim=1)))
    if "sinks" in wide:
        sink = torch.exp(wide["sinks"].view(-1, 1) - known_lse)
        error = delta_error[:, :, 0] + delta.abs()[:, :, 0] * (score + fine)
        add("dsinks", math.sqrt(case.batch) * (sink * error).norm(dim=1))


def noise_of(case, tensors, unit):
    """By result, how much rounding to the dtype's unit and in float32 may typically move it."""
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    noise = {}

    def add(name, bound):
        largest = float(bound.max()) if bound.numel() > 0 else 0.0
        noise[name] = max(noise.get(name, 0.0), largest)

    for b, parts in sequences(case, wide):
        if parts["q"].shape[0] > 0 and parts["k"].shape[0] > 0:
            noise_of_sequence(case, b, parts, wide, unit, add)
    return noise
