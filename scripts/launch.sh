#!/usr/bin/env bash
# Trains on machines without a scheduler, one process on each with all its GPUs. On the
# first of them:
#
#   scripts/launch.sh node1 node2 -- .venv/bin/python train.py \
#       --config configs/fastmri_x4.py --config.data.root=DIR --workdir=RUN
#
# The names are those by which the machines reach one another. This folder, RUN and DIR
# have the same paths on all of them; the others are reached by ssh without a password
# (REMOTE_SHELL names another command). PORT, 29400 by default, is free on the first.
# Variables of the environment that begin with JAX_, XLA_ or NCCL_ are passed on. Ctrl-C,
# SIGTERM, SIGUSR1 and a closed terminal stop all of them after the step, saved, with exit
# code 75.
set -u

hosts=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    hosts+=("$1")
    shift
done
shift # the --
if [ "${#hosts[@]}" -eq 0 ] || [ $# -eq 0 ]; then
    echo "error E241: usage: scripts/launch.sh HOST... -- COMMAND, see its head" >&2
    exit 2
fi
count=${#hosts[@]}
meet="${hosts[0]}:${PORT:-29400}"

passed=()
for name in $(compgen -e | grep -E '^(JAX|XLA|NCCL)_'); do
    passed+=("$name=${!name}")
done

pids=() told=
# The first tells the others to stop.
trap 'told=yes; kill -TERM "${pids[0]:-}" 2>/dev/null' INT TERM USR1 HUP
for i in "${!hosts[@]}"; do
    flags=("--coordinator=$meet" "--processes=$count" "--process=$i")
    if [ "$i" -eq 0 ]; then
        "$@" "${flags[@]}" &
    else
        there=$(printf '%q ' env "${passed[@]}" "$@" "${flags[@]}")
        "${REMOTE_SHELL:-ssh}" "${hosts[$i]}" "cd $(printf '%q' "$PWD") && exec $there" &
    fi
    pids+=($!)
done
[ -z "$told" ] || kill -TERM "${pids[0]}" 2>/dev/null # told before it began

result=0
for i in "${!pids[@]}"; do
    while :; do # a signal ends `wait` early; 127: it was waited for already
        told=
        wait "${pids[$i]}"
        now=$?
        [ "$now" -eq 127 ] || code=$now
        [ -n "$told" ] || break
    done
    if [ "$code" -ne 0 ]; then
        [ "$code" -eq 75 ] || echo "process $i on ${hosts[$i]} ended with $code" >&2
        [ "$result" -ne 0 ] || result=$code
    fi
done
exit "$result"
