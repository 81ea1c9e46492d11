#!/usr/bin/env python3
"""Compares attnd with PyTorch on a GPU, through a running daemon and libattnd.

Cases are those of tests/peers/compare_torch.py, of 16-bit numbers and any head dim to 256, computed
in stream order between PyTorch's own kernels: they make the inputs and copy the results, and nobody
waits in between. Then a churn of PyTorch's allocator (tensors of all sizes that come and go, its cache
emptied now and then) compares every result with scaled_dot_product_attention.

    tests/gpu/driver.py --attnd bin/attnd --library lib/libattnd.so [--count N] [--seed S] [--case ID]

Exit status 77: there is no PyTorch here, or no GPU.
"""

import argparse
import math
import os
import random
import sys

sys.dont_write_bytecode = True  # the tree stays clean
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "peers"))

import compare_torch as peers  # ends with 77 where there is no PyTorch

import torch
import torch.nn.functional as functional

from libattnd import Client, Failed, make_options

HEAD_DIMS = (8, 32, 40, 64, 80, 96, 128, 192, 256, 33, 111)


class Case(peers.Case):
    """As a processor's, but larger and without float32."""

    def __init__(self, seed, number, without):
        super().__init__(seed, number, without)
        rng = random.Random(f"gpu/{seed}/{number}")
        self.dtype = (torch.float16, torch.bfloat16)[number % 2]
        self.dim = rng.choice(HEAD_DIMS)
        self.dim_v = rng.choice(HEAD_DIMS) if "dv" in self.on else self.dim
        self.scale = peers.struct_float(1 / math.sqrt(self.dim))
        if not self.varlen and rng.random() < 0.3:
            self.rows = [rng.randint(1, 600)] * self.batch
            self.keys = [rng.randint(1, 700)] * self.batch
        self.deterministic = rng.random() < 0.5
        self.host_lengths = rng.random() < 0.5


def to_gpu(tensors):
    """Copies that PyTorch's kernels make on the current stream."""
    return {name: tensor.cuda(non_blocking=True).neg().neg() for name, tensor in tensors.items()}


def compute_ours(client, case, tensors, stream):
    """The results, as copies that were enqueued behind the calls."""
    with torch.cuda.stream(stream):
        terms = peers.terms_of(case, tensors)
        if case.varlen and not case.host_lengths:
            terms.update({name: tensor.cuda() for name, tensor in terms.items()})
        options = peers.options_of(case, terms)
        options.deterministic = case.deterministic
        handle = stream.cuda_stream
        client.forward(tensors, options, handle)
        ticket = client.backward(tensors, options, handle)
        results = {name: tensors[name].clone() for name in ("out", "lse", *peers.GRADIENTS)
                   if name in tensors}
        for name in ("out", *peers.GRADIENTS):
            if name in tensors:
                tensors[name].fill_(math.nan)
    stream.synchronize()
    client.wait(ticket)
    return results


def run_case(client, case, streams):
    host = peers.make_inputs(case)
    stream = streams[case.number % len(streams)]
    with torch.cuda.stream(stream):
        tensors = to_gpu(host)
        inputs = {name: tensor.clone() for name, tensor in tensors.items()}
    ours = compute_ours(client, case, tensors, stream)
    torch.cuda.synchronize()
    with torch.device("cuda"):
        return peers.judge(case, inputs, ours)


