// SPDX-License-Identifier: MPL-2.0

//! cuDNN's plans of 3x3 convolutions: an operation graph says what is computed, an engine configuration
//! how, and a plan of both can be enqueued.

use super::super::Format;
use super::super::conv_algorithm::{
    EngineConfig, Operation, behavior_note, notes_suit, numerical_note,
};
use super::backend::{Address, BehaviorNote, Descriptor, Handle, Knob, NumericalNote};
use candle_core::cuda_backend::cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendBehaviorNote_t as Behavior,
    cudnnBackendDescriptorType_t as Kind, cudnnBackendHeurMode_t as Heuristics,
    cudnnBackendNumericalNote_t as Numerical, cudnnConvolutionMode_t, cudnnDataType_t,
    cudnnPointwiseMode_t,
};
use candle_core::{Result, bail};
use std::rc::Rc;

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
pub struct OperationGraph {
    operation: Operation,
    format: Format,
    graph: Descriptor,
    handle: Rc<Handle>,
}

impl OperationGraph {
    /// `dims` are h, w, n_in and n_out.
    pub fn new(
        handle: &Rc<Handle>,
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
        graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, &**handle)?;
        graph.set_all(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operations)?;
        Ok(Self {
            operation,
            format,
            graph: graph.finalize()?,
            handle: handle.clone(),
        })
    }

    /// The engine configurations that [suit](notes_suit) and need no more than [`WORKSPACE_BYTES`]; at most
    /// `count`, and those first that cuDNN expects to be the fastest. If there is none, an error that says
    /// why the last one is not.
    pub fn configs(&self, count: usize) -> Result<Vec<EngineConfig>> {
        let mut configs = Vec::new();
        let mut refused = None;
        for mode in [
            Heuristics::CUDNN_HEUR_MODE_A,
            Heuristics::CUDNN_HEUR_MODE_FALLBACK,
        ] {
            // A mode that knows nothing of such an operation leaves the other.
            let proposals = self.proposals(mode).unwrap_or_else(|error| {
                refused = Some(error);
                Vec::new()
            });
            for proposal in proposals {
                if configs.len() == count {
                    return Ok(configs);
                }
                match self.suitable_config(&proposal) {
                    Ok(config) if configs.contains(&config) => (),
                    Ok(config) => configs.push(config),
                    Err(error) => refused = Some(error),
                }
            }
        }
        match refused {
            _ if !configs.is_empty() => Ok(configs),
            Some(error) => Err(error),
            None => bail!("cuDNN proposes no engine"),
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

    /// What a proposal configures. An error if that does not suit.
    fn suitable_config(&self, proposal: &Descriptor) -> Result<EngineConfig> {
        let engines = proposal.descriptors(
            Name::CUDNN_ATTR_ENGINECFG_ENGINE,
            Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR,
            1,
        )?;
        let Some(engine) = engines.first() else {
            bail!("cuDNN proposes a configuration of no engine");
        };
        self.check_notes(engine)?;
        check_workspace(proposal.value(Name::CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE)?)?;
        let choices = proposal.descriptors(
            Name::CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
            Kind::CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR,
            MAX_KNOBS,
        )?;
        let knobs = choices.iter().map(|choice| {
            let Knob(knob) = choice.value(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE)?;
            let value = choice.value(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE)?;
            Ok((knob, value))
        });
        Ok(EngineConfig {
            index: engine.value(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX)?,
            knobs: knobs.collect::<Result<_>>()?,
        })
    }

    /// An error if the engine's notes do not [suit](notes_suit).
    fn check_notes(&self, engine: &Descriptor) -> Result<()> {
        let numerical = engine.values(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, MAX_NOTES)?;
        let numerical: Vec<_> = numerical.iter().map(|NumericalNote(note)| *note).collect();
        let behavior = engine.values(Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, MAX_NOTES)?;
        let behavior: Vec<_> = behavior.iter().map(|BehaviorNote(note)| *note).collect();
        if !notes_suit(self.format, &numerical, &behavior) {
            bail!("the engine's notes {numerical:?} and {behavior:?} do not suit");
        }
        Ok(())
    }

    /// The plan of this operation by an engine so configured. An error if that does not suit, as a
    /// configuration that is not one of [`Self::configs`] may not.
    pub fn plan(&self, config: &EngineConfig) -> Result<Plan> {
        let EngineConfig { index, knobs } = config;
        let mut engine = Descriptor::new(Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
        engine.set(Name::CUDNN_ATTR_ENGINE_OPERATION_GRAPH, &self.graph)?;
        engine.set(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX, index)?;
        let engine = engine.finalize()?;
        self.check_notes(&engine)?;
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
        plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, &*self.handle)?;
        plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &config)?;
        let plan = plan.finalize()?;
        check_workspace(plan.value(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?)?;
        Ok(Plan {
            operation: self.operation,
            plan,
            handle: self.handle.clone(),
        })
    }
}

/// An operation by a configured engine, which can be enqueued.
pub struct Plan {
    operation: Operation,
    plan: Descriptor,
    handle: Rc<Handle>,
}

impl Plan {
    /// Enqueues it with a workspace at a device address.
    ///
    /// # Safety
    ///
    /// The operands and the workspace lie on the handle's device and have the sizes of the operation's
    /// features and of [`WORKSPACE_BYTES`], until the work is done.
    pub unsafe fn execute(&self, operands: ConvOperands, workspace: u64) -> Result<()> {
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
        unsafe { self.plan.execute(&self.handle, &pack.finalize()?) }
    }
}

const _: () = {
    use Numerical::*;
    assert!(numerical_note::TENSOR_CORE == CUDNN_NUMERICAL_NOTE_TENSOR_CORE as u32);
    assert!(numerical_note::DOWN_CONVERT_INPUTS == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS as u32);
    assert!(numerical_note::WINOGRAD == CUDNN_NUMERICAL_NOTE_WINOGRAD as u32);
    assert!(numerical_note::WINOGRAD_TILE_4X4 == CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4 as u32);
    assert!(numerical_note::WINOGRAD_TILE_6X6 == CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6 as u32);
    assert!(numerical_note::WINOGRAD_TILE_13X13 == CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13 as u32);
    assert!(numerical_note::STRICT_NAN_PROP == CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP as u32);
    let compiles = Behavior::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION as u32;
    assert!(behavior_note::RUNTIME_COMPILATION == compiles);
};

/// An error if an engine needs more than [`WORKSPACE_BYTES`].
fn check_workspace(bytes: i64) -> Result<()> {
    match usize::try_from(bytes) {
        Ok(0..=WORKSPACE_BYTES) => Ok(()),
        _ => bail!("the engine needs a workspace of {bytes} bytes"),
    }
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
