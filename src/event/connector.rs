//! The events of a connector, which concern no single connection.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use serde::Serialize;

use super::millis;
#[cfg(doc)]
use crate::error::ErrorKind;

/// An event of a connector, from [`Connector::events`](crate::Connector::events).
///
/// ```no_run
/// use throughline::ConnectorEvent;
///
/// fn describe(event: &ConnectorEvent) -> String {
///     match event {
///         ConnectorEvent::Quota { left, total, ends, .. } => {
///             format!("{left} of {total} bytes are left until {ends:?} from now")
///         }
///         other => format!("{other:?}"),
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConnectorEvent {
    /// A relay says that this peer's quota there is nearly used up, or is. When nothing is left, the
    /// relay ends circuits to this peer and refuses new ones, with
    /// [`QuotaExceeded`](ErrorKind::QuotaExceeded).
    #[non_exhaustive]
    Quota {
        /// The peer id of the relay.
        relay: String,
        /// How many bytes the relay still carries.
        left: u64,
        /// How many bytes it carries in each period.
        total: u64,
        /// How long the quota is a day's, or a month's.
        period: QuotaPeriod,
        /// When the quota begins anew, from now.
        #[serde(rename = "ends_ms", serialize_with = "millis")]
        ends: Duration,
    },
    /// The reader was too slow and missed this many events.
    #[non_exhaustive]
    Lagged {
        /// How many events were dropped.
        missed: u64,
    },
}

/// How long a quota lasts, in universal time.
///
/// ```
/// use throughline::QuotaPeriod;
///
/// assert_eq!(QuotaPeriod::Month.as_str(), "month");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum QuotaPeriod {
    /// A day.
    Day,
    /// A month of the calendar.
    Month,
}

impl QuotaPeriod {
    /// Returns the stable snake-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

/// The stream of a connector's [`ConnectorEvent`]s. It ends when the connector is closed.
///
/// # Cancel safety
/// Waiting for the next event is cancel safe: no event is lost.
///
/// # Drop
/// Dropping it unsubscribes.
///
/// ```no_run
/// use futures::StreamExt as _;
/// use throughline::{Connector, ConnectorEvent};
///
/// /// Waits for the first word of a relay about the quota.
/// async fn warned(connector: &Connector) -> Option<u64> {
///     let mut events = connector.events();
///     while let Some(event) = events.next().await {
///         if let ConnectorEvent::Quota { left, .. } = event {
///             return Some(left);
///         }
///     }
///     None
/// }
/// ```
pub struct ConnectorEvents(BoxStream<'static, ConnectorEvent>);

impl ConnectorEvents {
    pub(crate) fn new(stream: impl Stream<Item = ConnectorEvent> + Send + 'static) -> Self {
        Self(stream.boxed())
    }
}

impl Stream for ConnectorEvents {
    type Item = ConnectorEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ConnectorEvent>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for ConnectorEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectorEvents").finish_non_exhaustive()
    }
}
