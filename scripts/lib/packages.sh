# What scripts/setup knows about packages. Sourced, never run; every function takes the root of the
# system it looks at, so that tests can give it another one.
# shellcheck shell=bash

# From the distribution itself: package, and what needs it.
PACKAGES=(
    build-essential flex bison bc libelf-dev libssl-dev cpio rsync kmod xz-utils # kernels
    libseccomp-dev libcap-ng-dev pkg-config                                      # virtiofsd, linked statically
    e2fsprogs zstd                                                               # image
    ovmf seabios ipxe-qemu                                                       # firmware of test machines
    dnsmasq-base                                                                 # the DHCP server beside a netboot server
    erofs-utils cryptsetup-bin umoci skopeo mmdebstrap                           # workload images, and peers in tests
    nftables iproute2                                                            # networks of tests
    libfaketime                                                                  # wrong clocks in tests
    sbsigntool xorriso genisoimage dosfstools mtools gdisk                       # peers of boot media in tests
    swtpm swtpm-tools                                                            # TPMs of tests
    curl ca-certificates                                                         # the VMM's release
)
# Debian 12 has these in versions that are too old, or not at all; its backports have them. QEMU's two
# packages depend on each other's exact version, so both come from one place.
NEWER_PACKAGES=(qemu-system-x86 qemu-utils linux-source-6.12)
# Only for `cargo xtask bench ledger`: what the ledger is measured beside.
BENCH_PACKAGES=(etcd-server postgresql)
# Debian 12's compiler for WebAssembly, for machines whose Rust toolchain has no such target. Unpacked by scripts/skills, never
# installed: its rustc is older than ours.
WASM_PACKAGES=(rustc libstd-rust-1.63 libstd-rust-dev-wasm32 libllvm14 lld-14)
# The QEMU with which everything here was measured.
QEMU_MIN_VERSION='1:10.0'
# Our oldest Rust: that of agents/skills, whose engine asks for more than the rest does.
RUST_MIN_VERSION=1.95
# Kernel trees, build results and test machines' disks.
DISK_MIN_GB=15

# release_codename ROOT: bookworm, trixie…
release_codename() {
    # Values may be quoted (os-release(5)).
    sed -n 's/^VERSION_CODENAME=//p' "$1/etc/os-release" 2>/dev/null | tr -d "\"'"
}

# plugin_headers CODENAME: what the node's kernel is built with: headers for plugins of the release's own gcc.
plugin_headers() {
    case $1 in
    trixie) echo gcc-14-plugin-dev ;;
    *) echo gcc-12-plugin-dev ;;
    esac
}

# missing_packages ROOT PACKAGE...: those that are not installed, one per line.
missing_packages() {
    local root=$1 installed package
    shift
    # dpkg-query fails as soon as one package is unknown, and prints the others all the same.
    installed=$(dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${db:Status-Abbrev}|${Package}\n' "$@" 2>/dev/null |
        sed -n 's/^.i.*|//p') || true
    for package in "$@"; do
        grep -qxF "$package" <<<"$installed" || printf '%s\n' "$package"
    done
}

# missing_newer_packages ROOT: those of NEWER_PACKAGES that are not installed, or too old.
missing_newer_packages() {
    local root=$1 version missing
    missing=$(missing_packages "$root" "${NEWER_PACKAGES[@]}")
    version=$(dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${Version}' qemu-system-x86 2>/dev/null) || true
    if [[ -n $version && $missing != *qemu-system-x86* ]] &&
        dpkg --compare-versions "$version" lt "$QEMU_MIN_VERSION"; then
        missing+=$'\nqemu-system-x86\nqemu-utils'
    fi
    # QEMU's packages move together.
    if [[ $missing == *qemu* ]]; then
        missing+=$'\nqemu-system-x86\nqemu-utils'
    fi
    sed '/^$/d' <<<"$missing" | sort -u
}

# has_backports ROOT CODENAME: does the system have an entry for its backports already?
has_backports() {
    local root=$1 suite=$2-backports
    # Comments don't count; a one-line entry has the suite as a word, a deb822 one in its Suites field.
    find "$root/etc/apt/sources.list" "$root/etc/apt/sources.list.d" -maxdepth 1 -type f \
        \( -name '*.list' -o -name '*.sources' -o -name sources.list \) -print0 2>/dev/null |
        xargs -0 -r sed 's/#.*//' | grep -E "(^|[[:space:]])$suite([[:space:]]|\$)" >/dev/null
}

# backports_entry ROOT CODENAME: prints an entry for the backports suite in the format (deb822) of
# /etc/apt/sources.list.d/*.sources, derived from the system's own entry for the suite CODENAME: the
# same server, the same keys. Fails when the system has no such entry.
backports_entry() {
    local root=$1 codename=$2 file entry
    for file in "$root"/etc/apt/sources.list.d/*.sources; do
        [[ -f $file ]] || continue
        entry=$(backports_from_deb822 "$codename" <"$file")
        [[ -n $entry ]] && printf '%s\n' "$entry" && return 0
    done
    for file in "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*.list; do
        [[ -f $file ]] || continue
        entry=$(backports_from_lines "$codename" <"$file")
        [[ -n $entry ]] && printf '%s\n' "$entry" && return 0
    done
    return 1
}

# backports_from_deb822 CODENAME: from the stanzas on standard input. All fields of the stanza stay,
# except Suites and Components; comments go. Keys may be written out in the stanza over many lines.
backports_from_deb822() {
    awk -v codename="$1" '
        function finish() {
            if (binary && suite && enabled && main) { printf "%s", kept; found = 1; exit }
            kept = ""; binary = 0; suite = 0; main = 0; enabled = 1; dropping = 0
        }
        function has(word,    words, count, i) {
            count = split($0, words, /[ \t:]+/)
            for (i = 2; i <= count; i++) if (words[i] == word) return 1
            return 0
        }
        BEGIN { enabled = 1 }
        /^#/ { next }
        /^[ \t]*$/ { finish(); next }
        /^[ \t]/ { if (!dropping) kept = kept $0 "\n"; next }
        {
            field = tolower($0); sub(/:.*/, "", field); dropping = 0
            if (field == "types") { binary = has("deb"); kept = kept "Types: deb\n" }
            else if (field == "suites") { suite = has(codename); kept = kept "Suites: " codename "-backports\n" }
            else if (field == "components") { main = has("main"); kept = kept "Components: main\n" }
            else if (field == "enabled") { enabled = !(has("no") || has("false") || has("0")) }
            else { kept = kept $0 "\n"; next }
            dropping = 1
        }
        END { if (!found) finish() }
    '
}

