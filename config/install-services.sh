#!/usr/bin/env bash
# Install the servers and the browser the tests start for themselves, when they are missing and we may.
#
# Nothing is started here: the tests run private instances of the binaries. Where this script cannot help
# (not root, not Debian) it does nothing, and the tests say what to install.
set -euo pipefail

missing=()
if [[ -z "${STABILIZE_TEST_DATABASE_URL:-}" || -z "${STABILIZE_TEST_BROKER_URL:-}" ]]; then
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
    compgen -G '/usr/lib/rabbitmq/*/rabbitmq-server' >/dev/null ||
        command -v rabbitmq-server >/dev/null || missing+=(rabbitmq-server)
    [[ -n "${STABILIZE_TEST_REDIS_URL:-}" ]] || command -v redis-server >/dev/null || missing+=(redis-server)
    [[ -x /usr/sbin/pgbouncer ]] || command -v pgbouncer >/dev/null || missing+=(pgbouncer)
fi
# Chrome will do as well; the driver must be that of the browser.
command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
command -v chromedriver >/dev/null || missing+=(chromium-driver)

if [[ ${#missing[@]} -eq 0 || "$(id -u)" -ne 0 ]] || ! command -v apt-get >/dev/null; then
    exit 0
fi

# policy-rc.d is Debian's way to say that installing a server must not start it.
policy=/usr/sbin/policy-rc.d
if [[ ! -e "$policy" ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi

log="$(mktemp)"
install() {
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=300 "$@" </dev/null >>"$log" 2>&1
}
echo "Installing ${missing[*]} for the tests ..."
if ! { install update && install install --yes --no-install-recommends "${missing[@]}"; }; then
    tail -n 40 "$log" >&2
    echo "install-services: could not install ${missing[*]}; full log: $log" >&2
    exit 1
fi
rm -f "$log"
