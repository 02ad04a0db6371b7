//! The backend of a web page, behind a NAT of its own: it counts visits and greets.
//!
//! ```text
//! throughline serve                                               # prints a relay's addresses
//! cargo run --example page_backend -- IDENTITY_FILE RELAY...      # prints a ticket
//! ```
//!
//! The page gets the ticket from the web server that it comes from:
//!
//! ```js
//! const me = await Connector.create({ relay: "relay.example.org" });
//! const connection = await me.connect(ticket);
//! const { readable, writable } = await connection.open("visit/1");
//! await new Blob([JSON.stringify({ name: "Ada" })]).stream().pipeTo(writable);
//! const { greeting, visits } = await new Response(readable).json();
//! ```

use std::{
    error::Error,
    sync::atomic::{AtomicU64, Ordering},
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use serde_json::{Value, json};
use throughline::{Connection, Connector, Identity, Stream};

/// Longer requests are refused, because a page is a stranger.
const LONGEST_REQUEST: u64 = 4096;

static VISITS: AtomicU64 = AtomicU64::new(0);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let identity = args.next().ok_or("usage: page_backend IDENTITY RELAY...")?;
    // With an identity that is kept, the page's ticket outlives this run.
    let mut builder = Connector::builder().identity(Identity::load_or_create(identity)?);
    for relay in args {
        builder = builder.relay(relay);
    }
    let me = builder.bind().await?;
    println!("{}", me.ticket());
    serve(&me).await;
    Ok(())
}

/// Answers every page, until the connector is closed.
pub async fn serve(me: &Connector) {
    while let Some(connection) = me.accept().await {
        tokio::spawn(serve_page(connection));
    }
}

async fn serve_page(connection: Connection) {
    while let Some((protocol, mut stream)) = connection.accept_stream().await {
        if protocol != "visit/1" {
            stream.reset(0);
        } else if let Err(error) = answer(stream).await {
            eprintln!("{}: {error}", connection.peer_id());
        }
    }
}

async fn answer(stream: Stream) -> Result<(), Box<dyn Error + Send + Sync>> {
    let (mut send, recv) = stream.split();
    let mut request = Vec::new();
    recv.take(LONGEST_REQUEST).read_to_end(&mut request).await?;
    let request: Value = serde_json::from_slice(&request)?;
    let name = request["name"].as_str().ok_or("the request has no name")?;
    let visits = VISITS.fetch_add(1, Ordering::Relaxed) + 1;
    let answer = json!({ "greeting": format!("Hello, {name}!"), "visits": visits });
    send.write_all(answer.to_string().as_bytes()).await?;
    send.close().await?;
    Ok(())
}
