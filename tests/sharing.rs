// SPDX-License-Identifier: MPL-2.0

//! Instances share one network, and do not disturb each other.
#![cfg(feature = "plugin")]

mod common;

use candle_core::Device;
use common::Files;
use common::painter::{Painter, element};
use common::video::{Pixels, info};
use gst::prelude::*;
use gst_video::VideoFormat;
use gstgatys::vgg::weights::WeightsSource;
use gstgatys::vgg::{Precision, Vgg};
use std::sync::{Arc, Barrier, Weak};

fn network(files: &Files) -> Arc<Vgg> {
    Vgg::shared(
        &WeightsSource::File(files.weights.clone()),
        &Device::Cpu,
        Precision::Auto,
    )
    .unwrap()
}

#[test]
fn all_instances_share_one_network_and_the_last_frees_it() {
    let files = Files::new();
    let network_0: Weak<Vgg> = Arc::downgrade(&network(&files));
    assert_eq!(network_0.strong_count(), 0);

    let (first, second) = (element(&files), element(&files));
    let mut painters = [Painter::new(&first), Painter::new(&second)];
    let shared = network(&files);
    for painter in &mut painters {
        painter.report();
    }
    assert!(Arc::ptr_eq(&shared, &network(&files)));
    let shared = {
        let weak = Arc::downgrade(&shared);
        drop(shared);
        weak
    };
    assert!(shared.strong_count() >= 2);

    let of_both = shared.strong_count();
    first.set_state(gst::State::Null).unwrap();
    let of_one = shared.strong_count();
    assert!(0 < of_one && of_one < of_both);
    painters[1].report();
    second.set_state(gst::State::Null).unwrap();
    assert_eq!(shared.strong_count(), 0);
    assert!(shared.upgrade().is_none());
}

#[test]
fn in_ready_the_network_is_kept_for_the_next_start() {
    let files = Files::new();
    let element = element(&files);
    let painter = Painter::new(&element);
    let kept = Arc::downgrade(&network(&files));
    element.set_state(gst::State::Ready).unwrap();
    assert!(kept.upgrade().is_some());
    let others = Files::new();
    element.set_property("weights", &others.weights);
    element.set_state(gst::State::Paused).unwrap();
    assert!(kept.upgrade().is_none());
    let kept = Arc::downgrade(&network(&others));
    element.set_state(gst::State::Ready).unwrap();
    assert!(kept.upgrade().is_some());
    element.set_state(gst::State::Null).unwrap();
    assert!(kept.upgrade().is_none());
    drop(painter);
}

#[test]
fn what_weights_are_recognised_as_is_notified() {
    let files = Files::new();
    let element = element(&files);
    let (send, received) = std::sync::mpsc::channel();
    element.connect_notify(Some("weights-info"), move |element, _| {
        let info: gst::Structure = element.property("weights-info");
        send.send(info.get::<String>("family").unwrap()).unwrap();
    });
    let _painter = Painter::new(&element);
    assert!(!received.try_recv().unwrap().is_empty());
}

/// Six frames painted by an instance; `rank` distinguishes it from others.
fn run(files: &Files, rank: u32, together: &Barrier) -> Vec<Pixels> {
    let element = element(files);
    element.set_property("beta", 10.0 * f64::from(rank + 1));
    element.set_property("n-threads", rank);
    let info = info(VideoFormat::Rgb, 48 + 16 * rank, 40);
    let mut painter = Painter::with_info(&element, info);
    let painted = |_| {
        together.wait();
        painter.paint_next()
    };
    (0..6).map(painted).collect()
}

#[test]
fn instances_do_not_disturb_each_other() {
    let files = Files::new();
    let alone = [0, 1, 2].map(|rank| run(&files, rank, &Barrier::new(1)));
    let together = Barrier::new(3);
    let results = std::thread::scope(|scope| {
        let (files, together) = (&files, &together);
        let threads = [0, 1, 2].map(|rank| scope.spawn(move || run(files, rank, together)));
        threads.map(|thread| thread.join().unwrap())
    });
    for (rank, (result, alone)) in results.iter().zip(&alone).enumerate() {
        assert!(result == alone, "instance {rank}");
    }
}
