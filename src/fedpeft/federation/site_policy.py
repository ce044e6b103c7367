"""What a site takes of a server's experiment, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedpeft.core.errors import ConfigError, PrivacyError
from fedpeft.data.chat_templates import BUILT_IN
from fedpeft.experiment.chat_template import read_template
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.plugins import installed
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.experiment.read import validate
from fedpeft.experiment.site_file import SiteConfig
from fedpeft.models.locate import BUNDLED

_MOST_LABELS = 100_000  # each name takes memory before any size is known
_LARGEST_PICTURE = 4096  # pixels a side
_DATA_KEYS = ("transforms", "max_length", "chat_template", "learn", "truncation", "packing")
"""Keys of `[data]` that are the server's to say."""
_TEMPLATES = f"{', '.join(BUILT_IN)}, or the text of the file that its data.chat_template names"
_NORMALIZE = "'model', or a mean and a std, because 'dataset' needs statistics of all clients' data"


def agree(server: Experiment, site: SiteConfig) -> Experiment:
    """Return the experiment that the site runs: the allowed part of the server's, and its own data.

    Raises:
      ConfigError: listing everything that this site does not allow.
      PrivacyError: the same, if only the privacy settings are not allowed.
    """
    wrong, unsafe = list(refusals(server, site)), list(_weak_privacy(server, site))
    if wrong or unsafe:
        kind = ConfigError if wrong else PrivacyError
        lines = "\n".join(f"  {line}" for line in [*wrong, *unsafe])
        raise kind(f"this site does not take part:\n{lines}")
    allowed = installed().only(site.allow.plugins)
    return validate(_allowed_part(server, site), "the server's experiment", allowed)


def refusals(server: Experiment, site: SiteConfig) -> Iterator[str]:
    """Yield one line for each setting of an experiment that the site does not allow."""
    model, allow, client = server.model, site.allow, server.client
    method, normalize = server.tuning.method, server.data.transforms.normalize
    resize = server.data.transforms.resize
    precision, rounds = server.engine.precision, server.federation.rounds
    preset = model.config is None or model.config.startswith("preset:")
    limits = ((client.epochs, allow.max_epochs), (client.max_steps, allow.max_steps))
    short = any(found is not None and found <= most for found, most in limits)
    bf16_on_cpu = precision == "bf16" and site.worker.device == "cpu"
    models = [*site.model.folders, *(site.model.allow or ["bundled models", "presets"])]
    methods = [method] if allow.methods is None else allow.methods
    for key, found, is_allowed, allowed in (
        ("model.name", model.name, _model_name(server, site) is not None, ", ".join(models)),
        ("model.config", model.config, preset, "preset:NAME"),
        ("tuning.method", method, method in methods, ", ".join(methods)),
        ("federation.rounds", rounds, rounds <= allow.max_rounds, allow.max_rounds),
        ("client.epochs", client.epochs, client.epochs is None or short, allow.max_epochs),
        ("client.max_steps", client.max_steps, client.max_steps is None or short, allow.max_steps),
        ("data.transforms.normalize", normalize, normalize != "dataset", _NORMALIZE),
        ("model.num_labels", model.num_labels, *_at_most(model.num_labels, _MOST_LABELS)),
        ("data.transforms.resize", resize, *_at_most(resize, _LARGEST_PICTURE)),
        ("data.chat_template", *_template(server, site), _TEMPLATES),
        ("engine.precision", precision, not bf16_on_cpu, "'fp32', because it trains on a CPU"),
    ):
        if not is_allowed:
            yield f"{key}: found {found!r}; this site allows {allowed}"


def _at_most(number: int | None, most: int) -> tuple[bool, str]:
    """Return whether a number is set and too large or not, and what is allowed, in words."""
    return number is None or number <= most, f"at most {most}"


def _template(server: Experiment, site: SiteConfig) -> tuple[str, bool]:
    """Return the server's chat template, in short, and whether this site takes it.

    A template is a program, though in a sandbox: only the site's owner can bring one.
    """
    found, own = server.data.chat_template, site.data.chat_template
    if found is None or found in BUILT_IN:
        return "", True
    return f"{found[:40]} ...", own is not None and found == read_template(own)


def _model_name(server: Experiment, site: SiteConfig) -> str | None:
    """Return where this site finds the server's model; None if it does not allow it."""
    name, allowed = server.model.name, site.model.allow
    if name in site.model.folders:
        return site.model.folders[name]
    usual = name in BUNDLED or name.startswith("preset:")
    return name if (usual if allowed is None else name in allowed) else None


def _weak_privacy(server: Experiment, site: SiteConfig) -> Iterator[str]:
    chosen, demanded = server.privacy, site.privacy
    if chosen.mode not in demanded.modes:
        yield f"privacy.mode: found {chosen.mode!r}; this site allows {', '.join(demanded.modes)}"
    if chosen.reproducible_noise and not demanded.reproducible_noise:
        yield (
            "privacy.reproducible_noise: found true: the server would know the noise; this site "
            "allows false"
        )
    own_noise = PRIVACY_MODES[chosen.mode].noise_by == "client"
    if own_noise and chosen.noise_multiplier is None:
        yield "privacy.noise_multiplier: not set; the server must send the one it calibrated"
    elif own_noise and "none" not in demanded.modes and not chosen.noise_multiplier:
        yield "privacy.noise_multiplier: found 0; this site requires noise above 0"


def _allowed_part(server: Experiment, site: SiteConfig) -> dict[str, Any]:
    """Return the allow-list: every key that is used of the server's experiment, and no other."""
    given = server.model_dump(mode="python", exclude_none=True)
    data = {key: given["data"][key] for key in _DATA_KEYS if key in given["data"]}
    calibrated = PRIVACY_MODES[server.privacy.mode].unit is not None
    privacy = {k: v for k, v in given["privacy"].items() if k != "epsilon" or not calibrated}
    return {
        "seed": server.seed,
        "model": given["model"] | {"name": _model_name(server, site)},
        "tuning": given["tuning"],
        "client": given["client"],
        "wire": given["wire"],
        "privacy": privacy,
        "federation": {"rounds": server.federation.rounds, "clients_per_round": 1},
        "data": data | {"source": site.data.source, "partition": {"scheme": "iid", "clients": 1}},
        "engine": {"device": site.worker.device, "precision": server.engine.precision},
    }
