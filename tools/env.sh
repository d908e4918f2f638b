# Sourced by every script here: where things are, and the settings that let all builds share one target folder.
# Anyone may source it in a bash shell too:  source tools/env.sh

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
target=${CARGO_TARGET_DIR:-$top/target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
if [ -n "${CARGO_TARGET_DIR:-}" ]; then export CARGO_TARGET_DIR=$target; fi

CARGO_PGRX_VERSION=0.18.1

# Set but empty: cargo-pgrx passes flags of its own, and every crate would be built twice, once for it and once for cargo.
export CARGO_ENCODED_RUSTFLAGS=
export PGRX_HOME=$target/pgrx
case :$PATH: in *:"$target/tools/bin":*) ;; *) export PATH=$target/tools/bin:$PATH ;; esac

# The unpacked libclang has no headers of its own (stddef.h and friends): those of the C compiler serve.
if [ -f "$target/libclang/libclang.so" ]; then
    export LIBCLANG_PATH=$target/libclang
    export BINDGEN_EXTRA_CLANG_ARGS="-isystem $(cc -print-file-name=include)"
fi

# The newest server is the default to build for. Always set: setting and unsetting it in turn rebuilds the bindings each time.
newest=$(MIGRATOR_PG='' "$top/tools/servers" | tail -n 1 | cut -d ' ' -f 2-)
if [ -n "$newest" ]; then export PGRX_PG_CONFIG_PATH=$newest; fi

say() { printf '%s\n' "$*" >&2; }

# can_install: may this script install Debian packages without asking anybody?
can_install() {
    command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# install_packages NAME…: those of these Debian packages that are not installed yet, and nothing is upgraded that need not be.
# No service is started or restarted, and no cluster is made. What apt-get says goes to a file, shown when it fails.
install_packages() {
    local name missing=() log policy=/usr/sbin/policy-rc.d clusters=/etc/postgresql-common/createcluster.d/migrator-setup.conf
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q ' installed$' || missing+=("$name")
    done
    if [ ${#missing[@]} = 0 ]; then return; fi

    say "installing from Debian: ${missing[*]}"
    mkdir -p "$target"
    log=$target/apt.log
    as_root mkdir -p "${clusters%/*}"
    echo 'create_main_cluster = false' | as_root tee "$clusters" >/dev/null
    if [ -e "$policy" ]; then
        policy=
    else
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
    fi
    local code=0
    {
        apt-cache show "${missing[@]}" >/dev/null 2>&1 || as_root apt-get update -qq || true
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" ||
            { as_root apt-get update -qq &&
                as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; }
    } >"$log" 2>&1 </dev/null || code=$?
    as_root rm -f "$clusters" ${policy:+"$policy"}
    if [ "$code" != 0 ]; then tail -n 20 "$log" >&2; fi
    return "$code"
}
