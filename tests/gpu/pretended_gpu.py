"""A GPU that is not there: every tensor has a place in our books, and computes on the CPU.

Inside `pretended_gpu()` torch says that it has a CUDA device. Tensors made on it or moved to it are written
down as its own, by their storage, so that views, detached copies and what autograd saves stay where they are.
Every operation, those of the backward pass too, compares the places of what it is given and raises what torch
raises on a machine with a GPU: "Expected all tensors to be on the same device". The numbers are real, so
whole commands run. A backward pass runs on a thread of its own, as autograd's of a GPU does: what a forward
pass has put into context variables or its thread's state is not there.

As on a GPU, a CPU tensor without dimensions may meet the device's tensors element by element, and indices
`a[index]` may lie on the CPU; nothing else may mix. `.numpy()` of the device's tensors, generators and
gradients of another device are refused. What is not imitated: Triton's kernels and Liger's (the torch code
runs in their place), pinned memory, streams, and paged memory of bitsandbytes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map_only

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
EITHER = "either"
"""The place of what C++ made inside an operation or a backward pass, before anybody says where it is."""

# torch.stack and cat do not take a CPU scalar among tensors of a GPU, and neither does what looks rows up.
_STRICT = {"stack", "cat", "index_select", "gather", "embedding", "take", "dot", "isin"}
_MOVES = {"copy_", "_to_copy", "set_", "_local_scalar_dense", "is_same_size", "_has_same_storage_numel"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class Places:
    """Which storages are the GPU's; all others are the CPU's."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[StorageWeakRef, object]] = {}
        self._limit = 4096

    def of(self, tensor: torch.Tensor) -> object:
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return tensor.device
        known = self._known.get(tensor.untyped_storage()._cdata)
        return CPU if known is None else known[1]

    def put(self, tensor: torch.Tensor, place: object) -> None:
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        if place is CPU:
            self._known.pop(storage._cdata, None)
            return
        # The weak reference keeps the storage's number from being given to another one.
        self._known[storage._cdata] = (StorageWeakRef(storage), place)
        if len(self._known) > self._limit:
            known = self._known.copy()  # at once: other threads write too
            self._known = {key: one for key, one in known.items() if not one[0].expired()}
            self._limit = max(4096, 2 * len(self._known))

    def common(self, tensors: list[torch.Tensor]) -> object:
        """Return where an operation on these puts its result."""
        places = [self.of(tensor) for tensor in tensors]
        return next((p for wanted in (GPU, CPU, EITHER) for p in places if p == wanted), EITHER)


def tensors_in(tree: object) -> list[torch.Tensor]:
    return [one for one in tree_iter(tree) if isinstance(one, torch.Tensor)]


def place_named(device: object) -> object:
    """Return the place that a `device` argument means."""
    if isinstance(device, int):
        return GPU
    device = torch.device(device)
    return GPU if device.type == "cuda" else CPU if device.type == "cpu" else device


_PLACES = Places()  # of the whole process: the product keeps tensors by device in caches


class _Move(torch.autograd.Function):
    """A copy on the other device, whose gradient comes back."""

    @staticmethod
    def forward(ctx, tensor, places, place, dtype):
        ctx.places, ctx.back, ctx.dtype = places, places.of(tensor), tensor.dtype
        moved = tensor.detach().to(dtype or tensor.dtype, copy=True)
        places.put(moved, place)
        return moved

    @staticmethod
    def backward(ctx, gradient):
        with torch._C.DisableTorchFunction():
            moved = gradient.detach().to(ctx.dtype, copy=True)
            ctx.places.put(moved, ctx.back)
        return moved, None, None, None


def _product_in_fp32(a, b, dtype, out=None):
    found = a.to(dtype) @ b.to(dtype)
    return found if out is None else out.copy_(found)


_ONLY_ON_GPU = {
    overload: _product_in_fp32
    for product in (torch.ops.aten.mm, torch.ops.aten.bmm)
    for overload in (product.dtype, product.dtype_out)
}
"""What has no kernel in a CPU build: bf16 products that are summed and returned in fp32."""


