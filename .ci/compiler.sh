# Sourced by make before the tests: finds what compiled code needs, or says that it is skipped.
#
# Sets CXX, or CTFLOW_NO_COMPILER to the reason why the tests marked `compiler` are skipped.

if [ -z "${CXX:-}" ]; then
    for CXX in g++ c++ clang++ ''; do
        if command -v "$CXX" >/dev/null 2>&1; then break; fi
    done
fi
if [ -n "${CTFLOW_NO_COMPILER:-}" ]; then
    : # the caller wants none
elif ! command -v "${CXX%% *}" >/dev/null 2>&1; then
    CTFLOW_NO_COMPILER="no C++ compiler (${CXX:-g++, c++ or clang++})"
elif ! .venv/bin/python -c 'import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())'; then
    CTFLOW_NO_COMPILER="no Python.h (on Debian and Ubuntu: apt install python3-dev)"
fi
if [ -n "${CTFLOW_NO_COMPILER:-}" ]; then
    echo "ctflow: SKIPPING the tests of compiled code: $CTFLOW_NO_COMPILER"
    export CTFLOW_NO_COMPILER
fi
if [ -n "$CXX" ]; then export CXX; else unset CXX; fi
