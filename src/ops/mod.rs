// SPDX-License-Identifier: MPL-2.0

//! The tensor operations of an iteration, each writing into tensors that the caller allocated.
//!
//! Images and features are contiguous and channels last: `[height, width, channels]`. Images are
//! `f32`; features are in the [`Format`] of the network. Sums (`f64` `[1]`) and gradient factors
//! (`f32` `[1]`) are tensors on the device, so that the host need not wait for them.
//!
//! # Dispatch
//!
//! Operations have up to three backends and choose one by the device of their tensors:
//!
//! - CPU: native kernels, which work in place on the tensors' slices (`CpuOp`). Those for `f32` use
//!   pulp's SIMD and gemm, the products in `bf16` Intel AMX ([`amx`]).
//! - CUDA, with the feature `cudnn`: the project's own kernels, cuDNN and cuBLAS (`cuda`).
//! - Any other, such as CUDA without that feature: composed of candle's own operations.
//!
//! Most operations choose in each call, in this order. A convolution packs its
//! kernel for the backend and so chooses it once, in [`conv::Conv3x3::new`]. Outside
//! tests `use_cpu_kernels` is always true. Tests turn it off (`for_each_backend`,
//! `with_composed_ops`) to run the composed operations on the CPU, where these also emulate the
//! formats of a GPU.
//!
//! # Determinism
//!
//! How a sum is split never depends on the number of threads, so that results are bit-identical for
//! any number of them.

// What of the CUDA side needs no GPU is a module beside `cuda`, so that tests have it without the
// feature.
#[cfg(any(feature = "cudnn", test))]
#[path = "cuda/algorithm_cache.rs"]
mod algorithm_cache;
#[cfg(target_arch = "x86_64")]
pub mod amx;
#[cfg(not(target_arch = "x86_64"))]
#[path = "no_amx.rs"]
pub mod amx;
pub mod conv;
#[cfg(any(feature = "cudnn", test))]
#[path = "cuda/conv_algorithm.rs"]
mod conv_algorithm;
#[cfg(feature = "cudnn")]
pub mod cuda;
pub mod elementwise;
pub mod gram;
mod im2col;
#[cfg(test)]
#[path = "cuda/kernels/tests.rs"]
mod kernels;
mod microkernel;
pub mod pool;
pub(crate) mod record;
#[cfg(test)]
pub(crate) mod reference;
pub mod transfer;
mod winograd;

use candle_core::{
    CpuStorage, DType, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Storage, Tensor,
    WithDType, bail,
};
use half::bf16;
use std::marker::PhantomData;

/// The number format of features, their gradients and the convolution kernels. Sums are `f32` or
/// wider in every format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Single precision.
    F32,
    /// Stored as `f32`; operands of products are rounded to a 10-bit fraction.
    Tf32,
    /// bfloat16: f32's range, and a 7-bit fraction.
    Bf16,
    /// Half precision: up to 65504, and a 10-bit fraction.
    F16,
}

impl Format {
    /// How values are stored.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Tf32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// `tensor` as an operand of a product: `f32`, its values rounded to this format.
    fn operand(self, tensor: &Tensor) -> Result<Tensor> {
        match self {
            // Veltkamp's splitting (Dekker 1971) with 2^13 + 1: of 24 significant bits 11 remain.
            Self::Tf32 => {
                let large = (tensor * 8193.0)?;
                &large - (&large - tensor)?
            }
            _ => to_f32(&tensor.to_dtype(self.dtype())?),
        }
    }
}

/// The scratch memory of the operations on images of a height and width on a GPU, in bytes.
#[cfg(feature = "cudnn")]
pub fn scratch_bytes(_: (usize, usize)) -> usize {
    cuda::SCRATCH_BYTES
}

/// The scratch memory of candle's convolution at its largest: conv1_2's 64 channels, unfolded to
/// the nine values under the kernel.
#[cfg(not(feature = "cudnn"))]
pub fn scratch_bytes((h, w): (usize, usize)) -> usize {
    9 * 64 * h * w * size_of::<f32>()
}

/// Element types of the CPU kernels: `f32` pixels, `f32` or `bf16` features, `f64` sums.
pub(crate) trait Scalar: WithDType {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
    fn as_f32(self) -> f32;
    /// The nearest value, ties to even.
    fn nearest(value: f32) -> Self;
}

impl Scalar for f32 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(values) => Some(values),
            _ => None,
        }
    }

    #[inline(always)]
    fn as_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }
}

impl Scalar for bf16 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::BF16(values) => Some(values),
            _ => None,
        }
    }

    #[inline(always)]
    fn as_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Branch-free, so that loops over it vectorise.
    #[inline(always)]
    fn nearest(value: f32) -> Self {
        let bits = value.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let nan = bits >> 16 | 0x40;
        Self::from_bits(if value.is_nan() { nan } else { nearest } as u16)
    }
}

impl Scalar for f64 {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(values) => Some(values),
            _ => None,
        }
    }

    #[inline(always)]
    fn as_f32(self) -> f32 {
        self as f32
    }

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value.into()
    }
}

