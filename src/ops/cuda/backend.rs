// SPDX-License-Identifier: MPL-2.0

//! Descriptors of cuDNN's graph interface (its "backend"): objects with attributes, which are set
//! before an object is finalized and can be read after.

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cudnn::result;
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendCreateDescriptor, cudnnBackendDescriptor_t, cudnnBackendDescriptorType_t as Kind,
    cudnnBackendDestroyDescriptor, cudnnBackendExecute, cudnnBackendFinalize,
    cudnnBackendGetAttribute, cudnnBackendHeurMode_t, cudnnBackendSetAttribute,
    cudnnConvolutionMode_t, cudnnDataType_t, cudnnHandle_t, cudnnPointwiseMode_t,
};
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::{Error, Result, bail};
use std::ptr::null_mut;
use std::slice::{from_mut, from_ref};

/// A library handle, which enqueues on one stream. It and the stream outlive the descriptors that it is set
/// in.
#[repr(transparent)]
pub struct Handle(cudnnHandle_t);

impl Handle {
    pub fn new(stream: &CudaStream) -> Result<Self> {
        stream.context().bind_to_thread().w()?;
        let handle = Self(result::create_handle().map_err(Error::wrap)?);
        // SAFETY: the handle was made just now.
        unsafe { result::set_stream(handle.0, stream.cu_stream().cast()) }.map_err(Error::wrap)?;
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it is owned, and nothing uses it any more.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// A descriptor, of whichever kind.
#[repr(transparent)]
pub struct Descriptor(cudnnBackendDescriptor_t);

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it is owned, and cuDNN counts what other descriptors refer to.
        let _ = unsafe { cudnnBackendDestroyDescriptor(self.0) };
    }
}

/// A value of an attribute as cuDNN stores it.
///
/// # Safety
///
/// The layout is that of the C type that `TYPE` stands for. Each bit pattern that cuDNN may store in a
/// type with a default is a value of it.
pub unsafe trait Attribute {
    const TYPE: Type;
}

/// A knob of an engine. As are the notes, it is a number here, since cuDNN may be of a
/// version with more of them than the bindings know.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub struct Knob(pub u32);

/// A note of an engine's about its arithmetic.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub struct NumericalNote(pub u32);

/// A note of an engine's about how it runs.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub struct BehaviorNote(pub u32);

/// A device address.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Address(pub u64);

macro_rules! attributes {
    ($($value:ty: $type:ident),* $(,)?) => {
        $(
            // SAFETY: the layouts are the same: numbers, addresses, and C's enumerations of 32 bits. Those
            // with a default are numbers, and `bool`, which cuDNN stores as 0 or 1.
            unsafe impl Attribute for $value {
                const TYPE: Type = Type::$type;
            }
        )*
    };
}

attributes!(
    Handle: CUDNN_TYPE_HANDLE,
    cudnnDataType_t: CUDNN_TYPE_DATA_TYPE,
    bool: CUDNN_TYPE_BOOLEAN,
    i64: CUDNN_TYPE_INT64,
    f32: CUDNN_TYPE_FLOAT,
    Address: CUDNN_TYPE_VOID_PTR,
    cudnnConvolutionMode_t: CUDNN_TYPE_CONVOLUTION_MODE,
    cudnnBackendHeurMode_t: CUDNN_TYPE_HEUR_MODE,
    Knob: CUDNN_TYPE_KNOB_TYPE,
    NumericalNote: CUDNN_TYPE_NUMERICAL_NOTE,
    cudnnPointwiseMode_t: CUDNN_TYPE_POINTWISE_MODE,
    Descriptor: CUDNN_TYPE_BACKEND_DESCRIPTOR,
    BehaviorNote: CUDNN_TYPE_BEHAVIOR_NOTE,
);

impl Descriptor {
    pub fn new(kind: Kind) -> Result<Self> {
        let mut raw = null_mut();
        // SAFETY: it writes the new descriptor.
        unsafe { cudnnBackendCreateDescriptor(kind, &mut raw) }
            .result()
            .map_err(Error::wrap)?;
        Ok(Self(raw))
    }

    pub fn set_all<T: Attribute>(&mut self, name: Name, values: &[T]) -> Result<()> {
        let count = values.len() as i64;
        // SAFETY: it reads `count` values of the type, by that type's promise.
        unsafe { cudnnBackendSetAttribute(self.0, name, T::TYPE, count, values.as_ptr().cast()) }
            .result()
            .map_err(Error::wrap)
    }

    pub fn set<T: Attribute>(&mut self, name: Name, value: &T) -> Result<()> {
        self.set_all(name, from_ref(value))
    }

    pub fn finalize(self) -> Result<Self> {
        // SAFETY: the descriptor is alive.
        unsafe { cudnnBackendFinalize(self.0) }
            .result()
            .map_err(Error::wrap)?;
        Ok(self)
    }

    /// Reads an attribute's values, as many as there are and room is for. Returns their number. The
    /// descriptors among them stay where they are: cuDNN fills in the objects they stand for.
    fn get_all<T: Attribute>(&self, name: Name, values: &mut [T]) -> Result<usize> {
        let (room, mut count) = (values.len() as i64, 0);
        let out = values.as_mut_ptr().cast();
        // SAFETY: it writes at most `room` values of the type, by that type's promise.
        unsafe { cudnnBackendGetAttribute(self.0, name, T::TYPE, room, &mut count, out) }
            .result()
            .map_err(Error::wrap)?;
        Ok(count.clamp(0, room) as usize)
    }

    /// The values of an attribute that has at most `room`.
    pub fn values<T: Attribute + Clone + Default>(
        &self,
        name: Name,
        room: usize,
    ) -> Result<Vec<T>> {
        let mut values = vec![T::default(); room];
        let count = self.get_all(name, &mut values)?;
        values.truncate(count);
        Ok(values)
    }

    /// The value of an attribute that has one.
    pub fn value<T: Attribute + Default>(&self, name: Name) -> Result<T> {
        let mut value = T::default();
        match self.get_all(name, from_mut(&mut value))? {
            1 => Ok(value),
            _ => bail!("{name:?} has no value"),
        }
    }

    /// The descriptors of a kind that an attribute has, at most `room`.
    pub fn descriptors(&self, name: Name, kind: Kind, room: usize) -> Result<Vec<Self>> {
        let descriptors: Result<Vec<_>> = (0..room).map(|_| Self::new(kind)).collect();
        let mut descriptors = descriptors?;
        let count = self.get_all(name, &mut descriptors)?;
        descriptors.truncate(count);
        Ok(descriptors)
    }

    /// Enqueues this plan with the operands of a variant pack.
    ///
    /// # Safety
    ///
    /// The handle is the plan's. The operands and the workspace lie on its device and have the sizes that
    /// the plan takes, until the work is done.
    pub unsafe fn execute(&self, handle: &Handle, variant_pack: &Self) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { cudnnBackendExecute(handle.0, self.0, variant_pack.0) }
            .result()
            .map_err(Error::wrap)
    }
}
