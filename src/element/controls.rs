// SPDX-License-Identifier: MPL-2.0

//! What the application's threads and the streaming thread share: the values of the properties, and
//! the style image that is loaded beside the stream.

use super::settings::{Property, Settings};
use crate::stylizer::style::StyleImage;
use crate::threads::lock;
use gst::PARAM_FLAG_MUTABLE_READY;
use gst::glib::Value;
use gst::prelude::*;
use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is left to do once a property has been set.
#[derive(Debug, PartialEq, Eq)]
pub enum Pending {
    /// Nothing: the next frame, or the next start, takes the new value.
    Nothing,
    /// [`Controls::load_style`] is to be called on another thread.
    LoadStyle,
    /// The element keeps the old value until it is restarted: a warning is due.
    Restart,
}

#[derive(Default)]
struct Values {
    settings: Settings,
    /// What the element was started with. None if it is stopped.
    started_with: Option<Settings>,
    /// Whether they may differ from the stylizer's.
    changed: bool,
    /// Counts the style images that were set: only the latest is used.
    style_generation: u64,
    /// Whether a style image is to be loaded since the start. The thread that does also sees to those
    /// set meanwhile.
    style_loading: bool,
    /// Loaded, and not yet used by a frame; with its path.
    next_style: Option<(PathBuf, StyleImage)>,
    /// Of the last frame.
    stats: Option<gst::Structure>,
    /// Of the weights in use, or last in use.
    weights_info: Option<gst::Structure>,
}

/// The values of all properties, behind a lock that is never held while anything is computed,
/// loaded or posted. Nothing panics under it, so what a poisoned one guards is whole.
#[derive(Default)]
pub struct Controls {
    values: Mutex<Values>,
    style_loaded: Condvar,
}

/// How long a frame waits for a style image: a file may lie where reading it takes for ever.
const MAX_STYLE_WAIT: Duration = Duration::from_secs(5);

/// How often a frame that waits for a style image looks whether it is cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(10);

impl Controls {
    pub fn set(&self, property: &Property, value: &Value) -> Pending {
        let mut values = lock(&self.values);
        (property.set)(&mut values.settings, value);
        values.changed = true;
        if property.spec.name() == "style-image" {
            values.style_generation += 1;
            let started = values.started_with.is_some();
            if started && !std::mem::replace(&mut values.style_loading, true) {
                return Pending::LoadStyle;
            }
        } else if let Some(started_with) = &values.started_with
            && property.spec.flags().contains(PARAM_FLAG_MUTABLE_READY)
        {
            let [set, in_use] = [&values.settings, started_with].map(property.get);
            if set.compare(&in_use) != Some(Ordering::Equal) {
                return Pending::Restart;
            }
        }
        Pending::Nothing
    }

    pub fn get(&self, property: &Property) -> Value {
        (property.get)(&lock(&self.values).settings)
    }

    pub fn stats(&self) -> Option<gst::Structure> {
        lock(&self.values).stats.clone()
    }

    pub fn weights_info(&self) -> Option<gst::Structure> {
        lock(&self.values).weights_info.clone()
    }

    pub fn set_weights_info(&self, info: gst::Structure) {
        lock(&self.values).weights_info = Some(info);
    }

    pub fn dump_folder(&self) -> Option<PathBuf> {
        lock(&self.values).settings.motion_dump.clone()
    }

    /// The settings to start with. From here on, a style image that is set is loaded at once.
    pub fn start(&self) -> Settings {
        let mut values = lock(&self.values);
        values.changed = false;
        values.next_style = None;
        values.stats = None;
        values.started_with = Some(values.settings.clone());
        values.settings.clone()
    }

    pub fn stop(&self) {
        let mut values = lock(&self.values);
        values.started_with = None;
        values.style_loading = false;
        values.next_style = None;
    }

    /// The settings, if any has been set since they were taken last.
    pub fn take_settings(&self) -> Option<Settings> {
        let mut values = lock(&self.values);
        let changed = std::mem::take(&mut values.changed);
        changed.then(|| values.settings.clone())
    }

    /// Has the settings taken again, as some were refused for a size that is not that of the next frame.
    pub fn apply_again(&self) {
        lock(&self.values).changed = true;
    }

