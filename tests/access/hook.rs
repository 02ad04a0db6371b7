//! A program of the operator decides.

use std::{convert::Infallible, time::Duration};

use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use throughline::{
    Connector, ErrorKind, Identity,
    server::{AccessMode, Server, ServerConfig},
};
use tokio::{net::TcpListener, task::JoinHandle};

use super::{common::peer, refusal, relayed, start, with_token};

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
