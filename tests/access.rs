//! Who may use a server, as its clients see it: lists, tokens, a hook, quotas, and TURN credentials.

use std::{
    convert::Infallible,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{
    AsyncWriteExt as _,
    future::{BoxFuture, FutureExt as _},
};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use throughline::{
    Cause, Config, Connector, Error, ErrorKind, Identity, RelayTokens, Strategy,
    server::{AccessMode, NewToken, ScoreSource, Scores, Server, ServerConfig, TokenKey},
};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};

use common::{PATIENCE, config, echoed, echoing, exchange, peer, server_config, until, until_some};

mod common;

const HOUR: Duration = Duration::from_secs(3600);

async fn start(edit: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = server_config();
    config.autonat.allow_private = true;
    edit(&mut config);
    Server::start(config).await.unwrap()
}

/// A peer that uses only the relay, so that its bytes go through it.
fn relayed(server: &Server) -> Config {
    let mut config = config();
    config.relays = server.addresses().to_vec();
    config.direct = false;
    config
}

fn with_token(server: &Server, token: impl Into<RelayTokens>) -> Config {
    let mut config = relayed(server);
    config.relay_tokens = Some(token.into());
    config
}

async fn bind(config: Config) -> Result<Connector, Error> {
    let bound = Connector::builder().config(config).bind();
    timeout(PATIENCE, bound).await.expect("an answer")
}

async fn refusal(config: Config) -> Error {
    bind(config).await.expect_err("it is refused")
}

fn counted(server: &Server, line: &str) -> bool {
    server.metrics().lines().any(|known| known == line)
}

/// The operator's key, and a server that takes its tokens.
struct Operator {
    key: TokenKey,
    home: tempfile::TempDir,
    server: Server,
}

impl Operator {
    async fn new(edit: impl FnOnce(&mut ServerConfig, &Path)) -> Self {
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

    fn token(&self, edit: impl FnOnce(&mut NewToken)) -> String {
        let mut token = NewToken::new("alice", HOUR);
        edit(&mut token);
        self.key.sign(&token).unwrap()
    }
}

#[tokio::test]
async fn a_list_decides_who_may_reserve_and_a_change_counts() {
    let home = tempfile::tempdir().unwrap();
    let list = home.path().join("peers");
    let (alice, bob) = (Identity::generate(), Identity::generate());
    std::fs::write(&list, alice.peer_id().to_string()).unwrap();
    let server = start(|config| {
        config.access.mode = Some(AccessMode::List);
        config.access.list = Some(list.clone());
    });
    let server = server.await;
    let as_peer = |identity: &Identity| {
        let builder = Connector::builder().config(relayed(&server));
        builder.identity(identity.clone()).bind()
    };
    let first = as_peer(&alice).await.unwrap();
    let error = as_peer(&bob).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
    assert!(error.message().contains("does not admit us"), "{error}");
    std::fs::write(&list, bob.peer_id().to_string()).unwrap();
    server.reload_access();
    until(|| counted(&server, "throughline_relay_reservations 0")).await;
    let second = as_peer(&bob).await.unwrap();
    assert!(!second.ticket().relays().is_empty());
    assert!(as_peer(&alice).await.is_err());
    first.close().await;
}

#[tokio::test]
async fn who_is_denied_asks_once() {
    let home = tempfile::tempdir().unwrap();
    let list = home.path().join("peers");
    std::fs::write(&list, "").unwrap();
    let closed = start(|config| {
        config.access.mode = Some(AccessMode::List);
        config.access.list = Some(list.clone());
    });
    let closed = closed.await;
    let open = common::relay().await;
    let mut both = relayed(&closed);
    both.relays.extend_from_slice(open.addresses());
    both.relay_reservations = 2;
    let me = bind(both.clone()).await.unwrap();
    let denied = "throughline_relay_reservation_requests_total{outcome=\"denied\"}";
    until(|| counted(&closed, &format!("{denied} 1"))).await;
    // Another peer comes and goes in the time in which a loop would ask again and again.
    let mut other = relayed(&open);
    other.connect_timeout = PATIENCE;
    for _ in 0..20 {
        let other = bind(other.clone()).await.unwrap();
        let connection = other.connect(&me.ticket()).await.unwrap();
        connection.close().await;
        other.close().await;
    }
    assert!(
        counted(&closed, &format!("{denied} 1")),
        "{}",
        closed.metrics()
    );
    let report = me.report().await.unwrap();
    let errors: Vec<_> = report
        .relays
        .iter()
        .filter_map(|relay| relay.last_error.as_deref())
        .collect();
    assert_eq!(errors, ["the relay does not admit us"]);
}

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

/// How a hook answers.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Allow,
    Deny,
    Quota,
    Garbage,
    Hang,
}

