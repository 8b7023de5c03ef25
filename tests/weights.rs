// SPDX-License-Identifier: MPL-2.0

//! Weights files: metadata are obeyed, names are found in the data directory, and a damaged file gives an error or other
//! weights, but never a panic or a huge allocation.

mod common;

use candle_core::DType;
use common::NARROW;
use common::files::{
    by_layer, crc32, filled, gstreamer, picture, run, safetensors, stored, tensors, values,
};
use gstgatys::vgg::Layer;
use gstgatys::vgg::weights::preprocessing::Preprocessing;
use gstgatys::vgg::weights::{Error, Weights, WeightsSource};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// More memory than any of these tests may allocate at once.
const TOO_MUCH: usize = 64 << 20;

/// The system's allocator, recording the largest allocation, and the most that was held.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST_HELD: AtomicUsize = AtomicUsize::new(0);

fn hold(size: usize) {
    LARGEST.fetch_max(size, Ordering::Relaxed);
    let held = HELD.fetch_add(size, Ordering::Relaxed) + size;
    MOST_HELD.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: every call goes on to the system's allocator as it is.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        hold(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        hold(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        hold(size);
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// IEEE 754's binary16.
fn from_f16(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023) / 1024.0);
    match exponent {
        0 => sign * fraction * 2f32.powi(-14),
        31 => panic!("not a finite number"),
        _ => sign * (1.0 + fraction) * 2f32.powi(exponent - 15),
    }
}

#[test]
fn the_built_in_weights() {
    let weights = Weights::load(&WeightsSource::BuiltIn).unwrap();
    assert_eq!(weights.preprocessing, Preprocessing::TORCHVISION);
    let names: Vec<String> = Layer::all()
        .take(13)
        .map(|layer| layer.to_string())
        .collect();
    assert_eq!(names.last().unwrap(), "conv5_1");
    assert_eq!(weights.convs.len(), names.len());

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/vgg19-procedural.safetensors");
    let file = fs::read(file).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    for (name, (kernel, bias)) in names.iter().zip(&weights.convs) {
        for (tensor, what) in [(kernel, "weight"), (bias, "bias")] {
            let stored = file.tensor(&format!("{name}.{what}")).unwrap();
            assert_eq!(stored.dtype(), safetensors::Dtype::F16);
            assert_eq!(stored.shape(), tensor.dims());
            assert_eq!(tensor.dtype(), DType::F32);
            let stored = stored.data().chunks_exact(2);
            let stored = stored.map(|bytes| from_f16(u16::from_le_bytes([bytes[0], bytes[1]])));
            assert!(stored.eq(values(tensor)), "{name}.{what}");
        }
    }
}

#[test]
fn what_the_metadata_say_of_images_is_obeyed() {
    let tensors = tensors(&NARROW[..1], by_layer);
    let said = [
        ("channels", "BGR"),
        ("range", "0..255"),
        ("mean", "1, 2,3.5"),
        ("std", "1,2,4"),
    ];
    let weights = Weights::from_bytes(&safetensors(&tensors, &said)).unwrap();
    let expected = "BGR 0..255, mean 1 2 3.5, deviation 1 2 4";
    assert_eq!(weights.preprocessing.to_string(), expected);
    assert_eq!(weights.family.to_string(), "described");
    let named = [("family", "mine"), ("range", "0..1")];
    let weights = Weights::from_bytes(&safetensors(&tensors, &named)).unwrap();
    assert_eq!(weights.preprocessing, Preprocessing::TORCHVISION);
    assert_eq!(weights.family.to_string(), "mine");
}

/// Layer names mean Caffe's preprocessing, module numbers torchvision's.
#[test]
fn what_names_say_of_images_where_there_are_no_metadata() {
    let weights = Weights::from_bytes(&safetensors(&tensors(&NARROW[..1], by_layer), &[])).unwrap();
    assert_eq!(weights.preprocessing, Preprocessing::CAFFE);
    let numbered = tensors(&NARROW[..1], |_| "features.0".into());
    let weights = Weights::from_bytes(&safetensors(&numbered, &[])).unwrap();
    assert_eq!(weights.preprocessing, Preprocessing::TORCHVISION);
}

