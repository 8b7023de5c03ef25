// SPDX-License-Identifier: MPL-2.0

//! How a convolution on a GPU is computed, and the names of that.

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

/// How a convolution is computed. Written as the operation's name and the engine's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConvAlgorithm {
    /// By an engine of cuDNN's.
    Cudnn(Operation, EngineConfig),
    /// The kernel in `kernels/convolution.cuh`, which takes any size and format.
    Fallback,
}

#[cfg(feature = "cudnn")]
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

/// Of cuDNN's algorithms: the others are not kept in a file.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_algorithm_is_read_again() {
        let config = EngineConfig {
            index: 62,
            knobs: vec![(2, 3), (13, -1)],
        };
        let fused = ConvAlgorithm::Cudnn(Operation::Fused, config);
        assert_eq!(fused.to_string(), "fused 62 2=3 13=-1");
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
}
