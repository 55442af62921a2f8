#!/bin/sh
# Makes a virtual environment with pip: virtual_environment.sh PYTHON FOLDER
# Debian and Ubuntu ship Python without ensurepip, which `python3 -m venv` needs; it is installed where that is possible.
set -eu
python=$1
folder=$2

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if ! command -v apt-get >/dev/null; then
        echo "$python cannot make virtual environments (ensurepip is missing); install a complete Python 3.11 or newer and run make again." >&2
        exit 1
    elif [ "$(id -u)" = 0 ]; then
        sudo=
    elif sudo -n true 2>/dev/null; then
        sudo="sudo -n"
    else
        echo "$python cannot make virtual environments yet; run: sudo apt-get install -y $package, then make again." >&2
        exit 1
    fi
    echo "Installing $package."
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null || true
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "$package" </dev/null >/dev/null
fi
"$python" -m venv --clear "$folder"
