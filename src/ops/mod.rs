// SPDX-License-Identifier: MPL-2.0

//! The operations of an iteration, each writing into tensors that the caller allocated.
//!
//! Images and features are contiguous, channels last: `[height, width, channels]`. Images are
//! `f32`, features what the [`Format`] says. What an iteration sums stays on the device, `f64`
//! `[1]` each, and so do the factors of its gradients, `f32` `[1]`: the host need not wait.
//!
//! On the CPU an operation is a candle in-place op that works on the values where they lie; on a
//! GPU it is kernels of our own, cuDNN's and cuBLAS's, or, in a build without cuDNN, composed of
//! candle's own operations, which also stand in for a GPU's formats in the tests. No sum is split
//! in a way that depends on the number of threads, so that results are the same bit for bit for any.

#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(not(target_arch = "x86_64"))]
#[path = "no_amx.rs"]
pub mod amx;
pub mod conv;
#[cfg(feature = "cudnn")]
pub mod cuda;
pub mod elementwise;
pub mod gram;
#[cfg(test)]
#[path = "cuda/kernels/tests.rs"]
mod kernels;
mod patches;
pub mod pool;
mod product;
pub mod record;
#[cfg(test)]
pub(crate) mod reference;
#[cfg(any(feature = "cudnn", test))]
#[path = "cuda/remembered.rs"]
mod remembered;
pub mod transfer;
mod winograd;

use candle_core::{
    CpuStorage, DType, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Storage, Tensor,
    WithDType, bail,
};
use half::bf16;
use std::marker::PhantomData;

/// What features, gradients with respect to them and kernels are rounded to. Sums are `f32` or
/// wider in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    F32,
    /// `f32` in memory, whose products are taken of values rounded to 10 bits of fraction.
    Tf32,
    Bf16,
    F16,
}

impl Format {
    /// What is in memory.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// An operand of a product, `f32` with values that this format has.
    fn operand(self, tensor: &Tensor) -> Result<Tensor> {
        match self {
            // Dekker's splitting (1971): what is left of 24 bits has 11.
            Self::Tf32 => {
                let large = (tensor * 8193.0)?;
                &large - (&large - tensor)?
            }
            _ => singles(&tensor.to_dtype(self.dtype())?),
        }
    }
}

/// What operations on the CPU work on: pixels and sums are `f32`, features `f32` or `bf16`.
pub(crate) trait Value: WithDType {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
    fn single(self) -> f32;
    /// The nearest value, ties to even.
    fn nearest(value: f32) -> Self;
}

impl Value for f32 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }

    #[inline(always)]
    fn single(self) -> f32 {
        self
    }

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }
}

impl Value for bf16 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::BF16(values) => Some(values),
            _ => None,
        }
    }

    #[inline(always)]
    fn single(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Without a branch, for the vector unit.
    #[inline(always)]
    fn nearest(value: f32) -> Self {
        let bits = value.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let nan = bits >> 16 | 0x40;
        Self::from_bits(if value.is_nan() { nan } else { nearest } as u16)
    }
}

impl Value for f64 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(values) => Some(values),
            _ => None,
        }
    }

    #[inline(always)]
    fn single(self) -> f32 {
        self as f32
    }

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value.into()
    }
}

/// A closure over the values of its operands, as a candle in-place op. `T` has their types.
struct CpuOp<F, T>(&'static str, F, PhantomData<fn(T)>);

fn op1<D: Value, F: Fn(&mut [D])>(name: &'static str, f: F) -> CpuOp<F, D> {
    CpuOp(name, f, PhantomData)
}

fn op2<D: Value, A: Value, F: Fn(&mut [D], &[A])>(name: &'static str, f: F) -> CpuOp<F, (D, A)> {
    CpuOp(name, f, PhantomData)
}

fn op3<D: Value, A: Value, B: Value, F: Fn(&mut [D], &[A], &[B])>(
    name: &'static str,
    f: F,
) -> CpuOp<F, (D, A, B)> {
    CpuOp(name, f, PhantomData)
}

impl<D: Value, F: Fn(&mut [D])> InplaceOp1 for CpuOp<F, D> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.1(values_mut(dst, layout)?);
        Ok(())
    }
}

impl<D: Value, A: Value, F: Fn(&mut [D], &[A])> InplaceOp2 for CpuOp<F, (D, A)> {
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

impl<D: Value, A: Value, B: Value, F: Fn(&mut [D], &[A], &[B])> InplaceOp3 for CpuOp<F, (D, A, B)> {
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

fn values<'a, T: Value>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => bail!("a contiguous tensor is needed, not one of layout {layout:?}"),
    }
}

fn values_mut<'a, T: Value>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [T]> {
    match (T::slice_mut(storage), layout.contiguous_offsets()) {
        (Some(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!(
            "a contiguous tensor of {:?} is needed, not one of layout {layout:?}",
            T::DTYPE
        ),
    }
}

/// Calls `f` with the values of a contiguous tensor on the CPU.
pub(crate) fn with_values<T: Value, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(values(storage, layout)?)),
        _ => bail!("a tensor on the CPU is needed"),
    }
}

/// The output of an operation, which its pieces write at the same time.
struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it is only a pointer; what is written through it at the same time does not overlap, as
// `range` demands.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    fn new(output: &'a mut [T]) -> Self {
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
    unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len);
        // SAFETY: in bounds by the assertion, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Writes `src` into `dst`, or adds it to `dst`, rounded once to what `dst` is of.
fn store(dst: &Tensor, src: &Tensor, accumulate: bool) -> Result<()> {
    let sum = match accumulate {
        true => (dst.to_dtype(src.dtype())? + src)?,
        false => src.clone(),
    };
    dst.slice_set(&sum.to_dtype(dst.dtype())?.contiguous()?, 0, 0)
}

/// The values of a tensor in `f32`, which every composed operation computes in.
fn singles(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F32)
}

/// Leaves a sum in its place, `f64` `[1]`.
fn leave(sum: &Tensor, value: f64) -> Result<()> {
    sum.inplace_op1(&op1("leave", |sum: &mut [f64]| sum.fill(value)))
}

/// A factor on the CPU, `f32` `[1]`.
fn read(factor: &Tensor) -> Result<f32> {
    with_values(factor, |values: &[f32]| values.first().copied())?
        .ok_or_else(|| candle_core::Error::msg("a factor is a tensor of one value"))
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

/// Runs `test` with the CPU side of the operations and then with the composed one, on this thread.
#[cfg(test)]
pub(crate) fn with_both_sides(test: impl Fn(&str)) {
    test("cpu");
    composed(|| test("candle"));
}

/// What `compute` computes with composed operations on this thread.
#[cfg(test)]
pub(crate) fn composed<R>(compute: impl FnOnce() -> R) -> R {
    CPU_SIDE.set(false);
    let result = compute();
    CPU_SIDE.set(true);
    result
}