#[test]
fn both_ways_of_naming_and_tensors_that_are_not_needed() {
    let torchvision = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34];
    let ours = tensors(&NARROW, by_layer);
    let mut theirs = tensors(&NARROW, |index| format!("features.{}", torchvision[index]));
    theirs.insert("classifier.0.weight".into(), filled(f32::NAN, &[7, 7]));
    let ours = Weights::from_bytes(&safetensors(&ours, &[])).unwrap();
    let theirs = Weights::from_bytes(&safetensors(&theirs, &[])).unwrap();
    assert_eq!((ours.convs.len(), theirs.convs.len()), (16, 16));
    for (a, b) in ours.convs.iter().zip(&theirs.convs) {
        assert_eq!((values(&a.0), values(&a.1)), (values(&b.0), values(&b.1)));
    }
}

/// `weights=NAME` is a file in a data directory, unless NAME itself is one.
#[cfg(feature = "plugin")]
#[test]
fn weights_by_name() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data/gst-plugin-gatys");
    let style = folder.path().join("style.png");
    fs::create_dir_all(&data).unwrap();
    picture(32, 32).save(&style).unwrap();
    let launch = |weights: &str| {
        let source = ["videotestsrc", "num-buffers=1", "!", "gatys"];
        let layers = ["content-layers=conv2_1", "style-layers=conv1_1"];
        run(gstreamer("gst-launch-1.0")
            .env("XDG_DATA_HOME", folder.path().join("data"))
            .env("XDG_DATA_DIRS", folder.path().join("system"))
            .current_dir(folder.path())
            .args(source)
            .arg(format!("style-image={}", style.display()))
            .args(layers)
            .args(["iterations=1", "initial-iterations=1"])
            .arg(format!("weights={weights}"))
            .args(["!", "video/x-raw,width=32,height=32", "!", "fakesink"]))
    };
    let named = data.join("mine.safetensors");
    let of_system = folder.path().join("system/gst-plugin-gatys");
    let good = safetensors(&tensors(&NARROW[..3], by_layer), &[]);
    fs::write(&named, &good).unwrap();
    launch("mine").assert_succeeded("by name");
    fs::create_dir(folder.path().join("mine")).unwrap();
    launch("mine").assert_succeeded("by name, beside a folder of that name");
    fs::remove_dir(folder.path().join("mine")).unwrap();

    fs::write(&named, b"").unwrap();
    let ended = launch("mine");
    ended.assert_refused("an empty file by name");
    assert!(ended.stderr.contains(named.to_str().unwrap()), "{ended}");

    fs::write(folder.path().join("mine"), &good).unwrap();
    launch("mine").assert_succeeded("a file of that name");
    launch("other").assert_refused("no file of that name");
    fs::create_dir_all(&of_system).unwrap();
    fs::write(of_system.join("other.safetensors"), &good).unwrap();
    launch("other").assert_succeeded("by name, for all users");
}

/// Types that are no weights: integers, and the small floats from which some conversions never return.
#[test]
fn other_types_of_numbers() {
    let shapes = [
        ("conv1_1.weight", vec![4, 3, 3, 3]),
        ("conv1_1.bias", vec![4]),
    ];
    for (dtype, name) in [(Dtype::F8_E4M3, "f8e4m3"), (Dtype::U8, "u8")] {
        let values = [3u8; 108];
        let views = shapes.iter().map(|(name, shape)| {
            let length = shape.iter().product();
            let view = TensorView::new(dtype, shape.clone(), &values[..length]).unwrap();
            (*name, view)
        });
        let file = safetensors::serialize(views, None).unwrap();
        let error = Weights::from_bytes(&file).unwrap_err().to_string();
        assert!(error.contains("conv1_1") && error.contains(name), "{error}");
    }
}

