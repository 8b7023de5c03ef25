// SPDX-License-Identifier: MPL-2.0

//! cuDNN's plans of 3x3 convolutions: an operation graph says what is computed, an engine configuration
//! how, and a plan of both can be enqueued.

use super::super::Format;
use super::super::conv_algorithm::{EngineConfig, Operation};
use super::backend::{Address, BehaviorNote, Descriptor, Handle, Knob, NumericalNote};
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendBehaviorNote_t as Behavior,
    cudnnBackendDescriptorType_t as Kind, cudnnBackendHeurMode_t as Heuristics,
    cudnnBackendNumericalNote_t as Numerical, cudnnConvolutionMode_t, cudnnDataType_t,
    cudnnPointwiseMode_t,
};
use candle_core::{Result, bail};

/// The workspace of a plan, at most.
pub const WORKSPACE_BYTES: usize = 256 << 20;

/// The alignment of all operands in bytes.
const ALIGNMENT: u64 = 16;

/// More than cuDNN proposes for a convolution.
const MAX_PROPOSALS: usize = 256;
/// More notes than an engine has.
const MAX_NOTES: usize = 64;
/// More knobs than an engine has.
const MAX_KNOBS: usize = 64;

/// The unique numbers of a graph's tensors: the operands, and what is between the operations.
mod uid {
    pub const INPUT: i64 = 1;
    pub const KERNEL: i64 = 2;
    pub const BIAS: i64 = 3;
    pub const OUTPUT: i64 = 4;
    pub const CONVOLVED: i64 = 5;
    pub const BIASED: i64 = 6;
}

/// The device addresses of a convolution's operands.
#[derive(Clone, Copy)]
pub struct ConvOperands {
    pub input: u64,
    /// `[n_out, 3, 3, n_in]`
    pub kernel: u64,
    /// The kernel of the convolution that this one is the adjoint of, `[n_in, 3, 3, n_out]`.
    pub adjoint: Option<u64>,
    /// `[n_out]`, in the format of the features.
    pub bias: Option<u64>,
    pub output: u64,
}

impl ConvOperands {
    /// Those that an operation takes, with the numbers of their tensors. None if one is missing.
    pub fn of(&self, operation: Operation) -> Option<Vec<(i64, Address)>> {
        let kernel = match operation {
            Operation::Fused | Operation::Plain => self.kernel,
            Operation::Data => self.adjoint?,
        };
        let mut tensors = vec![
            (uid::INPUT, Address(self.input)),
            (uid::KERNEL, Address(kernel)),
            (uid::OUTPUT, Address(self.output)),
        ];
        if operation == Operation::Fused {
            tensors.push((uid::BIAS, Address(self.bias?)));
        }
        Some(tensors)
    }
}

/// An operation on features of one size, on a handle's device.
pub struct OperationGraph<'a> {
    handle: &'a Handle,
    operation: Operation,
    format: Format,
    graph: Descriptor,
}

