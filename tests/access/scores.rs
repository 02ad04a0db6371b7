//! What is thought of peers decides.

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, FutureExt as _};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use throughline::{
    Connector, Error, ErrorKind, Identity,
    server::{ScoreSource, Scores, Server},
};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    common::{echoing, exchange, peer, until, until_polled},
    counted, relayed, server_config, start,
};

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

#[tokio::test]
async fn scores_count_over_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let alice = Identity::generate();
    let scores = serde_json::json!({ "peers": { alice.peer_id().to_string(): -60 } });
    let (url, task) = oracle(scores.to_string()).await;
    let data = home.path().join("data");
    let serve = || {
        start(|config| {
            config.data = Some(data.clone());
            config.reputation.url = Some(url.clone());
        })
    };
    let synced = |server: &Server, outcome: &str| {
        let line = format!("throughline_reputation_syncs_total{{outcome=\"{outcome}\"}}");
        server.metrics().contains(&line)
    };
    let server = serve().await;
    until(|| synced(&server, "new")).await;
    until_polled(|| data.join("scores.json").exists()).await;
    server.shutdown().await;
    task.abort();
    let server = serve().await;
    until(|| synced(&server, "failed")).await;
    let builder = Connector::builder().config(relayed(&server));
    let denied = builder.identity(alice).bind().await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::AccessDenied, "{denied}");
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
