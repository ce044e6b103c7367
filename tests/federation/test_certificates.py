"""Each file of a site or a server that is not what it should be is named in one sentence."""

from __future__ import annotations

import pki
import pytest

from fedpeft.experiment.site_file import SiteConfig
from fedpeft.federation.certificates import link_problems, pair_problems

SIGNER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJv4ZfoCDA0Yw1ZmlEC2q7FWSrL7G0GHVMydpE0Ra2w9 x"


@pytest.fixture
def files(tmp_path):
    authority = pki.Authority(tmp_path)
    server = authority.server()
    return {
        "ca": authority.file, "crt": server[0], "key": server[1],
        "site": pki.key_pair(tmp_path / "site"), "pub": tmp_path / "site.pub",
    }  # fmt: skip


def problems(files, **link):
    chosen = {"root_certificates": "ca", "private_key": "site", "trusted_keys": [SIGNER]} | link
    named = {k: str(files[v]) if isinstance(v, str) else v for k, v in chosen.items()}
    table = {"name": "a", "data": {"source": "digits"}, "superlink": named}
    return link_problems(SiteConfig.model_validate(table))


def test_what_fits_has_no_problem(files):
    assert problems(files) == [] == pair_problems(files["crt"], files["key"], "--certificates")


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ({"private_key": "crt"}, "private_key: {crt} is a certificate, allowed is a private key"),
        ({"private_key": "pub"}, "private_key: {pub} is a public key, allowed is a private key"),
        ({"private_key": "key"}, "superlink.private_key: {key}: no OpenSSH key"),
        ({"private_key": "junk"}, "{junk} is no key or certificate, allowed is a private key"),
        ({"private_key": "none"}, "{none} cannot be read (No such file"),
        ({"root_certificates": "pub"}, "root_certificates: {pub} is a public key, allowed is"),
        ({"root_certificates": "site"}, "{site} is a private key, allowed is a certificate"),
        ({"root_certificates": "crt"}, "is the certificate of CN=127.0.0.1, which is no authority"),
        ({"root_certificates": "cut"}, "{cut} cannot be read as a certificate"),
        ({"root_certificates": "old"}, "{old} expired on 20"),
        ({"root_certificates": None}, "a SuperNode uses its private key over TLS only"),
        ({"trusted_keys": ["ssh-rsa AAAA"]}, "superlink.trusted_keys[0]: trusted key: found"),
    ],
)  # fmt: skip
def test_each_mistake_is_named(files, tmp_path, link, words):
    (tmp_path / "junk").write_text("hello")
    (tmp_path / "cut").write_bytes(files["ca"].read_bytes()[:120])
    files |= {name: tmp_path / name for name in ("junk", "cut", "none")}
    files["old"] = pki.Authority(tmp_path / "old", days=-1).file
    (found,) = problems(files, **link)
    assert words.format(**files) in found and "\n" not in found


def test_a_key_that_others_can_read_and_a_public_half_of_another_are_named(files, tmp_path):
    files["site"].chmod(0o644)
    (found,) = problems(files)
    assert "has mode 0644" in found and f"chmod 600 {files['site']}" in found
    files["site"].chmod(0o600)
    other = pki.key_pair(tmp_path / "other")
    files["pub"].write_bytes(other.with_name("other.pub").read_bytes())
    (found,) = problems(files)
    assert f"{files['pub']} is not the public key of {files['site']}" in found


def test_a_server_whose_certificate_and_key_do_not_fit_is_named(files, tmp_path):
    other = pki.Authority(tmp_path / "other")
    (found,) = pair_problems(files["crt"], other.server()[1], "--certificates")
    assert "is not the private key of" in found
    (found,) = pair_problems(*other.server(days=-1), "--certificates")
    assert "expired on" in found
    (found,) = pair_problems(files["key"], files["key"], "--certificates")
    assert "is a private key, allowed is a certificate" in found
