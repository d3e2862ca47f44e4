# shellcheck shell=bash disable=SC2034
# Settings and helpers shared by up, down, build and image. Sourced, not run.

HERE=${HERE:?set HERE to the scripts\' folder before sourcing lib.sh}

# Outside the clone, and where the tests look: see src/kubernetes.rs of the package test-peers.
K8S_DIR=$(realpath -m "${K8S_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/provisioner/kubernetes}")
K8S_API_PORT=${K8S_API_PORT:-6443}
K8S_ETCD_PORT=${K8S_ETCD_PORT:-12379}
K8S_ETCD_PEER_PORT=${K8S_ETCD_PEER_PORT:-12380}
K8S_POD_CIDR=${K8S_POD_CIDR:-10.244.0.0/22}
K8S_SVC_CIDR=${K8S_SVC_CIDR:-10.96.0.0/16}
K8S_NODE=${K8S_NODE:-node1}
K8S_MAX_PODS=${K8S_MAX_PODS:-250}
# Requests per second that the controller manager (and kubelet) may send;
# upstream's defaults are 20 and 5, which make bulk work crawl.
K8S_CONTROLLER_QPS=${K8S_CONTROLLER_QPS:-200}
K8S_KUBELET_QPS=${K8S_KUBELET_QPS:-50}
# Shortest time between two rewrites of the Service rules; upstream's is 1s.
K8S_PROXY_MIN_SYNC=${K8S_PROXY_MIN_SYNC:-200ms}

BIN=$K8S_DIR/bin
PKI=$K8S_DIR/pki
CONF=$K8S_DIR/conf
LOGS=$K8S_DIR/logs
PIDS=$K8S_DIR/pids
# There while what a node leaves in the kernel may be ours.
NODE_MARK=$K8S_DIR/node
IMAGES=$K8S_DIR/images
BRIDGE=kube-br0
SVC_IF=kube-svc0
# A Unix socket's path may hold 107 bytes, so containerd's short-lived state
# does not live under K8S_DIR; the name keeps two state folders apart.
RUN=/run/k8s-$(printf %s "$K8S_DIR" | cksum | cut -d' ' -f1)
CONTAINERD_SOCK=$RUN/containerd.sock

COMPONENTS="kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy cluster-dns"

export PATH=$PATH:/usr/sbin:/sbin:/usr/local/sbin

say()  { printf '[k8s %4ds] %s\n' "$SECONDS" "$*"; }
warn() { printf '[k8s] warning: %s\n' "$*" >&2; }
die()  { printf '[k8s] error: %s\n' "$*" >&2; exit 1; }

# nth_ip CIDR N: the Nth address of the block.
nth_ip() {
    local a b c d n
    IFS=. read -r a b c d <<<"${1%/*}"
    n=$(( (a << 24) + (b << 16) + (c << 8) + d + $2 ))
    printf '%d.%d.%d.%d\n' $((n >> 24 & 255)) $((n >> 16 & 255)) $((n >> 8 & 255)) $((n & 255))
}
NODE_IP=$(nth_ip "$K8S_POD_CIDR" 1)
API_SVC_IP=$(nth_ip "$K8S_SVC_CIDR" 1)

# A command that fails says where, rather than ending the script without a word.
set -E
trap 'warn "line $LINENO of ${BASH_SOURCE[0]##*/} failed: $BASH_COMMAND"' ERR

need_root() { [ "$(id -u)" = 0 ] || die "run this as root"; }

# Only one up/down/build at a time on one state folder. Descriptor 9 is closed
# for every daemon started, or the lock would outlive the script.
take_lock() {
    mkdir -p "$K8S_DIR"
    exec 9>"$K8S_DIR/lock"
    flock -w 1800 9 || die "another run holds $K8S_DIR/lock"
}

# apt_install PACKAGE...: installs those that are missing; touches no network
# when none is.
apt_install() {
    local p missing=()
    for p in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing Debian packages: ${missing[*]}"
    mkdir -p "$LOGS"
    # RUNLEVEL=1: the packages' own services are not started.
    if ! { apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get \
            -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${missing[@]}"; } \
            </dev/null >>"$LOGS/apt.log" 2>&1; then
        tail -n 15 "$LOGS/apt.log" >&2
        die "apt-get could not install ${missing[*]}; see $LOGS/apt.log"
    fi
}

# A pid file holds the pid and the process's start time, so that a recycled pid
# is never taken for the daemon.
proc_start() {
    local s
    s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    s=${s##*) }
    # shellcheck disable=SC2086
    set -- $s
    [ "$1" != Z ] || return 1
    printf '%s\n' "${20}"
}

alive() {
    local pid start
    [ -f "$PIDS/$1" ] || return 1
    read -r pid start <"$PIDS/$1" || return 1
    [ -n "$start" ] && [ "$(proc_start "$pid")" = "$start" ]
}

# start NAME PORT COMMAND...: runs it in the background, detached, unless the one
# started before still runs. PORT (or -) is a loopback port that it will listen
# on: one that is taken already belongs to something else.
start() {
    local name=$1 port=$2 pid
    shift 2
    alive "$name" && return 0
    if [ "$port" != - ] && (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        die "port $port, which $name needs, is in use: another cluster may be up"
    fi
    mkdir -p "$PIDS" "$LOGS"
    printf '\n=== %s: %s\n' "$(date -u +%FT%TZ)" "$*" >>"$LOGS/$name.log"
    (
        # No part of the cluster is reached through a proxy.
        unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
        ulimit -n "$(ulimit -Hn)"
        exec setsid "$@"
    ) </dev/null >>"$LOGS/$name.log" 2>&1 9>&- &
    pid=$!
    disown
    printf '%s %s\n' "$pid" "$(proc_start "$pid" || true)" >"$PIDS/$name"
}

# stop NAME [SECONDS]: SIGTERM, then SIGKILL after SECONDS.
stop() {
    local name=$1 pid _ i
    if alive "$name"; then
        read -r pid _ <"$PIDS/$name"
        kill -TERM "$pid" 2>/dev/null || true
        for ((i = 0; i < ${2:-10} * 20; i++)); do
            alive "$name" || break
            sleep 0.05
        done
        if alive "$name"; then
            warn "$name did not stop in time: killing it"
            kill -KILL "$pid" 2>/dev/null || true
            sleep 0.2
        fi
        say "stopped $name"
    fi
    rm -f "$PIDS/$name"
}

# wait_for NAME SECONDS WHAT COMMAND...: polls until COMMAND succeeds; gives up
# as soon as the daemon NAME has died.
wait_for() {
    local name=$1 limit=$2 what=$3 t0=$SECONDS
    shift 3
    until "$@" >/dev/null 2>&1; do
        if ! alive "$name"; then
            tail -n 25 "$LOGS/$name.log" >&2
            die "$name stopped while waiting for $what; see $LOGS/$name.log"
        fi
        if ((SECONDS - t0 > limit)); then
            tail -n 25 "$LOGS/$name.log" >&2
            die "no $what after $limit s; see $LOGS/$name.log"
        fi
        sleep 0.2
    done
}

# Debian's kubectl may be old or missing where another is wanted; KUBECTL names it.
kc() { NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 "${KUBECTL:-kubectl}" --kubeconfig "$K8S_DIR/kubeconfig" "$@"; }
cctr() { ctr --address "$CONTAINERD_SOCK" --namespace k8s.io "$@"; }