def run_cases(client, arguments):
    without = set(filter(None, arguments.without.split(",")))
    numbers = range(arguments.count) if arguments.case is None else [arguments.case]
    streams = [torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    failed, worst = 0, (0.0, "")
    for number in numbers:
        case = Case(arguments.seed, number, without)
        try:
            ratio = run_case(client, case, streams)
            worst = max(worst, ratio)
            if arguments.case is not None:
                print(f"{case}: {ratio[0]:.3f} {ratio[1]}")
        except Failed as failure:
            failed += 1
            print(f"{case}\n  FAILED: {failure}\n  again: --seed {arguments.seed} --case {number}"
                  + (f" --without {arguments.without}" if arguments.without else ""), flush=True)
    return len(numbers), failed, worst[0]


# -- the allocator -----------------------------------------------------------------------------


def churn_once(client, rng, keep):
    """One call over fresh tensors; sometimes some of them stay for a while."""
    dtype = rng.choice((torch.float16, torch.bfloat16))
    dim = rng.choice((64, 128))
    shape = (rng.randint(1, 8), rng.choice((16, 100, 512, 1000, 2048)), rng.randint(1, 16), dim)
    q, k, v = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(3))
    out = torch.full_like(q, math.nan)
    options = make_options(window_right=0)
    client.forward({"q": q, "k": k, "v": v, "out": out}, options,
                   torch.cuda.current_stream().cuda_stream)
    peer = functional.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in (q, k, v)), is_causal=True).transpose(1, 2)
    apart = peers.difference(out, peer)
    allowed = 4 * torch.finfo(dtype).eps * max(1.0, peers.largest(peer))
    if rng.random() < 0.4:
        keep.append((q, k, v, out))
    if apart > allowed:
        raise Failed(f"{shape} {dtype}: {apart:.3g} off, allowed are {allowed:.3g}")


def churn(client, count, seed):
    rng = random.Random(f"churn/{seed}")
    keep, failed = [], 0
    torch.manual_seed(seed)
    for number in range(count):
        try:
            churn_once(client, rng, keep)
        except Failed as failure:
            failed += 1
            print(f"churn {number} FAILED: {failure}", flush=True)
        while keep and rng.random() < 0.3:
            keep.pop(rng.randrange(len(keep)))
        if rng.random() < 0.05:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    return failed


def check_trim(client):
    """What the allocator has given back is free once the daemon has let go of it."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    client.trim()
    before = torch.cuda.mem_get_info()[0]
    q = torch.randn((1, 4096, 8, 64), device="cuda", dtype=torch.bfloat16)
    large = torch.empty(4 << 30, dtype=torch.uint8, device="cuda")
    out = large[: q.numel() * 2].view(torch.bfloat16).view(q.shape)
    client.forward({"q": q, "k": q, "v": q, "out": out}, make_options(),
                   torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    del q, large, out
    torch.cuda.empty_cache()
    client.trim()
    missing = before - torch.cuda.mem_get_info()[0]
    if missing > 64 << 20:
        raise Failed(f"{missing >> 20} MiB did not come back after attnd_trim()")


# -- the program -------------------------------------------------------------------------------


def parse_arguments():
    parser = argparse.ArgumentParser(description="Compares attnd with PyTorch on a GPU.")
    parser.add_argument("--attnd", required=True, help="the daemon's program")
    parser.add_argument("--library", required=True, help="libattnd.so")
    parser.add_argument("--count", type=int, default=300, help="cases (300)")
    parser.add_argument("--churn", type=int, default=300, help="calls over fresh tensors (300)")
    parser.add_argument("--seed", type=int, default=1, help="of all cases (1)")
    parser.add_argument("--case", type=int, help="run this one alone")
    parser.add_argument("--without", default="", help="features to leave out")
    return parser.parse_args()


def run_all(client, arguments):
    cases, failed, worst = run_cases(client, arguments)
    churned = churn(client, arguments.churn, arguments.seed) if arguments.case is None else 0
    trimmed = "not tried"
    if arguments.case is None:
        try:
            check_trim(client)
            trimmed = "ok"
        except Failed as failure:
            trimmed = "FAILED"
            print(failure)
    allocator = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "default")
    print(f"gpu_driver: torch={torch.__version__} allocator={allocator} cases={cases} "
          f"failed={failed} worst_ratio={worst:.3f} churn={arguments.churn} "
          f"churn_failed={churned} trim={trimmed}")
    return 1 if failed or churned or trimmed == "FAILED" or cases == 0 else 0


def main():
    arguments = parse_arguments()
    if not torch.cuda.is_available():
        print("gpu_driver: skipped, this machine has no GPU")
        return 77
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.cuda.init()
    try:
        with peers.Daemon(arguments.attnd, "--device", "cuda:0", "--workspace", "2G") as daemon:
            client = Client(arguments.library, daemon.address)
            try:
                return run_all(client, arguments)
            finally:
                client.close()
    except Failed as failure:
        print(f"gpu_driver: {failure}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
