#!/usr/bin/env python3
"""Compares attnd with PyTorch, through a running daemon and libattnd.

Every case is drawn from the seed and its own number. What scaled_dot_product_attention can do (no
mask, its causal mask, any bias, ALiBi or window as its attn_mask, grouped heads) is compared with it
and its autograd. For the rest (softcap, sinks, dropout, varlen, the gradient of lse) the formula is
written out in PyTorch, in float64 with autograd; wherever both are possible they must agree.

The bar is that of the other tests: max |ours - exact| <= factor * max |low - exact| + 2 * max
|((exact + 0.3) - 0.3) - exact|, factor 2 for out and lse and 3 for gradients, low being PyTorch in
the request's dtype. A few numbers can be right by luck: what rounding typically does to them counts
as low, too.

    tests/peers/compare_torch.py --attnd build/release/bin/attnd \\
        --library build/release/lib/libattnd.so [--count N] [--seed S] [--case ID] [--without WORDS]

Exit status 77: there is no PyTorch here.
"""

import argparse
import ctypes
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import warnings

try:
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch
    import torch.nn.functional as functional
except ImportError:
    print("peers: skipped, this machine has no PyTorch")
    sys.exit(77)

sys.dont_write_bytecode = True  # the tree stays clean

from formula import added_scores, by_formula, noise_of, visible_of
from libattnd import BOTTOM_RIGHT, TOP_LEFT, UNBOUNDED, Client, Failed, describe, make_options

FEATURES = ("causal", "window", "gqa", "dv", "bias", "softcap", "alibi", "sinks", "dropout",
            "varlen", "dlse", "shared")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GRADIENTS = ("dq", "dk", "dv", "dbias", "dslopes", "dsinks")


# -- cases -------------------------------------------------------------------------------------


class Case:
    """What is computed: extents, options and the features that are on."""

    def __init__(self, seed, number, without):
        rng = random.Random(f"{seed}/{number}")
        chosen = {name for name in FEATURES if rng.random() < 0.3} - without
        self.on = chosen
        self.number = number
        self.dtype = DTYPES[number % len(DTYPES)]
        self.batch = rng.randint(1, 3)
        self.heads_kv = rng.randint(1, 3)
        self.heads_q = self.heads_kv * (rng.choice((2, 4)) if "gqa" in chosen else 1)
        self.dim = rng.choice((8, 32, 40, 64, 96, 128))
        self.dim_v = rng.choice((16, 48, 64)) if "dv" in chosen else self.dim
        self.rows = [rng.randint(1, 150)] * self.batch
        self.keys = [rng.choice((self.rows[0], rng.randint(1, 200)))] * self.batch
        if "varlen" in chosen:
            self.rows = [rng.randint(0, 120) for _ in self.rows]
            self.keys = [rng.randint(0, 120) for _ in self.keys]
        self.top_left = rng.random() < 0.5
        self.left = rng.choice((UNBOUNDED, rng.randint(0, 60))) if "window" in chosen else UNBOUNDED
        self.right = rng.choice((UNBOUNDED, rng.randint(0, 60)))
        self.right = self.right if "window" in chosen else UNBOUNDED
        self.right = 0 if "causal" in chosen else self.right
        self.softcap = rng.choice((2.0, 15.0, 30.0)) if "softcap" in chosen else 0.0
        self.threshold = rng.randint(1, 40000) if "dropout" in chosen else 0
        self.dropout_seed = rng.getrandbits(64)
        self.dropout_offset = rng.getrandbits(32)
        self.scale = struct_float(1 / math.sqrt(self.dim))
        self.ones = [rng.random() < 0.5 for _ in range(4)]  # extents of bias that are 1
        self.bias_fp32 = rng.random() < 0.5
        self.tensor_seed = rng.getrandbits(32)

    def __str__(self):
        return (f"case {self.number}: {self.dtype} batch={self.batch} heads={self.heads_q}/"
                f"{self.heads_kv} dims={self.dim}/{self.dim_v} rows={self.rows} keys={self.keys} "
                f"window={self.left}/{self.right} {'top' if self.top_left else 'bottom'} "
                f"{' '.join(sorted(self.on))}")

    @property
    def varlen(self):
        return "varlen" in self.on

    def sdpa_can(self):
        return not self.on & {"softcap", "sinks", "dropout", "varlen", "dlse"}


