"""Parameters by path, and ordered rules over paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.noise import drawn
from tests.tables import for_each
from unime_jax import paths
from unime_jax.models.decoder import Decoder, DecoderConfig

TINY = DecoderConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    rope_axes=(0, 0),
    qkv_bias=True,
    hidden_act="silu",
)


@pytest.fixture(scope="module")
def decoder():
    graph, shapes = paths.split(jax.eval_shape(lambda: Decoder(TINY, key=jax.random.key(0))))
    return paths.merge(graph, drawn(shapes))


@jax.jit
def run(model):
    x = np.random.default_rng(1).standard_normal((1, 5, 8), np.float32)
    return model(x, jnp.arange(5)[None, :, None], remat="none", implementation="xla")


def test_paths_are_attribute_names_and_layers_are_stacked(decoder):
    _, parameters = paths.split(decoder)
    attention = {f"layers.self_attn.{p}_proj.kernel" for p in "qkvo"}
    biases = {f"layers.self_attn.{p}_proj.bias" for p in "qkv"}
    mlp = {f"layers.mlp.{p}_proj.kernel" for p in ("gate", "up", "down")}
    norms = {"layers.input_layernorm.weight", "layers.post_attention_layernorm.weight"}
    whole = {"embed_tokens.embedding", "norm.weight"}
    assert set(parameters) == attention | biases | mlp | norms | whole
    assert parameters["layers.self_attn.k_proj.kernel"].shape == (2, 8, 4)


@for_each("parts", [1, 2, 5])
def test_merge_is_the_inverse_of_split(decoder, parts):
    """In any number of parts and in any order within them."""
    graph, parameters = paths.split(decoder)
    order = sorted(parameters, key=hash)
    again = paths.merge(graph, *({p: parameters[p] for p in order[i::parts]} for i in range(parts)))
    np.testing.assert_array_equal(run(again), run(decoder))
    for path, leaf in paths.split(again)[1].items():
        np.testing.assert_array_equal(leaf, parameters[path])


def test_merge_needs_exactly_the_parameters(decoder):
    # Merge needs exactly the parameters.
    graph, parameters = paths.split(decoder)
    rest = {path: leaf for path, leaf in parameters.items() if path != "norm.weight"}
    for wrong in (rest, parameters | {"norm.bias": jnp.zeros(8)}):
        with pytest.raises(ValueError, match="expected 14 leaves"):
            paths.merge(graph, wrong)
    # Left to itself, nnx would put every leaf behind the new name into another's place.
    with pytest.raises(ValueError, match=r"no parameters \['a.b'\], and misses \['norm.weight'\]"):
        paths.merge(graph, rest, {"a.b": parameters["norm.weight"]})

    # Merge of shapes alone.
    shapes = jax.eval_shape(lambda: Decoder(TINY, key=jax.random.key(0)))
    graph, parameters = paths.split(shapes)
    out = jax.eval_shape(lambda p: run(paths.merge(graph, p)), parameters)
    assert out.shape == (1, 5, 8)

    # The first rule that matches the whole path wins
    # First matching rule wins.
    rules = [(r".*\.kernel", 1), (r"vision\..*", 2), (r".*", 3)]
    names = ["vision.fc1.kernel", "vision.fc1.bias", "text.bias"]
    assert paths.assign(rules, names, what="x") == dict(zip(names, (1, 2, 3)))
    assert set(paths.assign(rules[::-1], names, what="x").values()) == {3}

    # A rule matches the whole path.
    with pytest.raises(ValueError):
        paths.assign([("kernel", 1)], ["q_proj.kernel"], what="x")
    with pytest.raises(ValueError):
        paths.assign([("q_proj", 1)], ["q_proj.kernel"], what="x")

    # Unmatched paths are all listed.
    rules = [(r".*\.kernel", 1)]
    with pytest.raises(ValueError) as error:
        paths.assign(rules, ["a.kernel", "a.bias", "norm.weight"], what="optimizer.decays")
    text = str(error.value)
    assert "optimizer.decays" in text and "2 parameter(s)" in text
    assert "a.bias" in text and "norm.weight" in text and "a.kernel" not in text


@given(st.lists(st.sampled_from("ab."), max_size=4).map("".join), st.data())
def test_a_value_of_none_is_a_value(path, data):
    """A rule that assigns None or False still matches."""
    value = data.draw(st.sampled_from([None, False, 0]))
    assert paths.assign([(".*", value), (".*", 1)], [path], what="x") == {path: value}