/// The first bytes are the header's length: with some lengths they begin as those of a web page do.
#[test]
fn headers_of_any_length() {
    let file = safetensors(&tensors(&NARROW[..1], by_layer), &[]);
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap());
    let (header, values) = rest.split_at(length as usize);
    for length in [0x3C3C, 0x3C20, 0x3C0A, 0x3C0D] {
        let padding = vec![b' '; length - header.len()];
        let parts = [&(length as u64).to_le_bytes(), header, &padding, values];
        let weights = Weights::from_bytes(&parts.concat());
        weights.unwrap_or_else(|error| panic!("{length}: {error}"));
    }
    let error = Weights::from_bytes(b"  <!DOCTYPE html>").unwrap_err();
    assert!(error.to_string().contains("a web page"), "{error}");
}

#[test]
fn a_deviation_that_is_next_to_nothing() {
    let tensors = tensors(&NARROW[..1], by_layer);
    let error = Weights::from_bytes(&safetensors(&tensors, &[("std", "1e-300,1,1")])).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
}

/// A damaged file: with bits flipped, the end cut off, or a range overwritten or left out.
fn damaged(file: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut file = file.to_vec();
    let at = rng.random_range(0..file.len());
    let stretch = at..file.len().min(at + rng.random_range(1..64));
    match rng.random_range(0..6) {
        0 => file.truncate(at),
        1 => drop(file.drain(stretch)),
        2 => file[stretch].fill(rng.random()),
        3 => file[stretch]
            .iter_mut()
            .for_each(|byte| *byte = rng.random()),
        _ => {
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..file.len());
                file[at] ^= 1 << rng.random_range(0..8);
            }
        }
    }
    file
}

/// Loads a file damaged in 2000 ways.
fn survives(name: &str, file: &[u8]) {
    let mut rng = StdRng::seed_from_u64(4);
    let mut taken = 0;
    for round in 0..2000 {
        let bytes = damaged(file, &mut rng);
        let result = catch_unwind(|| Weights::from_bytes(&bytes).is_ok());
        let Ok(is_ok) = result else {
            panic!("{name}: panicked in round {round}");
        };
        taken += u32::from(is_ok);
        let largest = LARGEST.load(Ordering::Relaxed);
        assert!(
            largest < TOO_MUCH,
            "{name}: {largest} bytes in round {round}"
        );
    }
    println!("{name}: {taken} of 2000 were taken");
    // Damage to the values alone cannot be detected.
    assert!(taken < 1900);
}

/// One after the other, because each measures the allocations of the whole process.
#[test]
fn damaged_files() {
    let tensors = tensors(&NARROW[..3], by_layer);
    let said = [("mean", "0.1,0.2,0.3"), ("std", "1,2,4")];
    survives("safetensors", &safetensors(&tensors, &said));
    for name in [
        "torchvision-f16.pth",
        "torchvision-legacy.pth",
        "torchvision-2017.pth",
        "torchvision-bn.pth",
        "adain.pth",
        "keras.h5",
        "layers.npz",
    ] {
        let file = fs::read(stored("families").join(name)).unwrap();
        survives(name, &file);
    }
}

/// A message in an HDF5 object's header (HDF5 File Format Specification, section IV.A.1.a).
fn message(kind: u16, data: &[u8]) -> Vec<u8> {
    let padded = data.len().next_multiple_of(8);
    let mut message = [kind.to_le_bytes(), (padded as u16).to_le_bytes()].concat();
    message.extend([0; 4]);
    message.extend(data);
    message.resize(8 + padded, 0);
    message
}

