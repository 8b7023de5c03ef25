// SPDX-License-Identifier: MPL-2.0
//! The pipeline: demux, decode, stylise, encode, mux.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gst::glib;
use gst::prelude::*;

use crate::{Failure, Job, beside, error};

/// Builds the pipeline. [`connect`] links the demuxed streams later, when they are known.
///
/// One thread demuxes, and the muxer waits for the stream that is behind, which must not be stuck
/// behind a full queue of another stream. `multiqueue` grows a full queue while another one is empty,
/// as long as only the number of buffers is limited.
///
/// Before painting, video is deinterlaced and rotated upright, and grey becomes RGB, because a
/// painting has colours. There are no B-frames, because readers disagree on the time stamps of a file
/// that begins with some.
///
/// For `--beside`, [`beside`] controls a `videobox` after the element.
pub fn build(job: &Job, muxer: &str, output: &Path) -> Result<gst::Pipeline, Failure> {
    let wider = if job.beside {
        "! videobox name=box"
    } else {
        ""
    };
    let description = format!(
        "filesrc name=input ! parsebin name=demuxer
         multiqueue name=queues max-size-buffers=32 max-size-bytes=0 max-size-time=0
         {muxer} name=muxer ! filesink name=output sync=false
         decodebin name=video force-sw-decoders=true
           ! videoconvert name=decoded ! deinterlace fields=top ! videoflip video-direction=auto
           ! videoconvert ! video/x-raw,format=RGB ! gatys name=gatys {wider}
           ! videoconvert ! capsfilter name=format
           ! x264enc name=encoder pass=qual quantizer=18 vbv-buf-capacity=0 bframes=0
           ! h264parse ! muxer.video_0"
    );
    let pipeline = gst::parse::launch(&description).map_err(|err| {
        let plugins = "GStreamer's base, good, bad, ugly and libav plugins";
        error(format_args!("{err} ({plugins} are needed)"))
    })?;
    let pipeline = pipeline.downcast::<gst::Pipeline>();
    let pipeline = pipeline.expect("several elements make a pipeline");

    named(&pipeline, "input").set_property("location", &job.input);
    named(&pipeline, "output").set_property("location", output);
    let gatys = named(&pipeline, "gatys");
    gatys.set_property("style-image", &job.style);
    for (name, value) in &job.properties {
        set_property(&gatys, name, value)?;
    }

    pin_format(&pipeline);
    if job.beside {
        beside::show(&gatys, &named(&pipeline, "box"));
    }
    let demuxer = named(&pipeline, "demuxer");
    read_once_plugged(&demuxer);
    let weak = pipeline.downgrade();
    demuxer.connect_pad_added(move |_, pad| {
        let Some(pipeline) = weak.upgrade() else {
            return;
        };
        if let Err(err) = connect(&pipeline, pad) {
            let what = "A stream of the input cannot be processed";
            gst::element_error!(pipeline, gst::StreamError::Failed, ("{what}"), ["{err}"]);
        }
    });
    Ok(pipeline)
}

pub fn named(pipeline: &gst::Pipeline, name: &str) -> gst::Element {
    let element = pipeline.by_name(name);
    element.expect("the pipeline's description names it")
}

pub fn pad(element: &gst::Element, name: &str) -> gst::Pad {
    let pad = element.static_pad(name);
    pad.expect("filters and encoders have both pads")
}

/// Lets a demuxer read only once `parsebin` has plugged it.
///
/// Until then `parsebin` drops its errors: the demuxer of a broken file could stop unnoticed, and the
/// pipeline would wait for ever. A demuxer reads in a thread of its own, through the sink pad of the
/// element before it: `typefind` or a reader of tags, whose thread plugs it and holds that pad's lock.
fn read_once_plugged(parsebin: &gst::Element) {
    let reads = gst::PadProbeType::PULL | gst::PadProbeType::BLOCK;
    let watch = move |element: &gst::Element| {
        for sink in element.sink_pads() {
            sink.add_probe(reads, |sink, _| {
                drop(sink.stream_lock());
                gst::PadProbeReturn::Pass
            });
        }
    };
    let parsebin = parsebin.downcast_ref::<gst::Bin>();
    let parsebin = parsebin.expect("parsebin is a bin");
    parsebin.children().iter().for_each(watch);
    parsebin.connect_element_added(move |_, element| watch(element));
}

