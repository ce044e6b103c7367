"""Objectives of the pretraining: what each may look at, and what it exports."""

from __future__ import annotations

import pytest
import torch

from objectives import OBJECTIVES, SHAPES, Batch

LABELS = ["U+0041 LATIN CAPITAL LETTER A", "U+0042 LATIN CAPITAL LETTER B"]


def batch(objective: str, *, same: bool = False, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    views = [torch.rand(8, 1, 8, 8, generator=generator) for _ in range(2)]
    chosen = [views[0], views[0]] if same else views
    labels = torch.randint(2, (8,), generator=generator)
    return Batch(chosen[: OBJECTIVES[objective].views], labels, generator, 0.0)


def network(objective: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return OBJECTIVES[objective].build(LABELS, SHAPES[8])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_few_steps_lower_the_loss_of_a_batch(name):
    objective, net = OBJECTIVES[name], network(name)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for _ in range(12):
        loss = objective.loss(net.train(), batch(name))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["mae", "moco"])
def test_no_label_is_looked_at(name):
    one, two = batch(name), batch(name)
    other = Batch(two.views, 1 - two.labels, two.generator, 0.0)
    losses = [OBJECTIVES[name].loss(network(name), drawn) for drawn in (one, other)]
    assert losses[0] == losses[1]
    assert not OBJECTIVES[name].balanced


def test_labels_matter_to_the_supervised_objective():
    objective, one = OBJECTIVES["supervised"], batch("supervised")
    other = Batch(one.views, 1 - one.labels, one.generator, 0.0)
    assert objective.loss(network("supervised"), other) != objective.loss(
        network("supervised"), one
    )


def test_the_masked_autoencoder_knows_where_a_patch_stands():
    net = network("mae")
    for positions in (net.vit.embeddings.position_embeddings, net.decoder.decoder_pos_embed):
        assert positions.requires_grad and positions.std() > 0


def test_two_equal_views_agree_better_than_two_strange_ones():
    objective, net = OBJECTIVES["moco"], network("moco").eval()
    assert objective.loss(net, batch("moco", same=True)) < objective.loss(net, batch("moco"))


def test_keys_follow_at_the_stated_pace_and_stand_still_at_the_end():
    objective, net = OBJECTIVES["moco"], network("moco")
    with torch.no_grad():
        for parameter in net.projector.parameters():
            parameter.add_(1.0)
    before = net.key_projector[0].weight.clone()
    objective.follow(net, 1.0)
    assert torch.equal(net.key_projector[0].weight, before)
    objective.follow(net, 0.0)
    assert torch.allclose(net.key_projector[0].weight - before, torch.tensor(0.01), atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exported_backbone_has_the_trained_weights(name):
    net = network(name)
    exported = OBJECTIVES[name].exported(net)
    backbone = getattr(exported, "vit", exported)
    for key, tensor in net.vit.state_dict().items():
        assert torch.equal(backbone.state_dict()[key], tensor)
