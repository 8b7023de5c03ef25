// SPDX-License-Identifier: MPL-2.0
//! Stylises a video file: `stylize [--beside] INPUT STYLE OUTPUT [PROPERTY=VALUE ...]`.
//!
//! It is also an example of how an application embeds the element: it links the plugin statically, so
//! that nothing has to be installed ([`stylize`]), puts `gatys` between two `videoconvert`s and sets
//! properties from text (`pipeline.rs`), shows frames beside their paintings (`beside.rs`), and
//! handles the messages on the bus ([`run`]).

mod beside;
mod pipeline;
mod progress;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::{env, fs};

use gst::glib;
use gst::prelude::*;

use crate::progress::Progress;

const USAGE: &str = "\
usage: stylize [--beside] INPUT STYLE OUTPUT [PROPERTY=VALUE ...]

Paints every frame of the video INPUT in the style of the image STYLE. OUTPUT has the sound, frame
rate and size of INPUT; its name ends in .mp4, .m4v, .mov or .mkv. PROPERTY is one of the element's:
see README.md. With --beside, each painting stands on the right of its frame, so that OUTPUT is
twice as wide.
";

struct Job {
    /// Whether to show each frame beside its painting.
    beside: bool,
    input: PathBuf,
    style: PathBuf,
    output: PathBuf,
    properties: Vec<(String, String)>,
}

enum Failure {
    Usage(String),
    Error(String),
    Signal(i32),
}

fn error(what: impl Display) -> Failure {
    Failure::Error(what.to_string())
}

fn fault(path: &Path, what: &dyn Display) -> Failure {
    error(format_args!("{}: {what}", path.display()))
}

/// Like `eprintln!`, but does not panic if standard error is closed.
fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().skip(1).collect();
    if args.iter().any(|arg| arg == "-h" || arg == "--help") {
        let _ = io::stdout().write_all(USAGE.as_bytes());
        return ExitCode::SUCCESS;
    }
    match parse(args).and_then(|job| stylize(&job)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(what)) => {
            say(format_args!("error: {what}\n\n{USAGE}"));
            ExitCode::from(2)
        }
        Err(Failure::Error(what)) => {
            say(format_args!("error: {what}"));
            ExitCode::FAILURE
        }
        // The status by which a shell reports a signal.
        Err(Failure::Signal(number)) => ExitCode::from(128 + number as u8),
    }
}

