"""A federation over TLS with keys and signed bundles, with real Flower processes."""

from __future__ import annotations

import contextlib
import subprocess

import pytest
from guarded_federation import SITES, Guarded, no_nginx

from fedpeft.federation.control import Control, Link
from fedpeft.federation.site_keys import read_public_key

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(bool(no_nginx()), reason=no_nginx() or "nginx is installed"),
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    sets = ("federation.rounds=2", "federation.clients_per_round=2", "data.budget=200")
    made = Guarded(tmp_path_factory.mktemp("guarded"), *sets)
    try:
        made.prepare("stranger")
        made.start_superlink()
        for name in made.split():
            done = made.admit(name)
            assert done.returncode == 0, done.stderr
            made.start_node(name)
        yield made
    finally:
        made.close()


def test_a_signed_bundle_gives_the_delta_of_one_machine(here):
    expected = here.local()
    done = here.run_with(f'["{here.signed}"]', "signed")
    assert done.returncode == 0, done.stderr
    assert expected["delta_digest"] in done.stdout


@pytest.mark.parametrize("whose", ["nobody", "a foreign key"])
def test_a_foreign_bundle_is_refused(here, whose):
    signatures = "[]"
    if whose != "nobody":
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(here.certs / "foreign")],
            check=True,
        )
        here.sign("foreign", here.certs / "foreign.json")
        signatures = f'["{here.certs / "foreign.json"}"]'
    done = here.run_with(signatures, whose, "--set", "engine.wait=30")
    assert done.returncode == 3, done.stderr
    assert "the site refused the app bundle: The FAB could not be verified" in done.stderr
    runs = [list((here.parts / site / "state" / "turns").glob("[!.]*")) for site in SITES]
    assert all(len(found) <= 1 for found in runs)  # that of the signed run


def test_another_machine_is_not_taken_for_a_site_that_is_away(here):
    """Its key may connect, but belongs to no name; the site itself is let in again."""
    genuine, other = here.nodes["client-01"], here.certs / "stranger"
    genuine.end()
    with contextlib.closing(
        Control(Link(f"127.0.0.1:{here.port}", str(here.certs / "ca.crt")))
    ) as control:
        assert control.register(read_public_key(other.with_name("stranger.pub")))
    site = here.parts / "client-01" / "site.toml"
    text = site.read_text()
    site.write_text(text.replace(str(here.certs / "client-01"), str(other)))
    try:
        imposter = here.start_node("client-01")
        words = [str(here.experiment), *here.engine_sets(f'["{here.signed}"]')]
        done = here.command("handshake", *words, "--set", "engine.wait=100")
        assert done.returncode == 3, done.stderr
        assert "site 'client-01' has another key: this node's is SHA256:" in done.stderr
        imposter.end()
    finally:
        site.write_text(text)
