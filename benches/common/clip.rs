// SPDX-License-Identifier: MPL-2.0

//! A clip and a style image, for benchmarks of whole videos.

use super::shared::shared;
use candle_core::{Device, Tensor};
use gst::prelude::*;
use gst_video::prelude::*;
use std::path::{Path, PathBuf};

/// A clip and a style image: those of `../shared/data` where it is there, else the sample that
/// `cargo run --release --example sample -- target/sample` makes.
pub fn material() -> (PathBuf, PathBuf) {
    if let Some(material) = shared("car-detection.mp4").zip(shared("starry_night.jpg")) {
        return material;
    }
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sample");
    let [clip, style] = ["sample.mp4", "style.png"].map(|name| sample.join(name));
    assert!(
        clip.exists() && style.exists(),
        "no clip: run `cargo run --release --example sample -- target/sample` first"
    );
    (clip, style)
}

/// The first `count` frames of a clip, `[h, w, 3]` each, scaled to a width.
pub fn frames(clip: &Path, count: usize, width: u32) -> Vec<Tensor> {
    gst::init().expect("GStreamer");
    let description = format!(
        "filesrc name=source ! decodebin ! videoconvert ! videoscale ! \
         video/x-raw,format=RGB,width={width},pixel-aspect-ratio=1/1 ! appsink name=sink sync=false"
    );
    let pipeline = gst::parse::launch(&description).expect("pipeline");
    let bin = pipeline.downcast_ref::<gst::Bin>().expect("a bin");
    let source = bin.by_name("source").expect("source");
    source.set_property("location", clip.to_str().expect("path"));
    let sink = bin
        .by_name("sink")
        .and_downcast::<gst_app::AppSink>()
        .expect("sink");
    pipeline.set_state(gst::State::Playing).expect("playing");
    let frames = (0..count).map(|_| {
        let sample = sink.pull_sample().expect("a frame");
        let info = gst_video::VideoInfo::from_caps(sample.caps().expect("caps")).expect("video");
        let buffer = sample.buffer().expect("buffer");
        let frame =
            gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info).expect("frame");
        let (h, w) = (info.height() as usize, info.width() as usize);
        let rows = frame
            .plane_data(0)
            .expect("data")
            .chunks(frame.plane_stride()[0] as usize);
        let values = rows
            .take(h)
            .flat_map(|row| &row[..3 * w])
            .map(|&byte| f32::from(byte) / 255.0);
        Tensor::from_vec(values.collect(), (h, w, 3), &Device::Cpu).expect("tensor")
    });
    let frames = frames.collect();
    pipeline.set_state(gst::State::Null).expect("null");
    frames
}