    /// Waits until no style image is being loaded, or `cancelled`, but at most [`MAX_STYLE_WAIT`].
    pub fn await_style(&self, cancelled: impl Fn() -> bool) {
        let begun = Instant::now();
        let mut values = lock(&self.values);
        while values.style_loading && !cancelled() && begun.elapsed() < MAX_STYLE_WAIT {
            let waited = self.style_loaded.wait_timeout(values, CANCEL_INTERVAL);
            values = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The style image that has been loaded since the last frame, with its path.
    pub fn take_style(&self) -> Option<(PathBuf, StyleImage)> {
        lock(&self.values).next_style.take()
    }

    /// Keeps a frame's statistics. True if they are to be posted as a message.
    pub fn set_stats(&self, stats: gst::Structure) -> bool {
        let mut values = lock(&self.values);
        values.stats = Some(stats);
        values.settings.post_messages
    }

    /// Loads the latest style image for the next frame, and starts over if another one was set
    /// meanwhile. An error says why the latest cannot be used. The result is discarded if the element
    /// has stopped meanwhile, even if it was started again: that start loads the style image, too.
    pub fn load_style(
        &self,
        mut load: impl FnMut(Option<&Path>) -> Result<StyleImage, String>,
    ) -> Result<(), String> {
        loop {
            let (generation, path) = {
                let values = lock(&self.values);
                (values.style_generation, values.settings.style_image.clone())
            };
            let style = load(path.as_deref());
            let mut values = lock(&self.values);
            if !values.style_loading {
                return Ok(());
            }
            if generation == values.style_generation {
                values.style_loading = false;
                self.style_loaded.notify_all();
                values.next_style = path.zip(Some(style?));
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::PROPERTIES;
    use super::*;

    fn set(controls: &Controls, name: &str, value: impl Into<Value>) -> Pending {
        let property = PROPERTIES
            .iter()
            .find(|property| property.spec.name() == name);
        controls.set(property.unwrap(), &value.into())
    }

    #[test]
    fn one_thread_loads_until_it_has_the_latest_style() {
        gst::init().unwrap();
        let controls = Controls::default();
        assert_eq!(set(&controls, "style-image", "a"), Pending::Nothing);
        controls.start();
        assert_eq!(set(&controls, "style-image", "b"), Pending::LoadStyle);
        let (mut pending, mut loads) = (None, 0);
        let error = controls.load_style(|path| {
            pending.get_or_insert_with(|| set(&controls, "style-image", "c"));
            loads += 1;
            Err(path.unwrap().display().to_string())
        });
        assert_eq!((error, loads), (Err("c".into()), 2));
        assert_eq!(pending, Some(Pending::Nothing));
        assert_eq!(set(&controls, "style-image", "d"), Pending::LoadStyle);
        controls.stop();
        assert_eq!(controls.load_style(|_| Err("unused".into())), Ok(()));
    }

    #[test]
    fn a_style_that_loads_across_a_restart_is_discarded() {
        gst::init().unwrap();
        let controls = Controls::default();
        controls.start();
        assert_eq!(set(&controls, "style-image", "a"), Pending::LoadStyle);
        let mut later = None;
        let outcome = controls.load_style(|_| {
            controls.stop();
            controls.start();
            Err("unused".into())
        });
        assert_eq!(outcome, Ok(()));
        // What is set after the restart has a thread of its own.
        assert_eq!(set(&controls, "style-image", "b"), Pending::LoadStyle);
        let outcome = controls.load_style(|_| {
            if later.is_none() {
                controls.stop();
                controls.start();
                later = Some(set(&controls, "style-image", "c"));
            }
            Err("c".into())
        });
        assert_eq!(
            (outcome, later),
            (Err("c".into()), Some(Pending::LoadStyle))
        );
        assert_eq!(controls.load_style(|_| Err("c".into())), Ok(()), "once");
    }

    #[test]
    fn what_only_the_start_reads_needs_a_restart() {
        gst::init().unwrap();
        let controls = Controls::default();
        assert_eq!(set(&controls, "device", "cpu"), Pending::Nothing);
        controls.start();
        assert_eq!(set(&controls, "device", "cuda"), Pending::Restart);
        assert_eq!(set(&controls, "device", "cpu"), Pending::Nothing);
        assert_eq!(set(&controls, "weights", None::<&str>), Pending::Nothing);
        assert_eq!(set(&controls, "weights", "other"), Pending::Restart);
        assert_eq!(set(&controls, "alpha", 2.0), Pending::Nothing);
        assert_eq!(controls.take_settings().unwrap().alpha, 2.0);
        assert!(controls.take_settings().is_none());
    }

    #[test]
    fn a_value_that_means_what_is_in_use_needs_no_restart() {
        gst::init().unwrap();
        for unset in [None, Some("")] {
            let controls = Controls::default();
            set(&controls, "weights", unset);
            controls.start();
            for (property, value) in [
                ("weights", None),
                ("weights", Some("")),
                ("device", None),
                ("device", Some("auto")),
            ] {
                let pending = set(&controls, property, value);
                assert_eq!(pending, Pending::Nothing, "{property}={value:?}");
            }
        }
    }
}
