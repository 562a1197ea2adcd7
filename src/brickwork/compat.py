"""Every private call of torch, diffusers and accelerate, each with its reason. Imports nothing of ours.

An upgrade that takes one of them away fails in `tests/test_compat.py`, by its name.
"""

import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import nn

# torch's compiler, which is imported when something is compiled: the benchmark times that import by itself.
COMPILER = "torch._inductor.compile_fx"


def constructor_keys(model_class: type) -> set[str]:
    """The arguments of a diffusers class's constructor, those of its parents that it hands on included.

    diffusers has this as `_get_init_keys` alone, by which it reads `config.json`.
    """
    return set(model_class._get_init_keys(model_class)) - {"self"}


def functorch_is_active() -> bool:
    """Whether `torch.func` transforms are at work, which allow no hooks on saved tensors."""
    return torch._C._are_functorch_transforms_active()


def saved_tensor_hooks() -> tuple[Callable, Callable] | None:
    """The innermost pair of hooks on saved tensors: nested ones are not called, so whoever adds some must look."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def in_backward() -> bool:
    """Whether a backward pass is under way: a forward pass within it can only be the recomputation of a checkpoint."""
    return torch._C._current_graph_task_id() != -1


def storage_key(storage: torch.UntypedStorage) -> int:
    """A number that tells storages apart, also those of tensors without memory, whose addresses are all 0."""
    return storage._cdata


def lerp_all_(tensors: Sequence[torch.Tensor], ends: Sequence[torch.Tensor], weight: float) -> None:
    """Move many tensors towards others in place, in one call: an EMA of a large network in a few kernels."""
    torch._foreach_lerp_(tensors, ends, weight)


def fake_tensors() -> tuple[type, type]:
    """`FakeTensorMode` and `FakeTensor`: tensors that have shapes and devices but no numbers."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    return FakeTensorMode, FakeTensor


def trust_vector_instructions() -> None:
    """Have torch's compiler take the processor's vector instructions as known to the C++ compiler.

    It would try each by a test program of its own, a second on an empty cache, and by a process to load that into, in
    every process. Its answer is kept for the process. AMX, which older compilers lack, is left out.
    """
    from torch._inductor import cpu_vec_isa

    tried = cpu_vec_isa.VecISA.check_build
    cpu_vec_isa.VecISA.check_build = lambda isa, code: "amx" not in isa.build_arch_flags()
    try:
        cpu_vec_isa.valid_vec_isa_list()
    finally:
        cpu_vec_isa.VecISA.check_build = tried


def become(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Change what a module does, not what it holds: parameters, hooks, optimisers and state dict notice nothing."""
    module.__class__ = kind
    return module


def forward_hooks(module: nn.Module, ours: Callable[[Callable], bool]) -> list[tuple[dict, dict, int]]:
    """Some of a module's forward hooks, those before it first: where each is, where its kind is noted, its number.

    A hook's own handle is lost where an interruption comes between its registration and the handle's keeping.
    """
    sides = (
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        (module._forward_hooks, module._forward_hooks_with_kwargs),
    )
    return [(hooks, kinds, number) for hooks, kinds in sides for number, hook in list(hooks.items()) if ours(hook)]


def take_off_hooks(module: nn.Module, ours: Callable[[Callable], bool]) -> None:
    """Remove some of a module's forward hooks; broken off at any line, it can be called again."""
    for hooks, kinds, number in forward_hooks(module, ours):
        kinds.pop(number, None)  # first: broken off here, the hook is found again
        hooks.pop(number, None)


def compiled_call(module: nn.Module) -> Callable | None:
    """What a module compiled in place (`module.compile()`) runs for its call; new hooks do not reach into it."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Callable | None) -> None:
    """Replace a module's compiled call."""
    module._compiled_call_impl = call


def offloaded_weights(module: nn.Module) -> dict[str, torch.Tensor] | None:
    """Where accelerate keeps a module's weights while stand-ins are on the meta device; it says so in a hook alone."""
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        weights = getattr(part, "weights_map", None)
        if weights is not None:
            return weights
    return None


def before_call(kind: type, method: str, tell: Callable[..., None]) -> None:
    """Call `tell` with the arguments of each call of a method of a class of diffusers, which has no hook for it.

    Once a class and `tell`, however often it is asked for.
    """
    call = found = getattr(kind, method)
    while found is not None:
        if getattr(found, "tell", None) == tell:
            return
        found = getattr(found, "__wrapped__", None)

    @wraps(call)
    def told(self, *arguments, **options):
        tell(self, *arguments, **options)
        return call(self, *arguments, **options)

    told.tell = tell
    setattr(kind, method, told)


def find_variants_of_parts() -> None:
    """Let pipelines load a `variant` of a network whose weights lie in a folder for each of its parts.

    diffusers takes every entry of a component's folder for a file with a dot in its name, and ends in an `IndexError`
    at a folder. Once is enough; components of one folder are found as before.
    """
    from diffusers.pipelines import pipeline_utils

    def find(folder: str, variant: str | None, config: dict) -> dict[str, str]:
        names = [name for name in os.listdir(folder) if name in config] if variant is not None else []
        return {
            name: variant
            for name in names
            if any(
                file.partition(".")[2].startswith(variant)
                for _, _, files in os.walk(os.path.join(folder, name))
                for file in files
            )
        }

    pipeline_utils._identify_model_variants = find


def attributes_of_diffusers(names: set[str], find: Callable[[str], Any]) -> None:
    """Make classes attributes of the module `diffusers`, loaded when asked for.

    `DiffusionPipeline.from_pretrained` and `AutoModel.from_pretrained` find classes of other packages in no other way.

    Args:
        names: of the classes.
        find: name => class.
    """
    import diffusers

    module_type = type(diffusers)
    if module_type.__name__ == "DiffusersWithBrickwork":
        return

    class DiffusersWithBrickwork(module_type):
        def __getattr__(self, name: str):
            return find(name) if name in names else super().__getattr__(name)

    diffusers.__class__ = DiffusersWithBrickwork
