# Runs on the device that is measured, and samples its power: POSIX sh, coreutils, util-linux, tar, gzip.
#
# It says what the device is, receives one archive of files, does the steps that the file `steps`
# lists, and reports each. All judging is done at the other end, which sets `mark`, `silence`,
# `patience` and `idle` in front of this text. Requests come as lines on standard input; an empty
# line says that the other end is still there. The end of standard input, or silence, ends
# everything here.

root=${HGKD_EDGE_SYSROOT:-/} # in a container the device's own files are often mounted elsewhere
jobs=${XDG_CACHE_HOME:-$HOME/.cache}/hgkd-edge/jobs
umask 077
export ORT_DISABLE_TELEMETRY=1 # ONNX Runtime reports to Microsoft otherwise

# --- what is sent: messages of marked lines, each written at once, so that nothing comes between

send() { # NAME: standard input, packed
    gzip -c | base64 -w 3000 | {
        while IFS= read -r piece; do printf '%s%s %s\n' "$mark" "$1" "$piece"; done
        printf '%s%s .\n' "$mark" "$1"
    }
}

# --- what the device is: raw texts, empty where there is none

show() { # PATH below the root; the device tree separates by NUL
    { tr '\0' '\n' <"$root/$1"; } 2>/dev/null | head -c 200000
}

ask() { # COMMAND...
    ! command -v "$1" >/dev/null || timeout 60 "$@" | head -c 200000
}

tabulate() { # FILE... for each folder on standard input: its name, then the files' texts
    while IFS= read -r folder; do
        printf '%s' "${folder##*/}"
        for file in "$@"; do printf '\t%s' "$(cat "$folder/$file" 2>/dev/null | tr '\0' ' ')"; done
        echo
    done
}

overcurrent() {
    for file in "$root"/sys/class/hwmon/hwmon*/oc*_event_cnt; do
        [ ! -r "$file" ] || echo "${file##*/} $(cat "$file")"
    done
}

fact() { # NAME: what follows is this fact
    printf '\n%s%s\n' "$mark" "$1"
}

