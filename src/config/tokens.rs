//! The token that a peer shows its relays.

use std::{fmt, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    core::access::MAX_TOKEN,
    error::{Error, ErrorKind},
};

/// A token of the operator of the relays, or a way to get one.
///
/// Every relay of the configuration that asks for tokens gets it, over the authenticated link, and
/// no relay that only a ticket names. `Debug` never prints it.
///
/// ```
/// use throughline::{Config, RelayTokens};
///
/// let mut config = Config::default();
/// config.relay_tokens = Some("eyJhbGciOiJFZERTQSJ9…".into());
///
/// // An application's own back end makes a token when one is needed.
/// async fn fetch_token() -> Result<String, throughline::Error> {
///     # Ok(String::new())
/// }
/// config.relay_tokens = Some(RelayTokens::from_fn(fetch_token));
/// ```
#[derive(Clone)]
pub struct RelayTokens(Source);

type Fetch = dyn Fn() -> BoxFuture<'static, Result<String, Error>> + Send + Sync;

#[derive(Clone)]
enum Source {
    Fixed(String),
    Fetched(Arc<Fetch>),
}

impl RelayTokens {
    /// Calls `fetch` for each link to a relay that asks for tokens, and again shortly before the
    /// token ends that it gave. A call that takes longer than
    /// [`Config::relay_timeout`](crate::Config::relay_timeout) counts as failed, and so does one that
    /// gives no token of 1 to 4096 bytes.
    pub fn from_fn<F>(fetch: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<String, Error>> + Send + 'static,
    {
        Self(Source::Fetched(Arc::new(move || fetch().boxed())))
    }

    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if the length of the token is out of its range, and the error of a
    /// call that failed.
    pub(crate) async fn get(&self) -> Result<String, Error> {
        let token = match &self.0 {
            Source::Fixed(token) => token.clone(),
            Source::Fetched(fetch) => fetch().await?,
        };
        check(&token)?;
        Ok(token)
    }

    /// The token, if it is fixed.
    pub(super) fn fixed(&self) -> Option<&str> {
        match &self.0 {
            Source::Fixed(token) => Some(token),
            Source::Fetched(_) => None,
        }
    }
}

/// # Errors
/// [`ErrorKind::InvalidConfig`] if a relay would not read a token of this length.
pub(super) fn check(token: &str) -> Result<(), Error> {
    if (1..=MAX_TOKEN).contains(&token.len()) {
        return Ok(());
    }
    let message = format!("relay_tokens: a token has 1 to {MAX_TOKEN} bytes");
    Err(Error::new(ErrorKind::InvalidConfig, message))
}

impl From<String> for RelayTokens {
    fn from(token: String) -> Self {
        Self(Source::Fixed(token))
    }
}

impl From<&str> for RelayTokens {
    fn from(token: &str) -> Self {
        token.to_owned().into()
    }
}

impl PartialEq for RelayTokens {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Source::Fixed(one), Source::Fixed(other)) => one == other,
            (Source::Fetched(one), Source::Fetched(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl fmt::Debug for RelayTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayTokens").finish_non_exhaustive()
    }
}

/// A token that is fetched has no text.
impl Serialize for RelayTokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.fixed().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RelayTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}
