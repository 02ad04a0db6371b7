//! The examples, run between two peers and a relay on loopback.
#![allow(
    dead_code,
    reason = "the programs around the functions of the examples"
)]

use throughline::{Config, Connector};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

mod common;
use common::{PATIENCE, config, peer, relay};

#[path = "../examples/chat.rs"]
mod chat;
#[path = "../examples/echo.rs"]
mod echo;
#[path = "../examples/file_drop.rs"]
mod file_drop;
#[path = "../examples/page_backend.rs"]
mod page_backend;

/// Starts a peer that is reached through the relay, and one that only connects.
async fn pair(relay: &throughline::server::Server) -> (Connector, Connector) {
    let mut reached: Config = config();
    reached.relays = relay.addresses().to_vec();
    let mut calls = config();
    calls.reserve = false;
    (peer(reached).await, peer(calls).await)
}

#[tokio::test]
async fn an_echo_comes_back() {
    let relay = relay().await;
    let (service, client) = pair(&relay).await;
    let ticket = service.ticket();
    tokio::spawn(async move { echo::serve(&service).await });
    for text in ["hello", ""] {
        let called = timeout(PATIENCE, echo::call(&client, &ticket, text)).await;
        assert_eq!(called.unwrap().unwrap(), text);
    }
}

#[tokio::test]
async fn a_chat_shows_each_line_without_control_characters() {
    let relay = relay().await;
    let (waits, calls) = pair(&relay).await;
    let talk = async {
        let connection = calls.connect(&waits.ticket()).await.unwrap();
        let stream = connection.open(chat::PROTOCOL).await.unwrap();
        let (mut heard, mut here) = (Vec::new(), Vec::new());
        let there = async {
            let stream = chat::accept(&waits).await.unwrap();
            chat::talk(stream, &b"hi\n"[..], &mut here).await
        };
        let talk = chat::talk(stream, &b"hello\nb\x1b[ye\n"[..], &mut heard);
        tokio::try_join!(talk, there).unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), "> hi\n");
        assert_eq!(String::from_utf8(here).unwrap(), "> hello\n> b[ye\n");
    };
    timeout(PATIENCE, talk).await.unwrap();
}

#[tokio::test]
async fn a_file_is_dropped_and_not_overwritten() {
    let relay = relay().await;
    let (takes, drops) = pair(&relay).await;
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = from.path().join("report.bin");
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    std::fs::write(&file, &bytes).unwrap();
    let dropped = async {
        let ticket = takes.ticket();
        let take = async {
            let connection = takes.accept().await.unwrap();
            file_drop::take(&connection, to.path()).await.unwrap();
            // A file with this name exists now.
            file_drop::take(&connection, to.path()).await.unwrap_err();
        };
        let drop = async {
            let sent = file_drop::drop_file(&drops, &ticket, &file).await;
            sent.unwrap();
            let again = file_drop::drop_file(&drops, &ticket, &file).await;
            again.unwrap_err();
        };
        tokio::join!(take, drop);
    };
    timeout(PATIENCE, dropped).await.unwrap();
    assert!(std::fs::read(to.path().join("report.bin")).unwrap() == bytes);
}

#[tokio::test]
async fn the_backend_greets_a_page() {
    let relay = relay().await;
    let (backend, page) = pair(&relay).await;
    let ticket = backend.ticket();
    tokio::spawn(async move { page_backend::serve(&backend).await });
    let visit = async {
        let (_connection, mut stream) = page.open(&ticket, "visit/1").await.unwrap();
        stream.write_all(br#"{"name":"Ada"}"#).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("Hello, Ada!"), "{answer}");
    };
    timeout(PATIENCE, visit).await.unwrap();
}
