"""Every reference case, through the interpreter and through the trainer at each grain on each executor."""

import itertools

import numpy as np
import pytest
import reference

import flowgrad as fg

GRAINS = ("node", "sample", "shard", "round")


@pytest.fixture(scope="module", params=reference.NAMES)
def name(request):
    return request.param


def test_the_list_of_cases_is_complete(shared):
    assert set(reference.contents(shared)) == set(reference.NAMES)


@pytest.mark.parametrize("name", reference.SMALL)
def test_forward_and_backward_of_the_interpreter(shared, name):
    case = reference.build(shared, name)
    case.set_sample(0)
    reference.close(case.logits.forward(), case.expected["logits0"], "logits")
    reference.close(case.loss.forward(), case.expected["loss_before_step"][:1], "loss")
    keys = [key for key in case.expected if key.startswith("jacobian0/")]
    assert len(keys) == 2 * (len(case.trainable) + len(case.inputs))
    for key in keys:
        _, result, variable = key.split("/")
        jacobian = case.variables[variable].backward(getattr(case, result))
        assert jacobian.shape == case.expected[key].shape
        reference.close(jacobian, case.expected[key], key)


def test_one_step(shared, name):
    case = reference.build(shared, name)
    losses = []
    for k, samples in reference.updates(case):
        for i in samples:
            case.set_sample(i)
            losses.append(case.loss.forward()[0])
            case.optimizer.one_step()
        check_variables(case, k)
    assert k == case.updates
    reference.close(losses, case.expected["loss_before_step"], "loss before each step")


@pytest.mark.parametrize("name", reference.SMALL)
@pytest.mark.parametrize("labels", ["indices", "one_hot"])
def test_forward_and_jacobians_of_the_engine(shared, executor, name, labels):
    case = reference.build(shared, name)
    feeds = dict(case.feeds)
    if labels == "one_hot":
        feeds[case.label] = case.one_hot()
    engine = fg.Engine(executor, dtype="float64")
    size = case.spec["batch_size"]
    losses = engine.forward(case.loss, feeds)
    # The file's later losses belong to later weights, so only the first mini-batch can be compared.
    assert losses.shape == (len(case.expected["loss_before_step"]), 1)
    reference.close(losses[:size, 0], case.expected["loss_before_step"][:size], "loss")
    losses = engine.forward(case.loss, feeds)
    assert losses.shape[1] == 1
    first = {node: array[:1] for node, array in feeds.items()}
    wrt = list(case.variables.values())
    gradients = engine.gradient(case.loss, first, wrt=list(case.trainable.values()))
    for key, variable in case.trainable.items():
        reference.close(gradients[variable], case.expected[f"jacobian0/loss/{key}"][0], f"gradient by {key}")
    for result in ("loss", "logits"):
        jacobians = engine.jacobian(getattr(case, result), wrt, {n: a[:size] for n, a in feeds.items()})
        for key, variable in case.variables.items():
            expected = case.expected[f"jacobian0/{result}/{key}"]
            assert jacobians[variable].shape == (size, *expected.shape)
            reference.close(jacobians[variable][0], expected, f"{result} by {key}")


def train(shared, executor, name, grain):
    case = reference.build(shared, name)
    engine = fg.Engine(executor, dtype="float64", grain=grain)
    history = fg.Trainer(case.optimizer, engine=engine, shuffle=False).fit(case.feeds, epochs=1)
    steps, losses = zip(*history.steps)
    assert np.diff(steps).tolist() == [1] * (case.updates - 1)
    reference.close(losses, case.batch_losses(), "losses in the history")
    check_variables(case, case.updates)


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("where", ["sync", "threads"])
def test_trainer(shared, where, name, grain):
    train(shared, where, name, grain)


def across_workers():
    """Every case at every grain; the costly ones, thousands of tiny tasks, are slow tests."""
    for name, grain in itertools.product(reference.NAMES, GRAINS):
        costly = (name == reference.MNIST and grain in ("node", "sample")) or (
            grain == "node" and name not in ("mlp_relu_Adam", "shared_patches_Adam")
        )
        yield pytest.param(name, grain, marks=[pytest.mark.slow] if costly else [])


@pytest.mark.distributed
@pytest.mark.parametrize(("case", "grain"), list(across_workers()))
def test_trainer_across_workers(shared, client, case, grain):
    train(shared, client, case, grain)


def check_variables(case, k):
    keys = [f"after/{k}/{key}" for key in case.trainable]
    if keys[0] not in case.expected:
        assert case.name == reference.MNIST  # which has the final values only
        assert k < case.updates
        return
    for key, variable in zip(keys, case.trainable.values()):
        reference.close(variable.value, case.expected[key], key)