# backports_from_lines CODENAME: from one-line entries (sources.list(5)) on standard input.
backports_from_lines() {
    awk -v codename="$1" '
        { sub(/#.*/, "") }
        $1 != "deb" || /[ \t]cdrom:/ { next }
        {
            line = $0; options = ""
            if (match(line, /\[[^]]*\]/)) {
                options = substr(line, RSTART + 1, RLENGTH - 2)
                line = substr(line, 1, RSTART - 1) substr(line, RSTART + RLENGTH)
            }
            count = split(line, words, /[ \t]+/)
            if (words[3] != codename) next
            main = 0
            for (i = 4; i <= count; i++) if (words[i] == "main") main = 1
            if (!main) next
            print "Types: deb"
            print "URIs: " words[2]
            print "Suites: " codename "-backports"
            print "Components: main"
            count = split(options, pairs, /[ \t]+/)
            for (i = 1; i <= count; i++) {
                if (split(pairs[i], pair, "=") != 2) continue
                name = tolower(pair[1]); gsub(",", " ", pair[2])
                if (name == "signed-by") print "Signed-By: " pair[2]
                if (name == "arch") print "Architectures: " pair[2]
                if (name == "trusted") print "Trusted: " pair[2]
            }
            exit
        }
    '
}

# free_gb PATH: free space where PATH is or would be, in whole GB.
free_gb() {
    local path=$1
    while [[ ! -e $path ]]; do
        path=$(dirname "$path")
    done
    df --output=avail -B 1000000000 "$path" | tail -n 1 | tr -d ' '
}

# version_at_least VERSION MINIMUM
version_at_least() {
    local sorted
    sorted=$(printf '%s\n%s\n' "$1" "$2" | sort -V)
    [[ ${sorted%%$'\n'*} == "$2" ]]
}

# apt_cause LOG: one line that says why apt failed and what to do, from what it printed.
apt_cause() {
    local log=$1
    if grep -qE 'Could not get lock|Unable to acquire the dpkg frontend lock|Unable to lock' "$log"; then
        echo "another package manager is running and holds apt's lock: wait until it has finished, then run this again"
    elif grep -qE 'Temporary failure resolving|Could not resolve|Could not connect|Connection timed out|Network is unreachable|Connection refused' "$log"; then
        echo "the package server can't be reached: check the network (and the proxy in /etc/apt/apt.conf.d), then run this again"
    elif grep -qE 'No space left on device|enough free space' "$log"; then
        echo "the disk is full: free some space, then run this again"
    elif grep -qE 'Permission denied|are you root' "$log"; then
        echo "no rights to install packages: run this as root, or through sudo"
    elif grep -qE 'dpkg was interrupted' "$log"; then
        echo "an earlier installation was interrupted: run 'dpkg --configure -a' as root, then run this again"
    elif grep -qE 'Unable to locate package|has no installation candidate' "$log"; then
        echo "$(grep -m 1 -oE 'Unable to locate package.*|Package .* has no installation candidate' "$log"): is the distribution's entry in /etc/apt complete?"
    elif grep -qE 'unmet dependencies|held broken packages' "$log"; then
        echo "apt can't combine what is needed with what is installed or held: see $log"
    else
        echo "the last lines of $log are: $(tail -n 3 "$log" | tr '\n' ' ')"
    fi
}
