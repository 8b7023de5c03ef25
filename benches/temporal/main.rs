// SPDX-License-Identifier: MPL-2.0

//! What moving the last result along with the picture is worth, on clips whose motion is known
//! exactly and on a filmed one: how well the strokes stay where they belong, what it costs in loss
//! and in time.
//!
//! `cargo bench --bench temporal [-- --frames N --iterations N --converged N --width W
//! --temporal-weight W --clip NAME --csv FILE]`
//!
//! With `--drift` or `--memory` instead: whether long runs stay as they are (lasting.rs). With
//! `--flow`: the other side of flow.py (flow.rs).

#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/common/known_motion.rs"]
#[allow(dead_code)]
mod known_motion;

mod clips;
mod flow;
mod lasting;
mod starts;

use common::timing::flag;
use std::process::ExitCode;

/// What may be asked for.
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
        return lasting::drift();
    }
    if flag("--memory") {
        return lasting::memory();
    }
    if flag("--flow") {
        flow::serve();
    } else {
        starts::compare();
    }
    ExitCode::SUCCESS
}