def struct_float(number):
    return ctypes.c_float(number).value


def make_inputs(case):
    """The request's tensors in its own layout, outputs full of NaN."""
    generator = torch.Generator().manual_seed(case.tensor_seed)

    def normal(shape, dtype):
        return torch.randn(shape, generator=generator).to(dtype)

    def rows_of(lengths, heads, dim):
        if case.varlen:
            return (sum(lengths), heads, dim)
        return (case.batch, lengths[0], heads, dim)

    def per_row(heads):
        return (heads, sum(case.rows)) if case.varlen else (case.batch, heads, case.rows[0])

    tensors = {
        "q": normal(rows_of(case.rows, case.heads_q, case.dim), case.dtype),
        "k": normal(rows_of(case.keys, case.heads_kv, case.dim), case.dtype),
        "v": normal(rows_of(case.keys, case.heads_kv, case.dim_v), case.dtype),
        "dout": normal(rows_of(case.rows, case.heads_q, case.dim_v), case.dtype),
    }
    if "dlse" in case.on:
        tensors["dlse"] = normal(per_row(case.heads_q), torch.float32)
    if "bias" in case.on:
        full = (case.batch, case.heads_q, max(case.rows), max(case.keys))
        shape = [1 if one else extent for one, extent in zip(case.ones, full)]
        tensors["bias"] = normal(shape, torch.float32 if case.bias_fp32 else case.dtype)
    if "alibi" in case.on:
        tensors["slopes"] = 0.5 * normal((1 if case.ones[0] else case.batch, case.heads_q),
                                         torch.float32).abs()
    if "sinks" in case.on:
        tensors["sinks"] = normal((case.heads_q,), torch.float32)
    tensors["out"] = torch.full_like(tensors["dout"], math.nan)
    tensors["lse"] = torch.full(per_row(case.heads_q), math.nan)
    for name in ("q", "k", "v", "bias", "slopes", "sinks"):
        if name in tensors:
            tensors["d" + name] = torch.full_like(tensors[name], math.nan)
    return tensors


# -- PyTorch -----------------------------------------------------------------------------------


def by_sdpa(case, inputs):
    """scaled_dot_product_attention; lse is None. Rows that see no key are made zero."""
    rows, keys = case.rows[0], case.keys[0]
    q, k, v = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
    group = case.heads_q // case.heads_kv
    k = k.repeat_interleave(group, dim=1)
    v = v.repeat_interleave(group, dim=1)
    visible, distance = visible_of(case, rows, keys)
    plain = not case.on & {"bias", "alibi"}
    if plain and bool(visible.all()):
        out = functional.scaled_dot_product_attention(q, k, v, scale=case.scale)
    elif plain and case.top_left and case.left == UNBOUNDED and case.right == 0:
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=case.scale)
    else:
        added = torch.stack([added_scores(case, b, inputs, rows, keys, distance).expand(
            case.heads_q, rows, keys) for b in range(case.batch)])
        seen = visible | ~visible.any(dim=1, keepdim=True)  # no row of -inf, which gives NaN
        added = added.masked_fill(~seen, -math.inf)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=added.to(q.dtype), scale=case.scale)
        out = out * visible.any(dim=1, keepdim=True)
    return out.transpose(1, 2), None