class _Compare(TorchDispatchMode):
    """Compares the places of what each operation is given, and writes down where its results are."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places, self.depth = places, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            given = tensors_in((args, kwargs))
            name = func._schema.name.split("::")[1]
            if name not in _MOVES:
                self._compare(func, name, args, kwargs)
            before = {tensor.untyped_storage()._cdata for tensor in given if tensor.layout == torch.strided}
            result = _ONLY_ON_GPU.get(func, func)(*args, **kwargs)
            if given:
                place = self.places.common(given)
            else:
                inside = self.depth or torch._C._current_graph_task_id() != -1
                place = EITHER if inside else CPU
            for tensor in tensors_in(result):
                if tensor.layout == torch.strided and tensor.untyped_storage()._cdata not in before:
                    self.places.put(tensor, place)
        return result

    def _compare(self, func, name, args, kwargs) -> None:
        compared = (args[0], *args[2:]) if name in _INDEXING else args
        own = self.places.of(args[0]) if name in _INDEXING else None
        if own is CPU and any(self.places.of(t) == GPU for t in tensors_in(args[1])):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        given = tensors_in((compared, kwargs))
        if all(self.places.of(tensor) != GPU for tensor in given):
            return
        changed = set()
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                changed |= {id(tensor) for tensor in tensors_in(value)}
        for tensor in given:
            scalar = tensor.dim() == 0 and id(tensor) not in changed and name not in _STRICT
            if self.places.of(tensor) == CPU and not scalar:
                shapes = ", ".join(f"{list(one.shape)} on {self.places.of(one)}" for one in given)
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 "
                    f"and cpu! (in {func}: {shapes})"
                )


class _Pretend(TorchFunctionMode):
    """Says where tensors are, and makes and moves them there."""

    def __init__(self, places: Places, compare: _Compare) -> None:
        super().__init__()
        self.places, self.compare = places, compare
        tensor = torch.Tensor
        self.special = {
            tensor.device.__get__: self._device,
            tensor.is_cuda.__get__: lambda func, t: self._device(func, t).type == "cuda",
            tensor.is_cpu.__get__: lambda func, t: self._device(func, t).type == "cpu",
            tensor.get_device: lambda func, t: 0 if self._device(func, t).type == "cuda" else -1,
            tensor.to: self._to,
            tensor.cuda: lambda func, t, *args, **kwargs: self.move(t, GPU),
            tensor.cpu: lambda func, t, *args, **kwargs: self.move(t, CPU),
            tensor.numpy: self._numpy,
            tensor.__array__: self._numpy,
            tensor.pin_memory: lambda func, t, *args: t.clone(),
            tensor.is_pinned: lambda func, t, *args: False,
            tensor.record_stream: lambda func, t, stream: None,
            tensor.backward: self._backward,
            tensor.grad.__set__: self._set_gradient,
            tensor.__deepcopy__: self._copy,
            torch.as_tensor: self._as_tensor,
            torch.asarray: self._as_tensor,
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        special = self.special.get(func)
        if special is not None:
            return special(func, *args, **kwargs)
        return self._run(func, args, kwargs)

    def _run(self, func, args, kwargs):
        place = None
        if kwargs.get("device") is not None:
            place = place_named(kwargs["device"])
            if place is GPU:
                kwargs = kwargs | {"device": CPU}
        if kwargs.get("pin_memory"):
            if place is GPU:
                raise RuntimeError("Only dense CPU tensors can be pinned")
            kwargs = kwargs | {"pin_memory": False}
        given = tensors_in((args, kwargs))
        own = place or (self.places.common(given) if given else CPU)
        generator = kwargs.get("generator")
        if generator is not None and own in (GPU, CPU) and generator.place != own:
            raise RuntimeError(
                f"Expected a '{own.type}' device type for generator but found '{generator.place}'"
            )
        self.compare.depth += 1
        try:
            result = func(*args, **kwargs)
        finally:
            self.compare.depth -= 1
        for tensor in tensors_in(result):
            if place is not None:
                self.places.put(tensor, place)
            elif self.places.of(tensor) is EITHER:
                self.places.put(tensor, CPU if own is EITHER else own)
        return result

    def _device(self, func, tensor):
        place = self.places.of(tensor)
        return place if isinstance(place, torch.device) else GPU

    def move(self, tensor, place, dtype=None, copy=False):
        here = self.places.of(tensor)
        if tensor.device.type == "meta" or (here == place and not copy):
            return tensor.to(device=CPU, dtype=dtype or tensor.dtype)
        if here is EITHER:
            self.places.put(tensor, place)
            return tensor.to(dtype or tensor.dtype, copy=copy)
        return _Move.apply(tensor, self.places, place, dtype)

    def _to(self, func, tensor, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            return self.move(tensor, self.places.of(args[0]), args[0].dtype, kwargs.get("copy", False))
        copy = kwargs.pop("copy", False)
        flags = [place for place, one in enumerate(args) if isinstance(one, bool)]
        if len(flags) == 2:  # non_blocking, copy
            copy, args = args[flags[1]], args[: flags[1]]
        device, dtype, _, order = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type == "meta" or order is not None:
            kwargs = {} if order is None else {"memory_format": order}
            if device is not None and device.type == "meta":
                kwargs["device"] = device
            return tensor.to(dtype=dtype or tensor.dtype, copy=copy, **kwargs)
        return self.move(tensor, place_named(device), dtype, copy)

    def _numpy(self, func, tensor, *args, **kwargs):
        if self.places.of(tensor) == GPU:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                "host memory first."
            )
        return func(tensor, *args, **kwargs)

    def _backward(self, func, tensor, gradient=None, retain_graph=None, create_graph=False, inputs=None):
        failures: list[BaseException] = []
        cores = torch.get_num_threads()

        def run() -> None:
            torch.set_num_threads(cores)
            try:
                torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)  # pretends by itself, see `run_pretending`
        thread.start()
        thread.join()
        if failures:
            raise failures.pop()

    def _set_gradient(self, func, tensor, gradient):
        if gradient is not None and {self.places.of(tensor), self.places.of(gradient)} == {GPU, CPU}:
            raise RuntimeError("assigned grad has data located on a different device")
        return func(tensor, gradient)

    def _copy(self, func, tensor, memo):
        made = func(tensor, memo)
        self.places.put(made, self.places.of(tensor))
        return made

    def _as_tensor(self, func, data, *args, device=None, **kwargs):
        if not isinstance(data, torch.Tensor):
            return self._run(func, (data, *args), kwargs | ({} if device is None else {"device": device}))
        dtype = args[0] if args else kwargs.get("dtype")
        return self.move(data, self.places.of(data) if device is None else place_named(device), dtype)


class _Generator(torch.Generator):
    """A generator that says whose it is."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.place = place_named(device)
        return made

    def __init__(self, device="cpu") -> None:
        pass


