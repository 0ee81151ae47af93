"""Reads the modules of a block into a :class:`Chain`, or the :class:`Reason` why eager runs for every input.

Eager runs where calling the modules would compute something else: one has another class, a hook, a patched method or
invalid settings.
"""

import dis
import functools
import weakref
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..reference import ZeroPadShortcut
from . import norms
from .geometry import of_conv, of_pool
from .patches import TENSORS, is_patched
from .policy import PLAIN_TENSORS
from .spec import IDENTITY, BlockSpec, Branch, Chain, Conv, Norm, Pool, Reason, Shortcut


class Derived:
    """A function from a block to its spec, which depends on nothing but the block's modules and attributes.

    ``part``: that of the spec.
    """

    def __init__(self, function: Callable[[Any], BlockSpec | Reason], part: str = "") -> None:
        self._function, self.part = function, part

    def __call__(self, module: Any) -> BlockSpec | Reason:
        names = self._function(module)
        return names if isinstance(names, Reason) else names._replace(part=self.part)


Spec = BlockSpec | Derived | Callable[[Any], BlockSpec]

SHORTCUTS = (ZeroPadShortcut, nn.Identity, nn.Sequential, nn.Conv2d)
_FUNCTIONS = (FunctionType, BuiltinFunctionType, functools.partial)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}


def resolve(module: nn.Module, spec: Spec) -> BlockSpec | Reason:
    """The names of the module's parts."""
    if isinstance(spec, BlockSpec):
        return spec
    try:
        names: Any = spec(module)
    except Exception as error:  # the user's function may raise anything
        return Reason("its spec raises {}: {}", "", type(error), " ".join(str(error).split())[:200])
    if isinstance(names, Reason) or (isinstance(names, BlockSpec) and len(names.norms) == len(names.convs) + 1):
        return names
    return Reason("its spec is {!r}; a BlockSpec with one norm more than convs expected", "", names)


def described(module: nn.Module, spec: Spec) -> Chain | Reason:
    """The chain of a block in its own dtypes, or why it runs eagerly for every input."""
    names = resolve(module, spec)
    return names if isinstance(names, Reason) else read(module, names, [])


def read(module: nn.Module, names: BlockSpec, parts: list[nn.Module]) -> Chain | Reason:
    """The chain of a block; appends the modules that it consists of to ``parts``."""
    if names.derived:
        return _read_derived(module, names, parts)
    convs: list[Conv] = []
    chain_norms: list[Norm | None] = []
    for name in names.convs:
        conv = _conv(find(module, name, parts), name)
        if isinstance(conv, Reason):
            return conv
        convs.append(conv)
    for each in names.norms:
        norm = None if each is None else _norm(find(module, each, parts), each)
        if isinstance(norm, Reason):
            return norm
        chain_norms.append(norm)
    for name in names.relus:
        reason = _exactly(find(module, name, parts), name, nn.ReLU)
        if reason is not None:
            return reason
    shortcut = None if names.shortcut is None else _shortcut(module, names, parts)
    pool = None if names.pool is None else _pool(find(module, names.pool, parts), names.pool)
    reason = _incomplete(module, parts) if names.complete else None
    hooked = next((part for part in parts if has_hooks_or_patches(part)), None)
    if hooked is not None:
        return hook_reason(hooked, next((name for name, part in module.named_modules() if part is hooked), ""))
    if isinstance(shortcut, Reason):
        return shortcut
    if isinstance(pool, Reason):
        return pool
    if reason is not None:
        return reason
    return Chain(tuple(convs), tuple(chain_norms), shortcut, names.relu, pool)


def _read_derived(module: nn.Module, names: BlockSpec, parts: list[nn.Module]) -> Chain | Reason:
    """The chain of a block whose spec was derived from its ``forward``, which calls all modules as they are now."""
    parts += module.modules()
    hooked = next((part for part in parts if part is not module and has_hooks(part)), None)
    leaves = (part for part in parts if is_library_code(type(part)) or norms.is_norm(part))
    patched = next(filter(is_patched, leaves), None)
    found = hooked if hooked is not None else patched
    if found is not None and found is not module:
        return hook_reason(found, next((name for name, part in module.named_modules() if part is found), ""))
    branch = names.shortcut if isinstance(names.shortcut, Branch) else Branch()
    convs = [_derived_conv(find(module, name), name) for name in (*names.convs, branch.conv) if name is not None]
    paths = (*names.norms, branch.norm)
    read = [None if path is None else norms.read_norm(find(module, path), path) for path in paths]
    for each in (*convs, *read):
        if isinstance(each, Reason):
            return each
    shortcut = None if names.shortcut is None else Shortcut()
    if shortcut is not None and branch[:3] != (None, None, None):
        function = None if branch.function is None else Function(module, branch)
        if branch.conv is None:
            shortcut = Shortcut(module=function, reads_x=branch.reads_x, leads=branch.leads, in_place=branch.in_place)
        else:
            conv, norm = convs.pop(), read[-1]
            shortcut = Shortcut(conv, norm, transform=function, reads_x=branch.reads_x, in_place=branch.in_place)  # type: ignore[arg-type]
    return Chain(tuple(convs), tuple(read[:-1]), shortcut, names.relu)  # type: ignore[arg-type]


