// SPDX-License-Identifier: MPL-2.0

//! Converts a weights file of any format that the element reads to the compact one: only the convolutions, in f16.
//!
//! `cargo run --release --example weights -- FILE OUT.safetensors`

use gstgatys::vgg::Layer;
use gstgatys::vgg::weights::{Weights, WeightsSource};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [file, out] = &arguments[..] else {
        eprintln!("usage: weights FILE OUT.safetensors");
        return ExitCode::from(2);
    };
    match convert(file, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn convert(file: &Path, out: &Path) -> Result<(), String> {
    let weights = Weights::load(&WeightsSource::File(file.into()))
        .map_err(|error| format!("{}: {error}", file.display()))?;
    weights
        .save(out)
        .map_err(|error| format!("{}: {error}", out.display()))?;
    let (family, deepest) = (&weights.family, weights.deepest());
    println!(
        "{}: {family}, {} to {deepest}, {}",
        file.display(),
        Layer::FIRST,
        weights.preprocessing
    );
    Ok(())
}