/// The operator's program. It keeps what it is asked.
struct Hook {
    url: String,
    mood: tokio::sync::watch::Sender<Mood>,
    asked: tokio::sync::watch::Sender<Vec<serde_json::Value>>,
    task: JoinHandle<()>,
}

impl Hook {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/may-use", listener.local_addr().unwrap());
        let mood = tokio::sync::watch::Sender::new(Mood::Allow);
        let asked = tokio::sync::watch::Sender::default();
        let (told, keeps) = (mood.clone(), asked.clone());
        let task = tokio::spawn(async move {
            // Connections end with the program.
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (told, keeps) = (told.clone(), keeps.clone());
                let service =
                    service_fn(move |request| answer(request, told.clone(), keeps.clone()));
                connections
                    .spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            url,
            mood,
            asked,
            task,
        }
    }

    /// A server that asks this hook, and asks again each time.
    async fn server(&self, edit: impl FnOnce(&mut ServerConfig)) -> Server {
        start(|config| {
            config.access.mode = Some(AccessMode::Hook);
            config.access.hook.url = Some(self.url.clone());
            config.access.hook.fresh_seconds = 0;
            edit(config);
        })
        .await
    }

    fn count(&self) -> usize {
        self.asked.borrow().len()
    }
}

async fn answer(
    request: Request<Incoming>,
    mood: tokio::sync::watch::Sender<Mood>,
    asked: tokio::sync::watch::Sender<Vec<serde_json::Value>>,
) -> Result<Response<axum::body::Body>, Infallible> {
    assert_eq!(
        (request.method().as_str(), request.uri().path()),
        ("POST", "/may-use")
    );
    let body = axum::body::Body::new(request.into_body());
    let body = axum::body::to_bytes(body, 1 << 16).await.unwrap();
    asked.send_modify(|asked| asked.push(serde_json::from_slice(&body).unwrap()));
    let mood = *mood.borrow();
    let answer = match mood {
        Mood::Allow => r#"{"allow":true,"name":"alice"}"#,
        Mood::Deny => r#"{"allow":false}"#,
        Mood::Quota => r#"{"allow":false,"reason":"quota","seconds":90}"#,
        Mood::Garbage => "<html>",
        Mood::Hang => std::future::pending().await,
    };
    Ok(Response::new(answer.into()))
}

#[tokio::test]
async fn a_hook_sees_who_asks_and_decides() {
    let hook = Hook::start().await;
    let server = hook.server(|_| {}).await;
    let identity = Identity::generate();
    let me = Connector::builder().config(with_token(&server, "my token"));
    let me = me.identity(identity.clone()).bind().await.unwrap();
    let asked = hook.asked.borrow()[0].clone();
    let expected = serde_json::json!({
        "peer": identity.peer_id().to_string(),
        "address": "127.0.0.1",
        "token": "my token",
        "what": "reservation",
        "turn": false,
    });
    assert_eq!(asked, expected);
    for (mood, kind) in [
        (Mood::Deny, ErrorKind::AccessDenied),
        (Mood::Quota, ErrorKind::QuotaExceeded),
        (Mood::Garbage, ErrorKind::LimitExceeded),
    ] {
        hook.mood.send_replace(mood);
        let error = refusal(relayed(&server)).await;
        assert_eq!(error.kind(), kind, "{error}");
        // A stock request for a reservation has no room for the time.
        assert_eq!(error.retry_after(), None);
        let error = refusal(with_token(&server, "another token")).await;
        let ends = (mood == Mood::Quota).then_some(Duration::from_secs(90));
        assert_eq!((error.kind(), error.retry_after()), (kind, ends), "{error}");
    }
    drop(me);
}