/// A candle in-place op, CPU only, that calls a closure with the operands' slices. `T` names their
/// element types.
struct CpuOp<F, T>(&'static str, F, PhantomData<fn(T)>);

fn op1<D: Scalar, F: Fn(&mut [D])>(name: &'static str, f: F) -> CpuOp<F, D> {
    CpuOp(name, f, PhantomData)
}

fn op2<D: Scalar, A: Scalar, F: Fn(&mut [D], &[A])>(name: &'static str, f: F) -> CpuOp<F, (D, A)> {
    CpuOp(name, f, PhantomData)
}

fn op3<D: Scalar, A: Scalar, B: Scalar, F: Fn(&mut [D], &[A], &[B])>(
    name: &'static str,
    f: F,
) -> CpuOp<F, (D, A, B)> {
    CpuOp(name, f, PhantomData)
}

impl<D: Scalar, F: Fn(&mut [D])> InplaceOp1 for CpuOp<F, D> {
    fn name(&self) -> &'static str {
        self.0
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.1(values_mut(dst, layout)?);
        Ok(())
    }
}

impl<D: Scalar, A: Scalar, F: Fn(&mut [D], &[A])> InplaceOp2 for CpuOp<F, (D, A)> {
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

impl<D: Scalar, A: Scalar, B: Scalar, F: Fn(&mut [D], &[A], &[B])> InplaceOp3
    for CpuOp<F, (D, A, B)>
{
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

fn values<'a, T: Scalar>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<T>()?[start..end]),
        None => bail!("a contiguous tensor is needed, not one of layout {layout:?}"),
    }
}

fn values_mut<'a, T: Scalar>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [T]> {
    match (T::slice_mut(storage), layout.contiguous_offsets()) {
        (Some(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!(
            "a contiguous tensor of {:?} is needed, not one of layout {layout:?}",
            T::DTYPE
        ),
    }
}

/// Calls `f` with the values of contiguous tensors on the CPU.
pub(crate) fn with_values<T: Scalar, R, const N: usize>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let storages = tensors.map(Tensor::storage_and_layout);
    let mut slices = [[].as_slice(); N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&storages) {
        *slice = match &**storage {
            Storage::Cpu(storage) => values(storage, layout)?,
            _ => bail!("a tensor on the CPU is needed"),
        };
    }
    Ok(f(slices))
}

/// An output slice that parallel tasks write at the same time, each its own ranges of it.
struct DisjointSlices<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it is only a pointer; concurrent writes through it do not overlap, as `slice_mut`
// demands.
unsafe impl<T: Send> Sync for DisjointSlices<'_, T> {}

impl<'a, T> DisjointSlices<'a, T> {
    fn new(output: &'a mut [T]) -> Self {
        Self {
            start: output.as_mut_ptr(),
            len: output.len(),
            borrowed: PhantomData,
        }
    }

    /// # Safety
    /// Nothing else may access the range while the slice lives.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    unsafe fn slice_mut(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len);
        // SAFETY: in bounds by the assertion, not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Writes `src` into `dst`, or adds it to `dst`, rounding once, to the dtype of `dst`.
fn store(dst: &Tensor, src: &Tensor, accumulate: bool) -> Result<()> {
    let sum = match accumulate {
        true => (dst.to_dtype(src.dtype())? + src)?,
        false => src.clone(),
    };
    dst.slice_set(&sum.to_dtype(dst.dtype())?.contiguous()?, 0, 0)
}

/// A tensor converted to `f32`, which all composed operations compute in.
fn to_f32(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F32)
}

/// Writes `value` to a sum on the CPU, `f64` `[1]`.
fn write_sum(sum: &Tensor, value: f64) -> Result<()> {
    sum.inplace_op1(&op1("write-sum", |sum: &mut [f64]| sum.fill(value)))
}

/// The value of a factor on the CPU, `f32` `[1]`.
fn read_factor(factor: &Tensor) -> Result<f32> {
    with_values([factor], |[values]: [&[f32]; 1]| values.first().copied())?
        .ok_or_else(|| candle_core::Error::msg("a factor is a tensor of one value"))
}

/// Whether operations on CPU tensors use the native kernels. Tests can turn this off, to check the
/// composed operations without the devices that they are for.
#[cfg(not(test))]
pub(crate) fn use_cpu_kernels() -> bool {
    true
}

#[cfg(test)]
thread_local! {
    static USE_CPU_KERNELS: std::cell::Cell<bool> = const { std::cell::Cell::new(true) };
}

#[cfg(test)]
pub(crate) fn use_cpu_kernels() -> bool {
    USE_CPU_KERNELS.get()
}

/// Runs `test` with the native CPU kernels and then with the composed operations, on this thread;
/// its argument is the backend's name.
#[cfg(test)]
pub(crate) fn for_each_backend(test: impl Fn(&str)) {
    test("cpu");
    with_composed_ops(|| test("candle"));
}

/// Runs `compute` with the composed operations on this thread.
#[cfg(test)]
pub(crate) fn with_composed_ops<R>(compute: impl FnOnce() -> R) -> R {
    USE_CPU_KERNELS.set(false);
    let result = compute();
    USE_CPU_KERNELS.set(true);
    result
}
