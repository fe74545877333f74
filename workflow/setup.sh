#!/usr/bin/env bash
# Build .venv from nothing but Python, make and a C++ compiler; done when .venv/.ready exists.
set -euo pipefail
python=${PYTHON:-python3}
"$python" - <<'EOF'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"Python 3.11 or 3.12 is needed, this is {sys.version.split()[0]}; choose one with: make PYTHON=python3.11 …")
EOF
for tool in c++ git; do
  command -v "$tool" >/dev/null || { echo "no $tool on this machine; Debian: apt-get install g++ git" >&2; exit 2; }
done
rm -f .venv/.ready
[ -x .venv/bin/python ] || "$python" -m venv .venv

# uv, at the version and hashes of the lock.
awk '/^[A-Za-z0-9]/ {own = /^uv==/} own' requirements.lock > .venv/uv.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock

# mmcv's sdist compiles for minutes in silence: say how far it is.
cache=$(.venv/bin/uv cache dir)
(
  start=$SECONDS
  while sleep 20; do
    ninja=$(find "$cache"/sdists-v*/pypi/onedl-mmcv -name build.ninja -mmin -180 2>/dev/null | head -n 1 || true)
    [ -n "$ninja" ] || { echo "set-up: installing, $((SECONDS - start)) s"; continue; }
    all=$(grep -c '^build .*\.o:' "$ninja" || true)
    done=$(find "$(dirname "$ninja")" -name '*.o' | wc -l)
    echo "set-up: compiling mmcv's operators, $done of $all files, $((SECONDS - start)) s"
  done
) &
watcher=$!
trap 'kill $watcher 2>/dev/null || true' EXIT
export MAX_JOBS=${MAX_JOBS:-$(nproc)}
UV_NO_PROGRESS=1 .venv/bin/uv pip sync --quiet --python .venv/bin/python requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
.venv/bin/python -c "import mmcv.ops, tsd" 
touch .venv/.ready
echo "set-up: done in $SECONDS s"
