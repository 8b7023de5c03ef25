// SPDX-License-Identifier: MPL-2.0

//! Gram matrices on a GPU, and the gradient through them.

use super::vector::reduce;
use super::{Arg, Gpu, StreamGuard, checked_address, floats, suffix, sums};
use candle_core::cuda_backend::cudarc::cublas::result::{gemm_ex, gemm_strided_batched_ex};
use candle_core::cuda_backend::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasOperation_t, cublasPointerMode_t,
    cublasSetWorkspace_v2, cudaDataType,
};
use candle_core::{DType, Error, Result, Tensor, bail};
use std::ffi::c_void;
use std::ptr::from_ref;

/// The workspace of cuBLAS.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// The split over positions (split-K): the positions that a partial Gram matrix should have, where the
/// number of splits may be a quarter off to divide all positions evenly; the number of splits at most;
/// the values of all partial matrices at most.
/// With tiles of 128x128, cuBLAS has 4 and 16 blocks for each of conv3_1's and conv4_1's. At 640x360 this
/// makes 120 and 128 blocks for the 132 SMs of an H200.
const SPLIT_POSITIONS: usize = 512;
const MAX_SPLITS: usize = 128;
pub const MAX_PARTIAL_VALUES: usize = 4 << 20;

/// The Gram matrix of `features` `[m, n]` over m, into `output` `[n, n]`.
pub fn gram(features: &Tensor, [m, n]: [usize; 2], output: &Tensor) -> Result<()> {
    let gpu = Gpu::of(features.device())?;
    let stream = gpu.lock_stream()?;
    let products = split_products(&stream, features, [m, n])?;
    let args = [&products[..], &[floats(output, n * n)?, Arg::Int(n as i32)]].concat();
    stream.launch_1d("gram_average", n * n, &args).map(drop)
}

/// The same less a symmetric `target`, into `residual`, and the sum of the residual's squares.
pub fn gram_residual(
    features: &Tensor,
    [m, n]: [usize; 2],
    target: &Tensor,
    (residual, sum): (&Tensor, &Tensor),
) -> Result<()> {
    reduce(sum, |stream, partials| {
        let products = split_products(stream, features, [m, n])?;
        let [target, residual] = [floats(target, n * n)?, floats(residual, n * n)?];
        let output = [target, residual, partials, Arg::Int(n as i32)];
        let args = [&products[..], &output].concat();
        stream.launch_1d("gram_residual", n * n, &args)
    })
}

/// Computes FᵀF over each split of the positions of `features` F `[m, n]`. Returns the first arguments
/// of the kernels that average them.
fn split_products(stream: &StreamGuard, features: &Tensor, [m, n]: [usize; 2]) -> Result<[Arg; 3]> {
    let dtype = features.dtype();
    // Left to itself, cuBLAS may have few blocks that each loop over all positions.
    let max_splits = MAX_SPLITS.min(MAX_PARTIAL_VALUES / (n * n)).max(1);
    let splits = split_count(m, max_splits);
    let (positions, remainder) = (m / splits, m % splits);
    let matrix_bytes = DType::F32.size_in_bytes() * n * n;
    let products = stream.scratch("Gram matrices", (max_splits + 1) * matrix_bytes)?;
    let features = checked_address(features, dtype, m * n)?;
    let remaining = features + (splits * positions * n * dtype.size_in_bytes()) as u64;
    gram_products(stream, dtype, (features, [n, positions]), splits, products)?;
    if remainder > 0 {
        let product = products + (splits * matrix_bytes) as u64;
        gram_products(stream, dtype, (remaining, [n, remainder]), 1, product)?;
    }
    Ok([
        Arg::Address(products),
        Arg::Int((splits + usize::from(remainder > 0)) as i32),
        Arg::Double(m as f64),
    ])
}

/// The number of splits of `m` positions, at most `max`. Divisors of `m` are preferred, as a remainder
/// takes a product of its own.
fn split_count(m: usize, max: usize) -> usize {
    let wished = (m / SPLIT_POSITIONS).clamp(1, max);
    (0..=wished / 4)
        .flat_map(|distance| [wished + distance, wished - distance])
        .find(|&splits| splits <= max && m.is_multiple_of(splits))
        .unwrap_or(wished)
}

