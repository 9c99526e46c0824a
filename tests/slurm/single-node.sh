#!/usr/bin/env bash
# A Slurm of one node on the loopback interface, for tests: nothing of it lies, or stays, outside one directory.
#
#   single-node.sh start DIR PORT    munged, slurmctld and slurmd, until the node takes jobs; prints slurm.conf's path
#   single-node.sh stop DIR          cancel its jobs, and stop exactly what start began
#
# It takes PORT and PORT+1. One node and one user: this proves the protocol, not that users are kept apart.
set -euo pipefail

action=${1:?start or stop} dir=${2:?directory}
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$dir/slurm.conf

die() { printf 'single-node.sh: %s\n' "$*" >&2; exit 1; }

# alive NAME: the process that start began under this name still runs
alive() {
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
    grep -qs "^Name:[[:space:]]*$1\$" "/proc/$pid/status" && ! grep -qs '^State:[[:space:]]*Z' "/proc/$pid/status"
}

wait_for() {  # wait_for SECONDS COMMAND...
    local i limit=$1
    shift
    for ((i = 0; i < limit * 10; i++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    tail -n 20 "$dir"/*.log >&2 || true
    die "waited $limit s for: $*"
}

usable() { sinfo -h -o %T | grep -qE '^(idle|mixed|allocated)'; }
no_jobs() { [ -z "$(squeue -h)" ]; }
gone() { ! alive "$1"; }

start() {
    local port=${3:?port} host cpus memory user
    host=$(hostname -s) cpus=$(($(nproc) > 4 ? $(nproc) : 4)) user=$(id -un)
    memory=$(($(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo) * 9 / 10))
    umask 022
    mkdir -p "$dir/state" "$dir/spool"
    chmod 755 "$dir"
    cat >"$SLURM_CONF" <<CONF
ClusterName=single
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
CredType=cred/munge
# a requeued job begins again when its credential has expired: after 120 s, if not said otherwise
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=3
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=60
InactiveLimit=0
KillWait=2
MinJobAge=30
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=01:00:00 State=UP OverSubscribe=NO
CONF
    printf '%s\n' CgroupAutomount=no ConstrainCores=no ConstrainRAMSpace=no >"$dir/cgroup.conf"
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
    chmod 400 "$dir/munge.key"
    munged --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munge.seed"
    wait_for 20 munge -n --socket="$dir/munge.socket"
    slurmctld -f "$SLURM_CONF"
    wait_for 30 scontrol ping
    slurmd -f "$SLURM_CONF" -N "$host"
    wait_for 60 usable
    printf '%s\n' "$SLURM_CONF"
}

stop() {
    local name
    if alive slurmctld; then
        scancel --user="$(id -un)" || true
        wait_for 30 no_jobs
    fi
    for name in slurmd slurmctld munged; do
        if alive "$name"; then
            kill "$(cat "$dir/$name.pid")"
            wait_for 20 gone "$name"
        fi
    done
}

case $action in
start) start "$@" ;;
stop) stop ;;
*) die "start or stop, not $action" ;;
esac
