//! Tokens of the operator: whom they admit, for how long, and how much they may take.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::AsyncWriteExt as _;
use throughline::{
    Cause, Connector, Error, ErrorKind, Identity, RelayTokens, Strategy,
    server::{NewToken, TokenKey},
};
use tokio::time::timeout;

use super::{
    HOUR, Operator, PATIENCE, bind,
    common::{self, echoed, echoing, peer, until},
    refusal, relayed, with_token,
};

#[tokio::test]
async fn a_token_admits_and_everything_else_does_not() {
    let Operator {
        key,
        server,
        home: _home,
    } = Operator::new(|_, _| {}).await;
    let stranger = TokenKey::load_or_create(_home.path().join("other.pem")).unwrap();
    let month = NewToken::new("alice", HOUR);
    let mut bound = month.clone();
    bound.peer = Some(Identity::generate().peer_id());
    let good = key.sign(&month).unwrap();
    let (head, rest) = good.split_once('.').unwrap();
    let none = data_encoding::BASE64URL_NOPAD.encode(br#"{"alg":"none"}"#);
    let unsigned = format!("{none}.{}.", rest.split('.').next().unwrap());
    for token in [
        stranger.sign(&month).unwrap(),
        key.sign(&bound).unwrap(),
        unsigned,
        format!("{head}.{head}.{head}"),
        "no token".to_owned(),
    ] {
        let error = refusal(with_token(&server, token.as_str())).await;
        assert_eq!(error.kind(), ErrorKind::AccessDenied, "{token}: {error}");
        assert!(!error.to_string().contains(&token), "a token is a secret");
    }
    let error = refusal(relayed(&server)).await;
    assert_eq!(error.kind(), ErrorKind::AccessDenied);
    let long = refusal(with_token(&server, "x".repeat(4097))).await;
    assert_eq!(long.kind(), ErrorKind::InvalidConfig, "{long}");
    let fetched = RelayTokens::from_fn(|| async { Ok("x".repeat(4097)) });
    let error = refusal(with_token(&server, fetched)).await;
    assert_eq!(error.kind(), ErrorKind::NoRelay);
    assert!(error.to_string().contains("1 to 4096 bytes"), "{error}");

    let alice = bind(with_token(&server, good.as_str())).await.unwrap();
    let metrics = server.metrics();
    assert!(!metrics.contains("alice") && !format!("{alice:?}").contains(&good));
    // The right peer may use a token that is bound to it.
    let bob = Identity::generate();
    bound.peer = Some(bob.peer_id());
    let token = key.sign(&bound).unwrap();
    let builder = Connector::builder().config(with_token(&server, token));
    builder.identity(bob).bind().await.unwrap();
}

#[tokio::test]
async fn a_token_is_fetched_for_each_link() {
    let operator = Operator::new(|_, _| {}).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let token = operator.token(|_| {});
    let counter = calls.clone();
    let fetch = RelayTokens::from_fn(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        let token = token.clone();
        async move { Ok(token) }
    });
    let me = bind(with_token(&operator.server, fetch)).await.unwrap();
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    me.close().await;
    let failing = || async { Err(Error::new(ErrorKind::Io, "the back end is down")) };
    let error = refusal(with_token(&operator.server, RelayTokens::from_fn(failing))).await;
    assert_eq!(error.kind(), ErrorKind::NoRelay);
    assert!(error.message().contains("the back end is down"), "{error}");
}

#[tokio::test]
async fn an_open_relay_is_shown_no_token() {
    let open = common::relay().await;
    let fetch = RelayTokens::from_fn(|| async { panic!("nobody asks for it") });
    bind(with_token(&open, fetch)).await.unwrap();
}

#[tokio::test]
async fn a_revoked_token_ends_what_it_gave() {
    let operator = Operator::new(|config, home| {
        let revoked = home.join("revoked");
        std::fs::write(&revoked, "").unwrap();
        config.access.revoked = Some(revoked);
    });
    let operator = operator.await;
    let token = operator.token(|_| {});
    let me = bind(with_token(&operator.server, token.as_str()))
        .await
        .unwrap();
    let claims = token.split('.').nth(1).unwrap().as_bytes();
    let claims = data_encoding::BASE64URL_NOPAD.decode(claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    let id = claims["jti"].as_str().unwrap();
    std::fs::write(operator.home.path().join("revoked"), id).unwrap();
    operator.server.reload_access();
    until(|| me.ticket().relays().is_empty()).await;
    let error = refusal(with_token(&operator.server, token)).await;
    assert_eq!(error.kind(), ErrorKind::AccessDenied);
    let other = operator.token(|_| {});
    bind(with_token(&operator.server, other)).await.unwrap();
}

#[tokio::test]
async fn a_dialler_needs_a_token_only_where_the_operator_wants_it() {
    for dialers in [false, true] {
        let operator = Operator::new(|config, _| config.access.dialers = dialers).await;
        let token = operator.token(|_| {});
        let bob = echoing(with_token(&operator.server, token.as_str())).await;
        let mut visitor = relayed(&operator.server);
        visitor.reserve = false;
        visitor.connect_timeout = Duration::from_secs(5);
        let visited = peer(visitor).await.connect(&bob.ticket()).await;
        if !dialers {
            echoed(&visited.unwrap()).await;
            continue;
        }
        let error = visited.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
        let attempt = &error.attempts()[0];
        assert_eq!(attempt.strategy, Strategy::CircuitRelay);
        assert_eq!(attempt.cause, Some(Cause::Denied));
        for reserve in [true, false] {
            let mut visitor = with_token(&operator.server, token.as_str());
            visitor.reserve = reserve;
            let alice = bind(visitor).await.unwrap();
            let connection = alice.connect(&bob.ticket()).await.unwrap();
            echoed(&connection).await;
        }
    }
}

#[tokio::test]
async fn a_quota_ends_circuits_and_says_when_it_begins_anew() {
    let operator = Operator::new(|_, _| {}).await;
    let token = operator.token(|token| token.quota = Some("300kB/day".into()));
    let bob = echoing(with_token(&operator.server, token.as_str())).await;
    let mut visitor = relayed(&operator.server);
    visitor.reserve = false;
    visitor.resume_timeout = Duration::ZERO;
    visitor.connect_timeout = Duration::from_secs(5);
    let alice = peer(visitor).await;
    let connection = alice.connect(&bob.ticket()).await.unwrap();
    let mut stream = connection.open("echo/1").await.unwrap();
    let sent = async {
        loop {
            if stream.write_all(&[7; 16 * 1024]).await.is_err() {
                return;
            }
        }
    };
    timeout(PATIENCE, sent).await.expect("the quota ends");
    let again = alice.connect(&bob.ticket()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::QuotaExceeded, "{again}");
    assert_eq!(again.attempts()[0].cause, Some(Cause::Quota));
    let error = refusal(with_token(&operator.server, token)).await;
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
    let ends = error.retry_after().unwrap();
    assert!(ends <= 24 * HOUR, "{ends:?}");
}