#[tokio::test]
async fn the_last_answer_counts_while_the_hook_is_away_and_nobody_waits_for_it() {
    let hook = Hook::start().await;
    let server = hook
        .server(|config| config.access.hook.timeout_ms = 1000)
        .await;
    let identity = Identity::generate();
    let come = || {
        let builder = Connector::builder().config(with_token(&server, "token"));
        builder.identity(identity.clone()).bind()
    };
    let known = come().await.unwrap();
    hook.mood.send_replace(Mood::Hang);
    // While a stranger waits for its answer, others are served at once.
    let stranger = tokio::spawn(refusal(with_token(&server, "other token")));
    let mut asked = hook.asked.subscribe();
    asked.wait_for(|asked| asked.len() == 2).await.unwrap();
    let mut visitor = relayed(&server);
    visitor.reserve = false;
    let visited = peer(visitor).await.connect(&known.ticket()).await;
    visited.unwrap();
    assert!(!stranger.is_finished(), "the hook has a second");
    assert_eq!(stranger.await.unwrap().kind(), ErrorKind::LimitExceeded);
    known.close().await;
    come().await.unwrap().close().await;
    // Now it is gone altogether.
    hook.task.abort();
    let asked = hook.count();
    come().await.unwrap();
    assert_eq!(hook.count(), asked);
    let error = refusal(with_token(&server, "other token")).await;
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
}

#[tokio::test]
async fn fresh_answers_are_not_asked_for_again() {
    let hook = Hook::start().await;
    let server = hook
        .server(|config| config.access.hook.fresh_seconds = 60)
        .await;
    let identity = Identity::generate();
    for _ in 0..2 {
        let builder = Connector::builder().config(with_token(&server, "token"));
        let me = builder.identity(identity.clone()).bind().await.unwrap();
        me.close().await;
    }
    assert_eq!(hook.count(), 1);
}

fn get(url: &str, path: &str) -> String {
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_admitted_gets_turn_credentials_and_nobody_else() {
    for open in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let list = home.path().join("peers");
        let (alice, bob) = (Identity::generate(), Identity::generate());
        let all: Vec<_> = [&alice, &bob].map(|peer| peer.peer_id().to_string()).into();
        std::fs::write(&list, all.join("\n")).unwrap();
        let server = start(|config| {
            config.turn.secret = Some("secret".into());
            if !open {
                config.access.mode = Some(AccessMode::List);
                config.access.list = Some(list.clone());
            }
        });
        let server = server.await;
        let page = tokio::task::block_in_place(|| get(server.http_url(), "/config.json"));
        assert_eq!(page.contains("\"credential\""), open, "{page}");
        let bind = |identity: Identity| {
            let mut config = relayed(&server);
            config.direct = true;
            // These peers are direct before a server would be asked.
            config.start_delays.turn = Duration::ZERO;
            Connector::builder()
                .config(config)
                .identity(identity)
                .bind()
        };
        let bob = bind(bob).await.unwrap();
        let alice = bind(alice).await.unwrap();
        for peer in [&alice, &bob] {
            until_some(async || {
                let report = peer.report().await.unwrap();
                report.strategies.contains(&Strategy::Turn).then_some(())
            })
            .await;
        }
        let connection = alice.connect(&bob.ticket()).await.unwrap();
        let granted = "throughline_turn_requests_total{outcome=\"granted\"}";
        until(|| server.metrics().contains(granted)).await;
        drop(connection);
    }
}

/// A source of scores over HTTP. It has an ETag, and counts the questions.
async fn oracle(body: String) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/scores", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let body = body.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                assert_eq!(request.uri().path(), "/scores");
                let known = request.headers().get("if-none-match");
                let is_known = known.is_some_and(|tag| tag == "\"7\"");
                let answer = Response::builder().header("etag", "\"7\"");
                let answer = match is_known {
                    true => answer.status(304).body(axum::body::Body::empty()),
                    false => answer.body(body.clone().into()),
                };
                std::future::ready(answer)
            });
            let serve = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            connections.spawn(serve);
        }
    });
    (url, task)
}

