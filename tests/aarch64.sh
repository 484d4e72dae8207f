#!/usr/bin/env bash
# Measures a model with the agent that `bench --host` sends, on an emulated aarch64 "device": Debian's
# Python and ONNX Runtime's wheel for aarch64, run by qemu-user. Times are those of the emulation.
#
#   bash tests/aarch64.sh MODEL.onnx [FOLDER]        on Debian 12 for amd64, as root; FOLDER keeps the downloads
#
# Exit status 0 if the outputs were verified there. $PYTHON has hgkd-edge installed.
set -euo pipefail
model=$(realpath "$1") folder=${2:-$(mktemp -d)} python=${PYTHON:-python3} root=$(realpath "$(dirname "$0")/..")
mkdir -p "$folder"
cd "$folder"

if [ ! -d root ]; then
  dpkg --add-architecture arm64
  trap 'dpkg --remove-architecture arm64' EXIT
  apt-get update -qq
  apt-get install -y -qq qemu-user
  mkdir -p debs
  (cd debs && apt-get download -qq $(printf '%s:arm64 ' python3.11-minimal libpython3.11-minimal \
    libpython3.11-stdlib libc6 libexpat1 zlib1g libssl3 libgcc-s1 libffi8 libbz2-1.0 liblzma5 libstdc++6 libcrypt1))
  for package in debs/*.deb; do dpkg -x "$package" unpacked; done
  mv unpacked root
fi
[ -d site ] || "$python" -m pip install -q --no-deps --only-binary=:all: --target site --python-version 3.11 \
  --implementation cp --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 numpy onnxruntime==1.20.1

mkdir -p bin ssh
cat >bin/python3 <<END
#!/bin/sh
PYTHONPATH=$PWD/site exec qemu-aarch64 -L $PWD/root $PWD/root/usr/bin/python3.11 "\$@"
END
cat >bin/uname <<'END'
#!/bin/sh
case $1 in -m) echo aarch64 ;; *) exec /usr/bin/uname "$@" ;; esac
END
# The device is this machine, with another Python and another name of its architecture.
cat >ssh/ssh <<END
#!/bin/sh
for last; do :; done
PATH=$PWD/bin:/usr/bin:/bin exec /bin/sh -c "\$last"
END
chmod +x bin/* ssh/ssh
export PATH=$PWD/ssh:$PATH PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
"$python" -m hgkd_edge bench "$model" --host emulated --duration 2 --rounds 2 --out bench.json | tee bench.txt
grep -q "outputs verified on the device" bench.txt
