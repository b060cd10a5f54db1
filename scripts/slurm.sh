#!/bin/bash
# A real Slurm of one machine, for the tests of tier `cluster`: scripts/slurm.sh start|stop|node.
# `node` kills slurmd, and starts it again. As root on Debian; it installs slurm-wlm and munge where they are missing. Partition `low` is
# requeued where `high` wants its processors.
set -eu
CONF=/etc/slurm/slurm.conf
STATE=/var/lib/metalearn-slurm
MARK="# by metalearn's scripts/slurm.sh"

install() {
    command -v slurmctld >/dev/null && command -v munged >/dev/null && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm munge
}

configure() {
    if [ -e "$CONF" ] && ! grep -qF "$MARK" "$CONF"; then
        echo "$CONF is another Slurm's; this script leaves it alone" >&2
        exit 2
    fi
    mkdir -p "$STATE/ctld" "$STATE/slurmd" "$(dirname "$CONF")"
    local name cpus memory
    name=$(hostname -s)
    cpus=$(nproc --all)
    memory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.8) }' /proc/meminfo)
    cat >"$CONF" <<END
$MARK
ClusterName=metalearn
SlurmctldHost=$name(127.0.0.1)
AuthType=auth/munge
AuthInfo=cred_expire=10
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/slurmd
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MailProg=/bin/true
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=60
SchedulerParameters=sched_min_interval=500000,bf_interval=2
NodeName=$name NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=low Nodes=$name Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=$name MaxTime=INFINITE State=UP PriorityTier=10
END
}

start() {
    install
    configure
    if [ ! -e /etc/munge/munge.key ]; then
        dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
    fi
    chown munge:munge /etc/munge/munge.key
    chmod 400 /etc/munge/munge.key
    mkdir -p /run/munge
    chown munge:munge /run/munge
    pgrep -x munged >/dev/null || runuser -u munge -- /usr/sbin/munged
    pgrep -x slurmctld >/dev/null || slurmctld
    pgrep -x slurmd >/dev/null || slurmd
    for _ in $(seq 30); do
        sinfo -h -o %T 2>/dev/null | grep -qE 'idle|mixed|allocated' && break
        sleep 1
    done
    sinfo
}

end() {
    [ ! -e "$STATE/$2.pid" ] || kill "-$1" "$(cat "$STATE/$2.pid")" || true
}

case "${1:-}" in
start) start ;;
stop) end TERM slurmd; end TERM slurmctld ;;
node) end KILL slurmd; sleep 1; slurmd ;;
*) echo "usage: scripts/slurm.sh start|stop|node" >&2; exit 2 ;;
esac