impl<'a> OperationGraph<'a> {
    /// `dims` are h, w, n_in and n_out.
    pub fn new(
        handle: &'a Handle,
        operation: Operation,
        format: Format,
        dims: [usize; 4],
    ) -> Result<Self> {
        let [h, w, n_in, n_out] = dims.map(|dim| dim as i64);
        let data_type = data_type(format);
        let input = features(uid::INPUT, [h, w, n_in], data_type)?.finalize()?;
        let output = features(uid::OUTPUT, [h, w, n_out], data_type)?.finalize()?;
        let operations = match operation {
            Operation::Plain => {
                let kernel = kernel([n_out, n_in], data_type)?;
                vec![convolution_forward(&input, &kernel, &output)?]
            }
            Operation::Data => {
                let kernel = kernel([n_in, n_out], data_type)?;
                vec![convolution_backward_data(&input, &kernel, &output)?]
            }
            Operation::Fused => {
                let kernel = kernel([n_out, n_in], data_type)?;
                let bias = features(uid::BIAS, [1, 1, n_out], data_type)?.finalize()?;
                let [convolved, biased] = [uid::CONVOLVED, uid::BIASED].map(|id| {
                    let float = cudnnDataType_t::CUDNN_DATA_FLOAT;
                    let mut between = features(id, [h, w, n_out], float)?;
                    between.set(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, &true)?;
                    between.finalize()
                });
                let (convolved, biased) = (convolved?, biased?);
                vec![
                    convolution_forward(&input, &kernel, &convolved)?,
                    add(&convolved, &bias, &biased)?,
                    relu(&biased, &output)?,
                ]
            }
        };
        let mut graph = Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle)?;
        graph.set_all(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operations)?;
        Ok(Self {
            handle,
            operation,
            format,
            graph: graph.finalize()?,
        })
    }

    /// The engine configurations that compute in the format with `f32` accumulation, deterministically,
    /// without compiling kernels first and within [`WORKSPACE_BYTES`]; at most `count`, and those first
    /// that cuDNN expects to be the fastest. An error if there is none.
    pub fn configs(&self, count: usize) -> Result<Vec<EngineConfig>> {
        let mut configs = Vec::new();
        let mut failure = None;
        for mode in [
            Heuristics::CUDNN_HEUR_MODE_A,
            Heuristics::CUDNN_HEUR_MODE_FALLBACK,
        ] {
            // A mode that knows nothing of such an operation leaves the other, and so do proposals that
            // cannot be read.
            let proposals = self.proposals(mode).unwrap_or_else(|error| {
                failure = Some(error);
                Vec::new()
            });
            for proposal in proposals {
                if configs.len() == count {
                    return Ok(configs);
                }
                match self.suitable_config(&proposal) {
                    Ok(Some(config)) if !configs.contains(&config) => configs.push(config),
                    Ok(_) => (),
                    Err(error) => failure = Some(error),
                }
            }
        }
        match failure {
            _ if !configs.is_empty() => Ok(configs),
            Some(error) => Err(error),
            None => bail!("cuDNN has no suitable engine"),
        }
    }

    /// The engine configurations that cuDNN's heuristics propose.
    fn proposals(&self, mode: Heuristics) -> Result<Vec<Descriptor>> {
        let mut heuristics = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
        heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &self.graph)?;
        heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, &mode)?;
        heuristics.finalize()?.descriptors(
            Name::CUDNN_ATTR_ENGINEHEUR_RESULTS,
            Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
            MAX_PROPOSALS,
        )
    }

    /// What a proposal configures, unless it does not suit.
    fn suitable_config(&self, proposal: &Descriptor) -> Result<Option<EngineConfig>> {
        let engines = proposal.descriptors(
            Name::CUDNN_ATTR_ENGINECFG_ENGINE,
            Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR,
            1,
        )?;
        let Some(engine) = engines.first() else {
            return Ok(None);
        };
        // Before cuDNN 9.2 only a plan tells.
        let bytes = proposal.value(Name::CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE);
        let too_large = bytes.is_ok_and(|bytes: i64| bytes > WORKSPACE_BYTES as i64);
        if too_large || !self.suits(engine)? {
            return Ok(None);
        }
        let choices = proposal.descriptors(
            Name::CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
            Kind::CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR,
            MAX_KNOBS,
        )?;
        let knobs = choices.iter().map(|choice| {
            let Knob(knob) = choice.value(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE)?;
            Ok((knob, choice.value(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE)?))
        });
        Ok(Some(EngineConfig {
            index: engine.value(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX)?,
            knobs: knobs.collect::<Result<_>>()?,
        }))
    }

    /// Whether an engine computes as [`Self::configs`] says.
    fn suits(&self, engine: &Descriptor) -> Result<bool> {
        let numerical = engine.values(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, MAX_NOTES)?;
        let behavior = engine.values(Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, MAX_NOTES)?;
        Ok(notes_suit(self.format, &numerical, &behavior))
    }

    /// The plan of this operation by an engine so configured. An error if that does not suit, as a
    /// configuration that is not one of [`Self::configs`] may not.
    pub fn plan(&self, config: &EngineConfig) -> Result<Plan> {
        let EngineConfig { index, knobs } = config;
        let mut engine = Descriptor::new(Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
        engine.set(Name::CUDNN_ATTR_ENGINE_OPERATION_GRAPH, &self.graph)?;
        engine.set(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX, index)?;
        let engine = engine.finalize()?;
        if !self.suits(&engine)? {
            bail!("cuDNN's engine {index} is not suitable");
        }
        let choices = knobs.iter().map(|(knob, value)| {
            let mut choice = Descriptor::new(Kind::CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR)?;
            choice.set(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, &Knob(*knob))?;
            choice.set(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, value)?;
            choice.finalize()
        });
        let choices = choices.collect::<Result<Vec<_>>>()?;
        let mut config = Descriptor::new(Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)?;
        config.set(Name::CUDNN_ATTR_ENGINECFG_ENGINE, &engine)?;
        config.set_all(Name::CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, &choices)?;
        let config = config.finalize()?;
        let mut plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, self.handle)?;
        plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &config)?;
        let plan = plan.finalize()?;
        let bytes: i64 = plan.value(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
        if bytes > WORKSPACE_BYTES as i64 {
            bail!("it needs a workspace of {bytes} bytes");
        }
        Ok(Plan {
            operation: self.operation,
            plan,
        })
    }
}