#[tokio::test]
async fn scores_decide_and_the_last_ones_count_while_there_are_none() {
    let (alice, bob) = (Identity::generate(), Identity::generate());
    let scores = serde_json::json!({ "peers": { alice.peer_id().to_string(): -60 } });
    let (url, task) = oracle(scores.to_string()).await;
    let server = start(|config| {
        config.reputation.url = Some(url);
        config.reputation.interval_seconds = 1;
    });
    let server = server.await;
    let synced = |outcome: &str| {
        let line = format!("throughline_reputation_syncs_total{{outcome=\"{outcome}\"}}");
        server.metrics().contains(&line)
    };
    until(|| synced("new")).await;
    let come = |identity: &Identity| {
        let builder = Connector::builder().config(relayed(&server));
        builder.identity(identity.clone()).bind()
    };
    let denied = come(&alice).await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::AccessDenied, "{denied}");
    come(&bob).await.unwrap();
    until(|| synced("same")).await;
    task.abort();
    until(|| synced("failed")).await;
    let denied = come(&alice).await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::AccessDenied, "{denied}");
    let metrics = server.metrics();
    let refused = "throughline_reputation_decisions_total{outcome=\"refused\"}";
    assert!(metrics.contains(refused), "{metrics}");
    let age = metrics.lines().find_map(|line| {
        let age = line.strip_prefix("throughline_reputation_age_seconds ")?;
        age.parse::<f64>().ok()
    });
    assert!(age.is_some_and(|age| age > 0.0), "{metrics}");
}

/// The scores of a program.
struct Fixed(Scores);

impl ScoreSource for Fixed {
    fn scores<'a>(
        &'a self,
        version: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<Scores>, Error>> {
        let scores = version.is_none().then(|| self.0.clone());
        async { Ok(scores) }.boxed()
    }
}

#[tokio::test]
async fn a_peer_with_a_low_score_is_slow() {
    let identity = Identity::generate();
    let mut scores = Scores::default();
    scores.set_peer(&identity.peer_id(), -20);
    scores.version = Some("1".into());
    let mut config = server_config();
    config.reputation.slow_rate = 200_000;
    let server = Server::start_with_scores(config, Arc::new(Fixed(scores)));
    let server = server.await.unwrap();
    until(|| {
        counted(
            &server,
            "throughline_reputation_syncs_total{outcome=\"new\"} 1",
        )
    })
    .await;
    let bob = echoing(relayed(&server)).await;
    let mut visitor = relayed(&server);
    visitor.reserve = false;
    let me = Connector::builder().config(visitor).identity(identity);
    let me = me.bind().await.unwrap();
    let connection = me.connect(&bob.ticket()).await.unwrap();
    let mut stream = connection.open("echo/1").await.unwrap();
    let begun = std::time::Instant::now();
    exchange(&mut stream, &[7; 150_000]).await.unwrap();
    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_peer_that_floods_is_refused_for_a_while() {
    let server = start(|config| {
        config.reputation.observe = true;
        config.reputation.refuse_below = -3;
        config.relay.circuit_burst = 1.try_into().unwrap();
    });
    let server = server.await;
    let bob = echoing(relayed(&server)).await;
    let mut visitor = relayed(&server);
    visitor.reserve = false;
    visitor.connect_timeout = Duration::from_secs(2);
    let me = peer(visitor).await;
    let mut kinds = Vec::new();
    while !kinds.contains(&Some(ErrorKind::AccessDenied)) {
        assert!(kinds.len() < 50, "{kinds:?}");
        let connected = me.connect(&bob.ticket()).await;
        kinds.push(connected.as_ref().err().map(Error::kind));
        if let Ok(connection) = connected {
            connection.close().await;
        }
    }
    // Others are not to blame.
    let mut other = relayed(&server);
    other.reserve = false;
    peer(other).await.connect(&bob.ticket()).await.unwrap();
}