def _cuda(gpus: int) -> dict[str, object]:
    """Return what `torch.cuda` says of cards of 24 GiB."""

    def nothing(*args: object, **kwargs: object) -> None:
        return None

    def state(*args: object) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    class Event:
        def __init__(self, *args: object, **kwargs: object) -> None: ...

        record = synchronize = wait = nothing

        def query(self) -> bool:
            return True

        def elapsed_time(self, other: object) -> float:
            return 1.0

    size = 24 << 30
    about = SimpleNamespace(name="pretended", total_memory=size, major=8, minor=9, multi_processor_count=80)
    says = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: gpus,
        "current_device": lambda: 0,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "get_device_name": lambda *args: about.name,
        "get_device_capability": lambda *args: (8, 9),
        "get_device_properties": lambda *args: about,
        "mem_get_info": lambda *args: (size - (1 << 30), size),
        "memory_stats": lambda *args: {},
        "get_rng_state": state,
        "get_rng_state_all": lambda: [state()],
        "device": lambda *args: nullcontext(),
        "stream": lambda *args: nullcontext(),
        "current_stream": lambda *args: SimpleNamespace(wait_stream=nothing, synchronize=nothing),
        "Event": Event,
    }
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        says[name] = lambda *args: 0
    for name in (
        *("_lazy_init", "init", "set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"),
        *("set_rng_state", "set_rng_state_all", "manual_seed", "manual_seed_all", "ipc_collect"),
        *("reset_max_memory_allocated", "set_per_process_memory_fraction"),
    ):
        says[name] = nothing
    return says


