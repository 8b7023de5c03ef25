// SPDX-License-Identifier: MPL-2.0

//! Embeds the commit and date that the plugin reports, and compiles the GPU's kernels.

use std::path::PathBuf;
use std::process::Command;
use std::{env, process};

fn main() {
    gst_plugin_version_helper::info();
    if env::var_os("CARGO_FEATURE_CUDNN").is_some() {
        compile_kernels();
    }
}

/// Compiles the kernels to PTX, which the driver compiles for its GPU: any from Turing on.
fn compile_kernels() {
    let source = "src/ops/cuda/kernels/kernels.cu";
    let nvcc = env::var_os("NVCC")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("CUDA_HOME")?).join("bin/nvcc")))
        .unwrap_or_else(|| "nvcc".into());
    let target = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("kernels.ptx");
    let compiled = Command::new(&nvcc)
        .args(["--ptx", "-arch=compute_75", "--std=c++17", "-O3", "-o"])
        .arg(&target)
        .arg(source)
        .status();
    match compiled {
        Ok(status) if status.success() => (),
        Ok(status) => fail(&format!("{} ended with {status}", nvcc.display())),
        Err(error) => fail(&format!(
            "{}: {error}; the feature cudnn needs the CUDA compiler (NVCC, CUDA_HOME or PATH say where it is)",
            nvcc.display()
        )),
    }
}

fn fail(cause: &str) -> ! {
    eprintln!("the GPU's kernels cannot be compiled: {cause}");
    process::exit(1)
}
