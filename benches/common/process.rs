// SPDX-License-Identifier: MPL-2.0

//! The memory of this process.

/// The most that it has had, in bytes.
pub fn peak() -> Option<usize> {
    status("VmHWM:")
}

/// What it has now, in bytes.
pub fn resident() -> Option<usize> {
    status("VmRSS:")
}

/// Mebibytes.
pub fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A line of `/proc/self/status`, which Linux has.
fn status(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