def _derived_conv(conv: Any, name: str) -> Conv | Reason:
    return conv_of(conv, name) if isinstance(conv, nn.Conv2d) else Reason("{name} is {!r}", name, conv)


class Function:
    """A function of a block and a tensor, bound to the block but not keeping it alive."""

    def __init__(self, module: nn.Module, branch: Branch) -> None:
        self._module, self._function = weakref.ref(module), branch.function
        self._calls_user_code = branch.calls_user_code

    def __call__(self, x: Tensor) -> Any:
        module = self._module()
        assert module is not None and self._function is not None
        y = self._function(module, x)
        if self._calls_user_code and not (isinstance(y, Tensor) and y.dim() == 4):
            what = f"a tensor of shape {list(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise TypeError(
                f"the shortcut of a converted {type(module).__name__} returned {what}; a 4-d tensor expected, as when "
                "it was converted. Revert it with resnet_fused.revert"
            )
        return y

    def requires_grad(self) -> bool:
        """Whether its result may require a gradient if x does not."""
        module = self._module()
        return self._calls_user_code or (module is not None and any(p.requires_grad for p in module.parameters()))


def is_library_code(kind: type) -> bool:
    """Whether a class belongs to torch, to this package or to Python, so that its code is known."""
    return kind.__module__.partition(".")[0] in ("torch", "resnet_fused", "builtins", "abc", "typing", "collections")


def own_classes(kind: type) -> tuple[type, ...]:
    """The class and its bases that are not a library's own."""
    return tuple(each for each in kind.__mro__ if not is_library_code(each))


def _incomplete(module: nn.Module, parts: list[nn.Module]) -> Reason | None:
    """Why something besides ``parts`` may take part in the computation; appends modules that do not."""
    function = next((name for name, value in vars(module).items() if isinstance(value, _FUNCTIONS)), None)
    if function is not None:
        return Reason("{name} is a function, which forward may call", function)
    known = {module, *parts}
    for name, other in module.named_modules():
        extra = {*other._parameters, *other._buffers}.difference(TENSORS if other is not module else ())
        if extra:
            return Reason("{name} has {}, which the spec does not name", name or "it", ", ".join(sorted(extra)))
        if other not in known and type(other) is not nn.Identity:
            return Reason("{name} is {}, which the spec does not name", name, type(other))
        if other in parts and other._modules and type(other) not in _CONTAINERS:
            return Reason("{name} is {}, not {}, {} or {}", name, type(other), *_CONTAINERS)
        if other not in known:
            parts.append(other)
    return None


def find(module: nn.Module, name: str, parts: list[nn.Module] | None = None) -> Any:
    """The submodule of this dotted name, or None; appends it and the modules on the way to ``parts``."""
    found: Any = module
    for step in name.split("."):
        found = None if found is None else found._modules.get(step)
        if found is not None and parts is not None:
            parts.append(found)
    return found


def _conv(conv: Any, name: str) -> Conv | Reason:
    return _exactly(conv, name, nn.Conv2d) or conv_of(conv, name)


def conv_of(conv: Any, name: str) -> Conv | Reason:
    """The tensors and settings of an ``nn.Conv2d``."""
    geometry = of_conv(conv)
    if geometry is None:
        if conv.padding_mode != "zeros":
            return Reason("{name} has padding_mode {!r}, not 'zeros'", name, conv.padding_mode)
        if isinstance(conv.padding, str):
            return Reason("{name} has padding {!r}, not an int or a pair of ints", name, conv.padding)
        given = (conv.stride, conv.padding, conv.dilation, conv.groups)
        return Reason("{name} has stride {}, padding {}, dilation {}, groups {}; ints or pairs expected", name, *given)
    weight: Any = conv._parameters.get("weight")
    bias: Any = conv._parameters.get("bias")
    if type(weight) not in PLAIN_TENSORS and has_hooks_or_patches(conv):  # such as that of pruning
        return hook_reason(conv, name)
    if type(weight) not in PLAIN_TENSORS or (bias is not None and type(bias) not in PLAIN_TENSORS):
        return Reason("the weight of {name} is a {}, not a plain tensor", name, type(weight))  # pruned, sharded, ...
    return Conv(weight, bias, *geometry)


def _norm(norm: Any, name: str) -> Norm | Reason:
    """A BatchNorm, without mean and var if it uses batch statistics."""
    if norms.is_norm(norm) and norms.activation(norm) is None:
        return norms.read_norm(norm, name)
    return _exactly(norm, name, nn.BatchNorm2d) or norms.read_norm(norm, name)


def _pool(pool: Any, name: str) -> Pool | Reason | None:
    if type(pool) is nn.Identity:
        return None
    reason = _exactly(pool, name, nn.MaxPool2d)
    if reason is not None:
        return reason
    geometry = of_pool(pool)
    if geometry is None:
        return Reason("{name} is {}; dilation, ceil_mode and return_indices are not supported", name, pool)
    return Pool(*geometry)


