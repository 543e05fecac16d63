"""What tests of memory share."""

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """Watches every tensor that any operation makes, but inside of operators of ours."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
        return out


class HeldTensors(TorchDispatchMode):
    """Counts the numbers that operations made and that something still holds, and the most ever."""

    def __init__(self):
        super().__init__()
        self._made = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor) and t.device.type != "meta":
                kept = StorageWeakRef(t.untyped_storage())
                self._made[kept.cdata] = (kept, t.untyped_storage().nbytes() // t.itemsize)
        self.most = max(self.most, self.held())
        return out

    def held(self):
        return sum(numbers for kept, numbers in self._made.values() if not kept.expired())