facts() {
    fact nv_tegra_release && show etc/nv_tegra_release
    fact model && show sys/firmware/devicetree/base/model
    fact compatible && show sys/firmware/devicetree/base/compatible
    fact nvpmodel_conf && show etc/nvpmodel.conf
    fact cpuinfo && show proc/cpuinfo
    fact loadavg && show proc/loadavg
    fact governor && show sys/devices/system/cpu/cpu0/cpufreq/scaling_governor
    fact nvpmodel && ask nvpmodel -q 2>&1
    fact devfreq && ls -d "$root"/sys/class/devfreq/* 2>/dev/null |
        tabulate device/of_node/name min_freq max_freq cur_freq
    fact temperatures && ls -d "$root"/sys/class/thermal/thermal_zone* 2>/dev/null |
        tabulate type temp
    fact machine && uname -m
    fact system && uname -sr
    fact cores && nproc --all
    fact usable_cores && nproc
    # Packages print warnings when they are imported, such as ONNX Runtime's about GPUs.
    fact python && ask python3 -c 'import platform; print(platform.python_version())' 2>/dev/null
    trtexec=$(PATH=$PATH:/usr/src/tensorrt/bin command -v trtexec)
    fact trtexec && echo "$trtexec"
    if [ -n "$trtexec" ]; then
        fact trtexec_help && ask "$trtexec" --help 2>&1
    else
        fact onnxruntime &&
            ask python3 -c 'import onnxruntime, numpy; print(onnxruntime.__version__)' 2>/dev/null
    fi
    fact free && df -Pk "$jobs" # which does not count what an earlier session left
}

# --- the connection

heard() { # SECONDS: the next line, in `reply`; fails when the input ends (1) or stays silent (124)
    reply=$(timeout "$1" sh -c 'IFS= read -r reply && printf "%s\n" "$reply"')
}

receive() { # SIZE bytes, in pieces, so that a line that freezes is noticed
    left=$1
    while [ "$left" -gt 0 ]; do
        piece=$((left < 1048576 ? left : 1048576))
        timeout "$silence" head -c "$piece" || return 1
        left=$((left - piece))
    done
}

leave() { # [keep]: end what runs; remove the folder, unless `keep` and it holds a finished build
    trap '' HUP TERM
    if [ -n "$work" ]; then
        kill -TERM "-$work"
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            ! kill -0 "-$work" || sleep 0.1
        done
        kill -KILL "-$work"
    fi 2>/dev/null
    cd /
    if [ "$1" != keep ] || ! ls "$home"/*.done >/dev/null 2>&1; then rm -rf "$home"; fi
    exit 0
}

serve() {
    mkdir -p "$jobs"
    find "$jobs" -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf {} +
    facts </dev/null | send facts
    until [ -n "$reply" ]; do heard "$silence" || exit 0; done
    [ "$reply" != bye ] || exit 0
    set -- $reply # ID yes|no: the folder's name, and whether what is in it counts
    exec 9<"$jobs" # the lock of this device: held to the end of this process
    waited=0
    until flock -n 9; do
        [ "$waited" -lt "$patience" ] || { : | send taken && exit 0; }
        [ "$waited" -gt 0 ] || : | send waiting
        waited=$((waited + 1))
        heard 1 || [ $? -eq 124 ] || exit 0
    done
    home=$jobs/$1
    trap 'leave keep' HUP TERM
    [ "$2" = yes ] || rm -rf "$home"
    mkdir -p "$home" && cd "$home" || exit 1
    rm -f go power ended
    : | send ready
    reply=
    until [ -n "$reply" ]; do heard "$silence" || leave keep; done
    receive "$reply" | tar -xf - || leave keep
    setsid sh -c "$script" sh work </dev/null & # a separate group, which `leave` ends whole
    work=$!
    while heard "$silence"; do
        case $reply in
            go) : >go ;;
            bye) leave ;;
        esac
        # A work that was killed reports nothing.
        kill -0 "$work" 2>/dev/null || [ -e ended ] || leave keep
    done
    leave keep
}

# --- the work

stamp() { # each line with the seconds since the board started, which no clock can set
    while IFS= read -r line; do
        read -r now _ </proc/uptime
        printf '%s %s\n' "$now" "$line"
    done
}

watch() { # NAME: the peak memory of its process; ends all when nobody listens
    while sleep 2; do
        kill -0 "$PPID" || kill -KILL 0
        sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$(cat "$1.pid")/status" >"$1.peak"
    done 2>/dev/null
}

run() { # NAME: the program and arguments in NAME.args, one a line
    name=$1
    set --
    while IFS= read -r argument; do set -- "$@" "$argument"; done <"$name.args"
    : >"$name.log" && : >"$name.peak"
    watch "$name" &
    watcher=$!
    {
        "$@" 2>&1 </dev/null &
        echo $! >"$name.pid"
        wait $!
        echo $? >"$name.code"
    } | stamp >"$name.log"
    kill "$watcher"
}

report() { # NAME RESULT: exit code, peak memory, lines of the log; the log; RESULT; fails if NAME did
    read -r code <"$1.code"
    read -r peak <"$1.peak"
    {
        echo "$code ${peak:-0} $(wc -l <"$1.log")"
        cat "$1.log" "$2" 2>/dev/null
    } | send done
    [ "$code" -eq 0 ]
}

build() { # NAME ENGINE: unless a finished one of the same arguments is there
    reused=yes
    if ! sha256sum -c --status "$1.done" 2>/dev/null; then
        reused=no
        run "$1"
        # Written last and renamed: an engine without it is half built and is built again.
        sha256sum "$2" "$1.args" >"$1.tmp" && mv "$1.tmp" "$1.done"
    fi
    echo "$reused $(wc -c <"$2")" >"$1.result"
    report "$1" "$1.result" || rm -f "$2" # then the steps that need it are skipped
}

telemetry() { # into `power`: a line ten times a second until the work ends
    if command -v tegrastats >/dev/null; then
        tegrastats --interval 100 2>/dev/null | stamp >>power &
        sleep "$idle"
    fi
    { overcurrent; echo started; } | stamp >>power
}

work() {
    trap ': >ended' EXIT
    while IFS=' ' read -r kind name result needed; do
        [ -z "$needed" ] || [ -e "$needed" ] || continue
        case $kind in
            build) build "$name" "$result" ;;
            run)
                rm -f "$result"
                run "$name"
                report "$name" "$result" || exit 1
                ;;
            idle)
                until [ -e go ]; do sleep 0.1 && kill -0 "$PPID" || exit 1; done
                telemetry
                ;;
        esac
    done <steps
    overcurrent | stamp >>power
    send power <power
}

for tool in base64 flock gzip setsid sha256sum tar timeout; do
    command -v "$tool" >/dev/null || { echo "$tool is not installed" >&2 && exit 127; }
done
case $1 in
    work) work ;;
    *) serve ;;
esac
