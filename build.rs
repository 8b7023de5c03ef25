// SPDX-License-Identifier: MPL-2.0

//! The commit and date that the plugin says of itself.

fn main() {
    gst_plugin_version_helper::info();
}
