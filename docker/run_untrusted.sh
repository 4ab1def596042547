#!/bin/sh
# Runs a submission that nobody has read: no network, nothing to write but the folder of
# the records, bounds on memory, processes and time.
#
#   docker/run_untrusted.sh SUBMISSION_FOLDER OUT_FOLDER [FLAGS OF algoperf run ...]
#
#   docker/run_untrusted.sh theirs out --workload imagenet_resnet --max-steps 50
#
# Settings, as environment variables: IMAGE (algoperf:cpu), DATA (a folder of data sets),
# MEMORY (16g), SHARED_MEMORY (8g, of MEMORY), CPUS (all), PROCESSES (512),
# SECONDS_AT_MOST (86400), GRACE_SEC (120), GPUS (none; all), ENGINE (docker; podman).
set -eu

fail() {
  echo "run_untrusted.sh: $1" >&2
  exit 2
}

[ $# -ge 2 ] || fail "give the folder of the submission and the one for the records"
submission=$(cd "$1" 2>/dev/null && pwd -P) || fail "$1 is no folder"
[ -f "$submission/submission.py" ] || fail "$1 has no submission.py"
mkdir -p "$2" || fail "cannot make $2"
out=$(cd "$2" && pwd -P)
shift 2
case "$submission$out${DATA:-}" in
  *,*) fail "a folder's name must not have a comma in it" ;;
esac
# Else a run could change what the next one runs.
case "$submission/" in "$out"/*) fail "the submission lies in the folder of records" ;; esac
case "$out/" in "$submission"/*) fail "the records would lie in the submission" ;; esac

name=algoperf-untrusted-$$
grace=${GRACE_SEC:-120}
seconds=${SECONDS_AT_MOST:-86400}
case "$seconds" in
  '' | *[!0-9]*) fail "SECONDS_AT_MOST is $seconds, not a whole number of seconds" ;;
esac
# The folder's name is that of the submission in its records.
inside=/submissions/$(basename "$submission")
set -- run --submission "$inside/submission.py" --out /out --resume "$@"
if [ -n "${DATA:-}" ]; then
  data=$(cd "$DATA" 2>/dev/null && pwd) || fail "$DATA is no folder"
  set -- "$@" --data_dir /data
fi
set -- "${IMAGE:-algoperf:cpu}" "$@"
if [ -n "${data:-}" ]; then
  set -- --mount "type=bind,src=$data,dst=/data,readonly" "$@"
fi
[ -z "${CPUS:-}" ] || set -- --cpus "$CPUS" "$@"
[ -z "${GPUS:-}" ] || set -- --gpus "$GPUS" "$@"

engine=${ENGINE:-docker}
# Without root, podman maps a user's number inside to another one outside, who may not
# write to OUT_FOLDER.
case "${engine##*/}" in
  podman) [ "$(id -u)" = 0 ] || set -- --userns=keep-id "$@" ;;
esac
"$engine" run --rm --init --name "$name" \
  --network none \
  --read-only --tmpfs "/tmp:rw,nosuid,nodev,size=4g" \
  --mount "type=bind,src=$submission,dst=$inside,readonly" \
  --mount "type=bind,src=$out,dst=/out" \
  --user "$(id -u):$(id -g)" \
  --cap-drop ALL --security-opt no-new-privileges \
  --pids-limit "${PROCESSES:-512}" \
  --shm-size "${SHARED_MEMORY:-8g}" \
  --memory "${MEMORY:-16g}" --memory-swap "${MEMORY:-16g}" \
  "$@" &
client=$!

# `stop` sends SIGTERM, so that a checkpoint is saved, and SIGKILL after the grace.
stop() { "$engine" stop --time "$grace" "$name" >/dev/null 2>&1 || true; }
trap 'stop' INT TERM
(
  # In short sleeps: whatever ends this leaves none behind that lasts.
  left=$seconds
  while [ "$left" -gt 0 ]; do
    sleep 1 >/dev/null 2>&1
    left=$((left - 1))
  done
  echo "run_untrusted.sh: the time is up" >&2
  stop
) &
watch=$!
status=0
while :; do # a signal ends `wait` before the container has ended
  wait "$client" && status=0 || status=$?
  kill -0 "$client" 2>/dev/null || break
done
# Again, until it is gone: a subshell that has just begun still has the trap from above,
# drops it and the signal with it, and would keep the caller's pipe open.
while kill "$watch" 2>/dev/null; do sleep 0.1; done
exit "$status"
