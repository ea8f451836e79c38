"""The CUDA driver's virtual memory through cuda-bindings. Imported where there is a GPU, or cuda-bindings to check names against."""

from __future__ import annotations

from typing import Any

from cuda.bindings import driver as cu

from quiesce.engine.device.cuda_memory import DriverError


def checked(call: str, result: tuple[Any, ...]) -> Any:
    """What a call returned beside its status.

    Raises:
        DriverError: the status is an error.
    """
    status, *values = result
    if status != cu.CUresult.CUDA_SUCCESS:
        named, name = cu.cuGetErrorName(status)
        reason = name.decode() if named == cu.CUresult.CUDA_SUCCESS and name else str(status)
        raise DriverError(f"{call}: {reason}")
    return values[0] if values else None


class CudaDriver:
    """`cuda_memory.Driver`. Makes the device's primary context, which is torch's, current in the thread that makes it.

    Args:
        index: of the device, among those that are visible.
    """

    def __init__(self, index: int) -> None:
        checked("cuInit", cu.cuInit(0))
        self._device = checked("cuDeviceGet", cu.cuDeviceGet(index))
        self._context = checked("cuDevicePrimaryCtxRetain", cu.cuDevicePrimaryCtxRetain(self._device))
        self._properties = cu.CUmemAllocationProp()
        self._properties.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._properties.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        self._properties.location.id = index
        self._access = cu.CUmemAccessDesc()
        self._access.location = self._properties.location
        self._access.flags = cu.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self.enter()
        option = cu.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        self.granularity: int = checked(
            "cuMemGetAllocationGranularity", cu.cuMemGetAllocationGranularity(self._properties, option)
        )

    def enter(self) -> None:
        """Makes the context current in this thread: memory is mapped into the context that is."""
        checked("cuCtxSetCurrent", cu.cuCtxSetCurrent(self._context))

    def reserve(self, num_bytes: int) -> int:
        return int(checked("cuMemAddressReserve", cu.cuMemAddressReserve(num_bytes, self.granularity, 0, 0)))

    def free_range(self, address: int, num_bytes: int) -> None:
        checked("cuMemAddressFree", cu.cuMemAddressFree(address, num_bytes))

    def create(self, num_bytes: int) -> int:
        return int(checked("cuMemCreate", cu.cuMemCreate(num_bytes, self._properties, 0)))

    def map(self, address: int, num_bytes: int, handle: int) -> None:
        checked("cuMemMap", cu.cuMemMap(address, num_bytes, 0, handle, 0))

    def allow_access(self, address: int, num_bytes: int) -> None:
        checked("cuMemSetAccess", cu.cuMemSetAccess(address, num_bytes, [self._access], 1))

    def unmap(self, address: int, num_bytes: int) -> None:
        checked("cuMemUnmap", cu.cuMemUnmap(address, num_bytes))

    def release(self, handle: int) -> None:
        checked("cuMemRelease", cu.cuMemRelease(handle))

    def free_bytes(self) -> int:
        status, free, _ = cu.cuMemGetInfo()
        return int(checked("cuMemGetInfo", (status, free)))

    def pin(self, address: int, num_bytes: int) -> None:
        checked("cuMemHostRegister", cu.cuMemHostRegister(address, num_bytes, cu.CU_MEMHOSTREGISTER_PORTABLE))

    def unpin(self, address: int) -> None:
        checked("cuMemHostUnregister", cu.cuMemHostUnregister(address))
