from __future__ import annotations

import support
import torch

from fedpeft.client.batches import batches
from fedpeft.client.evaluate import evaluate
from fedpeft.client.flat import FlatDelta
from fedpeft.client.local import local_trainer
from fedpeft.client.optimizers import OptimizerSettings
from fedpeft.client.turns import BUFFERS, DELTA, ClientTurn
from fedpeft.data.examples import ClientData
from fedpeft.tuning.tuned import read_buffers, read_delta


def turn(client="client-2", seed=5):
    data = support.federated()
    return ClientTurn(1, client, ClientData(data.train, data.clients[client]), {}, seed, 0)


def train(tuned, turns, **changes):
    trainer = local_trainer(tuned, support.settings(**changes))
    payload = {DELTA: read_delta(tuned).clone()}
    if tuned.buffers:
        payload[BUFFERS] = read_buffers(tuned).clone()
    return list(trainer(payload, turns))


def test_training_equals_torch_by_hand():
    ours = support.tuned(dropout=0.0)
    (result,) = train(ours, [turn()])
    reference = support.tuned(dropout=0.0)
    model, start = reference.model, read_delta(reference)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True, weight_decay=1e-4)
    one = turn()
    for epoch in range(2):
        for rows in batches(one, 4, epoch):
            batch = one.data.examples.batch(one.data.indices[rows].tolist(), seed=None)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch["x"]), batch["labels"]).backward()
            optimizer.step()
    torch.testing.assert_close(
        result.payload[DELTA], read_delta(reference) - start, rtol=1e-5, atol=1e-6
    )


def test_a_clients_weight_is_its_number_of_examples():
    results = train(support.tuned(), [turn("client-2"), turn("client-0")])
    assert [result.weight for result in results] == [11.0, 3.0]


def test_a_client_does_not_depend_on_who_trained_before():
    alone = train(support.tuned(), [turn("client-2")])[-1]
    after = train(support.tuned(), [turn("client-5"), turn("client-2")])[-1]
    assert torch.equal(alone.payload[DELTA], after.payload[DELTA])
    other = train(support.tuned(), [turn("client-2", seed=6)])[-1]
    assert not torch.equal(alone.payload[DELTA], other.payload[DELTA])


def test_statistics_do_not_depend_on_who_trained_before():
    alone = train(support.tuned(norm=True), [turn("client-2")])[-1]
    after = train(support.tuned(norm=True), [turn("client-5"), turn("client-2")])[-1]
    assert torch.equal(alone.payload[BUFFERS], after.payload[BUFFERS])
    assert torch.equal(alone.payload[DELTA], after.payload[DELTA])


def test_a_single_example_can_be_trained_with_batchnorm():
    one = turn("client-0")
    single = ClientTurn(1, "x", ClientData(one.data.examples, one.data.indices[:1]), {}, 5, 0)
    (result,) = train(support.tuned(norm=True), [single])
    assert torch.isfinite(result.payload[DELTA]).all()


def test_whole_batches_never_end_with_a_single_example():
    one = turn("client-1")  # 7 examples
    assert [len(rows) for rows in batches(one, 3, 0)] == [3, 3, 1]
    assert [len(rows) for rows in batches(one, 3, 0, whole_batches=True)] == [3, 4]


def test_every_epoch_has_each_example_once_in_another_order():
    one = turn()
    first, second = (torch.tensor([i for r in batches(one, 4, e) for i in r]) for e in (0, 1))
    assert first.sort().values.tolist() == list(range(len(one.data)))
    assert first.tolist() != second.tolist()


def test_proximal_term_pulls_towards_the_start():
    free, pulled = (
        train(support.tuned(), [turn()], prox_mu=mu)[0].payload[DELTA] for mu in (0.0, 5.0)
    )
    assert pulled.norm() < 0.8 * free.norm()
    zero = train(support.tuned(), [turn()], prox_mu=0.0)[0].payload[DELTA]
    assert torch.equal(free, zero)


def test_dropout_depends_on_the_seed_and_not_on_the_batch():
    tuned = support.tuned(dropout=0.5)
    keys = torch.arange(6) * 1000
    x = torch.randn(6, 5)
    with tuned.dropout.using(keys):
        together = tuned.model(x)
    for i in range(6):
        with tuned.dropout.using(keys[i : i + 1]):
            torch.testing.assert_close(tuned.model(x[i : i + 1])[0], together[i])
    assert not torch.allclose(tuned.model(x), together)


def test_parameters_without_gradient_stay_put():
    tuned = support.tuned()
    before = tuned.parameters["unused.weight"].detach().clone()
    decay = OptimizerSettings(lr=0.1, weight_decay=0.5)
    train(tuned, [turn()], optimizer=decay)
    assert torch.equal(tuned.parameters["unused.weight"], before)
    assert not FlatDelta(support.tuned()).grad_P.any()


def test_evaluation_sums_do_not_depend_on_the_batch_size():
    data, tuned = support.federated(), support.tuned()
    one = evaluate(tuned, data.test, support.settings(), batch_size=1)
    all_at_once = evaluate(tuned, data.test, support.settings(), batch_size=1000)
    torch.testing.assert_close(one.loss_N, all_at_once.loss_N, rtol=1e-5, atol=1e-6)
    assert torch.equal(one.correct_N, all_at_once.correct_N)
    assert one.label_N.tolist() == data.labels.tolist()
    loss, count, correct = one.sums([0, 2])
    assert count == 2 and 0 <= correct <= 2 and loss > 0
