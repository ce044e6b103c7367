"""Keys and certificates that tests make themselves."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec

DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority of a test, with its file."""

    def __init__(self, folder: Path, name: str = "authority", *, days: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / "ca.crt"
        self._write(self.file, self.name, self.key, days, authority=True)

    def server(
        self, *, host: str = "127.0.0.1", days: int = 2, name: str = "server"
    ) -> tuple[Path, Path]:
        """Write the certificate and the key of a server; `days` below 0: expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        owner = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        certificate, file = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        self._write(certificate, owner, key, days, host=host)
        file.write_bytes(_pem(key, forms.PrivateFormat.PKCS8))
        file.chmod(0o600)
        return certificate, file

    def _write(self, file, name, key, days, *, host="", authority=False):
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder(self.name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - 9 * DAY)
            .not_valid_after(now + days * DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if host:
            plain = host.replace(".", "").isdigit()
            general = x509.IPAddress(ipaddress.ip_address(host)) if plain else x509.DNSName(host)
            made = made.add_extension(x509.SubjectAlternativeName([general]), critical=False)
        file.write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(forms.Encoding.PEM))


def key_pair(file: Path) -> Path:
    """Write a site's pair of keys, FILE and FILE.pub; return FILE."""
    file.parent.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    file.write_bytes(_pem(key, forms.PrivateFormat.OpenSSH))
    file.chmod(0o600)
    public = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    file.with_name(file.name + ".pub").write_bytes(public + b" someone\n")
    return file


def _pem(key, kind):
    return key.private_bytes(forms.Encoding.PEM, kind, forms.NoEncryption())
