# shellcheck shell=bash
# Sourced by run_all.sh and run_tests.sh, in the repository's root: gives a python3 that has the pinned packages.
#
#   use_packages requirements.txt
#
# makes .venv with $PYTHON (default python3.11), installs the requirements unless exactly these were installed there
# before, and puts it first on the PATH. VENV=none takes the python3 on the PATH as it is (conda, Docker, no network).

use_packages() {
    local requirements=$1 python=${PYTHON:-python3.11} stamp=.venv/$1.sha256 log=.cache/logs/setup.log wanted
    if [[ ${VENV:-} == none ]]; then
        echo "set-up: the packages of $(command -v python3)"
        return
    fi
    export PATH="$PWD/.venv/bin:$PATH"
    wanted=$(cat requirements*.txt | sha256sum)  # one may name another
    if [[ -x .venv/bin/python3 && -f $stamp && $(< "$stamp") == "$wanted" ]]; then
        echo "set-up: .venv has the packages of $requirements"
        return
    fi
    [[ -x .venv/bin/python3 ]] || command -v "$python" > /dev/null || {
        echo "set-up: error: $python: not found; install Python 3.11, or give another with PYTHON=..." >&2
        return 1
    }
    echo "set-up: installing the packages of $requirements into .venv (once; a few minutes; log in $log)"
    mkdir -p .cache/logs
    {
        { [[ -x .venv/bin/python3 ]] || "$python" -m venv .venv; } &&
            .venv/bin/python3 -m pip install --disable-pip-version-check -r "$requirements"
    } > "$log" 2>&1 || {
        tail -n 15 "$log" >&2
        echo "set-up: error: the packages of $requirements could not be installed; all of it is in $log" >&2
        return 1
    }
    echo "$wanted" > "$stamp"
}
