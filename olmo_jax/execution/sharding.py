"""Where arrays lie: a mesh ("member", "data", "model") and rules from parameter paths to PartitionSpecs."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from olmo_jax.config import ConfigError, MeshConfig

T = TypeVar("T")

AXES = ("member", "data", "model")

# Of one model, without the member axis, by the end of the path: so an optimiser's moments lie where their parameters
# do. Vocabulary, heads and hidden width go over "model"; each block then needs one reduction a sublayer (Megatron).
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(embedding|unembedding)$", PartitionSpec("model", None)),
    (r"positions$", PartitionSpec(None, None)),
    (r"attention/(query|key|value)$", PartitionSpec(None, "model")),
    (r"attention/((query|key|value)_bias|(query|key)_norm/(scale|bias))$", PartitionSpec("model")),
    (r"attention/out$", PartitionSpec("model", None)),
    (r"mlp/(gate|up)$", PartitionSpec(None, "model")),
    (r"mlp/(gate|up)_bias$", PartitionSpec("model")),
    (r"mlp/down$", PartitionSpec("model", None)),
    # What is added to or scales the residual stream, which every device of "model" holds whole.
    (r"(attention/out_bias|mlp/down_bias|(attention_norm|mlp_norm|final_norm)/(scale|bias))$", PartitionSpec(None)),
    (r"(count|step|diverged_at|reason)$", PartitionSpec()),
)

BATCH = PartitionSpec("member", "data", None)
MEMBERS = PartitionSpec("member")


def make_mesh(config: MeshConfig, members: int) -> Mesh:
    """The mesh for a stack of `members`; raises ConfigError if there are too few devices.

    `member = 0` takes as many devices as are left beside data x model, but no more than there are members.
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
    """A key path of jax.tree_util as "blocks_0/attention/query"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def spec_of(name: str) -> PartitionSpec:
    """The PartitionSpec of one model's array by its path; a path that no rule covers is an error."""
    for pattern, spec in RULES:
        if re.search(pattern, name):
            return spec
    raise ConfigError(f"no sharding rule covers the parameter '{name}'; add one to RULES in execution/sharding.py")


def stack_shardings(mesh: Mesh, stack: Any, fsdp: bool = False) -> Any:
    """NamedShardings of a stacked tree: the member axis first, then what the rules say of the rest.

    With `fsdp`, "data" cuts matrices along the dimension that the rules leave whole (MeshConfig). Members that don't
    divide the axis (a checkpoint from another mesh, before it is padded) lie on every device.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec = _resting(spec_of(path_name(path))) if fsdp else spec_of(path_name(path))
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
    """One model's fully sharded parameters, each whole over "data": what a matmul of a share of the batch needs.

    Said explicitly, for XLA would rather add up every device's partial products of the whole batch. Their gradients are
    laid as the parameters are, a device's own share of each, as soon as they are known.
    """

    def gather(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        spec = spec_of(path_name(path))
        at_use, at_rest = NamedSharding(mesh, spec), NamedSharding(mesh, _resting(spec))

        @jax.custom_vjp
        def whole(x: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(x, at_use)

        def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
            return (jax.lax.with_sharding_constraint(gradient, at_rest),)

        whole.defvjp(lambda x: (whole(x), None), backward)
        return whole(x)

    return jax.tree_util.tree_map_with_path(gather, params)


def gathering(mesh: Mesh, f: Callable[[Any], T]) -> Callable[[Any], T]:
    """`f` of a model's fully sharded parameters, gathered for it, and again for its gradient: none is kept between."""

    def keep(primitive: Any, *_: Any, **__: Any) -> bool:
        # Neither what was gathered (the rule of `whole`, and what it does) nor a copy of it in another type.
        return primitive.name not in ("custom_vjp_call", "sharding_constraint", "convert_element_type")

    return jax.checkpoint(lambda params: f(gathered(mesh, params)), policy=keep)


def _resting(spec: PartitionSpec) -> PartitionSpec:
    """A matrix's spec with "data" along the dimension that the rules leave whole."""
    if len(spec) != 2:
        return spec
    place = list(spec).index(None)
    return PartitionSpec(*spec[:place], "data", *spec[place + 1 :])


def put(mesh: Mesh, spec: PartitionSpec, array: np.ndarray) -> jax.Array:
    """A host array laid over the mesh; every process holds the whole of it and hands over its own part."""
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def padded(members: int, mesh: Mesh) -> int:
    """Members rounded up to the mesh's member axis; those beyond are inert (see program.stack_hyper)."""
    axis = mesh.shape["member"]
    return -(-members // axis) * axis


def pad(members: Sequence[T], mesh: Mesh) -> list[T]:
    """Something of each member, the last one's repeated for the inert ones."""
    return [*members, *[members[-1]] * (padded(len(members), mesh) - len(members))]