/// F Fᵀ of each of `count` consecutive column-major matrices F `[n, m]`, into consecutive `[n, n]`.
fn gram_products(
    stream: &StreamGuard,
    dtype: DType,
    (features, [n, m]): (u64, [usize; 2]),
    count: usize,
    output: u64,
) -> Result<()> {
    let (one, zero) = (1f32, 0f32);
    let data_type = data_type(dtype)?;
    let handle = configured_handle(stream, cublasPointerMode_t::CUBLAS_POINTER_MODE_HOST)?;
    let features = features as *const c_void;
    // SAFETY: `features` and `output` have `count` consecutive matrices of these sizes.
    unsafe {
        gemm_strided_batched_ex(
            handle,
            cublasOperation_t::CUBLAS_OP_N,
            cublasOperation_t::CUBLAS_OP_T,
            n as i32,
            n as i32,
            m as i32,
            from_ref(&one).cast(),
            features,
            data_type,
            n as i32,
            (n * m) as i64,
            features,
            data_type,
            n as i32,
            (n * m) as i64,
            from_ref(&zero).cast(),
            output as *mut c_void,
            cudaDataType::CUDA_R_32F,
            n as i32,
            (n * n) as i64,
            count as i32,
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(Error::wrap)
}

/// `factor` F D, which is written to `gradient` or added to it, for features F `[m, n]` and a symmetric
/// residual D `[n, n]` whose sum of squares is `squares`.
pub fn gram_backward(
    features: &Tensor,
    [m, n]: [usize; 2],
    (residual, squares): (&Tensor, &Tensor),
    factor: &Tensor,
    (gradient, accumulate): (&Tensor, bool),
) -> Result<()> {
    let gpu = Gpu::of(features.device())?;
    let stream = gpu.lock_stream()?;
    let dtype = features.dtype();
    let data_type = data_type(dtype)?;
    let normalised = stream.scratch("residual", n * n * dtype.size_in_bytes())?;
    // α and β of cuBLAS are both in device memory.
    let alpha = stream.scratch("factor", size_of::<f32>())?;
    let beta = stream.gpu.beta(accumulate);
    stream.launch_1d(
        &format!("normalise_residual_{}", suffix(dtype)?),
        n * n,
        &[
            floats(residual, n * n)?,
            sums(squares, 1)?,
            floats(factor, 1)?,
            Arg::Address(normalised),
            Arg::Address(alpha),
            Arg::Int((n * n) as i32),
        ],
    )?;
    let features = checked_address(features, dtype, m * n)?;
    let gradient = checked_address(gradient, dtype, m * n)?;
    let handle = configured_handle(&stream, cublasPointerMode_t::CUBLAS_POINTER_MODE_DEVICE)?;
    // In cuBLAS's column-major order, with D symmetric: D Fᵀ, `[n, m]`.
    // SAFETY: the matrices have these sizes, and α and β are in device memory.
    unsafe {
        gemm_ex(
            handle,
            cublasOperation_t::CUBLAS_OP_N,
            cublasOperation_t::CUBLAS_OP_N,
            n as i32,
            m as i32,
            n as i32,
            alpha as *const c_void,
            normalised as *const c_void,
            data_type,
            n as i32,
            features as *const c_void,
            data_type,
            n as i32,
            beta as *const c_void,
            gradient as *mut c_void,
            data_type,
            n as i32,
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(Error::wrap)
}

/// The stream's handle, with its workspace, and with α and β where `mode` says.
fn configured_handle(stream: &StreamGuard, mode: cublasPointerMode_t) -> Result<cublasHandle_t> {
    let workspace = stream.scratch("cuBLAS", WORKSPACE_BYTES)?;
    let blas = &stream.handles.blas;
    blas.set_pointer_mode(mode).map_err(Error::wrap)?;
    // SAFETY: scratch memory has that size and is never freed.
    unsafe { cublasSetWorkspace_v2(*blas.handle(), workspace as *mut c_void, WORKSPACE_BYTES) }
        .result()
        .map_err(Error::wrap)?;
    Ok(*blas.handle())
}

/// The type of features in cuBLAS. Features in tf32 are `f32` in memory, and multiplied as such: only
/// convolutions use tf32.
fn data_type(dtype: DType) -> Result<cudaDataType> {
    match dtype {
        DType::F32 => Ok(cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(cudaDataType::CUDA_R_16BF),
        DType::F16 => Ok(cudaDataType::CUDA_R_16F),
        dtype => bail!("there are no features of {dtype:?}"),
    }
}
