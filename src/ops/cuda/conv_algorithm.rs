// SPDX-License-Identifier: MPL-2.0

//! How a convolution on a GPU is computed: the names of that, and which of cuDNN's engines may.

use super::Format;
use candle_core::{Error, Result, bail};
use std::fmt;
use std::str::FromStr;

/// What a plan of cuDNN's computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A convolution with bias and ReLU.
    Fused,
    /// A convolution.
    Plain,
    /// The input gradient ("backward data") of the convolution that this one is the adjoint of.
    Data,
}

impl Operation {
    pub const ALL: [Self; 3] = [Self::Fused, Self::Plain, Self::Data];

    pub fn name(self) -> &'static str {
        match self {
            Self::Fused => "fused",
            Self::Plain => "plain",
            Self::Data => "data",
        }
    }
}

/// One of cuDNN's engines and the choice of its knobs. Written as `62 2=3 13=1`: the engine's number, then
/// those of the knobs with their values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EngineConfig {
    pub index: i64,
    pub knobs: Vec<(u32, i64)>,
}

impl fmt::Display for EngineConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.index)?;
        let mut knobs = self.knobs.iter();
        knobs.try_for_each(|(knob, value)| write!(f, " {knob}={value}"))
    }
}

impl FromStr for EngineConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split(' ');
        let index = words.next().unwrap_or_default();
        let knob = |word: &str| -> Result<(u32, i64)> {
            let Some((knob, value)) = word.split_once('=') else {
                bail!("{word} is no knob of an engine");
            };
            let knob = knob.parse().map_err(Error::wrap)?;
            Ok((knob, value.parse().map_err(Error::wrap)?))
        };
        Ok(Self {
            index: index.parse().map_err(Error::wrap)?,
            knobs: words.map(knob).collect::<Result<_>>()?,
        })
    }
}

/// How a convolution is computed. Written as the operation's name and the engine's configuration, or as
/// `own`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConvAlgorithm {
    /// By an engine of cuDNN's.
    Cudnn(Operation, EngineConfig),
    /// The kernel in `kernels/convolution.cuh`, which takes any size and format.
    Fallback,
}

impl ConvAlgorithm {
    /// Whether it includes bias and ReLU.
    pub fn is_fused(&self) -> bool {
        matches!(self, Self::Cudnn(Operation::Fused, _))
    }
}

impl fmt::Display for ConvAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Cudnn(operation, config) => write!(f, "{} {config}", operation.name()),
            Self::Fallback => write!(f, "own"),
        }
    }
}

/// Of cuDNN's algorithms: the fallback is not kept in a file.
impl FromStr for ConvAlgorithm {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let (operation, config) = name.split_once(' ').unwrap_or((name, ""));
        let named = |candidate: &Operation| candidate.name() == operation;
        match Operation::ALL.into_iter().find(named) {
            Some(operation) => Ok(Self::Cudnn(operation, config.parse()?)),
            None => bail!("{name} is no algorithm of a convolution"),
        }
    }
}

/// What an engine says of its arithmetic, as `cudnnBackendNumericalNote_t`.
pub mod numerical_note {
    pub const TENSOR_CORE: u32 = 0;
    pub const DOWN_CONVERT_INPUTS: u32 = 1;
    pub const WINOGRAD: u32 = 5;
    pub const WINOGRAD_TILE_4X4: u32 = 6;
    pub const WINOGRAD_TILE_6X6: u32 = 7;
    pub const WINOGRAD_TILE_13X13: u32 = 8;
    pub const STRICT_NAN_PROP: u32 = 9;
}

/// What an engine says of how it runs, as `cudnnBackendBehaviorNote_t`.
pub mod behavior_note {
    pub const RUNTIME_COMPILATION: u32 = 0;
}

