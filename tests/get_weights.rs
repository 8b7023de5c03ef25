// SPDX-License-Identifier: MPL-2.0

//! `weights/get.sh` against a local server: cut connections, wrong files, no server at all. The element finds its result.
#![cfg(feature = "plugin")]

mod common;

use common::files::{Ended, gstreamer, picture, run, stored};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use tempfile::TempDir;

/// How the server responds.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Whole,
    /// Closes each connection after this number of bytes.
    Cut(usize),
    /// The same, ignoring range requests: always from the start.
    CutWithoutRanges(usize),
    Missing,
    /// Responds "busy" to the first two requests.
    Busy,
}

/// A server of one file, with a log of the requested offsets.
struct Server {
    address: String,
    starts: Arc<Mutex<Vec<usize>>>,
}

impl Server {
    fn new(file: Vec<u8>, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/weights.pth", listener.local_addr().unwrap());
        let starts = Arc::new(Mutex::new(Vec::new()));
        let count = AtomicUsize::new(0);
        let asked = starts.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let count = count.fetch_add(1, Ordering::SeqCst);
                // The client may have closed the connection.
                if let Ok(start) = answer(&stream.unwrap(), &file, manner, count) {
                    asked.lock().unwrap().push(start);
                }
            }
        });
        Self { address, starts }
    }
}

fn answer(
    mut stream: &TcpStream,
    file: &[u8],
    manner: Manner,
    count: usize,
) -> std::io::Result<usize> {
    let mut start = 0;
    for line in BufReader::new(stream).lines() {
        let line = line?.to_lowercase();
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.trim_end_matches('-').parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let length = file.len();
    let (status, from, until) = match manner {
        Manner::Missing => ("404 Not Found", 0, 0),
        Manner::Busy if count < 2 => ("503 Service Unavailable", 0, 0),
        Manner::CutWithoutRanges(bytes) => ("200 OK", 0, bytes * (count + 1)),
        _ if start >= length => ("416 Range Not Satisfiable", 0, 0),
        Manner::Cut(bytes) => ("206 Partial Content", start, start + bytes),
        Manner::Whole | Manner::Busy => ("206 Partial Content", start, length),
    };
    let (status, until) = match (status, start) {
        ("206 Partial Content", 0) => ("200 OK", until.min(length)),
        _ => (status, until.min(length)),
    };
    let promised = if until == 0 { 0 } else { length - from };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {promised}\r\nConnection: close\r\n"
    )?;
    if status.starts_with("206") {
        write!(
            stream,
            "Content-Range: bytes {from}-{}/{length}\r\n",
            length - 1
        )?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&file[from..until])?;
    Ok(start)
}

/// A home directory for the script.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn directory(&self) -> PathBuf {
        self.0.path().join("gst-plugin-gatys")
    }

    fn get(&self, arguments: &[&str]) -> Ended {
        Self::get_in(self.0.path(), arguments)
    }

    fn get_in(data_home: &Path, arguments: &[&str]) -> Ended {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/get.sh");
        // The script runs cargo, for which all is built in this test's own folder.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        run(Command::new(script)
            .args(arguments)
            .env("CARGO_TARGET_DIR", target)
            .env("XDG_DATA_HOME", data_home))
    }

    /// The files that the script has left there.
    fn left(&self) -> Vec<String> {
        let files = fs::read_dir(self.directory()).into_iter().flatten();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "get.lock").collect()
    }
}

fn weights() -> Vec<u8> {
    fs::read(stored("families/torchvision.pth")).unwrap()
}

fn sha256(path: &Path) -> String {
    let ended = run(Command::new("sha256sum").arg(path));
    ended.stdout.split(' ').next().unwrap().to_owned()
}

fn sha256_of_weights() -> String {
    sha256(&stored("families/torchvision.pth"))
}

/// Paints a frame with `weights=imagenet`.
fn paint(home: &Home) -> Ended {
    let style = home.0.path().join("style.png");
    picture(32, 32).save(&style).unwrap();
    let launch = format!(
        "videotestsrc num-buffers=1 ! gatys iterations=1 initial-iterations=1 weights=imagenet style-image={} \
         ! video/x-raw,width=32,height=32 ! fakesink",
        style.display()
    );
    run(gstreamer("gst-launch-1.0")
        .env("XDG_DATA_HOME", home.0.path())
        .args(launch.split_whitespace()))
}

#[test]
fn the_element_finds_what_was_downloaded() {
    let home = Home::new();
    let before = paint(&home);
    before.assert_refused("before the download");
    assert!(before.stderr.contains("weights/get.sh"), "{before}");

    let server = Server::new(weights(), Manner::Whole);
    let arguments = ["--url", &server.address, "--sha256", &sha256_of_weights()];
    let ended = home.get(&arguments);
    ended.assert_succeeded("get.sh");
    assert!(ended.stdout.contains("weights=imagenet"), "{ended}");
    assert_eq!(home.left(), ["imagenet.safetensors"]);
    paint(&home).assert_succeeded("after the download");

    // It is not downloaded again.
    let ended = home.get(&arguments);
    ended.assert_succeeded("again");
    assert_eq!(server.starts.lock().unwrap().len(), 1);
}