fn parse(args: Vec<OsString>) -> Result<Job, Failure> {
    let mut args = args.into_iter().peekable();
    let beside = args.next_if(|arg| arg == "--beside").is_some();
    let (Some(input), Some(style), Some(output)) = (args.next(), args.next(), args.next()) else {
        let what = "INPUT, STYLE and OUTPUT are needed";
        return Err(Failure::Usage(what.into()));
    };
    let properties = args.map(|arg| {
        let refused = |why| Failure::Usage(format!("{} is not {why}", arg.to_string_lossy()));
        let text = arg.to_str().ok_or_else(|| refused("UTF-8"))?;
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| refused("PROPERTY=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    });
    Ok(Job {
        beside,
        properties: properties.collect::<Result<_, _>>()?,
        input: input.into(),
        style: style.into(),
        output: output.into(),
    })
}

fn stylize(job: &Job) -> Result<(), Failure> {
    let muxer = check_files(job)?;
    gst::init().map_err(error)?;
    gstgatys::plugin_register_static().map_err(error)?;

    let partial = PartialFile::beside(&job.output);
    let pipeline = pipeline::build(job, muxer, &partial.0)?;
    let gatys = pipeline::named(&pipeline, "gatys");
    let entered = pipeline::count_buffers(&gatys, "sink");
    let encoded = pipeline::count_buffers(&pipeline::named(&pipeline, "encoder"), "src");

    let progress = Progress::new(&gatys, &pipeline::named(&pipeline, "demuxer"));
    let result = run(&pipeline, &job.input, progress);
    let _ = pipeline.set_state(gst::State::Null);
    result?;

    let (entered, encoded) = (entered(), encoded());
    let output = job.output.display();
    if entered == 0 {
        return Err(error("no frame could be decoded"));
    }
    if encoded != entered {
        let what = format_args!("{entered} frames went in and {encoded} came out");
        return Err(error(what));
    }
    let renamed = partial.complete(&job.output);
    renamed.map_err(|err| error(format_args!("{output}: {err}")))?;
    say(format_args!("{output}: {encoded} frames"));
    Ok(())
}

/// Checks the files before anything starts; returns the muxer for OUTPUT's extension.
fn check_files(job: &Job) -> Result<&'static str, Failure> {
    let [input, style, output] = [&job.input, &job.style, &job.output].map(PathBuf::as_path);
    let meta = fs::metadata(input).map_err(|err| fault(input, &err))?;
    if meta.is_dir() {
        return Err(fault(input, &"is a folder, not a video"));
    }
    if output.is_dir() {
        return Err(fault(output, &"is a folder"));
    }
    let folder = output.parent().filter(|folder| *folder != Path::new(""));
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(fault(folder, &"there is no such folder"));
    }
    let is_output =
        |path| output.exists() && fs::canonicalize(path).ok() == fs::canonicalize(output).ok();
    for (path, what) in [(input, "input"), (style, "style")] {
        if is_output(path) {
            let what = format_args!("is the {what}; choose another name");
            return Err(fault(output, &what));
        }
    }
    let extension = output.extension().unwrap_or_default().to_string_lossy();
    match extension.to_lowercase().as_str() {
        "mp4" | "m4v" => Ok("mp4mux"),
        "mov" => Ok("qtmux"),
        "mkv" => Ok("matroskamux"),
        _ => Err(fault(
            output,
            &"the name must end in .mp4, .m4v, .mov or .mkv",
        )),
    }
}

/// The output under a temporary name while it is being written; removed on drop unless completed.
struct PartialFile(PathBuf);

impl PartialFile {
    fn beside(output: &Path) -> Self {
        let mut name = output.as_os_str().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        Self(name.into())
    }

    fn complete(self, output: &Path) -> io::Result<()> {
        fs::rename(&self.0, output)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs the pipeline until its end, an error or a signal.
fn run(pipeline: &gst::Pipeline, input: &Path, mut progress: Progress) -> Result<(), Failure> {
    let bus = pipeline.bus().expect("a pipeline has a bus");
    for (signal, number) in [("interrupt", 2), ("terminate", 15)] {
        let bus = bus.clone();
        // The handler stays, so that a second signal cannot kill the program before it has cleaned up.
        glib_unix::unix_signal_add_local(number, move || {
            let signal = gst::Structure::builder(signal).field("number", number);
            let _ = bus.post(gst::message::Application::new(signal.build()));
            glib::ControlFlow::Continue
        });
    }
    let main_loop = glib::MainLoop::new(None, false);
    let ending = Rc::new(RefCell::new(None));
    let (quit, end) = (main_loop.clone(), ending.clone());
    let (demuxer, input) = (pipeline::named(pipeline, "demuxer"), input.to_owned());
    let watch = bus.add_watch_local(move |_, message| {
        let Some(mut result) = handle(message, &mut progress) else {
            return glib::ControlFlow::Continue;
        };
        // GStreamer does not say which file "contains no playable streams".
        let from_demuxer = message.src().map(|src| src.has_as_ancestor(&demuxer));
        if let (Err(Failure::Error(what)), Some(true)) = (&result, from_demuxer) {
            result = Err(fault(&input, what));
        }
        progress.end_line();
        end.replace(Some(result));
        quit.quit();
        glib::ControlFlow::Break
    });
    let _watch = watch.map_err(error)?;
    if pipeline.set_state(gst::State::Playing).is_err() && !bus.have_pending() {
        return Err(error("the pipeline does not start"));
    }
    main_loop.run();
    ending.take().expect("the loop ends with a result")
}

/// Handles a message; returns the result if that ends the program.
fn handle(message: &gst::Message, progress: &mut Progress) -> Option<Result<(), Failure>> {
    use gst::MessageView;
    match message.view() {
        MessageView::Element(message) => {
            let frame = message.structure().filter(|frame| frame.name() == "gatys");
            progress.frame(frame?);
            None
        }
        MessageView::Warning(message) => {
            let what = explain(&message.error(), message.debug());
            progress.warn(&what);
            None
        }
        MessageView::StreamCollection(message) => {
            let video = |stream: gst::Stream| stream.stream_type().contains(gst::StreamType::VIDEO);
            let none = !message.stream_collection().iter().any(video);
            none.then(|| Err(error("the input has no video")))
        }
        MessageView::Eos(_) => {
            progress.check_length();
            Some(Ok(()))
        }
        MessageView::Error(message) => Some(Err(error(explain(&message.error(), message.debug())))),
        MessageView::Application(message) => {
            let number = message.structure()?.get("number").ok()?;
            Some(Err(Failure::Signal(number)))
        }
        _ => None,
    }
}

/// An error's message, followed by its cause: the debug text without the first line, which is the
/// position in the source.
fn explain(err: &glib::Error, debug: Option<glib::GString>) -> String {
    let cause = debug.as_deref().and_then(|debug| debug.split_once('\n'));
    match cause.map(|(_, cause)| cause.trim()) {
        Some(cause) if !cause.is_empty() => format!("{err}\n  {}", cause.replace('\n', "\n  ")),
        _ => err.to_string(),
    }
}
