"""A name belongs to a key: the table of the server's operator, and nodes checked against it."""

from __future__ import annotations

import shutil
import subprocess

import pki
import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.federation.site_keys import (
    bind,
    fingerprint,
    identities,
    read_bindings,
    read_public_key,
)  # fmt: skip

A, B = "SHA256:" + "a" * 43, "SHA256:" + "b" * 43


def test_a_fingerprint_is_what_ssh_keygen_prints_in_either_format(tmp_path):
    public = pki.key_pair(tmp_path / "a").with_name("a.pub")
    key = fingerprint(public.read_bytes())
    assert key == fingerprint(read_public_key(public)) and len(key) == 50
    assert key != fingerprint(pki.key_pair(tmp_path / "b").with_name("b.pub").read_bytes())
    if shutil.which("ssh-keygen"):
        done = subprocess.run(["ssh-keygen", "-lf", public], capture_output=True, check=True)
        assert done.stdout.decode().split()[1] == key


def test_a_name_keeps_its_key_until_the_operator_says_otherwise(tmp_path):
    table = tmp_path / "server" / "sites.toml"
    bind(table, "a", A)
    bind(table, "b", B)
    bind(table, "a", A)  # again: nothing changes
    assert read_bindings(table) == {"a": A, "b": B}
    with pytest.raises(ConfigError, match=r"site a has the key SHA256:aaa.*--replace"):
        bind(table, "a", "SHA256:" + "c" * 43)
    with pytest.raises(ConfigError, match="is the key of b already"):
        bind(table, "a", B, replace=True)
    bind(table, "a", "SHA256:" + "c" * 43, replace=True)
    assert read_bindings(table)["a"] == "SHA256:" + "c" * 43
    with pytest.raises(ConfigError, match="allowed are letters, digits"):
        bind(table, "../a", A)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sites", "cannot be read as a table of sites"),
        ("x = 1", "found x; allowed is"),
        ("[sites]\na = 1", "found a = 1; allowed is NAME"),
        ('[sites]\na = "SHA256:short"', "as `ssh-keygen -lf SITE.pub` prints it"),
        (f'[sites]\na = "{A}"\nb = "{A}"', "a and b have the same key"),
    ],
)
def test_a_table_that_says_anything_else_is_refused(tmp_path, text, words):
    (tmp_path / "sites.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_bindings(tmp_path / "sites.toml")


def test_no_table_means_that_nobody_was_admitted(tmp_path):
    with pytest.raises(ConfigError, match="admit each site with `fedpeft admit`"):
        read_bindings(tmp_path / "sites.toml")


def test_only_a_public_key_that_a_supernode_uses_is_admitted(tmp_path):
    private = pki.key_pair(tmp_path / "a")
    (tmp_path / "rsa.pub").write_text("ssh-rsa AAAA someone")
    (tmp_path / "ed.pub").write_text(
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJv4ZfoCDA0Yw1ZmlEC2q7FWSrL7G0GHVMydpE0Ra2w9 x"
    )
    for file, words in (
        (private, "is a private key, which its site never gives away"),
        (tmp_path / "rsa.pub", "is no public key in OpenSSH format"),
        (tmp_path / "ed.pub", "found a key of type ssh-ed25519, allowed is ecdsa"),
        (tmp_path / "none.pub", "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_public_key(file)


def test_a_node_is_only_the_site_whose_key_it_has(tmp_path):
    table, looked = tmp_path / "sites.toml", []
    bind(table, "a", A)
    bind(table, "b", B)
    keys = {1: A, 2: B, 3: "SHA256:" + "x" * 43}
    found = identities(table, lambda: (looked.append(1), keys)[1])
    assert set(found.names) == {"a", "b"}
    assert found.complaint("a", 1) == found.complaint("b", 2) == ""
    assert "site 'b' has another key: this node's is SHA256:aaa" in found.complaint("b", 1)
    assert "the key of 'a'" in found.complaint("b", 1)
    assert "of no site there" in found.complaint("a", 3)
    assert "site 'new' has no key in sites.toml" in found.complaint("new", 3)
    assert "this node's key is not known" in found.complaint("new", 4)
    assert (found.owner(2), found.owner(3)) == ("b", "")
    assert len(looked) < 5, "a node's key is asked for once"


def test_a_change_of_the_table_counts_at_once_and_a_broken_one_lets_nobody_in(tmp_path):
    table = tmp_path / "sites.toml"
    bind(table, "a", A)
    found = identities(table, lambda: {1: A})
    bind(table, "a", B, replace=True)
    assert "has another key" in found.complaint("a", 1)
    table.write_text("[sites")
    assert "cannot be read" in found.complaint("a", 1) and found.owner(1) == ""
