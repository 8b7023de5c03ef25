// SPDX-License-Identifier: MPL-2.0

//! How long stopping and seeking take in the middle of a frame of many seconds, at the default
//! max-size of 512.
//!
//! `cargo bench --bench cancel`

use gst::prelude::*;
use std::time::Duration;

mod common;

use common::timing::timed;

const ROUNDS: usize = 10;

fn main() {
    gst::init().expect("GStreamer");
    gstgatys::plugin_register_static().expect("plugin");
    let (_, style) = common::clip::material();
    let mut stops = Vec::new();
    let mut seeks = Vec::new();
    for round in 0..ROUNDS {
        let description = format!(
            "videotestsrc ! video/x-raw,width=640,height=360 ! \
             gatys initial-iterations=100000 style-image=\"{}\" ! fakesink",
            style.display()
        );
        let pipeline = gst::parse::launch(&description).expect("pipeline");
        pipeline.set_state(gst::State::Playing).expect("playing");
        // Somewhere in the frame, each time somewhere else.
        let somewhere = || std::thread::sleep(Duration::from_millis(1500 + 37 * round as u64));
        somewhere();
        let seek = || pipeline.seek_simple(gst::SeekFlags::FLUSH, gst::ClockTime::ZERO);
        let (time, sought) = timed(seek);
        sought.expect("seek");
        seeks.push(time);
        somewhere();
        let (time, stopped) = timed(|| pipeline.set_state(gst::State::Null));
        stopped.expect("null");
        stops.push(time);
    }
    report("flushing seek", seeks);
    report("set_state(NULL)", stops);
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort();
    println!(
        "{name:16} median {:?}, longest {:?}",
        times[times.len() / 2],
        times[times.len() - 1]
    );
}
