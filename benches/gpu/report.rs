// SPDX-License-Identifier: MPL-2.0

//! What is printed: tables in Markdown, a row as soon as it is known, and what failed.

use crate::problem::unrecorded;
use candle_core::{Device, Tensor};
use gstgatys::ops::elementwise::dot;
use std::error::Error;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a check or a measurement may end with.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// The results of a run.
pub struct Report {
    device: Device,
    /// Whether the device still works: an error in a kernel leaves nothing usable of it.
    works: bool,
    passed: usize,
    failed: Vec<String>,
    left_out: usize,
}

impl Report {
    pub fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            works: true,
            passed: 0,
            failed: Vec::new(),
            left_out: 0,
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
        let cells: Vec<_> = cells.iter().map(|cell| line(&cell.to_string())).collect();
        println!("| {} |", cells.join(" | "));
    }

    /// A row of a table of checks: passes if `error` gives a number of at most `limit`.
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

    /// What `action` gives; where it fails, that is a row, and a failure of the run.
    pub fn attempt<T>(&mut self, name: &str, action: impl FnOnce() -> Outcome<T>) -> Option<T> {
        if !self.works {
            self.left_out += 1;
            return None;
        }
        let ended = catch_unwind(AssertUnwindSafe(action));
        // Printed, for whoever looks for the cause of something.
        unrecorded();
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
            self.works = false;
            println!(
                "\nThe device does not work any more, so that the rest is left out: {}",
                line(&error.to_string())
            );
        }
        None
    }

    /// Says what became of all checks; whether all passed.
    pub fn end(&self) -> bool {
        println!(
            "\n{} checks passed, {} failed, {} left out.",
            self.passed,
            self.failed.len(),
            self.left_out
        );
        for name in &self.failed {
            println!("- FAIL: {name}");
        }
        self.failed.is_empty() && self.left_out == 0
    }
}

/// Whether the device computes at all.
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

/// A text as one line of a table.
fn line(text: &str) -> String {
    let text = text.replace('|', "/");
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}
