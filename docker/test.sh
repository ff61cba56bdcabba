#!/usr/bin/env bash
# Builds the image and tests it as documented for production: read-only, without capabilities, not as
# root, with memory and CPU limits. The test streams, stops the server, and starts it again.
#
#   docker/test.sh [BINARY]       the image from a release binary (target/release/skald)
#   docker/test.sh --whole        the image from the complete Dockerfile
#
# ENGINE=docker uses Docker and the base images that the Dockerfile names. Without it, buildah and
# podman work without a daemon and without pulling: the base image is made with debootstrap from
# the package mirror of this machine, and --whole builds with this machine's Rust toolchain and
# crates. That needs root. Base and image stay under target/container, so another run is quick.
set -euo pipefail
[ ! -e "${1:-}" ] || set -- "$(realpath "$1")"
cd "$(dirname "$0")/.."

suite=trixie
image=localhost/skald:test
base=localhost/skald-test-debian:$suite
builder=localhost/skald-test-builder:$suite
state=$PWD/target/container
# Fixed names, so that the leftovers of a killed run are found and removed.
server=skald-test-server
visitor=skald-test-visitor
sessions=skald-test-sessions
# Time limit for each request below, on a slow and busy machine.
patience=300

main() {
    local whole=false binary=target/release/skald
    case ${1:-} in
        --whole) whole=true ;;
        -*) fail "unknown option $1; see the head of this script" ;;
        ?*) binary=$1 ;;
    esac
    mkdir -p "$state"
    case ${ENGINE:-podman} in
        docker) engine=docker ;;
        podman)
            engine=podman
            packages buildah podman runc debootstrap debian-archive-keyring curl ca-certificates
            ;;
        *) fail "ENGINE is ${ENGINE}; it must be docker or podman" ;;
    esac
    scratch=$(mktemp -d)
    trap clean EXIT
    remove

    step "image"
    if $whole; then build_whole; else build_from "$binary"; fi
    check_image

    step "start: read-only, no capabilities, 512 MiB, 1.5 CPUs"
    start
    wait_until_healthy
    check_process
    check_resources

    step "a stream through the port, and SIGTERM in the middle of it"
    open_session
    stop_within_a_stream

    step "another container with the same sessions, and a KV cache that fills up"
    start
    wait_until_healthy
    check_session
    fill_kv_cache
    check_no_zombies
    stop_by INT

    step "signals to a command that is not a server"
    stop_a_command
    echo "container: all passed"
}

fail() {
    echo "docker/test.sh: $*" >&2
    if [ -n "${scratch:-}" ]; then
        e logs "$server" >"$scratch/last" 2>&1 || mv "$scratch/log" "$scratch/last" 2>/dev/null || true
        tail -20 "$scratch/last" >&2
    fi
    exit 1
}

step() { printf '%s  %s\n' "$(date +%T)" "$*"; }

# Repeats a command until it succeeds.
until_true() {
    local what=$1 deadline=$((SECONDS + patience))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || fail "not within $patience s: $what"
        sleep 0.1
    done
}