/// An HDF5 file whose root group links `links` times to one dataset, of a type with `members` members.
fn linked(links: u32, members: u16) -> Vec<u8> {
    const NOWHERE: [u8; 8] = [0xFF; 8];
    const ROOT: u64 = 96;
    let header = |messages: &[Vec<u8>]| {
        let (count, bytes) = (messages.len() as u16, messages.concat());
        let length = (bytes.len() as u32).to_le_bytes();
        let count = count.to_le_bytes();
        [&[1, 0][..], &count, &[1, 0, 0, 0], &length, &[0; 4], &bytes].concat()
    };
    let group = |dataset: u64| {
        let link = |name: u32| {
            let name = format!("{name:05}");
            let start = [1, 8, 0, name.len() as u8];
            message(
                6,
                &[&start, name.as_bytes(), &dataset.to_le_bytes()].concat(),
            )
        };
        let mut messages = vec![message(2, &[&[0, 0][..], &NOWHERE, &NOWHERE].concat())];
        messages.extend((0..links).map(link));
        header(&messages)
    };
    let integer = b"a\0\0\x10\x08\0\0\x04\0\0\0\0\0\x20\0".repeat(members.into());
    let members = members.to_le_bytes();
    let compound = [&[0x36][..], &members, &[0, 4, 0, 0, 0], &integer].concat();
    let one = 1u64.to_le_bytes();
    let dataset = header(&[
        message(1, &[&[1, 1, 0, 0, 0, 0, 0, 0][..], &one].concat()),
        message(3, &compound),
        message(8, &[&[3, 1][..], &NOWHERE, &[0; 8]].concat()),
    ]);
    let root = group(ROOT + group(0).len() as u64);
    let end = ROOT + (root.len() + dataset.len()) as u64;
    let superblock = [
        &b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0\x04\0\x10\0\0\0\0\0"[..],
        &[0; 8],
        &NOWHERE,
        &end.to_le_bytes(),
        &NOWHERE,
        &[0; 8],
        &ROOT.to_le_bytes(),
        &[0; 24],
    ];
    [&superblock.concat()[..], &root, &dataset].concat()
}

/// Links to a dataset are small, and what is known of the dataset may be large.
#[test]
fn many_links_to_a_dataset() {
    let file = linked(2000, 3900);
    let held = HELD.load(Ordering::Relaxed);
    MOST_HELD.store(held, Ordering::Relaxed);
    let error = Weights::from_bytes(&file).unwrap_err();
    assert!(matches!(error, Error::NoNetwork), "{error}");
    let more = MOST_HELD.load(Ordering::Relaxed) - held;
    assert!(more < 4 * TOO_MUCH, "{more} bytes for {}", file.len());

    let error = Weights::from_bytes(&linked(5000, 1)).unwrap_err();
    assert!(error.to_string().contains("more than"), "{error}");
}

/// A zip file in which all names stand for the same file (PKWARE's APPNOTE.TXT, section 4.3).
fn zip(names: &[&str], content: &[u8]) -> Vec<u8> {
    let crc = crc32(content).to_le_bytes();
    let size = (content.len() as u32).to_le_bytes();
    // Compression, time and date; checksum and sizes; length of the name, no extra field.
    let common = |name: &str| {
        let length = [name.len() as u8, 0, 0, 0];
        [&[0; 6][..], &crc, &size, &size, &length].concat()
    };
    let first = names[0];
    let local = [
        b"PK\x03\x04\x0a\0\0\0",
        &common(first)[..],
        first.as_bytes(),
        content,
    ]
    .concat();
    let entry = |name: &&str| {
        let start = b"PK\x01\x02\x0a\0\x0a\0\0\0";
        [start, &common(name)[..], &[0; 14], name.as_bytes()].concat()
    };
    let central: Vec<u8> = names.iter().flat_map(entry).collect();
    let (at, length) = (local.len() as u32, central.len() as u32);
    let place = [length.to_le_bytes(), at.to_le_bytes()].concat();
    let count = [names.len() as u8, 0];
    let end = [b"PK\x05\x06\0\0\0\0", &count[..], &count, &place, &[0; 2]].concat();
    [local, central, end].concat()
}

/// A zip file of PyTorch's with this pickle.
fn pickled(pickle: &[u8]) -> Vec<u8> {
    zip(&["archive/data.pkl"], pickle)
}

/// What many names share could be decompressed again for each.
#[test]
fn files_of_an_archive_may_not_overlap() {
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n";
    let length = [header.len() as u8, 0];
    let array = [b"\x93NUMPY\x01\0", &length[..], header.as_bytes(), &[0; 4]].concat();
    let error = Weights::from_bytes(&zip(&["a.npy"], &array)).unwrap_err();
    assert!(matches!(error, Error::NoNetwork), "{error}");
    let error = Weights::from_bytes(&zip(&["a.npy", "b.npy"], &array)).unwrap_err();
    assert!(error.to_string().contains("overlap"), "{error}");
}

