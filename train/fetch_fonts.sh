#!/usr/bin/env bash
# Fetches the fonts that synthetic lines are drawn with: trocr_jax/train/fetch_fonts.sh [FOLDER]
#
# FOLDER (default ~/.cache/trocr-jax/fonts) receives training/FAMILY/*.woff and held-out/FAMILY/*.woff. Which family is in which half is written
# below and nowhere else: the model in the package never sees a held-out family in training, and its scores are measured on held-out families only.
# A design that exists under two names (Arimo and Liberation Sans, Carlito and Lato) stays on one side.
# Licences: npm @fontsource packages are Google Fonts families under OFL, Apache-2.0 or UFL, Debian's are in its "main" section; each folder keeps its
# package's licence. Needs npm and tar, and on Debian or Ubuntu apt-get and dpkg-deb (elsewhere those families are left out and it says so).
# What is already there is not fetched again, so that a broken run goes on where it stopped.
set -euo pipefail

folder=${1:-$HOME/.cache/trocr-jax/fonts}

training="
roboto open-sans lato montserrat oswald raleway pt-sans pt-serif pt-mono pt-sans-narrow noto-sans noto-serif noto-sans-mono merriweather
merriweather-sans playfair-display lora ubuntu ubuntu-mono ubuntu-condensed nunito nunito-sans poppins source-sans-3 source-code-pro inter
mukta fira-sans fira-sans-condensed fira-mono fira-code inconsolata quicksand titillium-web exo-2 dosis oxygen oxygen-mono arimo tinos cousine
anonymous-pro space-mono space-grotesk roboto-condensed roboto-mono roboto-slab crimson-text crimson-pro eb-garamond cormorant-garamond cardo
alegreya alegreya-sans vollkorn arvo zilla-slab josefin-slab rokkitt kreon old-standard-tt libre-caslon-text libre-bodoni bodoni-moda prata
abril-fatface anton fjalla-one francois-one yanone-kaffeesatz encode-sans-condensed saira-condensed asap asap-condensed antonio economica teko
rajdhani khand abel questrial varela-round comfortaa maven-pro signika catamaran assistant manrope mulish red-hat-text red-hat-mono lexend
outfit plus-jakarta-sans sora urbanist figtree be-vietnam-pro chivo sarabun prompt kanit istok-web didact-gothic tenor-sans gudea philosopher
forum gfs-didot sorts-mill-goudy goudy-bookletter-1911 linden-hill neuton unna vidaloka volkhov trirong taviraj literata
newsreader petrona brygada-1918 im-fell-english courier-prime nanum-gothic-coding b612 b612-mono nova-mono azeret-mono martian-mono
spline-sans-mono victor-mono atkinson-hyperlegible andika charis-sil dotgothic16 alfa-slab-one
"
held_out="
work-sans ibm-plex-sans ibm-plex-serif ibm-plex-mono public-sans karla rubik cabin jost libre-baskerville bitter spectral domine gelasio
source-serif-4 barlow barlow-condensed archivo-narrow pathway-gothic-one overpass-mono jetbrains-mono dm-mono special-elite cutive-mono
vt323 share-tech-mono ovo mate alike hind-siliguri sintony
"
# half, package, family, files: the faces of offices, terminals, typewriters and machines that npm lacks.
debian="
training fonts-urw-base35 nimbus-sans NimbusSans-.*otf
training fonts-urw-base35 nimbus-sans-narrow NimbusSansNarrow-.*otf
training fonts-urw-base35 nimbus-roman NimbusRoman-.*otf
training fonts-urw-base35 nimbus-mono NimbusMonoPS-.*otf
training fonts-urw-base35 c059 C059-.*otf
training fonts-urw-base35 p052 P052-.*otf
training fonts-urw-base35 urw-bookman URWBookman-.*otf
training fonts-urw-base35 urw-gothic URWGothic-.*otf
training fonts-dejavu-core dejavu-sans DejaVuSans(-Bold)?.ttf
training fonts-dejavu-core dejavu-serif DejaVuSerif(-Bold)?.ttf
training fonts-dejavu-core dejavu-mono DejaVuSansMono(-Bold)?.ttf
training fonts-cmu computer-modern cmun(rm|bx|ti|ss).ttf
training fonts-cmu computer-modern-typewriter cmuntt.ttf
training fonts-ocr-a ocr-a OCRA(Condensed)?.ttf
training fonts-ocr-b ocr-b OCRB.otf
training fonts-pc pc-vga Px_IBM_VGA[89].ttf
training fonts-pc pc-cga Px_IBM_CGA.*ttf
training fonts-3270 3270 3270.*ttf
training fonts-gnutypewriter gnu-typewriter GNUTypewriter.ttf
training fonts-fantasque-sans fantasque-sans-mono Normal/OTF/.*otf
training fonts-cantarell cantarell Cantarell-.*otf
training fonts-clear-sans clear-sans ClearSans-(Regular|Bold|Italic|Light|Thin).ttf
training fonts-opendin open-din OSP-DIN.ttf
training fonts-osifont osifont osifont.ttf
training fonts-agave agave agave-b-autohinted.ttf
held-out fonts-linuxlibertine linux-libertine LinLibertine_R(B|I|BI)?.otf
held-out fonts-linuxlibertine linux-biolinum LinBiolinum_R(B|I)?.otf
held-out fonts-go go Go-(Regular|Bold|Italic|Medium).ttf
held-out fonts-go go-mono Go-Mono(-Bold|-Italic)?.ttf
held-out fonts-hermit hermit Hermit-.*otf
held-out fonts-routed-gothic routed-gothic routed-gothic(-narrow|-italic)?.ttf
"
# Regular, light, bold and black, upright and italic, in the two subsets that hold our alphabet. The .woff files carry no hinting programs, which the
# .woff2 files often do: they load four times and draw twice as fast.
files='latin(-ext)?-(300|400|700|900)-normal\.woff$|latin(-ext)?-(400|700)-italic\.woff$'


scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
missing=0

keep() {  # keep HALF FAMILY FILES LICENCE: the files of $scratch/package whose path ends so, and the licence, become a family
    mkdir -p "$folder/$1" "$scratch/fonts" &&
        find "$scratch/package" -type f | grep -E "$3" | xargs -I{} mv {} "$scratch/fonts/" &&
        cp "$4" "$scratch/fonts/LICENSE" &&
        mv "$scratch/fonts" "$folder/$1/$2"
}

fail() {
    echo "fetch_fonts.sh: no font came from $1" >&2
    missing=1
}

from_npm() {  # from_npm HALF FAMILY
    [ -d "$folder/$1/$2" ] && return
    rm -rf "${scratch:?}"/*
    (cd "$scratch" && npm pack --silent "@fontsource/$2" >/dev/null && tar xzf ./*.tgz) || { fail "@fontsource/$2"; return; }
    keep "$1" "$2" "$files" "$scratch/package/LICENSE" || fail "@fontsource/$2"
}

from_debian() {  # from_debian HALF PACKAGE FAMILY FILES
    [ -d "$folder/$1/$3" ] && return
    rm -rf "${scratch:?}"/*
    (cd "$scratch" && apt-get download -qq -o APT::Sandbox::User=root "$2" && dpkg-deb -x ./*.deb package) || { fail "$2"; return; }
    keep "$1" "$3" "/$4\$" "$scratch/package/usr/share/doc/$2/copyright" || fail "$2"
}

for family in $training; do from_npm training "$family"; done
for family in $held_out; do from_npm held-out "$family"; done
if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    while read -r half package family pattern; do [ -z "$half" ] || from_debian "$half" "$package" "$family" "$pattern"; done <<<"$debian"
else
    echo "fetch_fonts.sh: no apt-get here, so the families from Debian are left out" >&2
fi
echo "$(ls "$folder/training" | wc -l) training families, $(ls "$folder/held-out" | wc -l) held-out families in $folder"
exit $missing
