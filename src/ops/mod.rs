// SPDX-License-Identifier: MPL-2.0

//! The operations of an iteration, each writing into tensors that the caller allocated.
//!
//! Images and features are `f32`, contiguous, channels last: `[height, width, channels]`. On the
//! CPU an operation is a candle in-place op that works on the values where they lie; on every
//! other device it is composed of candle's own operations. No sum on the CPU side is split in
//! a way that depends on the number of threads, so that results are the same bit for bit for any.

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(not(target_arch = "x86_64"))]
#[path = "no_amx.rs"]
pub mod amx;
pub mod conv;
pub mod elementwise;
pub mod gram;
mod patches;
pub mod pool;
mod product;
#[cfg(test)]
pub(crate) mod reference;
mod winograd;

use candle_core::{
    CpuStorage, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Storage, Tensor, bail,
};
use std::marker::PhantomData;

/// A closure over the values of its operands, as a candle in-place op.
struct CpuOp<F>(&'static str, F);

impl<F: Fn(&mut [f32])> InplaceOp1 for CpuOp<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.1(values_mut(dst, layout)?);
        Ok(())
    }
}

impl<F: Fn(&mut [f32], &[f32])> InplaceOp2 for CpuOp<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        l1: &Layout,
        a: &CpuStorage,
        l2: &Layout,
    ) -> Result<()> {
        self.1(values_mut(dst, l1)?, values(a, l2)?);
        Ok(())
    }
}

impl<F: Fn(&mut [f32], &[f32], &[f32])> InplaceOp3 for CpuOp<F> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        l1: &Layout,
        a: &CpuStorage,
        l2: &Layout,
        b: &CpuStorage,
        l3: &Layout,
    ) -> Result<()> {
        self.1(values_mut(dst, l1)?, values(a, l2)?, values(b, l3)?);
        Ok(())
    }
}

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a contiguous tensor is needed, not one of layout {layout:?}"),
    }
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("a contiguous f32 tensor is needed, not one of layout {layout:?}"),
    }
}

/// Calls `f` with the values of a contiguous `f32` tensor on the CPU.
fn with_values<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(values(storage, layout)?)),
        _ => bail!("a tensor on the CPU is needed"),
    }
}

/// The output of an operation, which its pieces write at the same time.
struct Shared<'a> {
    start: *mut f32,
    len: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is only a pointer; what is written through it at the same time does not overlap, as
// `range` demands.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn new(output: &'a mut [f32]) -> Self {
        Self {
            start: output.as_mut_ptr(),
            len: output.len(),
            borrowed: PhantomData,
        }
    }

    /// # Safety
    /// Nobody else may use the range while the slice lives.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    unsafe fn range(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start + len <= self.len);
        // SAFETY: in bounds by the assertion, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Writes `src` into `dst`, or adds it to `dst`.
fn store(dst: &Tensor, src: &Tensor, accumulate: bool) -> Result<()> {
    if accumulate {
        dst.slice_set(&(dst + src)?.contiguous()?, 0, 0)
    } else {
        dst.slice_set(&src.contiguous()?, 0, 0)
    }
}

/// Whether tensors on the CPU go to the CPU side of an operation; tests can have them go to the
/// other, so that it is proven without the device that it is for.
#[cfg(not(test))]
fn cpu_side() -> bool {
    true
}

#[cfg(test)]
thread_local! {
    static CPU_SIDE: std::cell::Cell<bool> = const { std::cell::Cell::new(true) };
}

#[cfg(test)]
fn cpu_side() -> bool {
    CPU_SIDE.get()
}

/// Runs `test` with the CPU side of the operations and then with that of other devices, on this
/// thread.
#[cfg(test)]
pub(crate) fn with_both_sides(test: impl Fn(&str)) {
    test("cpu");
    CPU_SIDE.set(false);
    test("candle");
    CPU_SIDE.set(true);
}