/// An operation by a configured engine, which can be enqueued.
pub struct Plan {
    operation: Operation,
    plan: Descriptor,
}

impl Plan {
    /// Enqueues it with a workspace at a device address.
    ///
    /// # Safety
    ///
    /// The handle is the graph's. The operands and the workspace lie on its device and have the sizes of
    /// the operation's features and of [`WORKSPACE_BYTES`], until the work is done.
    pub unsafe fn execute(
        &self,
        handle: &Handle,
        operands: ConvOperands,
        workspace: u64,
    ) -> Result<()> {
        let Some(tensors) = operands.of(self.operation) else {
            bail!("an operand of a convolution is missing");
        };
        let (ids, addresses): (Vec<i64>, Vec<Address>) = tensors.into_iter().unzip();
        if addresses.iter().any(|operand| operand.0 % ALIGNMENT != 0) {
            bail!("an operand of a convolution is not aligned to {ALIGNMENT} bytes");
        }
        let mut pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
        pack.set_all(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &ids)?;
        pack.set_all(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &addresses)?;
        pack.set(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &Address(workspace))?;
        // SAFETY: the caller's promise.
        unsafe { self.plan.execute(handle, &pack.finalize()?) }
    }
}

/// Whether an engine with these notes computes as [`OperationGraph::configs`] says. Winograd's transforms
/// lose too much precision in all but `f32`, and tensor cores round `f32` to `tf32`. What a note that is
/// not named here stands for is not known to do no harm.
fn notes_suit(format: Format, numerical: &[NumericalNote], behavior: &[BehaviorNote]) -> bool {
    let harmless: &[Numerical] = match format {
        Format::F32 => &[
            Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD,
            Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4,
            Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6,
            Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13,
            Numerical::CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP,
        ],
        Format::Tf32 | Format::Bf16 | Format::F16 => &[
            Numerical::CUDNN_NUMERICAL_NOTE_TENSOR_CORE,
            Numerical::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
            Numerical::CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP,
        ],
    };
    let is_harmless =
        |NumericalNote(note): &NumericalNote| harmless.iter().any(|known| *known as u32 == *note);
    let compiles = Behavior::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION as u32;
    numerical.iter().all(is_harmless) && behavior.iter().all(|BehaviorNote(note)| *note != compiles)
}

fn data_type(format: Format) -> cudnnDataType_t {
    match format {
        Format::F32 | Format::Tf32 => cudnnDataType_t::CUDNN_DATA_FLOAT,
        Format::Bf16 => cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        Format::F16 => cudnnDataType_t::CUDNN_DATA_HALF,
    }
}

