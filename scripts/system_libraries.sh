#!/bin/sh
# Installs the libraries that Qt and OpenGL need and that pip cannot bring, on Debian and Ubuntu.
# Says the command instead where it may not install; does nothing elsewhere or if nothing is missing.
set -u

[ "$(uname -s)" = Linux ] && command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || exit 0

wanted="xvfb xauth libgl1 libegl1 libopengl0 libgl1-mesa-dri libglx-mesa0 libxkbcommon-x11-0 libdbus-1-3
libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0
libxcb-xinerama0 libxcb-xfixes0 libxcb-xkb1 libfontconfig1 libglib2.0-0"

# Releases after the 64-bit time_t transition call some of them …t64.
installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p' | sed 's/t64$//')

missing=
for package in $wanted; do
    printf '%s\n' "$installed" | grep -qx "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    sudo=
elif sudo -n true 2>/dev/null; then
    sudo="sudo -n"
else
    echo "napari needs system libraries that are missing; install them with: sudo apt-get install -y$missing" >&2
    exit 0
fi

echo "Installing system libraries:$missing"
$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null >/dev/null
# libglib2.0-0 and its like are virtual names on newer releases; apt picks the …t64 package itself.
if ! $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing </dev/null >/dev/null; then
    echo "The system libraries could not be installed; try: sudo apt-get update && sudo apt-get install -y$missing" >&2
fi
exit 0
