// SPDX-License-Identifier: MPL-2.0

//! The printed report: tables in Markdown, each row as soon as it is known, and the failures.

use crate::problem::take_capture_failures;
use candle_core::{Device, Tensor};
use gstgatys::ops::elementwise::dot;
use std::error::Error;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The result of a check or a measurement.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// The results of a run.
pub struct Report {
    device: Device,
    /// Whether the device is usable: an error in a kernel breaks the context for good.
    usable: bool,
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

impl Report {
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            usable: true,
            passed: 0,
            failed: Vec::new(),
            skipped: 0,
        }
    }

    /// A heading.
    pub fn section(&self, title: &str) {
        println!("\n### {title}\n");
    }

    /// The head of a table of checks.
    pub fn checks(&self, title: &str) {
        self.section(title);
        self.head(&["check", "error", "limit", ""]);
    }

    /// The head of a table.
    pub fn head(&self, columns: &[&str]) {
        self.row(columns);
        self.row(&vec!["---"; columns.len()]);
    }

    pub fn row<T: Display>(&self, cells: &[T]) {
        let cells: Vec<_> = cells
            .iter()
            .map(|cell| cell_text(&cell.to_string()))
            .collect();
        println!("| {} |", cells.join(" | "));
    }

    /// A row of a table of checks, which passes if `error` returns at most `limit`.
    pub fn check(&mut self, name: &str, limit: f64, error: impl FnOnce() -> Outcome<f64>) {
        let Some(error) = self.attempt(name, error) else {
            return;
        };
        let passes = error <= limit;
        let verdict = if passes { "PASS" } else { "**FAIL**" };
        self.row(&[
            name,
            &format!("{error:.1e}"),
            &format!("{limit:.0e}"),
            verdict,
        ]);
        match passes {
            true => self.passed += 1,
            false => self.failed.push(name.into()),
        }
    }

    /// The result of `action`. If it fails or panics, that is printed as a row and counted as a failure.
    pub fn attempt<T>(&mut self, name: &str, action: impl FnOnce() -> Outcome<T>) -> Option<T> {
        if !self.usable {
            self.skipped += 1;
            return None;
        }
        let ended = catch_unwind(AssertUnwindSafe(action));
        // Prints the notes of the action.
        take_capture_failures();
        let failure = match ended {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
                (Some(message), _) => message.clone(),
                (_, message) => message.copied().unwrap_or("it panicked").into(),
            },
        };
        self.row(&[name, &failure, "", "**FAIL**"]);
        self.failed.push(name.into());
        if let Err(error) = probe(&self.device) {
            self.usable = false;
            println!(
                "\nThe device does not work any more, so that the rest is left out: {}",
                cell_text(&error.to_string())
            );
        }
        None
    }

    /// Prints a summary. Returns whether all checks passed.
    pub fn end(&self) -> bool {
        println!(
            "\n{} checks passed, {} failed, {} left out.",
            self.passed,
            self.failed.len(),
            self.skipped
        );
        for name in &self.failed {
            println!("- FAIL: {name}");
        }
        self.failed.is_empty() && self.skipped == 0
    }
}

/// Whether the device still computes.
fn probe(device: &Device) -> Outcome<()> {
    let computed = catch_unwind(AssertUnwindSafe(|| {
        let ones = Tensor::new(&[1f32, 1f32], device)?;
        device.synchronize()?;
        dot(&ones, &ones)
    }));
    match computed {
        Ok(Ok(2.0)) => Ok(()),
        Ok(Ok(sum)) => Err(format!("1 + 1 is {sum}").into()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err("it panicked".into()),
    }
}

/// A text that fits into a table's cell.
fn cell_text(text: &str) -> String {
    let text = text.replace('|', "/");
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}
