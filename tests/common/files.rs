// SPDX-License-Identifier: MPL-2.0

//! Helpers for tests of files and programs: image and weights files, good and bad, and running a program with a time limit.

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

/// A program that runs longer than this is taken to hang.
const HANGS: Duration = Duration::from_secs(300);

/// The path of a file in `tests`.
pub fn stored(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

/// The result of a program.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Asserts that it failed without a crash, a panic or a critical warning of GLib's.
    pub fn assert_refused(&self, case: &str) {
        self.assert_sound(case);
        assert!(!self.status.success(), "{case}: {self}");
    }

    /// Asserts that it succeeded.
    pub fn assert_succeeded(&self, case: &str) {
        self.assert_sound(case);
        assert!(self.status.success(), "{case}: {self}");
    }

    fn assert_sound(&self, case: &str) {
        assert_eq!(self.status.signal(), None, "{case}: {self}");
        for bad in ["panicked", "CRITICAL"] {
            assert!(!self.stderr.contains(bad), "{case}: {self}");
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}\n{}", self.status, self.stdout, self.stderr)
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Ended {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > HANGS {
            child.kill().unwrap();
            panic!("{command:?} hangs");
        }
        thread::sleep(Duration::from_millis(5));
    };
    Ended {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// A folder for the plugin registry and the plugin, of this test program's own.
static GSTREAMER: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = std::env::current_exe().unwrap();
    let name = program.file_stem().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("plugins")).unwrap();
    // The library that was built with the tests is in their folder; it is in the folder above only if cargo was asked to
    // build it.
    let library = program.with_file_name("libgstgatys.so");
    std::os::unix::fs::symlink(library, folder.join("plugins/libgstgatys.so")).unwrap();
    // The first run scans all plugins of the machine, some of which print warnings.
    let inspect = run(Command::new("gst-inspect-1.0")
        .arg("gatys")
        .envs(environment(&folder)));
    inspect.assert_succeeded("gst-inspect-1.0");
    folder
});

fn environment(folder: &Path) -> [(&'static str, PathBuf); 2] {
    [
        ("GST_PLUGIN_PATH", folder.join("plugins")),
        ("GST_REGISTRY", folder.join("registry.bin")),
    ]
}

/// A GStreamer program that loads the plugin under test, and for which GLib's warnings are fatal.
pub fn gstreamer(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .envs(environment(&GSTREAMER))
        .env("G_DEBUG", "fatal_warnings")
        .env("GST_DEBUG_NO_COLOR", "1")
        .env("LC_ALL", "C.UTF-8");
    command
}

/// A picture with colours and edges.
pub fn picture(width: u32, height: u32) -> image::RgbImage {
    image::RgbImage::from_fn(width, height, |x, y| {
        let disc = (x * x + y * y) % 700 < 350;
        image::Rgb([(x * 7) as u8, (y * 5) as u8, if disc { 220 } else { 40 }])
    })
}

/// A PNG file whose header claims `width` x `height` pixels of RGB, but which has none.
pub fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for chunk in [header, b"IDAT\x78\x9c".to_vec()] {
        png.extend((chunk.len() as u32 - 4).to_be_bytes());
        png.extend(&chunk);
        png.extend(crc32(&chunk).to_be_bytes());
    }
    png
}

/// The CRC of PNG (specification, 3rd edition, section 5.5), with the polynomial's bits reversed.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 * (crc & 1))
        })
    })
}

/// The tensors of a weights file: kernels and biases by name.
pub type Tensors = HashMap<String, Tensor>;

/// Kernels and biases for `channels`, called `{name}.weight` and `{name}.bias`, with the `name` of the layer's index.
pub fn tensors(channels: &[usize], name: impl Fn(usize) -> String) -> Tensors {
    super::random_weights(channels)
        .convs
        .into_iter()
        .enumerate()
        .flat_map(|(index, (kernel, bias))| {
            let name = name(index);
            [
                (format!("{name}.weight"), kernel),
                (format!("{name}.bias"), bias),
            ]
        })
        .collect()
}

/// This project's name for the layer at an index.
pub fn by_layer(index: usize) -> String {
    gstgatys::vgg::Layer::all().nth(index).unwrap().to_string()
}

/// A safetensors file of `tensors` in f32 with the given metadata.
pub fn safetensors(tensors: &Tensors, metadata: &[(&str, &str)]) -> Vec<u8> {
    let values: Vec<(&String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let bytes = values(tensor)
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            (name, tensor.dims().to_vec(), bytes)
        })
        .collect();
    let views = values.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (name, view)
    });
    let metadata = metadata
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()));
    let metadata: HashMap<String, String> = metadata.collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    safetensors::serialize(views, metadata).unwrap()
}

/// A safetensors file with this text as its header, followed by `data`.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// A tensor's values in the order of its dimensions.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    let tensor = tensor.flatten_all().unwrap();
    tensor.to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// A tensor of one value.
pub fn filled(value: f32, shape: &[usize]) -> Tensor {
    Tensor::full(value, shape, &Device::Cpu).unwrap()
}