/// Counts the buffers that pass a pad; the result reads the count.
pub fn count_buffers(element: &gst::Element, name: &str) -> impl Fn() -> u64 + use<> {
    let count = Arc::new(AtomicU64::new(0));
    let counter = count.clone();
    pad(element, name).add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        gst::PadProbeReturn::Ok
    });
    move || count.load(Ordering::Relaxed)
}

/// Sets a property from text, as gst-launch-1.0 does. gstreamer-rs' own setter panics on bad input.
fn set_property(element: &gst::Element, name: &str, text: &str) -> Result<(), Failure> {
    let settable = |spec: &glib::ParamSpec| spec.flags().contains(glib::ParamFlags::WRITABLE);
    let Some(spec) = element.find_property(name).filter(settable) else {
        let mut known = element.list_properties().to_vec();
        known.retain(|spec| settable(spec) && spec.owner_type() == element.type_());
        let known: Vec<_> = known.iter().map(|spec| spec.name()).collect();
        let known = known.join(", ");
        return Err(error(format_args!(
            "no property {name} can be set; there are {known}"
        )));
    };
    let value = glib::Value::deserialize_with_pspec(text, &spec).ok();
    let Some(value) = value.filter(|value| is_in_range(&spec, value)) else {
        let allowed = allowed(&spec);
        return Err(error(format_args!("{name}={text}: it must be {allowed}")));
    };
    element.set_property_from_value(name, &value);
    Ok(())
}

/// The least and the greatest number that a property takes. None if it takes no numbers.
fn range(spec: &glib::ParamSpec) -> Option<(f64, f64)> {
    macro_rules! bounds {
        ($($kind:ident),*) => {
            $(if let Some(spec) = spec.downcast_ref::<glib::$kind>() {
                return Some((spec.minimum() as f64, spec.maximum() as f64));
            })*
        };
    }
    bounds!(
        ParamSpecUInt,
        ParamSpecUInt64,
        ParamSpecInt,
        ParamSpecInt64,
        ParamSpecDouble
    );
    None
}

fn is_in_range(spec: &glib::ParamSpec, value: &glib::Value) -> bool {
    let number = value.transform::<f64>().ok();
    match (range(spec), number.and_then(|number| number.get().ok())) {
        (Some((least, most)), Some(number)) => (least..=most).contains(&number),
        _ => true,
    }
}

/// What a property takes.
fn allowed(spec: &glib::ParamSpec) -> String {
    match range(spec) {
        Some((least, most)) if most == u64::MAX as f64 => return format!("at least {least}"),
        Some((least, most)) => return format!("{least} to {most}"),
        None => (),
    }
    if let Some(spec) = spec.downcast_ref::<glib::ParamSpecEnum>() {
        let class = spec.enum_class();
        let nicks: Vec<_> = class.values().iter().map(|value| value.nick()).collect();
        return format!("one of {}", nicks.join(", "));
    }
    match spec.value_type() {
        glib::Type::BOOL => "true or false".into(),
        kind => format!("a {kind}"),
    }
}

/// Gives the output the colorimetry of the decoded video; by default `videoconvert` chooses it by size.
fn pin_format(pipeline: &gst::Pipeline) {
    let format = named(pipeline, "format");
    let decoded = pad(&named(pipeline, "decoded"), "sink");
    decoded.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::EventView::Caps(event)) = info.event().map(|event| event.view())
            && let Ok(video) = gst_video::VideoInfo::from_caps(event.caps())
        {
            format.set_property("caps", output_caps(&video));
        }
        gst::PadProbeReturn::Ok
    });
}

