#!/usr/bin/env bash
# Keys and certificates of a federation: one authority, one server, a key a site, one signer.
#
#   deploy/certificates.sh DIR SERVER SITE...
#   deploy/certificates.sh certs federation.example.org hospital-a hospital-b
#   deploy/certificates.sh certs 127.0.0.1 client-00 client-01
#
# DIR gets   ca.crt               to every machine: it vouches for the server
#            server.crt .key      to the server: what sites meet at its gateway
#            loopback.crt .key    to the server: what its own commands meet on 127.0.0.1
#            SITE, SITE.pub       the private key to that site alone, the .pub to the server
#            publisher, .pub      the private key to whoever signs app bundles, the .pub to sites
#            publisher.signature.json   of this release's bundle, to the server (`fedpeft sign`)
#            ca.key               to nobody: it can make another server
#
# In a real federation each site makes its own key (the ssh-keygen line below) and sends its .pub.
set -euo pipefail
umask 077
[ $# -ge 3 ] || { sed -n '2,16p' "$0" | cut -c3-; exit 2; }
dir=$1 server=$2; shift 2
mkdir -p "$dir"
[ -z "$(ls -A "$dir")" ] || { echo "$dir is not empty; nothing is overwritten" >&2; exit 2; }
case $server in
  127.0.0.1 | localhost) names="DNS:localhost,IP:127.0.0.1" ;;
  *[!0-9.]*) names="DNS:$server" ;;
  *) names="IP:$server" ;;
esac
ec=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
openssl req -x509 "${ec[@]}" -days 730 -subj "/CN=federation authority" \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
  -keyout "$dir/ca.key" -out "$dir/ca.crt" 2>/dev/null
certify() { # FILE NAME ALTERNATIVES
  openssl req "${ec[@]}" -subj "/CN=$2" -keyout "$dir/$1.key" -out "$dir/$1.csr" 2>/dev/null
  printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n' \
    "$3" >"$dir/$1.ext"
  openssl x509 -req -in "$dir/$1.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -CAcreateserial \
    -days 365 -out "$dir/$1.crt" -extfile "$dir/$1.ext" 2>/dev/null
  rm -f "$dir/$1.csr" "$dir/$1.ext" "$dir"/ca.srl
}
certify server "$server" "$names"
certify loopback localhost "DNS:localhost,IP:127.0.0.1"
for site in "$@"; do ssh-keygen -q -t ecdsa -b 384 -N "" -C "$site" -f "$dir/$site"; done
ssh-keygen -q -t ed25519 -N "" -C publisher -f "$dir/publisher"
chmod 644 "$dir"/*.crt "$dir"/*.pub
if command -v fedpeft >/dev/null; then
  fedpeft sign --key "$dir/publisher" --to "$dir/publisher.signature.json"
else
  echo "fedpeft is not installed here: sign where it is, with \`fedpeft sign --key $dir/publisher\`"
fi
echo "$dir: authority, server ($names), $# site key(s), publisher"