/// Pickles that `torch.save` never writes, and what is wrong with each. The opcodes are those of CPython's
/// `pickletools.py`.
fn hostile_pickles() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let program = |code: &[u8]| [b"\x80\x02", code, b"."].concat();
    let tensor = |arguments: &[u8]| {
        let name = b"}X\x0f\0\0\0features.0.bias";
        let rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n";
        program(&[&name[..], rebuild, arguments, b"Rs"].concat())
    };
    // Calls a function with the same tuple of arguments, many times.
    let calls = |function: &[u8], arguments: &[u8]| {
        let call = b"h\0h\x01R".repeat(100_000);
        program(&[function, b"q\0", arguments, b"q\x01", &call].concat())
    };
    let pairs = b"K\x01K\x01\x86".repeat(100_000);
    let list = [b"](", &pairs[..], b"e\x85"].concat();
    let tuple = [b"(", &pairs[..], b"t\x85"].concat();
    let no_network = "no tensors with a VGG-19's names";
    let cut = "cannot be followed";
    vec![
        ("nothing", b"".to_vec(), "no end"),
        ("stop", b".".to_vec(), no_network),
        ("no-arguments", tensor(b")"), cut),
        ("few-arguments", tensor(b"(K\x01K\x02t"), cut),
        ("no-tuple", tensor(b"K\x01"), cut),
        (
            "storage-of-nothing",
            tensor(b"()QK\0K\x01\x85K\x01\x85\x89}t"),
            cut,
        ),
        ("long-text", program(b"X\xff\xff\xff\xff"), cut),
        (
            "long-number",
            program(&[&b"\x8a\xff"[..], &[0xFF; 255]].concat()),
            no_network,
        ),
        (
            "deep",
            program(&[&b")"[..], &vec![0x85; 1_000_000]].concat()),
            no_network,
        ),
        (
            "deep-dict",
            program(
                &[
                    b"}".to_vec(),
                    b"K\x01}".repeat(250_000),
                    vec![b's'; 250_000],
                ]
                .concat(),
            ),
            no_network,
        ),
        // Each value is a pair of the one before: put that into the memo, get it, make a tuple.
        (
            "doubling",
            program(&[&b")"[..], &b"q\0h\0\x86".repeat(60)].concat()),
            no_network,
        ),
        ("endless", vec![b'('; 1_000_000], "no end"),
        ("too-long", vec![b'('; 8 << 20], "far too long"),
        (
            "many-dicts",
            calls(b"ccollections\nOrderedDict\n", &list),
            no_network,
        ),
        ("many-sizes", calls(b"ctorch\nSize\n", &tuple), no_network),
        (
            "many-tensors",
            calls(b"ctorch._tensor\n_rebuild_from_type_v2\n", &rebuilt(20_000)),
            no_network,
        ),
    ]
}

/// The arguments of `_rebuild_from_type_v2` for a call of itself, whose arguments are for another, and so on.
fn rebuilt(calls: usize) -> Vec<u8> {
    let call = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x02N)\x87".to_vec();
    let outer = b"q\x03h\x02Nh\x03\x87".repeat(calls);
    [call, outer].concat()
}

/// Without much memory.
#[cfg(feature = "plugin")]
#[test]
fn hostile_pickles_are_refused() {
    let folder = TempDir::new().unwrap();
    let style = folder.path().join("style.png");
    picture(32, 32).save(&style).unwrap();
    for (name, pickle, cause) in hostile_pickles() {
        let path: PathBuf = folder.path().join(format!("{name}.pth"));
        fs::write(&path, pickled(&pickle)).unwrap();
        let launch = format!(
            "ulimit -v 4000000; exec gst-launch-1.0 videotestsrc num-buffers=1 ! gatys n-threads=1 style-image={} \
             weights={} ! fakesink",
            style.display(),
            path.display()
        );
        let ended = run(gstreamer("sh").arg("-c").arg(launch));
        println!("{name}: {ended}");
        ended.assert_refused(name);
        for part in [path.to_str().unwrap(), cause] {
            assert!(ended.stderr.contains(part), "{name}: no ‘{part}’: {ended}");
        }
    }
}
