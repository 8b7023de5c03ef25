// SPDX-License-Identifier: MPL-2.0

//! What warping the last result along the motion is worth, on clips whose motion is known exactly and
//! on a filmed one: how well strokes stay where they belong, and what that costs in loss and time.
//!
//! `cargo bench --bench temporal [-- --frames N --iterations N --converged N --width W
//! --temporal-weight W --clip NAME --csv FILE]`
//!
//! With `--drift` or `--memory` instead: whether long runs are stable (long_runs.rs). With `--flow`:
//! the server for flow.py (flow.rs).

#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/common/known_motion.rs"]
#[allow(dead_code)]
mod known_motion;

mod clips;
mod flow;
mod long_runs;
mod starts;

use common::shared;
use common::timing::flag;
use std::process::ExitCode;

/// The options there are.
const OPTIONS: [&str; 12] = [
    "--drift",
    "--memory",
    "--flow",
    "--frames",
    "--iterations",
    "--converged",
    "--width",
    "--temporal-weight",
    "--clip",
    "--csv",
    "--sigma",
    "--threads",
];

fn main() -> ExitCode {
    // Cargo adds --bench.
    let known = |text: &str| text == "--bench" || OPTIONS.contains(&text);
    let unknown = |text: &String| text.starts_with("--") && !known(text);
    if let Some(option) = std::env::args().find(unknown) {
        eprintln!(
            "temporal: there is no ‘{option}’; there are {}",
            OPTIONS.join(", ")
        );
        return ExitCode::from(2);
    }
    if flag("--drift") {
        return long_runs::drift();
    }
    if flag("--memory") {
        return long_runs::memory();
    }
    if flag("--flow") {
        flow::serve();
    } else {
        starts::compare();
    }
    ExitCode::SUCCESS
}