/// H.264 with 4:2:0 chroma needs even sizes, so odd ones are encoded in 4:4:4. All players support
/// limited range.
fn output_caps(video: &gst_video::VideoInfo) -> gst::Caps {
    let even = video.width().is_multiple_of(2) && video.height().is_multiple_of(2);
    let colors = video.colorimetry();
    let colorimetry = gst_video::VideoColorimetry::new(
        gst_video::VideoColorRange::Range16_235,
        match colors.matrix() {
            gst_video::VideoColorMatrix::Rgb => gst_video::VideoColorMatrix::Bt709,
            matrix => matrix,
        },
        colors.transfer(),
        colors.primaries(),
    );
    gst::Caps::builder("video/x-raw")
        .field("format", if even { "I420" } else { "Y444" })
        .field("colorimetry", colorimetry.to_string())
        .build()
}

/// Links the first video stream and all audio streams; others are ignored.
fn connect(pipeline: &gst::Pipeline, stream: &gst::Pad) -> Result<(), glib::BoolError> {
    let caps = stream.current_caps();
    let caps = caps.unwrap_or_else(|| stream.query_caps(None));
    let kind = caps.structure(0).map_or("", |kind| kind.name().as_str());
    let pictures = kind.starts_with("video/") || kind.starts_with("image/");
    let video = pad(&named(pipeline, "video"), "sink");
    if kind.starts_with("audio/") {
        connect_sound(pipeline, stream, &caps)
    } else if pictures && !video.is_linked() {
        link(&queue(pipeline, stream)?, &video)
    } else {
        Ok(())
    }
}

/// Copies audio if the container supports its format, else encodes it as AAC.
fn connect_sound(
    pipeline: &gst::Pipeline,
    stream: &gst::Pad,
    caps: &gst::Caps,
) -> Result<(), glib::BoolError> {
    let muxer = named(pipeline, "muxer");
    let template = muxer.pad_template("audio_%u").expect("muxers take sound");
    let sink = muxer.request_pad(&template, None, None);
    let sink = sink.ok_or_else(|| glib::bool_error!("The container takes no more sound"))?;
    let queued = queue(pipeline, stream)?;
    // If the caps are not fixed yet, the parser will choose a form that the muxer accepts.
    let fits = match caps.is_fixed() {
        true => caps.is_subset(template.caps()),
        false => caps.can_intersect(template.caps()),
    };
    if fits {
        return link(&queued, &sink);
    }
    let channels = caps.structure(0).and_then(|kind| kind.get("channels").ok());
    let encoder = aac_encoder(channels.unwrap_or(2))?;
    pipeline.add(&encoder)?;
    link(&pad(&encoder, "src"), &sink)?;
    link(&queued, &pad(&encoder, "sink"))?;
    encoder.sync_state_with_parent()
}

fn aac_encoder(channels: i32) -> Result<gst::Element, glib::BoolError> {
    let bitrate = 96_000 * channels.clamp(1, 6);
    let description = format!(
        "decodebin name=first ! audioconvert ! audioresample
         ! avenc_aac bitrate={bitrate} ! aacparse name=last"
    );
    let bin = gst::parse::bin_from_description(&description, false);
    let bin = bin.map_err(|err| glib::bool_error!("{err}"))?;
    // Ghost pads made automatically would be wrong: decodebin is linked to the rest only later.
    for (name, side) in [("first", "sink"), ("last", "src")] {
        let end = bin.by_name(name).expect("the description names it");
        bin.add_pad(&gst::GhostPad::with_target(&pad(&end, side))?)?;
    }
    Ok(bin.upcast())
}

/// Links a queue to the pad; returns the source pad of the queue.
fn queue(pipeline: &gst::Pipeline, stream: &gst::Pad) -> Result<gst::Pad, glib::BoolError> {
    let queues = named(pipeline, "queues");
    let sink = queues.request_pad_simple("sink_%u");
    let sink = sink.ok_or_else(|| glib::bool_error!("There is no queue for it"))?;
    link(stream, &sink)?;
    Ok(pad(&queues, &sink.name().replace("sink", "src")))
}

fn link(from: &gst::Pad, to: &gst::Pad) -> Result<(), glib::BoolError> {
    let link = from.link(to);
    link.map_err(|err| glib::bool_error!("{} does not link: {err}", from.name()))?;
    Ok(())
}
