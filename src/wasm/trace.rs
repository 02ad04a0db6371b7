//! Stands in for the spans of the log. A page has no log, because the package is built without log
//! messages.
//!
//! `native/trace.rs` has the same signatures.

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::PeerId;

use crate::{core::plan::AttemptId, event::PathEvent};

/// No span.
pub(crate) struct Span;

/// No entered span.
pub(crate) struct Entered;

impl Span {
    pub(crate) fn in_scope<T>(&self, act: impl FnOnce() -> T) -> T {
        act()
    }
}

pub(crate) fn peer(_: &PeerId) -> Span {
    Span
}

pub(crate) fn connection(_: &PeerId) -> Span {
    Span
}

pub(crate) fn attempt(_: AttemptId) -> Span {
    Span
}

pub(crate) fn enter(_: &Span) -> Entered {
    Entered
}

pub(crate) fn within(
    _: &Span,
    task: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, ()> {
    task.boxed()
}

pub(crate) fn tell(_: &PathEvent) {}