# Installs missing Debian packages.
packages() {
    local missing=() package
    for package in "$@"; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    apt-get -o DPkg::Lock::Timeout=300 update -qq
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
        install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# --- the two engines ---

# Runs the engine with its own storage.
e() {
    if [ $engine = docker ]; then
        docker "$@"
    else
        podman --root "$state/storage" --runroot "$state/run" --storage-driver vfs \
            --runtime runc --cgroup-manager cgroupfs --events-backend file "$@"
    fi
}

# Builds the image, replacing that of an earlier run.
build() {
    e image rm --no-prune "$image" >/dev/null 2>&1 || true
    local common=(--file docker/Dockerfile --tag "$image" --build-arg "VERSION=$(version)"
        --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)")
    if [ $engine = docker ]; then
        docker build "${common[@]}" "$@"
    else
        # OCI images have no health check.
        bud "${common[@]}" --build-arg "RUNTIME_IMAGE=$base" \
            --build-arg "BUILDER_IMAGE=$builder" "$@"
    fi
}

bud() {
    buildah --root "$state/storage" --runroot "$state/run" --storage-driver vfs \
        bud --isolation chroot --format docker --layers --pull-never "$@"
}

# Starts a container as documented.
run() {
    local name=$1
    shift
    # By default podman gives a read-only container writable directories.
    [ $engine = docker ] || set -- --read-only-tmpfs=false "$@"
    # Podman also prints harmless warnings if systemd does not run its health checks.
    e run --detach --name "$name" --read-only --cap-drop all --security-opt no-new-privileges \
        --memory 512m --memory-swap 512m --cpus 1.5 \
        --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$@" >"$scratch/run" 2>&1 \
        || fail "$name does not start: $(cat "$scratch/run")"
}

remove() {
    local name
    # One by one: removal stops at the first that does not exist.
    for name in "$server" "$visitor"; do
        e rm --force --volumes "$name" >/dev/null 2>&1 || true
    done
    e volume rm --force "$sessions" >/dev/null 2>&1 || true
}

clean() {
    remove
    rm -rf "$scratch"
}

version() { sed -n 's/^version = "\(.*\)"/\1/p;T;q' Cargo.toml; }

# --- the image ---

build_from() {
    [ -x "$1" ] || fail "$1 is not a program; run cargo build --release first, or name a binary"
    [ $engine = docker ] || make_base
    mkdir "$scratch/context"
    cp "$1" "$scratch/context/skald"
    cp LICENSE "$scratch/context/"
    build --target prebuilt --build-arg BINARY=skald "$scratch/context"
}

build_whole() {
    local begun=$SECONDS
    if [ $engine = docker ]; then
        build .
    else
        make_base
        make_builder
        local cargo_home=${CARGO_HOME:-$HOME/.cargo} file mounts=()
        for file in registry git config.toml; do
            [ ! -e "$cargo_home/$file" ] || mounts+=(--volume "$cargo_home/$file:/usr/local/cargo/$file")
        done
        build "${mounts[@]}" --volume "$(rustc --print sysroot):/usr/local/rust:ro" .
    fi
    echo "whole build: $((SECONDS - begun)) s"
}

# Creates the substitute for debian:trixie-slim, once.
make_base() {
    e image exists "$base" && return
    echo "making $base with debootstrap"
    rm -rf "$state/rootfs"
    debootstrap --variant=minbase --include=ca-certificates $suite "$state/rootfs" $(mirror) \
        >"$state/debootstrap.log" 2>&1 \
        || fail "debootstrap failed; see $state/debootstrap.log"
    tar -C "$state/rootfs" --exclude='./var/cache/apt/archives/*.deb' -c . \
        | e import - "$base" >/dev/null
    rm -rf "$state/rootfs"
}

# Prints the mirror that apt uses; prints nothing on other systems, where debootstrap has a default.
mirror() {
    apt-get indextargets --format '$(REPO_URI)' \
        'Origin: Debian' 'Label: Debian' 'Created-By: Packages' 2>/dev/null | head -1
}

# Creates the substitute for rust:1-slim-trixie, once. The toolchain is mounted during the build.
make_builder() {
    e image exists "$builder" && return
    echo "making $builder"
    bud --tag "$builder" --file - "$scratch" >/dev/null <<DOCKERFILE
FROM $base
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
DOCKERFILE
}

check_image() {
    local size user
    size=$(e image inspect --format '{{.Size}}' "$image")
    user=$(e image inspect --format '{{.Config.User}}' "$image")
    echo "size: $((size / 1000000)) MB, user: $user"
    [ "$size" -lt 100000000 ] || fail "the image has $size bytes; it must be below 100 MB"
    [[ $user =~ ^[1-9][0-9]*(:[0-9]+)?$ ]] || fail "the image's user is '$user'; it must be numeric and not 0"
}

# --- the server ---

# Starts the server. Docker publishes its port; podman uses the host's network, which needs no setup,
# so there the server itself listens on the port.
start() {
    free_port
    local network=(--publish "127.0.0.1:$port:8080")
    [ $engine = docker ] || network=(--network host --env "SKALD_LISTEN=127.0.0.1:$port")
    run "$server" "${network[@]}" --volume "$sessions:/var/lib/skald/sessions" \
        --env SKALD_SESSION_DIR=/var/lib/skald/sessions --env SKALD_DRAIN_TIMEOUT=${patience}s \
        "$image"
}

free_port() {
    local port_is_free=false
    until $port_is_free; do
        port=$((20000 + RANDOM % 10000))
        (: </dev/tcp/127.0.0.1/$port) 2>/dev/null || port_is_free=true
    done
    url=http://127.0.0.1:$port
}

wait_until_healthy() {
    until_true "healthy" is_healthy
    # The image's own health check, and `skald health` without a server.
    [ $engine = docker ] || e healthcheck run "$server" || fail "the image's health check failed"
    ! e exec "$server" skald health http://127.0.0.1:9 >"$scratch/health" 2>&1 \
        || fail "skald health found a server where there is none"
}

is_healthy() {
    is_running "$server" || fail "the server ended"
    e exec "$server" skald health >/dev/null 2>&1
}

is_running() { [ "$(e inspect --format '{{.State.Running}}' "$1")" = true ]; }

pid() { e inspect --format '{{.State.Pid}}' "$1"; }

# Checks the restrictions of the process.
check_process() {
    local status=/proc/$(pid "$server")/status
    grep -q '^NSpid:.*\s1$' "$status" || fail "the server is not process 1 of its container"
    grep -q '^Uid:\s*10001\s' "$status" || fail "the server's user is not 10001"
    grep -q '^CapEff:\s*0*$' "$status" || fail "the server has capabilities"
    grep -q '^NoNewPrivs:\s*1$' "$status" || fail "the server may gain privileges"
    awk '$5 == "/" && $6 ~ /^ro(,|$)/ { found = 1 } END { exit !found }' \
        "/proc/$(pid "$server")/mountinfo" || fail "the server's root is writable"
}

# Checks that the log reports threads and KV cache, both derived from the cgroup.
check_resources() {
    local log
    log=$(e logs "$server" 2>&1)
    echo "$log" | grep -o '"\(threads\|memory_limit\|kv_cache\)[a-z_]*":\("[^"]*"\|[0-9]*\)' | paste -sd' '
    grep -q '"threads":1,' <<<"$log" || fail "1.5 CPUs are not 1 thread"
    [ "$(nproc)" -eq 1 ] || grep -q '"threads_from":"cgroup CPU quota"' <<<"$log" \
        || fail "the threads do not come from the cgroup"
    grep -q '"memory_limit":"512.0 MiB"' <<<"$log" || fail "the memory limit is not the container's"
    grep -q '"kv_cache_from":"cgroup memory limit"' <<<"$log" \
        || fail "the KV cache's memory does not come from the cgroup"
}

complete() { curl -sSN --fail-with-body --max-time $patience "$url/v1/completions" -d "$1"; }

open_session() {
    complete '{"prompt": "Once upon a time", "max_tokens": 20, "ignore_eos": true, "session_id": "tale"}' \
        >/dev/null || fail "a session's first turn failed"
    tokens=$(session_tokens)
}

session_tokens() {
    curl -sS --fail-with-body "$url/v1/sessions/tale" | grep -o '"token_count":[0-9]*'
}

# Sends SIGTERM during a stream: the stream must finish, then the server must stop.
stop_within_a_stream() {
    local length=1500 stream=$scratch/stream
    : >"$stream"
    complete '{"prompt": "The king", "stream": true, "ignore_eos": true, "overflow": "slide",
        "max_tokens": '$length', "stream_options": {"include_usage": true}}' >"$stream" &
    local client=$!
    until_true "the stream begins" grep -q '"text"' "$stream"
    e kill --signal TERM "$server" >/dev/null
    until_true "the server drains" is_draining
    ! grep -q 'DONE' "$stream" || fail "the stream was over before the server began to drain"
    wait $client || fail "the stream was cut off"
    ended "$server" 0
    grep -q '^data: \[DONE\]' "$stream" || fail "the stream has no end"
    grep -q '"finish_reason":"length"' "$stream" || fail "the stream did not finish by its length"
    grep -q "\"completion_tokens\":$length" "$stream" || fail "the stream has not all its tokens"
}

