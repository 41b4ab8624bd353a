"""Contract tests over OPTIMIZERS, and parity with what each follows."""

import copy
import importlib
import math

import pytest
import torch
from torch import nn

from seedbed.models import MODELS
from seedbed.optim import OPTIMIZERS, AdamWConfig, SGDConfig
from seedbed.optim.adafactor import AdafactorConfig
from seedbed.optim.adam import AdamConfig
from seedbed.optim.groups import is_hidden_matrix, set_groups
from seedbed.optim.guard import one_minus_power
from seedbed.optim.lamb import LAMBConfig
from seedbed.optim.lion import LionConfig
from seedbed.optim.muon import MuonConfig, orthogonalize, projections
from seedbed.optim.normuon import NorMuonConfig
from seedbed.optim.schedule_free import ScheduleFreeAdamWConfig, ScheduleFreeSGDConfig
from seedbed.training.state import TrainingState
from small_models import small_model
from toys import toy_model

HIDDEN = "layers.0.output.weight"  # a name that Muon takes for a hidden matrix
VARIANTS = [
    *((name, {}) for name in OPTIMIZERS),
    ("adamw", {"is_cautious": True}),
    ("sgd", {"momentum": 0.0}),
    ("muon", {"orthogonalization": "polar_express", "update_scale": "rms"}),
]


def build(config, **tensors):
    """The optimizer of named tensors, which become parameters."""
    parameters = {name: nn.Parameter(tensor.clone()) for name, tensor in tensors.items()}
    return parameters, config.build(parameters.items())


