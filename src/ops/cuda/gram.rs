// SPDX-License-Identifier: MPL-2.0

//! Gram matrices on a GPU, and the gradient through them.

use super::{Arg, Gpu, Work, address, at, suffix};
use candle_core::cuda_backend::cudarc::cublas::result::{gemm_ex, gemm_strided_batched_ex};
use candle_core::cuda_backend::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasOperation_t, cublasPointerMode_t,
    cublasSetWorkspace_v2, cudaDataType,
};
use candle_core::{DType, Error, Result, Tensor, bail};
use std::ffi::c_void;
use std::ptr::from_ref;

/// What cuBLAS works in.
pub const WORKSPACE: usize = 32 << 20;

/// Positions of a partial Gram matrix at least, how many there are at most, and their values in all.
const PIECE_POSITIONS: usize = 2048;
const MAX_PIECES: usize = 128;
pub const MAX_VALUES: usize = 4 << 20;

/// The Gram matrix of `features` `[m, n]` over m, into `output` `[n, n]`.
pub fn gram(features: &Tensor, [m, n]: [usize; 2], output: &Tensor) -> Result<()> {
    let gpu = Gpu::of(features.device())?;
    let dtype = features.dtype();
    let work = gpu.work()?;
    // Parts of the positions, as cuBLAS would have one block go through them all.
    let most = MAX_PIECES.min(MAX_VALUES / (n * n)).max(1);
    let pieces = (m / PIECE_POSITIONS).clamp(1, most);
    let (piece, rest) = (m / pieces, m % pieces);
    let size = DType::F32.size_in_bytes() * n * n;
    let partials = work.scratch("Gram matrices", (most + 1) * size)?;
    let features = address(features)?;
    let at_rest = features + (pieces * piece * n * dtype.size_in_bytes()) as u64;
    transposed_product(&work, dtype, (features, [n, piece]), pieces, partials)?;
    if rest > 0 {
        let partial = partials + (pieces * size) as u64;
        transposed_product(&work, dtype, (at_rest, [n, rest]), 1, partial)?;
    }
    work.each(
        "gram_average",
        n * n,
        &[
            Arg::Address(partials),
            Arg::Int((pieces + usize::from(rest > 0)) as i32),
            Arg::Double(m as f64),
            at(output)?,
            Arg::Int(n as i32),
        ],
    )?;
    Ok(())
}

/// F Fᵀ for each of `count` matrices F in columns, `[n, m]`, one after the other.
fn transposed_product(
    work: &Work,
    dtype: DType,
    (features, [n, m]): (u64, [usize; 2]),
    count: usize,
    output: u64,
) -> Result<()> {
    let (one, zero) = (1f32, 0f32);
    let data_type = data_type(dtype)?;
    let handle = prepared(work, cublasPointerMode_t::CUBLAS_POINTER_MODE_HOST)?;
    let features = features as *const c_void;
    // SAFETY: `count` matrices lie one after the other in both.
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

/// `factor` F D into `gradient`, or added to it, for features `[m, n]` and the residual D `[n, n]`,
/// the sum of whose squares is `squares`.
pub fn gram_backward(
    features: &Tensor,
    [m, n]: [usize; 2],
    (residual, squares): (&Tensor, &Tensor),
    factor: &Tensor,
    (gradient, accumulate): (&Tensor, bool),
) -> Result<()> {
    let gpu = Gpu::of(features.device())?;
    let work = gpu.work()?;
    let dtype = features.dtype();
    let data_type = data_type(dtype)?;
    let packed = work.scratch("residual", n * n * dtype.size_in_bytes())?;
    // Both factors are on the device: that of the product, and that of what is there already.
    let alpha = work.scratch("factor", size_of::<f32>())?;
    let beta = work.gpu.constant(accumulate);
    work.each(
        &format!("normalise_residual_{}", suffix(dtype)?),
        n * n,
        &[
            at(residual)?,
            at(squares)?,
            at(factor)?,
            Arg::Address(packed),
            Arg::Address(alpha),
            Arg::Int((n * n) as i32),
        ],
    )?;
    let (features, gradient) = (address(features)?, address(gradient)?);
    let handle = prepared(&work, cublasPointerMode_t::CUBLAS_POINTER_MODE_DEVICE)?;
    // In columns, and D is its own transpose: D Fᵀ, `[n, m]`.
    // SAFETY: the matrices are of these sizes, and the factors are on the device.
    unsafe {
        gemm_ex(
            handle,
            cublasOperation_t::CUBLAS_OP_N,
            cublasOperation_t::CUBLAS_OP_N,
            n as i32,
            m as i32,
            n as i32,
            alpha as *const c_void,
            packed as *const c_void,
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

/// The lane's handle, which finds factors where `mode` says.
fn prepared(work: &Work, mode: cublasPointerMode_t) -> Result<cublasHandle_t> {
    let workspace = work.scratch("cuBLAS", WORKSPACE)?;
    let blas = &work.lane.blas;
    blas.set_pointer_mode(mode).map_err(Error::wrap)?;
    // SAFETY: the memory is of that size and stays.
    unsafe { cublasSetWorkspace_v2(*blas.handle(), workspace as *mut c_void, WORKSPACE) }
        .result()
        .map_err(Error::wrap)?;
    Ok(*blas.handle())
}

/// Products are taken in `f32` of features that are `f32` in memory: tf32 is for convolutions.
fn data_type(dtype: DType) -> Result<cudaDataType> {
    match dtype {
        DType::F32 => Ok(cudaDataType::CUDA_R_32F),
        DType::BF16 => Ok(cudaDataType::CUDA_R_16BF),
        DType::F16 => Ok(cudaDataType::CUDA_R_16F),
        dtype => bail!("there are no features of {dtype:?}"),
    }
}