is_draining() { [ "$(curl -s -o /dev/null -w '%{http_code}' "$url/readyz")" = 503 ]; }

# Waits for a container to exit, and checks its exit code.
ended() {
    local name=$1 expected=$2 code
    until_true "$name ends" has_ended "$name"
    [ "$(e inspect --format '{{.State.OOMKilled}}' "$name")" = false ] || fail "$name ran out of memory"
    code=$(e inspect --format '{{.State.ExitCode}}' "$name")
    [ "$code" = "$expected" ] || fail "$name ended with $code, not with $expected"
    e logs "$name" >"$scratch/log" 2>&1
    e rm --volumes "$name" >/dev/null 2>&1
}

has_ended() { [ "$(e inspect --format '{{.State.Running}}' "$1")" = false ]; }

check_session() {
    local now
    now=$(session_tokens) || fail "the session is gone"
    [ "$now" = "$tokens" ] || fail "the session has $now, not $tokens"
    complete '{"prompt": " and then", "max_tokens": 5, "session_id": "tale"}' >/dev/null \
        || fail "the session does not continue"
}

# Sends more concurrent prompts than the KV cache holds: memory must stay within the limit.
fill_kv_cache() {
    local network=host target=$url blocks known
    [ $engine = podman ] || network=container:$server target=http://127.0.0.1:8080
    run "$visitor" --network "$network" "$image" bench "$target" \
        --concurrency 64 --requests 80 --prompt-tokens 700 --output-tokens 8
    is_running "$server" || fail "the server did not survive a full KV cache"
    ended "$visitor" 0
    blocks=$(engine_figure kv_blocks) known=$(engine_figure kv_blocks_cached)
    echo "KV blocks cached: $known of $blocks; peak memory:" \
        "$(sed -n 's/^VmHWM:\s*//p' "/proc/$(pid "$server")/status")"
    [ "$known" -gt $((blocks * 9 / 10)) ] || fail "the KV cache has not been filled"
}

engine_figure() { curl -sS "$url/info" | grep -o "\"$1\": *[0-9]*" | grep -o '[0-9]*$'; }

# Checks that finished health checks and commands in the container leave no zombies.
check_no_zombies() {
    ! ps -o stat= --ppid "$(pid "$server")" | grep -q Z || fail "there are zombies in the container"
}

stop_by() {
    e kill --signal "$1" "$server" >/dev/null
    ended "$server" 0
}

# Process 1 receives only signals that it has a handler for.
stop_a_command() {
    # It is waiting for its prompt on standard input.
    run "$visitor" --network none --interactive "$image" generate -
    until_true "the command handles SIGTERM" handles_sigterm
    e kill --signal TERM "$visitor" >/dev/null
    ended "$visitor" 143
}

# Signal 15 is bit 14 of the mask.
handles_sigterm() {
    local caught
    caught=$(sed -n 's/^SigCgt:\s*//p' "/proc/$(pid "$visitor")/status")
    [ $((0x$caught >> 14 & 1)) -eq 1 ]
}

main "$@"