#[test]
fn a_cut_connection_goes_on_where_it_ended() {
    let file = weights();
    let part = file.len() / 3 + 1;
    let home = Home::new();
    let server = Server::new(file, Manner::Cut(part));
    let ended = home.get(&["--url", &server.address, "--sha256", &sha256_of_weights()]);
    ended.assert_succeeded("cut twice");
    assert_eq!(*server.starts.lock().unwrap(), [0, part, 2 * part]);
    assert_eq!(home.left(), ["imagenet.safetensors"]);
}

#[test]
fn a_server_that_cannot_go_on_is_asked_from_the_start() {
    let file = weights();
    let home = Home::new();
    let half = file.len() / 2 + 1;
    let server = Server::new(file, Manner::CutWithoutRanges(half));
    let ended = home.get(&["--url", &server.address, "--sha256", &sha256_of_weights()]);
    ended.assert_succeeded("cut without ranges");
}

#[test]
fn an_interrupted_download_goes_on_at_the_next_start() {
    let file = weights();
    let home = Home::new();
    let server = Server::new(file.clone(), Manner::Whole);
    fs::create_dir_all(home.directory()).unwrap();
    let part = home.directory().join("weights.pth.part");
    fs::write(&part, &file[..1000]).unwrap();
    let arguments = ["--url", &server.address, "--sha256", &sha256_of_weights()];
    home.get(&arguments).assert_succeeded("a part");
    assert_eq!(*server.starts.lock().unwrap(), [1000]);

    // A partial file that is complete is not asked for; with one that is too long the server has nothing to go on with.
    let too_long = [&file[..], b"more"].concat();
    let asked = [1000, too_long.len(), 0];
    for (stale, expected) in [(file, &asked[..1]), (too_long, &asked)] {
        fs::remove_file(home.directory().join("imagenet.safetensors")).unwrap();
        fs::write(&part, stale).unwrap();
        home.get(&arguments).assert_succeeded("all of it");
        assert_eq!(*server.starts.lock().unwrap(), expected);
    }
}

#[test]
fn two_at_once() {
    let home = Home::new();
    fs::create_dir_all(home.directory()).unwrap();
    let lock = home.directory().join("get.lock");
    let mut other = Command::new("flock")
        .args([lock.to_str().unwrap(), "sh", "-c", "echo; read wait"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut locked = BufReader::new(other.stdout.take().unwrap());
    locked.read_line(&mut line).unwrap();
    let server = Server::new(weights(), Manner::Whole);
    let arguments = ["--url", &server.address, "--sha256", &sha256_of_weights()];
    let ended = home.get(&arguments);
    drop(other.stdin.take());
    other.wait().unwrap();
    ended.assert_refused("two at once");
    assert!(ended.stderr.contains("another get.sh"), "{ended}");
    home.get(&arguments).assert_succeeded("one after the other");
}

#[test]
fn a_busy_server_is_asked_again() {
    let home = Home::new();
    let server = Server::new(weights(), Manner::Busy);
    let ended = home.get(&["--url", &server.address, "--sha256", &sha256_of_weights()]);
    ended.assert_succeeded("busy");
}

#[test]
fn a_wrong_file_is_refused() {
    let home = Home::new();
    let mut wrong = weights();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    let server = Server::new(wrong, Manner::Whole);
    let sha256 = sha256_of_weights();
    let ended = home.get(&["--url", &server.address, "--sha256", &sha256]);
    ended.assert_refused("a wrong file");
    for part in ["SHA-256", &sha256, &server.address] {
        assert!(ended.stderr.contains(part), "{ended}");
    }
    assert_eq!(home.left(), [""; 0]);
}

#[test]
fn no_file_and_no_server() {
    let home = Home::new();
    let server = Server::new(Vec::new(), Manner::Missing);
    let ended = home.get(&["--url", &server.address, "--sha256", "0"]);
    ended.assert_refused("no file");
    assert!(ended.stderr.contains("404"), "{ended}");

    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let ended = home.get(&["--url", &format!("http://{nobody}/x"), "--sha256", "0"]);
    ended.assert_refused("no server");
    for part in ["no network", "by other means", "get.sh FILE"] {
        assert!(ended.stderr.contains(part), "{ended}");
    }
    assert_eq!(home.left(), [""; 0]);
}

#[test]
fn a_file_of_ones_own() {
    let home = Home::new();
    let own = stored("families/keras.h5");
    home.get(&[own.to_str().unwrap()]).assert_succeeded("own");
    paint(&home).assert_succeeded("own");

    let home = Home::new();
    let other = stored("families/make.py");
    let ended = home.get(&[other.to_str().unwrap()]);
    ended.assert_refused("no weights");
    assert!(ended.stderr.contains("no known format"), "{ended}");
    assert_eq!(home.left(), [""; 0]);
    let ended = home.get(&["no such file"]);
    ended.assert_refused("no such file");
    assert!(ended.stderr.contains("no such file"), "{ended}");
    let ended = Home::get_in(Path::new("data"), &[own.to_str().unwrap()]);
    ended.assert_refused("a relative folder");
    assert!(ended.stderr.contains("XDG_DATA_HOME"), "{ended}");
    for arguments in [
        &["--url"][..],
        &["--url", "http://127.0.0.1/x"],
        &["--url", "http://127.0.0.1/x", "--url", "http://127.0.0.1/y"],
        &["--what"],
        &["a", "b"],
        &[""],
        &["--url", "http://127.0.0.1/x", "--sha256", "0", "a"],
    ] {
        let ended = home.get(arguments);
        ended.assert_refused("usage");
        assert!(ended.stderr.contains("usage: get.sh"), "{ended}");
    }
}