def _shortcut(module: nn.Module, names: BlockSpec, parts: list[nn.Module]) -> Shortcut | Reason:
    """x itself, a convolution with or without BatchNorm, or a module of torch's layers."""
    name = names.shortcut
    assert isinstance(name, str)
    if name == IDENTITY:
        return Shortcut()
    owner, _, attribute = name.rpartition(".")
    owning = find(module, owner, parts) if owner else module
    if owning is None or (attribute not in owning.__dict__ and attribute not in owning._modules):
        return Reason("it has no attribute {name}", name)
    down = shortcut_of(module, name)
    if down is None:
        return Shortcut()
    if not isinstance(down, nn.Module):
        return Reason("{name} is {!r}, not a module or None", name, down)
    if type(down) not in SHORTCUTS:
        return Reason("{name} is {}; {}, {}, {}, {} or None expected", name, type(down), *SHORTCUTS)
    parts += down.modules()
    children = list(down._modules.items()) if type(down) is nn.Sequential else [("", down)]
    module_form = down if can_precompute(down) else None
    if (not children or type(down) is nn.Identity) and names.norms[0] is None:  # else it reads act[0]
        return Shortcut()
    if children and type(children[0][1]) is nn.Conv2d and len(children) <= 2:
        (first, conv), *rest = children
        read = _conv(conv, f"{name}.{first}" if first else name)
        norm = _norm(rest[0][1], f"{name}.{rest[0][0]}") if rest else None
        if not isinstance(read, Reason) and not isinstance(norm, Reason):
            return Shortcut(read, norm, module=module_form)
        if module_form is None and isinstance(read, Reason):
            return read
        if module_form is None and isinstance(norm, Reason):
            return norm
    if module_form is None:
        return Reason("{name} may modify its input in place or contains a module that is not torch's own", name)
    return Shortcut(module=module_form)


def _exactly(module: Any, name: str, *kinds: type[nn.Module]) -> Reason | None:
    if type(module) in kinds:
        return None
    if not isinstance(module, nn.Module):
        return Reason("{name} is {!r}, not a {} module", name, module, kinds[0])
    if parametrize.is_parametrized(module):
        return Reason("{name} is parametrised (torch.nn.utils.parametrize)", name)
    return Reason("{name} is {}, not {}", name, type(module), kinds[0])


def has_hooks_or_patches(module: nn.Module) -> bool:
    """Whether calling the module may run more than its class's ``forward``: it has hooks or instance patches.

    :func:`.patches.layers_are_patched` covers patches of whole classes.
    """
    return has_hooks(module) or is_patched(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether a forward or backward hook is registered on the module."""
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def hook_reason(module: nn.Module, name: str) -> Reason:
    for attribute, kind in HOOKS.items():
        if getattr(module, attribute):
            return Reason("a {} is registered on {name}", name, kind)
    return Reason("forward, weight or bias of {name} was replaced by a plain attribute", name)


def shortcut_of(module: nn.Module, name: str) -> Any:
    """The block's shortcut: a module, None, or another callable."""
    attributes = module.__dict__
    if name in attributes:
        return attributes[name]
    if "." not in name:
        return module._modules.get(name)
    owner, _, attribute = name.rpartition(".")
    owning = find(module, owner)
    return None if owning is None else shortcut_of(owning, attribute)


def can_precompute(down: Any) -> bool:
    """Whether a shortcut without a kernel can be evaluated before the block's convolutions and added afterwards.

    It must not modify the input in place, and user code must not observe the input, whose memory format may differ from
    eager's. torch's own layers without hooks satisfy both.
    """
    if type(down) not in (ZeroPadShortcut, nn.Identity, nn.Sequential):
        return False
    return all(
        (type(part) is ZeroPadShortcut or type(part).__module__.startswith("torch.nn.modules."))
        and not has_hooks_or_patches(part)
        and not getattr(part, "inplace", False)
        for part in down.modules()
    )


def globals_of(functions: Any) -> list[tuple[dict[str, Any], str, Any]]:
    """The global variables that functions use, and the user's functions among them: namespace, name, value."""
    found: list[tuple[dict[str, Any], str, Any]] = []
    todo, done = [*functions], set()
    while todo:
        function = todo.pop()
        if id(function) in done:
            continue
        done.add(id(function))
        for name in global_names(function.__code__):
            value = function.__globals__.get(name, ABSENT)
            found.append((function.__globals__, name, value))
            if is_users_function(value):
                todo.append(value)
    return found


def is_users_function(value: Any) -> bool:
    """Whether a value is a Python function that is not torch's. ``functools.wraps`` cannot change its globals."""
    return isinstance(value, FunctionType) and str(value.__globals__.get("__name__")).partition(".")[0] != "torch"


#: The value of a name that is no global variable, such as a builtin.
ABSENT = object()


@functools.lru_cache(4096)
def global_names(code: Any) -> frozenset[str]:
    """The names of the global variables that code reads."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return frozenset(names.union(*(global_names(c) for c in code.co_consts if hasattr(c, "co_names"))))
