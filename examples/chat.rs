//! A chat between two terminals.
//!
//! ```text
//! throughline serve                                          # prints a relay's addresses
//! cargo run --features tokio --example chat -- RELAY         # prints a ticket and waits
//! cargo run --features tokio --example chat -- RELAY TICKET
//! ```
//!
//! Ctrl-D at both ends is the end of the chat.

use std::{error::Error, io};

use throughline::{Connector, Stream};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

pub const PROTOCOL: &str = "chat/1";
/// Nobody types a longer line, and nobody can make us hold one.
const LONGEST_LINE: u64 = 4096;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let relay = args.next().ok_or("usage: chat RELAY [TICKET]")?;
    let me = Connector::builder().relay(relay).bind().await?;
    let stream = match args.next() {
        Some(ticket) => me.connect(&ticket.parse()?).await?.open(PROTOCOL).await?,
        None => {
            println!("{}", me.ticket());
            accept(&me).await.ok_or("nobody came")?
        }
    };
    talk(stream, tokio::io::stdin(), tokio::io::stdout()).await?;
    me.close().await;
    Ok(())
}

/// Waits for the first chat that somebody opens.
pub async fn accept(me: &Connector) -> Option<Stream> {
    loop {
        let connection = me.accept().await?;
        match connection.accept_stream().await {
            Some((protocol, stream)) if protocol == PROTOCOL => return Some(stream),
            _ => connection.close().await,
        }
    }
}

/// Sends `input` and writes the peer's lines to `output`, until both have ended.
pub async fn talk(
    stream: Stream,
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let (mut send, recv) = stream.split();
    let sending = async {
        tokio::io::copy(&mut input, &mut send).await?;
        send.shutdown().await
    };
    let receiving = async {
        let mut recv = BufReader::new(recv);
        loop {
            let (mut rest, mut line) = ((&mut recv).take(LONGEST_LINE), Vec::new());
            if rest.read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            // Control characters of a peer could take the terminal over.
            let text = String::from_utf8_lossy(&line).replace(char::is_control, "");
            output.write_all(format!("> {text}\n").as_bytes()).await?;
            output.flush().await?;
        }
    };
    tokio::try_join!(sending, receiving).map(drop)
}
