"""Sharding of arrays: a mesh ("member", "data", "model") and rules from parameter paths to PartitionSpecs."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from olmo_jax.config import ConfigError, MeshConfig

T = TypeVar("T")

AXES = ("member", "data", "model")

# For one model, without the member axis, by the end of the path, so that an optimiser's moments are sharded like their
# parameters. Vocabulary, heads and hidden width are split over "model"; each block then needs one reduction per
# sublayer (Megatron).
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(embedding|unembedding)$", PartitionSpec("model", None)),
    (r"(positions|unembedding_factor)$", PartitionSpec(None, None)),
    (r"attention/(query|key|value)$", PartitionSpec(None, "model")),
    (r"attention/((query|key|value)_bias|(query|key)_norm/(scale|bias))$", PartitionSpec("model")),
    (r"attention/out$", PartitionSpec("model", None)),
    (r"mlp/(gate|up)$", PartitionSpec(None, "model")),
    (r"mlp/(gate|up)_bias$", PartitionSpec("model")),
    (r"mlp/down$", PartitionSpec("model", None)),
    # Terms and scales of the residual stream, and of single heads, which are replicated over "model".
    (
        r"(attention/out_bias|mlp/down_bias|((attention|mlp)_norm(_after)?|final_norm)/(scale|bias))$",
        PartitionSpec(None),
    ),
    (r"attention/(query|key)_head_norm/(scale|bias)$", PartitionSpec(None)),
    (r"(count|step|diverged_at|reason|ns_coeffs)$", PartitionSpec()),
)

BATCH = PartitionSpec("member", "data", None)
MEMBERS = PartitionSpec("member")


def make_mesh(config: MeshConfig, members: int) -> Mesh:
    """Return the mesh for a stack of `members`; raises ConfigError if there are too few devices.

    For `member = 0` the member axis takes as many devices as data x model leaves, but no more than there are members.
    """
    devices = jax.devices()
    inner = config.data * config.model
    member = config.member or max(1, min(members, len(devices) // inner))
    if member * inner > len(devices):
        raise ConfigError(
            f"config.mesh = {member} x {config.data} x {config.model} needs {member * inner} devices and there are "
            f"{len(devices)}; lower it, or set XLA_FLAGS=--xla_force_host_platform_device_count on a CPU"
        )
    shape = (member, config.data, config.model)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[: member * inner])


def path_name(path: tuple[Any, ...]) -> str:
    """Return a key path of jax.tree_util as text, such as "blocks_0/attention/query"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def spec_of(name: str) -> PartitionSpec:
    """Return the PartitionSpec of one model's array, by its path; raises ConfigError if no rule covers it."""
    for pattern, spec in RULES:
        if re.search(pattern, name):
            return spec
    raise ConfigError(f"no sharding rule covers the parameter '{name}'; add one to RULES in execution/sharding.py")


def stack_shardings(mesh: Mesh, stack: Any, fsdp: bool = False) -> Any:
    """Return the NamedShardings of a stacked tree: the member axis first, then the axes given by the rules.

    With `fsdp`, matrices are also split over "data", along the dimension that the rules don't split (MeshConfig). A
    number of members that the mesh axis doesn't divide (a checkpoint from another mesh, not yet padded) is replicated.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec = _spec_at_rest(spec_of(path_name(path))) if fsdp else spec_of(path_name(path))
        for axis, size in zip(spec, leaf.shape[1:], strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise ConfigError(
                    f"config.mesh.{axis} = {mesh.shape[axis]} doesn't divide a dimension of {size} of "
                    f"'{path_name(path)}'; choose a divisor"
                )
        member = "member" if leaf.shape[0] % mesh.shape["member"] == 0 else None
        return NamedSharding(mesh, PartitionSpec(member, *spec))

    return jax.tree_util.tree_map_with_path(sharding, stack)


def gathered(mesh: Mesh, params: Any) -> Any:
    """Return one model's fully sharded parameters gathered over "data", as a matmul on a share of the batch needs.

    This is explicit because XLA would otherwise sum every device's partial products of the whole batch. Gradients are
    sharded like the parameters as soon as they are computed.
    """

    def gather(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        spec = spec_of(path_name(path))
        at_use, at_rest = NamedSharding(mesh, spec), NamedSharding(mesh, _spec_at_rest(spec))

        @jax.custom_vjp
        def whole(x: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(x, at_use)

        def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
            return (jax.lax.with_sharding_constraint(gradient, at_rest),)

        whole.defvjp(lambda x: (whole(x), None), backward)
        return whole(x)

    return jax.tree_util.tree_map_with_path(gather, params)


def gathering(mesh: Mesh, f: Callable[[Any], T]) -> Callable[[Any], T]:
    """Return `f` of fully sharded parameters, gathered for it and again for its gradient but not kept in between."""

    def keep(primitive: Any, *_: Any, **__: Any) -> bool:
        # Keep neither the gathered arrays (`whole` and the constraint in it) nor copies of them in another dtype.
        return primitive.name not in ("custom_vjp_call", "sharding_constraint", "convert_element_type")

    return jax.checkpoint(lambda params: f(gathered(mesh, params)), policy=keep)


def _spec_at_rest(spec: PartitionSpec) -> PartitionSpec:
    """Return a matrix's spec with "data" along the dimension that the rules don't split."""
    if len(spec) != 2:
        return spec
    axis = list(spec).index(None)
    return PartitionSpec(*spec[:axis], "data", *spec[axis + 1 :])


def put(mesh: Mesh, spec: PartitionSpec, array: np.ndarray) -> jax.Array:
    """Return a host array, of which every process has a full copy, sharded over the mesh."""
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def padded(members: int, mesh: Mesh) -> int:
    """Return the number of members rounded up to the mesh's member axis; added ones are inert (program.stack_hyper)."""
    axis = mesh.shape["member"]
    return -(-members // axis) * axis


def pad(members: Sequence[T], mesh: Mesh) -> list[T]:
    """Return one value per member, with the last repeated for the inert members."""
    return [*members, *[members[-1]] * (padded(len(members), mesh) - len(members))]
