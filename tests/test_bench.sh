#!/usr/bin/env bash
# attnd-bench from outside: what it measures, checks and writes, and what it says to a wrong call.
#
#   tests/test_bench.sh ATTND_BENCH ATTND_BENCH_WRONG      the second one's kernels are wrong
set -uo pipefail
export LC_ALL=C

bench=$1 wrong=$2
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failures=0

fail() { # sentence
    printf 'FAILED: %s\n' "$1"
    sed 's/^/    out: /' "$out/stdout"
    sed 's/^/    err: /' "$out/stderr"
    failures=$((failures + 1))
}

run() { # expected status, program, arguments...
    local expected=$1 status
    shift
    "$@" >"$out/stdout" 2>"$out/stderr"
    status=$?
    [[ $status == "$expected" ]] || fail "$* ended with $status instead of $expected"
}

check() { # sentence, command...
    local sentence=$1
    shift
    "$@" >/dev/null || fail "$sentence"
}

# The values of a number in the JSON file, one a line, in the file's order.
values() { # name
    sed -n "s/^ *\"$1\": \([^,]*\),\{0,1\}$/\1/p" "$out/json"
}

parses() {
    if command -v python3 >/dev/null; then
        python3 -m json.tool "$out/json"
    else
        [[ $(tr -cd '{[' <"$out/json" | wc -c) == $(tr -cd '}]' <"$out/json" | wc -c) ]]
    fi
}

are_positive() { # name
    values "$1" | awk '!($1 > 0) { exit 1 }'
}

# Of three shapes, each twice as long as the one before.
grow_linearly() {
    paste <(values workspace_bytes) <(values scratch_bytes) | awk '
        { bytes[NR] = $1 + $2 }
        END { exit !(NR == 3 && bytes[3] - bytes[2] <= 2.1 * (bytes[2] - bytes[1]) + 256) }'
}

quick=(kernels --repeat 2 --min-time 0 --threads 2)
shapes=(
    --shape 'b=2,hq=4,hkv=2,sq=70,sk=90,d=32,dv=40,causal,dlse'
    --shape 'hq=2,sq=100,window=20:10,align=tl,softcap=5,bias=1xhx1xk,alibi,sinks,dropout=0.25'
    --shape 'varlen=40:0:77,varlen_k=50:9:60,short_k=50:3:20,hq=2,d=16,bias=bx1xqxk,bias_dtype=fp32'
)

test_both_directions_of_every_dtype() {
    local how
    for how in --sgemm=64 --sample; do
        run 0 "$bench" "${quick[@]}" --sgemm=64 $how "${shapes[@]}" --dtype fp32,fp16,bf16 \
            --json "$out/json"
        check 'the JSON parses' parses
        check '18 lines are in the table' test "$(grep -c '^cpu ' "$out/stdout")" == 18
        check '18 results are in the file' test "$(values score_matrix_bytes | wc -l)" == 18
        check 'every one is right' test "$(values verdict | sort -u)" == '"right"'
        check 'it is said what was checked' test "$(values of | sort -u)" == \
            "$([[ $how == --sample ]] && echo '"sample"' || echo '"all"')"
        check 'the rates are numbers above 0' are_positive gflops
        check 'the machine is described' grep -q '"processor": "..*"' "$out/json"
    done
    run 0 "$bench" "${quick[@]}" --sgemm 0 --no-check --direction bwd --shape sq=50
    check 'unchecked results are called so' grep -q unchecked "$out/stdout"
}

# Twice the length may take twice the memory beside the tensors, and no more.
test_memory_is_linear() {
    local direction features
    for direction in fwd bwd; do
        for features in causal bias=1xhx1xk,alibi,sinks,softcap=9,dropout=0.1; do
            run 0 "$bench" "${quick[@]}" --sgemm 0 --no-check --repeat 1 --direction $direction \
                --shape sq=256,d=8,$features --shape sq=512,d=8,$features \
                --shape sq=1024,d=8,$features --json "$out/json"
            check "memory grows linearly, $direction, $features" grow_linearly
        done
    done
}

test_wrong_results() {
    local how
    for how in --repeat=1 --sample; do
        run 1 "$wrong" "${quick[@]}" --sgemm 0 $how --direction fwd --shape sq=80 --json "$out/json"
        check 'out is called wrong' grep -q 'WRONG RESULT: out .*is off by' "$out/stdout"
        check 'the file has it' test "$(values verdict)" == '"wrong"'
        check 'nothing wrong is timed' test -z "$(values gflops)"
    done
}

test_protocol() {
    run 0 "$bench" kernels --repeat 1 --min-time 0 --sgemm 0 --tokens 512 --direction fwd --no-check
    check 'there are three head dims, full and causal' test "$(grep -c 'sq=512' "$out/stdout")" == 6
    check 'half of them are causal' test "$(grep -c causal "$out/stdout")" == 3
    check 'heads are hidden / head dim' grep -q 'b=1,sq=512,hq=16,d=128 ' "$out/stdout"
}

says() { # words, arguments...: the usage error names them
    local words=$1
    shift
    run 64 "$bench" "$@"
    check "it says '$words'" grep -qF -e "$words" "$out/stderr"
}

test_wrong_calls() {
    says "no key 'color'" kernels --shape sq=8,color=2
    says "d cannot be 'x'" kernels --shape sq=8,d=x
    says "bias cannot be '1x1'" kernels --shape sq=8,bias=1x1
    says 'a shape needs sq' kernels --shape b=2
    says 'causal takes no value' kernels --shape sq=8,causal=1
    says "--dtype cannot be 'fp8'" kernels --dtype fp8
    says "--threads cannot be '0'" kernels --threads 0
    says "no kernel family 'abacus'" kernels --family abacus
    says "no command 'colonels'" colonels
    says 'which command' --
    run 2 "$bench" "${quick[@]}" --sgemm 0 --shape sq=8,d=300
    check 'the family says what it does not do' grep -q 'not done: .*head_dim' "$out/stdout"
    run 1 "$bench" "${quick[@]}" --shape sq=8 --json "$out/none/json"
    run 0 "$bench" kernels --help
    check 'help explains every word of a shape' grep -q '^  short_k=' "$out/stdout"
}

test_both_directions_of_every_dtype
test_memory_is_linear
test_wrong_results
test_protocol
test_wrong_calls
echo "bench: $failures failed"
((failures == 0))
