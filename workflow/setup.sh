#!/usr/bin/env bash
# Build .venv from nothing but Python, make and git; done when .venv/.ready exists. Nothing is compiled.
#
#   TORCH_BACKEND=cu126   after the lock, take torch and torchvision of the same versions, built for another CUDA (for drivers older
#                         than the lock's build wants): a name that `uv pip install --torch-backend` knows, but not `auto`
set -euo pipefail
python=${PYTHON:-python3}
"$python" - <<'EOP'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f"Python 3.11, 3.12 or 3.13 is needed, this is {sys.version.split()[0]}; choose one with: make PYTHON=python3.11 …")
EOP
backend=${TORCH_BACKEND:-}
case $backend in
  "" | cpu | cu[0-9]* | rocm[0-9]* | xpu) ;;
  *)
    echo "TORCH_BACKEND=$backend: name the CUDA build, such as cu126: where no GPU is, as on a login node, auto takes the CPU's" >&2
    exit 2
    ;;
esac
command -v git >/dev/null || { echo "no git on this machine; Debian: apt-get install git" >&2; exit 2; }
rm -f .venv/.ready
# What an interrupted set-up, a removed Python or another version left is made anew.
if ! .venv/bin/python -c 'import pip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
  rm -rf .venv
  "$python" -m venv .venv
fi

# uv, at the version and hashes of the lock.
awk '/^[A-Za-z0-9]/ {own = /^uv==/} own' requirements.lock > .venv/uv.lock
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock

# mmcv comes as source only. Its build environment has no torch, so that it is taken as it is, without its operators.
echo "set-up: installing the lock (3 GB to download where uv's cache has nothing)"
if [ "$backend" != "$(cat .venv/.torch_backend 2>/dev/null || true)" ]; then
  .venv/bin/uv pip uninstall --quiet --python .venv/bin/python torch torchvision # 2.11.0+cu126 would pass for the lock's 2.11.0
fi
env -u MMCV_WITH_OPS UV_NO_PROGRESS=1 .venv/bin/uv pip sync --quiet --python .venv/bin/python requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
if [ -n "$backend" ]; then
  versions=$(awk -F'[ ;]' '/^(torch|torchvision)==/ {print $1}' requirements.lock)
  # shellcheck disable=SC2086  # one word each
  .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend "$backend" --reinstall $versions
fi
echo "$backend" > .venv/.torch_backend
.venv/bin/python -m tsd.ops.mmcv_ext
# Also has yapf, of mmengine, write its cache in the home folder, which trainings that begin at once would spoil for one another.
.venv/bin/python -c "import mmcv.ops, tsd"
touch .venv/.ready
echo "set-up: done in $SECONDS s"
