# shellcheck shell=sh
# The environment of every shell and every Ray process on a cluster node. Sourced by ~/.bashrc and by the start commands.

export PATH="$HOME/restoration-sweeps/.venv/bin:$PATH"
export PYTHONPATH="$HOME/restoration-sweeps"

# Every call to Ray has to carry the token in ~/.ray/auth_token. On clusters Ray 2.60 asks for it only when told to.
export RAY_AUTH_MODE=token

# How often Train looks at its workers. Each report of a trial waits for the next look; Ray's own default is 2 s.
export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.2

# How long `ray job stop` waits for a sweep to end by itself, in seconds. Ray's own default is 3, and then it kills.
export RAY_JOB_STOP_WAIT_TIME_S=120

# The machine's own disk, if cluster/local_disk.sh has found one, for what a node copies from a bucket.
if [ -w /mnt/local ]; then export XDG_CACHE_HOME=/mnt/local; fi