def differentiate(case, tensors, compute, dtype):
    """out, lse and all gradients of sum(out * dout) + sum(lse * dlse), computed in dtype."""
    names = [name for name in ("q", "k", "v", "bias", "slopes", "sinks") if name in tensors]
    inputs = {name: tensors[name].detach().to(dtype).requires_grad_() for name in names}
    out, lse = compute(case, inputs)
    loss = (out * tensors["dout"].to(dtype)).sum()
    if "dlse" in tensors:
        loss = loss + (torch.where(torch.isfinite(lse), lse, 0) * tensors["dlse"].to(dtype)).sum()
    gradients = torch.autograd.grad(loss, [inputs[name] for name in names], allow_unused=True)
    results = {"out": out.detach(), "lse": None if lse is None else lse.detach()}
    for name, gradient in zip(names, gradients):
        zero = torch.zeros_like(inputs[name])
        results["d" + name] = zero if gradient is None else gradient.detach()
    return results


# -- ours --------------------------------------------------------------------------------------


def terms_of(case, tensors):
    """The tensors of the options."""
    terms = {name: tensors[name] for name in ("bias", "slopes", "sinks") if name in tensors}
    if case.varlen:
        for side, lengths in (("q", case.rows), ("k", case.keys)):
            ends = [sum(lengths[:b]) for b in range(case.batch + 1)]
            terms["cu_seqlens_" + side] = torch.tensor(ends, dtype=torch.int32)
    return terms


def options_of(case, terms):
    """The options of a case with the tensors of its terms, which must stay alive."""
    options = make_options(
        scale=case.scale, softcap=case.softcap, window_left=case.left, window_right=case.right,
        alignment=TOP_LEFT if case.top_left else BOTTOM_RIGHT,
        dropout_p=case.threshold / 65536, dropout_seed=case.dropout_seed,
        dropout_offset=case.dropout_offset, **{name: describe(t) for name, t in terms.items()})
    if case.varlen:
        options.max_seqlen_q = max(case.rows)
        options.max_seqlen_k = max(case.keys)
    return options


def compute_ours(client, case, tensors):
    memory = None
    if "shared" in case.on:  # the daemon reads and writes in place
        tensors, memory = move_to_shared(client, tensors)
    keep = terms_of(case, tensors)
    options = options_of(case, keep)
    client.forward(tensors, options)
    client.backward(tensors, options)
    results = {name: tensors[name].clone() for name in ("out", "lse", *GRADIENTS)
               if name in tensors}
    if memory is not None:
        del tensors
        client.free(memory)
    return results


