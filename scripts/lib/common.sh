# Words that all scripts share: messages, durations, phases. Sourced, never run.
# shellcheck shell=bash

# Where builds keep what takes long to make.
CROFT_CACHE="${CROFT_CACHE:-$HOME/.cache/croft}"

# say TEXT...: a line of progress.
say() {
    printf '%s: %s\n' "${PROGRAM:-croft}" "$*" >&2
}

# fail TEXT...: says what went wrong and what to do about it, and ends the script.
fail() {
    printf '%s: error: %s\n' "${PROGRAM:-croft}" "$*" >&2
    exit 1
}

# duration SECONDS: as people say it.
duration() {
    local seconds=$1
    if ((seconds < 60)); then
        printf '%d s' "$seconds"
    elif ((seconds < 3600)); then
        printf '%d min %02d s' $((seconds / 60)) $((seconds % 60))
    else
        printf '%d h %02d min' $((seconds / 3600)) $((seconds % 3600 / 60))
    fi
}

# Phases of a long script, for the table at its end: name, result and seconds of each.
PHASE_NAMES=()
PHASE_RESULTS=()
PHASE_SECONDS=()

# phase NAME COMMAND...: runs a command as a phase. A failure is recorded and returned; the script
# decides whether to go on.
phase() {
    local name=$1 started=$SECONDS status=0
    shift
    say "== $name"
    "$@" || status=$?
    PHASE_NAMES+=("$name")
    PHASE_SECONDS+=($((SECONDS - started)))
    if ((status == 0)); then
        PHASE_RESULTS+=(ok)
    else
        PHASE_RESULTS+=("FAILED ($status)")
    fi
    return "$status"
}

# skipped NAME REASON...: records a phase that can't run here, so that its absence is seen.
skipped() {
    local name=$1
    shift
    say "== $name: skipped: $*"
    PHASE_NAMES+=("$name")
    PHASE_SECONDS+=(0)
    PHASE_RESULTS+=("skipped: $*")
}

# phase_table: what happened, one line per phase and a total.
phase_table() {
    local index total=0
    printf '\n%-34s %14s  %s\n' phase time result
    for index in "${!PHASE_NAMES[@]}"; do
        printf '%-34s %14s  %s\n' "${PHASE_NAMES[index]}" "$(duration "${PHASE_SECONDS[index]}")" \
            "${PHASE_RESULTS[index]}"
        total=$((total + PHASE_SECONDS[index]))
    done
    printf '%-34s %14s\n' total "$(duration "$total")"
}
