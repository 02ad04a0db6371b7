//! The demo page, if it is part of the program.

/// The files of the page, which `build.rs` has found.
#[cfg(feature = "demo")]
pub(crate) const FILES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/page.rs"));
#[cfg(not(feature = "demo"))]
pub(crate) const FILES: &[(&str, &[u8])] = &[];