def move_to_shared(client, tensors):
    sizes = {name: (t.numel() * t.element_size() + 63) // 64 * 64 for name, t in tensors.items()}
    memory = client.alloc(sum(sizes.values()))
    moved, offset = {}, 0
    for name, tensor in tensors.items():
        bytes_at = (ctypes.c_char * max(sizes[name], 1)).from_address(memory.value + offset)
        if tensor.numel() > 0:
            place = torch.frombuffer(bytes_at, dtype=tensor.dtype, count=tensor.numel())
            moved[name] = place.view(tensor.shape).copy_(tensor)
        else:
            moved[name] = tensor
        offset += sizes[name]
    return moved, memory


# -- judging -----------------------------------------------------------------------------------


def largest(tensor):
    return float(tensor.abs().max()) if tensor.numel() > 0 else 0.0


def difference(a, b):
    """max |a - b|; infinities must be the same, a NaN is infinitely far."""
    a, b = a.double(), b.double()
    apart = torch.where(a == b, torch.zeros_like(a), (a - b).abs())
    return largest(torch.nan_to_num(apart, nan=math.inf))


def bar_of(name, exact, lows, noise, dtype):
    factor = 2 if name in ("out", "lse") else 3
    low = max([noise] + [difference(one, exact) for one in lows])
    finite = torch.where(torch.isfinite(exact), exact, 0)
    shift = torch.tensor(0.3, dtype=dtype)
    grid = difference((finite.to(dtype) + shift) - shift, finite)
    return factor * low + 2 * grid


def judge(case, tensors, ours):
    """The worst error over its bar; raises Failed with the tensor's name if that is above 1."""
    exact = differentiate(case, tensors, by_formula, torch.float64)
    lows = [differentiate(case, tensors, by_formula, case.dtype)]
    if case.sdpa_can():
        peer = differentiate(case, tensors, by_sdpa, torch.float64)
        for name, value in peer.items():
            apart = 0 if value is None else difference(value, exact[name])
            if apart > 1e-9 * (1 + largest(value) if value is not None else 1):
                raise Failed(f"the formula's {name} is {apart:.3g} off PyTorch's own")
        exact.update({name: value for name, value in peer.items() if value is not None})
        lows.append(differentiate(case, tensors, by_sdpa, case.dtype))
    noise = noise_of(case, tensors, torch.finfo(case.dtype).eps / 2)
    worst = (0.0, "")
    for name, value in ours.items():
        candidates = [low[name] for low in lows if low[name] is not None]
        error = difference(value, exact[name])
        bar = bar_of(name, exact[name], candidates, noise.get(name, 0.0), value.dtype)
        ratio = 0.0 if error == 0 else error / bar if bar > 0 else math.inf
        worst = max(worst, (ratio, name))
        if ratio > 1:
            raise Failed(f"{name} is off by {error:.3g}, allowed are {bar:.3g}")
    return worst


# -- the daemon and the program ----------------------------------------------------------------


class Daemon:
    """attnd on a private directory, for a with statement."""

    def __init__(self, program, *more):
        self.folder = tempfile.TemporaryDirectory(prefix="attnd-peers-", dir="/tmp")
        self.address = os.path.join(self.folder.name, "run")
        self.process = subprocess.Popen(
            [program, "--directory", self.address, "--log-level", "warning", *more])

    def __enter__(self):
        deadline = time.monotonic() + 20
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise Failed("attnd did not come up")
            time.sleep(0.02)
        return self

    def answers(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gate:
            return gate.connect_ex(os.path.join(self.address, "gate.sock")) == 0

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        self.folder.cleanup()


def parse_arguments():
    parser = argparse.ArgumentParser(description="Compares attnd with PyTorch.")
    parser.add_argument("--attnd", required=True, help="the daemon's program")
    parser.add_argument("--library", required=True, help="libattnd.so")
    parser.add_argument("--count", type=int, default=150, help="cases (150)")
    parser.add_argument("--seed", type=int, default=1, help="of all cases (1)")
    parser.add_argument("--case", type=int, help="run this one alone")
    parser.add_argument("--without", default="", help="features to leave out, of: "
                        + ",".join(FEATURES))
    return parser.parse_args()


def run_cases(client, arguments):
    without = set(filter(None, arguments.without.split(",")))
    numbers = range(arguments.count) if arguments.case is None else [arguments.case]
    failed, worst = 0, (0.0, "")
    for number in numbers:
        case = Case(arguments.seed, number, without)
        try:
            tensors = make_inputs(case)
            ratio = judge(case, tensors, compute_ours(client, case, tensors))
            worst = max(worst, ratio)
            if arguments.case is not None:
                print(f"{case}: {ratio[0]:.3f} {ratio[1]}")
        except Failed as failure:
            failed += 1
            print(f"{case}\n  FAILED: {failure}\n  again: {sys.argv[0]} --attnd {arguments.attnd} "
                  f"--library {arguments.library} --seed {arguments.seed} --case {number}"
                  + (f" --without {arguments.without}" if arguments.without else ""), flush=True)
    verdict = (f"peers: torch={torch.__version__} cases={len(numbers)} failed={failed} "
               f"worst_ratio={worst[0]:.3f}")
    return verdict, 1 if failed > 0 or len(numbers) == 0 else 0


def main():
    arguments = parse_arguments()
    torch.set_num_threads(1)
    try:
        with Daemon(arguments.attnd) as daemon:
            client = Client(arguments.library, daemon.address)
            try:
                verdict, status = run_cases(client, arguments)
            finally:
                client.close()
    except Failed as failure:
        verdict, status = f"peers: {failure}", 1
    print(verdict)
    return status


if __name__ == "__main__":
    sys.exit(main())