@contextmanager
def pretended_gpu(gpus: int = 1) -> Iterator[Places]:
    """Let torch have GPUs, inside the block; only the first one can be computed on."""
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from bitsandbytes import optim

    from basic_lite.method import row_kernel
    from basic_lite.training import liger

    places = _PLACES

    @contextmanager
    def pretending() -> Iterator[None]:  # torch's modes are a thread's own
        compare = _Compare(places)
        with compare, _Pretend(places, compare):
            yield

    run_thread = threading.Thread.run

    def run_pretending(thread: threading.Thread) -> None:
        with pretending():
            run_thread(thread)

    def forget() -> None:  # accelerate remembers for the whole process where it computes
        AcceleratorState._reset_state(True)
        PartialState._reset_state()
        GradientState._reset_state()

    def on_cpu(function):
        @functools.wraps(function)
        def asked(device_type="cuda", *args, **kwargs):
            return function("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

        return asked

    load = torch.load
    begin = torch.autocast.__init__

    def loaded(f, map_location=None, **kwargs):
        if map_location is None or callable(map_location) or place_named(map_location) is not GPU:
            return load(f, map_location=map_location, **kwargs)
        return tree_map_only(torch.Tensor, lambda t: t.to(GPU), load(f, map_location="cpu", **kwargs))

    def autocast(self, device_type, *args, **kwargs):
        begin(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    make_array = torch.asarray

    def asarray(given, **options):
        """Read a storage, as safetensors does on several threads, past torch's own look at its first byte.

        What fails there, torch hides behind "could not determine the shape of object type".
        """
        on_cpu_as_bytes = {"device": "cpu"} | options == {"device": "cpu", "dtype": torch.uint8}
        if not (isinstance(given, torch.UntypedStorage) and on_cpu_as_bytes):
            return make_array(given, **options)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return torch.empty(0, dtype=torch.uint8).set_(given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "asarray", asarray)
        for name, value in _cuda(gpus).items():
            for module in (torch.cuda, torch.cuda.random, torch.cuda.memory):
                if hasattr(module, name):
                    patch.setattr(module, name, value)
        # Python functions of torch that hand over to a mode and then run without it.
        for module in (torch.nn.functional, torch.functional, torch.nn.init, torch.autograd):
            for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
                patch.setattr(module, name, lambda *args: False, raising=False)
        patch.setattr(torch.autocast, "__init__", autocast)
        patch.setattr(torch, "is_autocast_enabled", on_cpu(torch.is_autocast_enabled))
        patch.setattr(torch, "get_autocast_dtype", on_cpu(torch.get_autocast_dtype))
        patch.setattr(torch, "load", loaded)
        patch.setattr(threading.Thread, "run", run_pretending)
        # What autograd saves is packed inside an operation, where a tensor says "cpu", and unpacked outside.
        patch.setitem(
            checkpoint._allowed_determinism_checks_to_fns,
            "default",
            lambda x: {"shape": x.shape, "dtype": x.dtype},
        )
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(optim, "PagedAdamW8bit", optim.AdamW8bit)
        patch.setattr(row_kernel, "works_on", lambda device: False)
        patch.setattr(liger, "fuse", lambda decoder: False)
        patch.setattr("transformers.trainer.apply_liger_kernel", lambda model, config: None)
        forget()
        try:
            with pretending():
                yield places
        finally:
            forget()