/// Features `[h, w, n]`, in cuDNN's order of the dimensions `[1, n, h, w]`.
fn features(id: i64, [h, w, n]: [i64; 3], data_type: cudnnDataType_t) -> Result<Descriptor> {
    tensor([1, n, h, w], id, data_type)
}

/// Kernels `[n_out, 3, 3, n_in]`, in cuDNN's order of the dimensions `[n_out, n_in, 3, 3]`.
fn kernel([n_out, n_in]: [i64; 2], data_type: cudnnDataType_t) -> Result<Descriptor> {
    tensor([n_out, n_in, 3, 3], uid::KERNEL, data_type)?.finalize()
}

/// A tensor with the second dimension last in memory. It is to be finalized.
fn tensor(dims: [i64; 4], id: i64, data_type: cudnnDataType_t) -> Result<Descriptor> {
    let [_, n, h, w] = dims;
    let mut tensor = Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, &data_type)?;
    tensor.set_all(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &dims)?;
    tensor.set_all(Name::CUDNN_ATTR_TENSOR_STRIDES, &[h * w * n, 1, w * n, n])?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &id)?;
    let alignment = ALIGNMENT as i64;
    tensor.set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &alignment)?;
    Ok(tensor)
}

/// Stride 1 and zero padding, `f32` accumulation.
fn convolution() -> Result<Descriptor> {
    let mode = cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
    let accumulator = cudnnDataType_t::CUDNN_DATA_FLOAT;
    let mut convolution = Descriptor::new(Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &2i64)?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, &accumulator)?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, &mode)?;
    for name in [
        Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS,
        Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS,
        Name::CUDNN_ATTR_CONVOLUTION_DILATIONS,
        Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES,
    ] {
        convolution.set_all(name, &[1i64, 1])?;
    }
    convolution.finalize()
}

fn convolution_forward(
    input: &Descriptor,
    kernel: &Descriptor,
    output: &Descriptor,
) -> Result<Descriptor> {
    let kind = Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR;
    let mut operation = Descriptor::new(kind)?;
    operation.set(
        Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
        &convolution()?,
    )?;
    operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, input)?;
    operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, kernel)?;
    operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, output)?;
    operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, &1f32)?;
    operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, &0f32)?;
    operation.finalize()
}

/// `upstream` is the gradient with respect to the output of the convolution by `kernel`.
fn convolution_backward_data(
    upstream: &Descriptor,
    kernel: &Descriptor,
    gradient: &Descriptor,
) -> Result<Descriptor> {
    let kind = Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR;
    let mut operation = Descriptor::new(kind)?;
    operation.set(
        Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
        &convolution()?,
    )?;
    operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, upstream)?;
    operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, kernel)?;
    operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, gradient)?;
    operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, &1f32)?;
    operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, &0f32)?;
    operation.finalize()
}

/// `output = input + bias`
fn add(input: &Descriptor, bias: &Descriptor, output: &Descriptor) -> Result<Descriptor> {
    let mut operation = pointwise(cudnnPointwiseMode_t::CUDNN_POINTWISE_ADD, input, output)?;
    operation.set(Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, bias)?;
    operation.finalize()
}

fn relu(input: &Descriptor, output: &Descriptor) -> Result<Descriptor> {
    pointwise(
        cudnnPointwiseMode_t::CUDNN_POINTWISE_RELU_FWD,
        input,
        output,
    )?
    .finalize()
}

/// An operation on each value, in `f32`. It is to be finalized.
fn pointwise(
    mode: cudnnPointwiseMode_t,
    input: &Descriptor,
    output: &Descriptor,
) -> Result<Descriptor> {
    let precision = cudnnDataType_t::CUDNN_DATA_FLOAT;
    let mut pointwise = Descriptor::new(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
    pointwise.set(Name::CUDNN_ATTR_POINTWISE_MODE, &mode)?;
    pointwise.set(Name::CUDNN_ATTR_POINTWISE_MATH_PREC, &precision)?;
    let mut operation = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?;
    operation.set(
        Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR,
        &pointwise.finalize()?,
    )?;
    operation.set(Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, input)?;
    operation.set(Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, output)?;
    Ok(operation)
}
