// SPDX-License-Identifier: MPL-2.0

//! The memory that is free, of a GPU and of the machine.

use candle_core::Device;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::cudarc::driver::sys;
#[cfg(feature = "cuda")]
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use std::fs;
use std::path::Path;
#[cfg(feature = "cuda")]
use std::ptr::{from_mut, null_mut};
use sysinfo::System;

/// The free memory of a GPU or, for the CPU, of the machine in bytes. None if it is not known.
pub fn free_bytes(device: &Device) -> candle_core::Result<Option<usize>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => gpu_free_bytes(gpu).map(Some),
        _ => Ok(machine_free_bytes()),
    }
}

/// The memory, swap included, that this process can still get from the system or, if that is less,
/// from the container that it runs in.
fn machine_free_bytes() -> Option<usize> {
    let mut system = System::new();
    system.refresh_memory();
    // As where /proc is not mounted.
    if system.total_memory() == 0 {
        return None;
    }
    let (mut free, mut swap) = (system.available_memory(), system.free_swap());
    if let Some(limits) = system.cgroup_limits() {
        // Not `free_memory`, which takes the cache of files for used; `free_swap` is the machine's.
        free = free.min(limits.total_memory.saturating_sub(limits.rss));
        let group = Path::new("/sys/fs/cgroup");
        swap = swap.min(cgroup_free_swap(group, limits.total_memory).unwrap_or(swap));
    }
    Some(free.saturating_add(swap).try_into().unwrap_or(usize::MAX))
}

/// What the limits of a control group, of version 2 or 1, leave of swap to one that may have
/// `total_memory`, in bytes. None if there is no limit.
fn cgroup_free_swap(group: &Path, total_memory: u64) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        let text = fs::read_to_string(group.join(file)).ok()?;
        text.trim().parse().ok()
    };
    let version_2 = || {
        // The word `max` if there is none.
        let limit = number("memory.swap.max")?;
        Some(limit.saturating_sub(number("memory.swap.current")?))
    };
    let version_1 = || {
        // The limit is on memory and swap together; a number near the largest if there is none.
        let limit = number("memory/memory.memsw.limit_in_bytes")?;
        let used = number("memory/memory.memsw.usage_in_bytes")?
            .saturating_sub(number("memory/memory.usage_in_bytes")?);
        let left = limit.saturating_sub(total_memory).saturating_sub(used);
        (limit < i64::MAX as u64 / 2).then_some(left)
    };
    version_2().or_else(version_1)
}

/// What the limit of this process' address space (`ulimit -v`) leaves, in bytes. None if there is none,
/// or it is not known, as elsewhere than under Linux.
pub fn free_address_space() -> Option<usize> {
    let number = |file: &str, label: &str| {
        // The name of the process, in `status`, need not be UTF-8.
        let text = fs::read(file).ok()?;
        let text = String::from_utf8_lossy(&text);
        let (_, rest) = text.split_once(label)?;
        rest.split_whitespace().next()?.parse::<usize>().ok()
    };
    let limit = number("/proc/self/limits", "Max address space")?;
    let used = 1024 * number("/proc/self/status", "VmSize:")?;
    Some(limit.saturating_sub(used))
}

#[cfg(feature = "cuda")]
fn gpu_free_bytes(gpu: &CudaDevice) -> candle_core::Result<usize> {
    use sys::CUmemPool_attribute::{
        CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT as RESERVED, CU_MEMPOOL_ATTR_USED_MEM_CURRENT as USED,
    };
    let attribute = |pool, attribute| {
        let mut bytes = 0u64;
        // SAFETY: these attributes' values are u64.
        unsafe { sys::cuMemPoolGetAttribute(pool, attribute, from_mut(&mut bytes).cast()) }
            .result()
            .w()?;
        candle_core::Result::Ok(bytes as usize)
    };
    // The pool's unused memory counts as free.
    let kept = memory_pool(gpu)
        .and_then(|pool| Ok(attribute(pool, RESERVED)?.saturating_sub(attribute(pool, USED)?)));
    let (free, _) = gpu.cuda_stream().context().mem_get_info().w()?;
    Ok(free + kept.unwrap_or(0))
}

/// The pool that a GPU's memory is allocated from.
#[cfg(feature = "cuda")]
pub(crate) fn memory_pool(gpu: &CudaDevice) -> candle_core::Result<sys::CUmemoryPool> {
    let stream = gpu.cuda_stream();
    let context = stream.context();
    context.bind_to_thread().w()?;
    let mut pool = null_mut();
    // SAFETY: the device is that of a live context.
    unsafe { sys::cuDeviceGetMemPool(&mut pool, context.cu_device()) }
        .result()
        .w()?;
    Ok(pool)
}

/// Does nothing: the CPU's allocator keeps what is freed.
#[cfg(not(feature = "cuda"))]
pub fn give_back_memory(_: &Device) {}

/// Returns the freed memory that the pool keeps to the driver.
#[cfg(feature = "cuda")]
pub fn give_back_memory(device: &Device) {
    let Device::Cuda(gpu) = device else { return };
    // Frees take effect in stream order, so wait for them. An error only means that the memory is
    // kept.
    let _ = gpu.cuda_stream().synchronize();
    if let Ok(pool) = memory_pool(gpu) {
        // SAFETY: the pool is that of a live context.
        let _ = unsafe { sys::cuMemPoolTrimTo(pool, 0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the files of a control group, with their contents, leave of swap.
    fn free_swap(files: &[(&str, &str)]) -> Option<u64> {
        let group = tempfile::tempdir().unwrap();
        fs::create_dir(group.path().join("memory")).unwrap();
        for (file, content) in files {
            fs::write(group.path().join(file), format!("{content}\n")).unwrap();
        }
        cgroup_free_swap(group.path(), 10_000)
    }

    #[test]
    fn a_containers_swap_is_what_its_limit_leaves() {
        assert_eq!(free_swap(&[]), None);
        for (limit, left) in [("0", Some(0)), ("5000", Some(3000)), ("max", None)] {
            let files = [("memory.swap.max", limit), ("memory.swap.current", "2000")];
            assert_eq!(free_swap(&files), left);
        }
        let version_1 = |together, used| {
            free_swap(&[
                ("memory/memory.usage_in_bytes", "8000"),
                ("memory/memory.memsw.limit_in_bytes", together),
                ("memory/memory.memsw.usage_in_bytes", used),
            ])
        };
        assert_eq!(version_1("10000", "8000"), Some(0));
        assert_eq!(version_1("15000", "10000"), Some(3000));
        assert_eq!(version_1("9223372036854771712", "8000"), None);
    }
}
