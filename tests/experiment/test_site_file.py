"""A site's file: strict, all problems at once, and no open network by accident."""

from __future__ import annotations

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.text import is_loopback
from fedpeft.experiment.site_file import read_site, site_problems

SMALL = 'name = "a"\n[data]\nsource = "digits"\n'


def write(tmp_path, text: str):
    file = tmp_path / "site.toml"
    file.write_text(text)
    return file


def test_a_name_and_data_are_enough(tmp_path):
    site = read_site(write(tmp_path, SMALL))
    assert site.data.source == "digits" and site.state == str(tmp_path / "state")
    assert site_problems(site) == []


def test_paths_are_relative_to_the_file(tmp_path):
    text = 'name = "a"\n[data]\nsource = "data.npz"\n[superlink]\nprivate_key = "keys/a"\n'
    text += 'trusted_keys = ["p.pub", "ssh-ed25519 AAAA"]\n[model.folders]\n"x/y" = "m"\n'
    site = read_site(write(tmp_path, text))
    assert site.data.source == str(tmp_path / "data.npz")
    assert site.superlink.private_key == str(tmp_path / "keys/a")
    assert site.superlink.trusted_keys == [str(tmp_path / "p.pub"), "ssh-ed25519 AAAA"]
    assert site.model.folders == {"x/y": str(tmp_path / "m")}
    assert len(site_problems(site)) == 4  # none of them exists


def test_all_problems_are_listed_at_once(tmp_path):
    text = 'nam = "a"\n[data]\nsource = 3\n[allow]\nmax_round = 2\n[privacy]\nmodes = ["strong"]\n'
    with pytest.raises(ConfigError) as found:
        read_site(write(tmp_path, text))
    said = str(found.value)
    assert "5 problems" in said and "nam: unknown key; did you mean 'name'?" in said
    assert "name: is missing and required" in said and "data.source: found 3" in said
    assert "allow.max_round: unknown key; did you mean 'max_rounds'?" in said
    assert "privacy.modes.0: found 'strong'; allowed is 'none', 'central'" in said


@pytest.mark.parametrize("text", ["name = ", "\xff"])
def test_a_file_that_is_no_toml_is_said(tmp_path, text):
    (tmp_path / "site.toml").write_bytes(text.encode("latin1"))
    with pytest.raises(ConfigError, match="cannot be read as TOML"):
        read_site(tmp_path / "site.toml")


def test_a_network_needs_tls_a_key_and_signers(tmp_path):
    text = SMALL + '[superlink]\naddress = "hospital.example:8000"\n'
    site = read_site(write(tmp_path, text))
    problems = "\n".join(site_problems(site))
    for key in ("root_certificates", "private_key", "trusted_keys"):
        assert (
            f"superlink.{key}: not set, and hospital.example:8000 is not this machine" in problems
        )
    assert site_problems(site, unprotected=True) == []


@pytest.mark.parametrize(
    ("address", "here"),
    [("127.0.0.1:1", True), ("localhost:1", True), ("[::1]:1", True), ("127.8.0.1:1", True),
     ("0.0.0.0:1", False), ("10.0.0.1:1", False), ("localhost.example:1", False), (":1", False)],
)  # fmt: skip
def test_loopback(address, here):
    assert is_loopback(address) is here


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[allow]\nmethods = ["bais"]\n', "allow.methods: no such method 'bais'"),
        ("[privacy]\nepsilon = 3.0\n", "privacy.epsilon: found 3 with modes central, none"),
        (
            '[superlink]\naddress = "here"\n',
            "superlink.address: found 'here'; allowed is host:port",
        ),
    ],
)
def test_contradictions_are_said(tmp_path, text, words):
    assert any(words in line for line in site_problems(read_site(write(tmp_path, SMALL + text))))


def test_each_part_needs_its_own_files_only(tmp_path):
    text = 'name = "a"\n[data]\nsource = "data.npz"\n[superlink]\nprivate_key = "k"\n'
    site = read_site(write(tmp_path, text))
    found = {part: " ".join(site_problems(site, part=part)) for part in ("worker", "supernode")}
    assert "data.source" in found["worker"] and "private_key" not in found["worker"]
    assert "private_key" in found["supernode"] and "data.source" not in found["supernode"]
