#!/usr/bin/env bash
# Tries onprem.yaml without other machines: `ray up` on four hosts in namespaces of this one, then a sweep, during which
# one host loses its network and another its power. Checks the answer against trainings without any cluster.
#
#   cluster/try_onprem.sh [--keep FOLDER]      FOLDER: for the results and the logs, which are otherwise removed
#
# Needs root, iproute2, openssh-server, rsync, util-linux, and an environment: .venv, or that of the Python in PYTHON.
#
# A host has its own processes, network, host name, /root, /tmp, /run and /dev/shm; the rest is this machine's. All hosts
# are below one process in a PID namespace. When this script ends, in whatever way, the kernel ends that process and all
# below it, and removes their networks and files. `ray stop` on a host sees no process of this machine.
set -euo pipefail

hosts=(head worker1 worker2 worker3)
net=10.77.0
address() { # of a host
    local n
    for n in "${!hosts[@]}"; do [ "${hosts[n]}" != "$1" ] || echo "$net.$((10 + n))"; done
}
say() { echo "$(date +%T)  $*"; }
fail() {
    echo "try_onprem.sh: $*" >&2
    exit 1
}

# ---- This machine: starts the namespaces and removes the folder.

outside() {
    local tool status=0
    keep=''
    [ $# = 0 ] || { [ $# = 2 ] && [ "$1" = --keep ] && keep=$2; } || fail "usage: try_onprem.sh [--keep FOLDER]"
    [ "$(id -u)" = 0 ] || fail "needs root, to make namespaces and network links"
    for tool in ip setpriv unshare nsenter rsync ssh ssh-keygen sshd; do
        PATH=$PATH:/usr/sbin command -v $tool >/dev/null ||
            fail "needs $tool (of iproute2, openssh-server, rsync, util-linux)"
    done
    unshare --mount --pid --net --uts --fork true 2>/dev/null || fail "this machine does not allow namespaces"
    checkout=$(realpath "$(dirname "$0")/..")
    python=${PYTHON:-$checkout/.venv/bin/python}
    venv=$("$python" -c 'import sys; print(sys.prefix)') || fail "$python: run make, or name a Python in PYTHON"
    base=$("$python" -c 'import sys; print(sys.base_prefix)')
    inside='' work=''
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    if [ "$keep" ]; then
        mkdir -p "$keep" && work=$(realpath "$keep")
        [ -z "$(ls -A "$work")" ] || fail "--keep $keep: is not empty; choose another folder"
    else
        work=$(mktemp -d)
    fi

    # --pdeathsig: a `kill -9` of this script ends the namespaces too.
    set -m # in a process group of its own: Ctrl-C in a terminal reaches only this script
    env -i HOME=/root USER=root LANG=C.UTF-8 TERM=dumb PATH="$venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
        checkout="$checkout" venv="$venv" base="$base" work="$work" \
        setpriv --pdeathsig KILL unshare --mount --pid --net --uts --fork --kill-child --mount-proc \
        bash "$0" --inside </dev/null &
    inside=$!
    set +m
    wait $inside || status=$?
    exit $status
}

finish() { # the namespaces with all that is in them, then the folder
    [ -z "$inside" ] || kill -KILL "$inside" 2>/dev/null || true
    [ -z "$inside" ] || wait "$inside" 2>/dev/null || true
    [ "$keep" ] || [ -z "$work" ] || rm -rf "$work"
}

# ---- The namespaces.

own_files() { # this namespace's /root, /tmp, /run and /dev/shm: empty, but for the folders that it needs
    local place path
    for place in /root /tmp /run /dev/shm; do
        mount -n -t tmpfs -o mode=1777 tmpfs /mnt
        for path in "$checkout" "$venv" "$base" "$work"; do
            [[ $path == "$place"/* ]] || continue
            mkdir -p "/mnt/${path#"$place"}"
            mount -n --rbind "$path" "/mnt/${path#"$place"}"
        done
        mount -n --move /mnt "$place"
    done
    chmod 755 /root /run
    mkdir -m 700 /root/.ssh
}

host() { # the first process of a host: its sshd
    hostname "$1"
    own_files
    mkdir -p /run/sshd /root/restoration-sweeps
    cp "$work/ssh/key.pub" /root/.ssh/authorized_keys
    ln -s "$venv" /root/restoration-sweeps/.venv # onprem.yaml would install it
    exec /usr/sbin/sshd -D -e -f /dev/null -h "$work/ssh/host_key" -o PidFile=none -o UsePAM=no -o StrictModes=no \
        -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no -o MaxStartups=100
}

start_host() {
    unshare --mount --pid --net --uts --fork --kill-child --mount-proc bash "$0" --host "$1" >"$work/$1.log" 2>&1 &
    process[$1]=$!
    until [ "$(readlink "/proc/$!/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
    ip link add "$1" type veth peer name eth0 netns $!
    ip link set "$1" master lan up
    # Nobody is behind the default route, but Ray finds its own address by looking for one.
    nsenter --target $! --net sh -ec "
        ip link set lo up; ip link set eth0 up
        ip addr add $(address "$1")/24 dev eth0; ip route add default via $net.1"
}

inside() {
    local name
    declare -gA process
    own_files
    mkdir -p "$work/ssh" "$work/results" /root/.ray
    ssh-keygen -q -t ed25519 -N '' -f "$work/ssh/key" && ssh-keygen -q -t ed25519 -N '' -f "$work/ssh/host_key"
    cp "$work/ssh/key" /root/.ssh/id_ed25519
    { echo 127.0.0.1 localhost; for name in "${hosts[@]}"; do echo "$(address "$name") $name"; done; } >"$work/hosts"
    mount -n --bind "$work/hosts" /etc/hosts # a host's name must not be that of its loopback address
    ip link set lo up
    ip link add lan type bridge
    ip addr add $net.1/24 dev lan
    ip link set lan up
    for name in "${hosts[@]}"; do start_host "$name"; done
    say "hosts are up: $(for name in "${hosts[@]}"; do address "$name"; done | xargs)"

    cd "$checkout"
    export PYTHONPATH=$checkout OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 RAY_UP_enable_autoscaler_v2=0
    python -c 'import secrets; print(secrets.token_hex(32), end="")' >/root/.ray/auth_token
    # shellcheck disable=SC2046  # addresses
    python cluster/try_onprem.py config "$work/onprem.yaml" $(for name in "${hosts[@]}"; do address "$name"; done)
    say "ray up"
    ray up -y --no-config-cache "$work/onprem.yaml" >"$work/up.log" 2>&1 || stuck "ray up failed" up.log
    on_head "python -m cluster.wait_for_nodes auto ${#hosts[@]}" >"$work/nodes.log" 2>&1 ||
        stuck "a worker did not start" monitor.log
    disturbed_sweep
    python cluster/try_onprem.py check "$work"/results/*/20* || stuck "the answer is wrong" sweep.log
    say "ray down"
    ray down -y "$work/onprem.yaml" >"$work/down.log" 2>&1 || stuck "ray down failed" down.log
    say "passed"
}

on_head() { ray exec "$work/onprem.yaml" "cd ~/restoration-sweeps && $1"; }

stuck() { # message, log
    on_head "tail -n 300 /tmp/ray/session_latest/logs/monitor.*" >"$work/monitor.log" 2>&1 || true
    tail -n 40 "$work/$2" >&2
    fail "$1"
}

disturbed_sweep() {
    say "a sweep of four trials, on three workers of one CPU"
    : >"$work/sweep.log" # it is read before `ray exec` runs
    on_head "python run_sweep.py --address auto --space cluster/small_rates.py --results $work/results --perceptual none \
        --trials 4 --confirm 0 --max-steps 480 --set training.reports=4 --set training.batch_size=2 \
        --set training.warmup_steps=2 --set pairs.train_pairs=16 --set pairs.validation_pairs=3 \
        --set pairs.validation_size=64" >"$work/sweep.log" 2>&1 &
    sweep=$!
    when_reported t000
    say "$found, which trains t000: its network is cut"
    ip link set "$found" down
    when_reported t003 # it starts when another trial has finished
    say "$found, which trains t003: its power is cut"
    ip link set "$found" down # else the kernel would close its connections
    kill -KILL "${process[$found]}"
    wait "${process[$found]}" 2>/dev/null || true
    wait $sweep || stuck "the sweep failed" sweep.log
    say "the sweep has ended"
}

when_reported() { # a trial; sets found to its host
    until grep -q "$1 step 120/" "$work/sweep.log"; do
        kill -0 $sweep 2>/dev/null || stuck "the sweep ended before $1 reported" sweep.log
        [ $SECONDS -lt 900 ] || stuck "no report of $1 after $SECONDS s" sweep.log
        sleep 0.3
    done
    found=$(sed -n 's/.* starts on host \([^,]*\),.*/\1/p' "$work"/results/*/20*/trials/"$1"/log.txt | tail -n 1)
}

case ${1-} in
--inside) inside ;;
--host) host "$2" ;;
*) outside "$@" ;;
esac