/// Whether an engine with these notes computes in a format with `f32` accumulation, deterministically, and
/// without compiling kernels first. Winograd's transforms lose too much precision in all but `f32`, tensor
/// cores round `f32` to `tf32`, and inputs of either may be converted to 16 bits. Any other numerical note
/// may stand for something that does harm.
pub fn notes_suit(format: Format, numerical: &[u32], behavior: &[u32]) -> bool {
    use numerical_note::*;
    let harmless: &[u32] = match format {
        Format::F32 => &[
            WINOGRAD,
            WINOGRAD_TILE_4X4,
            WINOGRAD_TILE_6X6,
            WINOGRAD_TILE_13X13,
            STRICT_NAN_PROP,
        ],
        Format::Tf32 => &[TENSOR_CORE, STRICT_NAN_PROP],
        Format::Bf16 | Format::F16 => &[TENSOR_CORE, DOWN_CONVERT_INPUTS, STRICT_NAN_PROP],
    };
    numerical.iter().all(|note| harmless.contains(note))
        && !behavior.contains(&behavior_note::RUNTIME_COMPILATION)
}

#[cfg(test)]
mod tests {
    use super::numerical_note::*;
    use super::*;

    const FORMATS: [Format; 4] = [Format::F32, Format::Tf32, Format::Bf16, Format::F16];

    #[test]
    fn a_written_algorithm_is_read_again() {
        let config = EngineConfig {
            index: 62,
            knobs: vec![(2, 3), (13, -1)],
        };
        let fused = ConvAlgorithm::Cudnn(Operation::Fused, config);
        assert_eq!(fused.to_string(), "fused 62 2=3 13=-1");
        assert!(fused.is_fused());
        assert_eq!(ConvAlgorithm::Fallback.to_string(), "own");
        for operation in Operation::ALL {
            for knobs in [vec![], vec![(0, i64::MAX), (u32::MAX, 0)]] {
                let config = EngineConfig { index: 7, knobs };
                let algorithm = ConvAlgorithm::Cudnn(operation, config);
                let read: ConvAlgorithm = algorithm.to_string().parse().unwrap();
                assert_eq!(read, algorithm);
            }
        }
    }

    #[test]
    fn what_is_no_algorithm_is_refused() {
        for name in [
            "",
            "own",
            "fused",
            "fused ",
            "fused x",
            "fast 62",
            "62",
            "plain 1 2",
            "plain 1 =2",
            "plain 1 2=",
            "plain 1 2=3=4",
            "plain 1 -2=3",
            "plain 1  2=3",
            "plain 9223372036854775808",
            "data 1 4294967296=0",
            "Data 1",
        ] {
            assert!(name.parse::<ConvAlgorithm>().is_err(), "{name}");
        }
    }

    #[test]
    fn engines_that_compute_otherwise_are_refused() {
        for format in FORMATS {
            assert!(notes_suit(format, &[], &[]), "{format:?}");
            assert!(notes_suit(format, &[STRICT_NAN_PROP], &[1, 2, 3]));
            // Reduced-precision sums, FFT, not deterministic, and what later versions may say.
            for note in [2, 3, 4, 10, u32::MAX] {
                assert!(!notes_suit(format, &[note], &[]), "{format:?} {note}");
                assert!(!notes_suit(format, &[STRICT_NAN_PROP, note], &[]));
            }
            let compiles = behavior_note::RUNTIME_COMPILATION;
            assert!(!notes_suit(format, &[], &[3, compiles]), "{format:?}");
        }
        let suits = |notes: &[u32]| FORMATS.map(|format| notes_suit(format, notes, &[]));
        assert_eq!(suits(&[TENSOR_CORE]), [false, true, true, true]);
        assert_eq!(suits(&[DOWN_CONVERT_INPUTS]), [false, false, true, true]);
        for tile in [WINOGRAD_TILE_4X4, WINOGRAD_TILE_6X6, WINOGRAD_TILE_13X13] {
            assert_eq!(suits(&[WINOGRAD, tile]), [true, false, false, false]);
        }
    }
}
