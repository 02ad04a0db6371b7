//! An echo service and its client.
//!
//! ```text
//! throughline serve                                # prints the addresses of a relay
//! cargo run --example echo -- serve RELAY          # prints a ticket
//! cargo run --example echo -- call TICKET "hello"
//! ```

use std::{error::Error, io};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use throughline::{Connection, Connector, Stream, Ticket};

const PROTOCOL: &str = "echo/1";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", relay] => {
            let me = Connector::builder().relay(relay).bind().await?;
            println!("{}", me.ticket());
            serve(&me).await;
        }
        ["call", ticket, text] => {
            // Whoever only calls needs no relay: the ticket names the one to go through.
            let me = Connector::builder().reserve(false).bind().await?;
            println!("{}", call(&me, &ticket.parse()?, text).await?);
            me.close().await;
        }
        _ => return Err("usage: echo serve RELAY | echo call TICKET TEXT".into()),
    }
    Ok(())
}

/// Serves everybody who connects, until the connector is closed.
pub async fn serve(me: &Connector) {
    while let Some(connection) = me.accept().await {
        tokio::spawn(serve_one(connection));
    }
}

async fn serve_one(connection: Connection) {
    let peer = connection.peer_id();
    while let Some((protocol, mut stream)) = connection.accept_stream().await {
        if protocol != PROTOCOL {
            stream.reset(0);
            continue;
        }
        tokio::spawn(async move {
            match echo(stream).await {
                Ok(bytes) => eprintln!("{peer}: {bytes} bytes"),
                Err(error) => eprintln!("{peer}: {error}"),
            }
        });
    }
}

async fn echo(stream: Stream) -> io::Result<u64> {
    let (mut send, mut recv) = stream.split();
    let bytes = futures::io::copy(&mut recv, &mut send).await?;
    send.close().await?;
    Ok(bytes)
}

/// Sends `text` and returns what comes back. The first bytes do not wait for a path, so they are
/// back one round trip after the call.
pub async fn call(me: &Connector, ticket: &Ticket, text: &str) -> Result<String, Box<dyn Error>> {
    let (_connection, mut stream) = me.open(ticket, PROTOCOL).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.close().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