def random_gradients(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def take_step(parameters, optimizer, gradients, *, config, step=0, num_steps=10, is_finite=True):
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    set_groups(optimizer, config.rate(step, num_steps), config.settings(step, num_steps))
    optimizer.found_inf = torch.tensor(0.0 if is_finite else 1.0)
    optimizer.step()


def weights_of(parameters, optimizer):
    """What is evaluated: of schedule-free optimizers another sequence than what is trained."""
    if hasattr(optimizer, "evaluation_weights"):
        return {id(p): w for p, w in optimizer.evaluation_weights()}
    return {id(p): p.detach() for p in parameters.values()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_groups_cover_all_parameters_once_and_norms_do_not_decay(name, family):
    model = toy_model(family)
    optimizer = OPTIMIZERS[name](weight_decay=0.3).build(model.named_parameters())
    covered = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(covered) == sorted({id(p) for p in model.parameters()})
    for group in optimizer.param_groups:
        for parameter, label in zip(group["params"], group["names"], strict=True):
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0), label


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
@pytest.mark.parametrize("label", ["weight", HIDDEN])
def test_a_quadratic_converges(name, changes, label):
    rates = {"adam_learning_rate": 0.05} if "muon" in name else {}
    rate = 0.15 if changes.get("update_scale") == "rms" else 0.05
    config = OPTIMIZERS[name](learning_rate=rate, weight_decay=0.0, **rates, **changes)
    parameters, optimizer = build(config, **{label: torch.tensor([[3.0, -2.0], [1.0, 4.0]])})
    (weight,) = parameters.values()
    for step in range(400):
        optimizer.zero_grad()
        (weight - 1.0).square().sum().backward()
        set_groups(optimizer, config.rate(step, 400), config.settings(step, 400))
        optimizer.step()
    (result,) = weights_of(parameters, optimizer).values()
    assert torch.allclose(result, torch.ones(2, 2), atol=0.05 if "schedule_free" in name else 0.02)


SHAPES = {HIDDEN: (4, 3), "layers.0.qkv.weight": (6, 3), "embedding.weight": (5, 3), "norm.weight": (3,)}


def trained(name, changes, plan, *, stop=None):
    """Weights and state after steps; False in the plan is a non-finite gradient. `stop` saves and loads in between."""
    config = OPTIMIZERS[name](learning_rate=0.01, **{"weight_decay": 0.1, **changes})
    parameters, optimizer = build(config, **random_gradients(SHAPES, 99))
    number = 0
    for place, is_finite in enumerate(plan):
        if place == stop:
            learner = type("Learner", (), {"parts": nn.ParameterDict()})()
            learner.parts.named_parameters = parameters.items
            saved = {k: v.clone() for k, v in TrainingState(learner, optimizer).optimizer_tensors().items()}
            # What a skipped step at the very start left must not matter, and a new process has fresh objects.
            parameters = {n: nn.Parameter(p.detach().clone()) for n, p in parameters.items()}
            optimizer = config.build(parameters.items())
            learner.parts.named_parameters = parameters.items
            TrainingState(learner, optimizer).load_optimizer_tensors(saved)
        gradients = random_gradients(SHAPES, number)
        if not is_finite:
            gradients = {key: value * float("nan") for key, value in gradients.items()}
        take_step(parameters, optimizer, gradients, config=config, step=number, is_finite=is_finite)
        number += is_finite
    weights = {n: p.detach() for n, p in parameters.items()}
    state = {f"{n}/{k}": v for n, p in parameters.items() for k, v in optimizer.state.get(p, {}).items()}
    evaluated = dict(enumerate(weights_of(parameters, optimizer).values()))
    return {**weights, **state, **evaluated}


def same_bits(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[k].flatten().view(torch.int32), other[k].flatten().view(torch.int32)) for k in one
    )


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
@pytest.mark.parametrize(
    "plan", [[False, True, True], [True, False, True], [False, True, False, True, False]]
)
@pytest.mark.parametrize("is_at_hand", [True, False])
def test_a_non_finite_gradient_leaves_no_trace(name, changes, plan, is_at_hand, monkeypatch):
    """Also the way of an accelerator, where the host never reads the flag."""
    monkeypatch.setattr("seedbed.optim.guard._is_at_hand", lambda flag: is_at_hand)
    monkeypatch.setattr("seedbed.optim.guard._CHUNK_ELEMENTS", 20)
    assert same_bits(trained(name, changes, plan), trained(name, changes, [p for p in plan if p]))


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_state_saved_and_loaded_is_the_same_run(name, changes, stop):
    plan = [True] * 5
    assert same_bits(trained(name, changes, plan, stop=stop), trained(name, changes, plan))


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_a_copy_of_the_optimizer_goes_on_alike(name, changes):
    """The probe before a run times steps on a copy; torch copies state and groups only."""
    config = OPTIMIZERS[name](**changes)
    model = toy_model("llama")
    optimizer = config.build(model.named_parameters())
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.1)
    optimizer.step()
    twin_model, twin = copy.deepcopy((model, optimizer))
    for both in (model, twin_model):
        for p in both.parameters():
            p.grad = torch.full_like(p, -0.2)
    optimizer.step()
    twin.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin_model.parameters(), strict=True))


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_parameters_without_a_gradient_stay(name, changes):
    config = OPTIMIZERS[name](**changes)
    parameters, optimizer = build(config, **random_gradients(SHAPES, 3))
    gradients = random_gradients(SHAPES, 4)
    before = parameters["embedding.weight"].detach().clone()
    for label, parameter in parameters.items():
        parameter.grad = None if label == "embedding.weight" else gradients[label]
    optimizer.step()
    assert torch.equal(parameters["embedding.weight"], before)
    assert not torch.equal(parameters[HIDDEN], random_gradients(SHAPES, 3)[HIDDEN])


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_the_flag_is_read_on_the_device(name, changes):
    config = OPTIMIZERS[name](**changes)
    start = {key: value.cuda() for key, value in random_gradients(SHAPES, 5).items()}
    parameters, optimizer = build(config, **start)
    gradients = {key: value.cuda() for key, value in random_gradients(SHAPES, 6).items()}

    def step(flag, factor=1.0):
        for label, parameter in parameters.items():
            parameter.grad = gradients[label] * factor
        optimizer.found_inf = torch.tensor(flag, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    step(0.0)
    kept = [p.detach().clone() for p in parameters.values()]
    kept += [v.clone() for p in parameters.values() for v in optimizer.state.get(p, {}).values()]
    step(1.0, float("nan"))
    now = [p.detach() for p in parameters.values()]
    now += [v for p in parameters.values() for v in optimizer.state.get(p, {}).values()]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    step(0.0)
    assert not torch.equal(kept[0], parameters[HIDDEN])


# --- against what each follows ------------------------------------------------------------------------------------------


def run_both(config, reference, shapes=SHAPES, *, steps=6, decay=0.1, prepare=None):
    """Our optimizer and another at the same gradients; the largest difference of weights, relative to their movement."""
    start = random_gradients(shapes, 1)
    parameters, optimizer = build(config, **start)
    twins = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    other = reference(
        [
            {"params": [p for p in twins.values() if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in twins.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
    )
    if prepare is not None:
        prepare(other)
    for step in range(steps):
        gradients = random_gradients(shapes, 100 + step)
        for name in parameters:
            parameters[name].grad, twins[name].grad = gradients[name].clone(), gradients[name].clone()
        set_groups(optimizer, config.learning_rate)
        optimizer.step()
        other.step()
    moved = max((parameters[n] - start[n]).abs().max().item() for n in start)
    return (
        max((parameters[n] - twins[n]).abs().max().item() for n in start) / moved,
        parameters,
        optimizer,
        other,
    )


def test_adam_is_torchs():
    config = AdamConfig(learning_rate=0.01, weight_decay=0.1)
    error, *_ = run_both(config, lambda g: torch.optim.Adam(g, lr=0.01, betas=(0.9, 0.98), foreach=False))
    assert error < 1e-5


def test_adafactor_is_torchs():
    config = AdafactorConfig(learning_rate=0.02, weight_decay=0.1)
    error, *_ = run_both(config, lambda g: torch.optim.Adafactor(g, lr=0.02))
    assert error < 1e-5


@pytest.mark.parametrize("scale", ["shape", "rms"])
def test_muon_is_torchs(scale):
    config = MuonConfig(
        learning_rate=0.02, weight_decay=0.1, is_cautious=False, update_scale=scale, initial_momentum=0.95
    )
    shapes = {"layers.0.a.weight": (6, 4), "layers.1.a.weight": (4, 6), "layers.2.a.weight": (6, 4)}
    names = {"shape": "original", "rms": "match_rms_adamw"}

    def reference(groups):
        return torch.optim.Muon(groups[:1], lr=0.02, adjust_lr_fn=names[scale])

    error, *_ = run_both(config, reference, shapes)
    assert error < 0.03  # torch multiplies in bfloat16


@pytest.mark.parametrize("form", ["adamw", "sgd"])
def test_schedule_free_is_the_authors(form):
    import schedulefree as library  # of the extra `test`

    if form == "adamw":
        config = ScheduleFreeAdamWConfig(learning_rate=0.01, weight_decay=0.1)
        make = lambda g: library.AdamWScheduleFree(g, lr=0.01, betas=(0.9, 0.98))  # noqa: E731
    else:
        config = ScheduleFreeSGDConfig(learning_rate=0.05, weight_decay=0.1)
        make = lambda g: library.SGDScheduleFree(g, lr=0.05, momentum=0.9)  # noqa: E731
    error, parameters, optimizer, other = run_both(config, make, prepare=lambda o: o.train())
    assert error < 1e-5
    other.eval()
    theirs = [p.detach() for g in other.param_groups for p in g["params"]]
    ours = weights_of(parameters, optimizer)
    matrices = [p for p in parameters.values() if p.ndim >= 2] + [
        p for p in parameters.values() if p.ndim < 2
    ]
    for mine, their in zip(matrices, theirs, strict=True):
        assert torch.allclose(ours[id(mine)], their, atol=1e-6)


def test_schedule_free_is_the_papers_three_sequences():
    """Equations 5 to 7 of arXiv 2405.15682 with x and z kept apart, weights by the squared rate."""
    config = ScheduleFreeSGDConfig(learning_rate=0.1, weight_decay=0.0, momentum=0.8)
    parameters, optimizer = build(config, weight=torch.tensor([[2.0]]))
    (weight,) = parameters.values()
    x = z = 2.0
    total = 0.0
    for number, rate in enumerate([0.02, 0.1, 0.1, 0.1]):
        y = 0.2 * z + 0.8 * x
        assert weight.item() == pytest.approx(y, abs=1e-6)
        gradient = math.sin(number + y)
        weight.grad = torch.tensor([[gradient]])
        set_groups(optimizer, rate)
        optimizer.step()
        z -= rate * gradient
        total += rate**2
        x = (1 - rate**2 / total) * x + rate**2 / total * z
        assert next(iter(weights_of(parameters, optimizer).values())).item() == pytest.approx(x, abs=1e-6)


def test_adamw_is_the_published_update():
    """Against the formulas of arXiv 1711.05101, written out; the cautious one decays where it may."""
    for is_cautious in (False, True):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(3, 4))
        reference = weight.detach().clone().double()
        config = AdamWConfig(
            learning_rate=0.01, weight_decay=0.1, beta1=0.9, beta2=0.98, eps=1e-8, is_cautious=is_cautious
        )
        optimizer = config.build([("weight", weight)])
        set_groups(optimizer, 0.01)
        m, v = torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
        for t in range(1, 8):
            gradient = torch.randn(3, 4)
            weight.grad = gradient.clone()
            optimizer.step()
            g = gradient.double()
            m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
            step = (m / (1 - 0.9**t)) / ((v / (1 - 0.98**t)).sqrt() + 1e-8)
            mask = (step * reference >= 0).double() if is_cautious else 1.0
            reference = reference - 0.01 * 0.1 * reference * mask - 0.01 * step
        assert torch.allclose(weight.double(), reference, atol=1e-6)


def test_lamb_is_the_published_update():
    """Algorithm 2 of arXiv 1904.00962, written out; a vector is moved by Adam's direction alone."""
    config = LAMBConfig(learning_rate=0.01, weight_decay=0.2)
    shapes = {"a.weight": (3, 4), "b.weight": (3,)}
    parameters, optimizer = build(config, **random_gradients(shapes, 1))
    expected = {n: p.detach().clone().double() for n, p in parameters.items()}
    m = {n: torch.zeros(s).double() for n, s in shapes.items()}
    v = {n: torch.zeros(s).double() for n, s in shapes.items()}
    for t in range(1, 6):
        gradients = random_gradients(shapes, 10 + t)
        for name in shapes:
            parameters[name].grad = gradients[name].clone()
            g = gradients[name].double()
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.98 * v[name] + 0.02 * g * g
            r = m[name] / (1 - 0.9**t) / ((v[name] / (1 - 0.98**t)).sqrt() + 1e-6)
            ratio = 1.0
            if name == "a.weight":
                r = r + 0.2 * expected[name]
                ratio = expected[name].norm() / r.norm()
            expected[name] = expected[name] - 0.01 * ratio * r
        set_groups(optimizer, 0.01)
        optimizer.step()
    for name in shapes:
        assert torch.allclose(parameters[name].double(), expected[name], atol=1e-6), name


def test_lamb_moves_a_matrix_that_is_zero():
    parameters, optimizer = build(LAMBConfig(learning_rate=0.1, weight_decay=0.0), weight=torch.zeros(2, 2))
    parameters["weight"].grad = torch.ones(2, 2)
    set_groups(optimizer, 0.1)
    optimizer.step()
    assert torch.allclose(parameters["weight"], torch.full((2, 2), -0.1), atol=1e-5)


def test_lion_is_the_published_update():
    """Algorithm 2 of arXiv 2302.06675."""
    config = LionConfig(learning_rate=0.01, weight_decay=0.3)
    parameters, optimizer = build(config, weight=random_gradients({"w": (3, 4)}, 0)["w"])
    expected = parameters["weight"].detach().clone()
    m = torch.zeros(3, 4)
    for t in range(6):
        g = random_gradients({"w": (3, 4)}, 20 + t)["w"]
        parameters["weight"].grad = g.clone()
        set_groups(optimizer, 0.01)
        optimizer.step()
        expected = expected - 0.01 * (torch.sign(0.9 * m + 0.1 * g) + 0.3 * expected)
        m = 0.99 * m + 0.01 * g
    assert torch.allclose(parameters["weight"], expected, atol=1e-6)


def slow_polar(matrix):
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ v


def test_normuon_is_the_published_update(monkeypatch):
    """Written out from the authors' code, with an exact orthogonalisation in both."""
    exact = lambda matrices, *_, **__: slow_polar(matrices).float()  # noqa: E731
    monkeypatch.setattr("seedbed.optim.muon.orthogonalize", exact)
    config = NorMuonConfig(
        learning_rate=0.02,
        weight_decay=0.0,
        momentum=0.9,
        initial_momentum=0.9,
    )
    parameters, optimizer = build(config, **{"layers.0.a.weight": random_gradients({"w": (8, 4)}, 2)["w"]})
    (weight,) = parameters.values()
    expected = weight.detach().clone().double()
    start = expected.clone()
    m, rows = torch.zeros(8, 4).double(), torch.zeros(8, 1).double()
    for t in range(5):
        g = random_gradients({"w": (8, 4)}, 30 + t)["w"]
        weight.grad = g.clone()
        set_groups(optimizer, 0.02, {"momentum": 0.9})
        optimizer.step()
        m = 0.9 * m + 0.1 * g.double()
        update = slow_polar(0.1 * g.double() + 0.9 * m)
        size = update.norm()
        rows = 0.95 * rows + 0.05 * update.square().mean(1, keepdim=True)
        update = update / rows.sqrt()
        expected = expected - 0.02 * 2**0.5 * update * size / update.norm()
    assert (weight - expected).norm() / (expected - start).norm() < 1e-5


@pytest.mark.parametrize(
    ("method", "low", "high"), [("newton_schulz", 0.65, 1.25), ("polar_express", 0.85, 1.15)]
)
@pytest.mark.parametrize("shape", [(8, 8), (3, 12, 5), (5, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_orthogonalisation_brings_singular_values_to_one(method, low, high, shape, dtype):
    matrix = random_gradients({"w": shape}, 8)["w"] * 1e-3
    result = orthogonalize(matrix, method, 5, dtype=dtype)
    values = torch.linalg.svdvals(result)
    well = torch.linalg.svdvals(matrix) / matrix.norm(dim=(-2, -1), keepdim=True).squeeze(-1) > 0.02
    assert ((values > low) & (values < high))[well].all()
    assert (values < high).all()
    assert torch.equal(orthogonalize(torch.zeros(2, 3), method, 5, dtype=dtype), torch.zeros(2, 3))


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_products_are_in_bfloat16_where_the_processor_has_them(monkeypatch, has_bfloat16):
    monkeypatch.setattr("seedbed.optim.muon.cpu_multiplies_bfloat16", lambda: has_bfloat16)
    matrix = random_gradients({"w": (16, 24)}, 8)["w"]
    dtype = torch.bfloat16 if has_bfloat16 else torch.float32
    result = orthogonalize(matrix, "polar_express", 5)
    assert result.dtype == torch.float32
    assert torch.equal(result, orthogonalize(matrix, "polar_express", 5, dtype=dtype))


def test_muon_orthogonalises_every_projection_by_itself():
    config = MuonConfig(learning_rate=0.02, weight_decay=0.0, orthogonalization="polar_express")
    shapes = {"layers.0.qkv.weight": (16, 8), "layers.0.output.weight": (8, 8)}
    parameters, optimizer = build(config, **{n: torch.zeros(s) for n, s in shapes.items()})
    for name, gradient in random_gradients(shapes, 3).items():
        parameters[name].grad = gradient
    set_groups(optimizer, 1.0, {"momentum": 0.0})
    optimizer.step()
    for part in parameters["layers.0.qkv.weight"].detach().split([8, 4, 4]):
        assert torch.allclose(torch.linalg.svdvals(part), torch.ones(len(part)), atol=0.15)


@pytest.mark.parametrize("family", ["bert", "llama", "modernbert", "gpt2"])
def test_projections_are_those_of_the_model(family):
    changes = {"num_kv_heads": 1} if family == "llama" else {}
    model = toy_model(family, **changes)
    rows = projections({n: tuple(p.shape) for n, p in model.named_parameters()})
    for index, layer in enumerate(model.trunk.layers):
        attention, block = layer.attention, layer.feed_forward
        heads, groups, size = attention.num_heads, attention.num_kv_heads, attention.head_dim
        expected = (heads * size, groups * size, groups * size)
        assert rows.pop(f"trunk.layers.{index}.attention.qkv.weight") == expected
        if block.is_gated:
            assert rows.pop(f"trunk.layers.{index}.feed_forward.input.weight") == (64, 64)
    assert not rows


def test_muon_leaves_embeddings_heads_and_vectors_to_adamw():
    model = toy_model("bert")
    optimizer = MuonConfig().build(model.named_parameters())
    kinds = {name: g["kind"] for g in optimizer.param_groups for name in g["names"]}
    matrices = {name for name, kind in kinds.items() if kind == "muon"}
    assert matrices == {
        f"trunk.layers.{i}.{part}.weight"
        for i in range(2)
        for part in ("attention.qkv", "attention.output", "feed_forward.input", "feed_forward.output")
    }


@pytest.mark.parametrize("family", MODELS)
def test_muon_takes_linear_maps_only(family):
    model = small_model(family)
    modules = dict(model.named_modules())
    hidden = [n for n, p in model.named_parameters() if is_hidden_matrix(n, p)]
    assert len(hidden) >= 4
    for name in hidden:
        assert isinstance(modules[name.removesuffix(".weight")], nn.Linear), name


def test_muons_momentum_warms_up():
    config = MuonConfig(momentum_warmup_steps=100)
    values = [config.settings(step, 1000)["momentum"] for step in (0, 50, 100, 900)]
    assert values == pytest.approx([0.85, 0.90, 0.95, 0.95])
    assert config.settings(20, 100)["momentum"] == pytest.approx(0.95)  # a fifth of a short run


def test_sgd_is_nesterov_momentum():
    weight = nn.Parameter(torch.tensor([[1.0]]))
    optimizer = SGDConfig(learning_rate=0.1, momentum=0.5, weight_decay=0.0).build([("weight", weight)])
    buffer, reference = 0.0, 1.0
    for gradient in (1.0, -2.0, 0.5):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        buffer = 0.5 * buffer + gradient
        reference -= 0.1 * (gradient + 0.5 * buffer)
    assert weight.item() == pytest.approx(reference, abs=1e-6)


@pytest.mark.parametrize("base", [0.0, 0.9, 0.999, 0.9999])
def test_bias_correction_keeps_its_digits(base):
    for step in (1, 10, 1000):
        value = one_minus_power(base, torch.tensor(float(step))).item()
        assert value == pytest.approx(1.0 - base**step, rel=1e-6)


def test_every_optimizer_module_names_its_source():
    for config in OPTIMIZERS.values():
        if config.__name__ not in ("SGDConfig",):
            module = importlib.import_module(config.__module__)
            assert "arXiv" in (config.__doc__ or "") + (module.__doc__ or ""), config.__name__
