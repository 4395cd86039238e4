#!/bin/sh
# Makes .venv and installs ctflow with the pinned versions; does nothing when that is done already.
#
# Called by make from the top of the source tree, with PYTHON, TORCH and PIP_ARGS in the environment
# (`make help` explains them).
set -eu

venv=.venv
stamp=$venv/.installed       # written last; says what was installed and where
unfinished=$venv/.unfinished # there while we install; a call that finds it starts afresh

fail() {
    printf 'ctflow: %s\n' "$*" >&2
    exit 1
}

state() { # what an installation depends on: a moved folder needs a new one as well
    pwd
    cksum pyproject.toml constraints.txt
}

version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || echo "not installed"; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

has_torch() { # importable there, and not too old for ctflow
    "$1" -c 'import re, sys, torch
sys.exit(tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 11))' >/dev/null 2>&1
}

choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" ||
            fail "Python 3.11 or newer is needed, but PYTHON=$PYTHON is $(version "$PYTHON"). Name another: PYTHON=/path/to/python3.11"
        return
    fi
    for PYTHON in python3 python3.13 python3.12 python3.11; do
        if new_enough "$PYTHON"; then return; fi
    done
    fail "Python 3.11 or newer is needed, but python3 is $(version python3). Install one, or name it: PYTHON=/path/to/python3.11"
}

make_venv() {
    choose_python
    minor=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$PYTHON" -c 'import venv; from ensurepip import version' >/dev/null 2>&1 ||
        fail "$PYTHON cannot make a virtual environment: \`ensurepip\` is missing. On Debian and Ubuntu it is in python$minor-venv (or python3-venv): apt install python$minor-venv"
    if [ "${TORCH:-}" = system ]; then
        has_torch "$PYTHON" ||
            fail "TORCH=system: \`import torch\` in $PYTHON gives no torch 2.11 or newer. Leave TORCH out, or name the Python that has one: PYTHON=/path/to/python"
        set -- --system-site-packages
    fi
    rm -rf "$venv"
    mkdir "$venv"
    : >"$unfinished"
    printf 'Making %s with %s (Python %s).\n' "$venv" "$PYTHON" "$(version "$PYTHON")"
    "$PYTHON" -m venv "$@" "$venv"
    if [ "${TORCH:-}" = system ] && ! has_torch "$venv/bin/python"; then
        show_torch # PYTHON is in a virtual environment itself, which the new one does not see
    fi
}

show_torch() { # let .venv see the packages beside PYTHON's torch
    "$venv/bin/python" -c 'import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "_torch_of_python.pth").write_text(sys.argv[1])' \
        "$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')"
}

pip_install() {
    # PIP_ARGS is split into words on purpose: it holds several arguments.
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install --disable-pip-version-check \
        -c "$venv/constraints.txt" ${PIP_ARGS:-} "$@"
}

announce() {
    if [ "${TORCH:-}" = system ]; then
        echo "Installing into $venv: about 0.2 GB to download; torch is the one that $venv sees already."
        return
    fi
    cat <<END
Installing into $venv. To download, unless pip has it at hand:
  torch       0.2 GB as a CPU build; 2.7 GB as the default build for Linux, with its CUDA libraries
  all others  0.2 GB
PIP_ARGS="..." goes to pip, to name the index of a CPU build of torch, or a mirror.
TORCH=system takes the torch (2.11 or newer) that your Python has, instead of a new one.
END
}

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(state)" ] && [ -x "$venv/bin/python" ]; then
    exit 0
fi
case ${TORCH:-} in
'' | system) ;;
*) fail "TORCH must be \`system\` or left out, got TORCH=$TORCH." ;;
esac
if [ -e "$unfinished" ] || ! new_enough "$venv/bin/python"; then
    make_venv
fi
: >"$unfinished"
rm -f "$stamp"
if [ "${TORCH:-}" = system ]; then
    has_torch "$venv/bin/python" ||
        fail "TORCH=system: $venv was made without it. Start again: make clean, then the same command."
    grep -v '^torch==' constraints.txt >"$venv/constraints.txt"
else
    cp constraints.txt "$venv/constraints.txt"
fi
announce
pip_install hatchling editables # what builds ctflow itself, so that its version is pinned too
pip_install --no-build-isolation --editable '.[dev]'
rm "$unfinished"
state >"$stamp.new"
mv "$stamp.new" "$stamp"
