//! Who may use a server, as its clients see it: lists, tokens, a hook, quotas, and TURN credentials.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `lists` | a list of peers, and credentials for TURN |
//! | `tokens` | tokens of the operator |
//! | `hook` | a program of the operator |
//! | `scores` | what is thought of peers |

use std::{path::Path, time::Duration};

use throughline::{
    Config, Connector, Error, RelayTokens,
    server::{AccessMode, NewToken, Server, ServerConfig, TokenKey},
};
use tokio::time::timeout;

use common::{PATIENCE, config, server_config};

#[path = "../common/mod.rs"]
mod common;
mod hook;
mod lists;
mod scores;
mod tokens;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) async fn start(edit: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = server_config();
    config.autonat.allow_private = true;
    edit(&mut config);
    Server::start(config).await.unwrap()
}

/// A peer that uses only the relay, so that its bytes go through it.
pub(crate) fn relayed(server: &Server) -> Config {
    let mut config = config();
    config.relays = server.addresses().to_vec();
    config.direct = false;
    config
}

pub(crate) fn with_token(server: &Server, token: impl Into<RelayTokens>) -> Config {
    let mut config = relayed(server);
    config.relay_tokens = Some(token.into());
    config
}

pub(crate) async fn bind(config: Config) -> Result<Connector, Error> {
    let bound = Connector::builder().config(config).bind();
    timeout(PATIENCE, bound).await.expect("an answer")
}

pub(crate) async fn refusal(config: Config) -> Error {
    bind(config).await.expect_err("it is refused")
}

pub(crate) fn counted(server: &Server, line: &str) -> bool {
    server.metrics().lines().any(|known| known == line)
}

/// The operator's key, and a server that takes its tokens.
pub(crate) struct Operator {
    pub(crate) key: TokenKey,
    pub(crate) home: tempfile::TempDir,
    pub(crate) server: Server,
}

impl Operator {
    pub(crate) async fn new(edit: impl FnOnce(&mut ServerConfig, &Path)) -> Self {
        let home = tempfile::tempdir().unwrap();
        let key = TokenKey::load_or_create(home.path().join("key.pem")).unwrap();
        let server = start(|config| {
            config.access.mode = Some(AccessMode::Token);
            config.access.keys = vec![key.public()];
            edit(config, home.path());
        });
        let server = server.await;
        Self { key, home, server }
    }

    pub(crate) fn token(&self, edit: impl FnOnce(&mut NewToken)) -> String {
        let mut token = NewToken::new("alice", HOUR);
        edit(&mut token);
        self.key.sign(&token).unwrap()
    }
}
