//! TURN over TCP and TLS, for networks that let nothing else out.

use std::{io, net::SocketAddr, time::Instant};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Failure, Roots, allocation::Allocation, frame};
use crate::native::udp::TurnCarrier as _;

/// The least room for one read call, in bytes.
const CHUNK: usize = 8 * 1024;

/// A connection, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to a server called `host`. Returns the local address, too.
pub(super) async fn open(
    addr: SocketAddr,
    host: &str,
    tls: Option<&Roots>,
) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
    let stream = TcpStream::connect(addr).await?;
    let local = stream.local_addr()?;
    // The datagrams have their own congestion control and must not wait to be joined.
    stream.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match tls {
        Some(roots) => Box::new(roots.connect(host, stream).await?),
        None => Box::new(stream),
    };
    Ok((stream, local))
}

/// Moves frames between a connection and an allocation until either ends.
pub(super) async fn carry(stream: Box<dyn Stream>, allocation: &Allocation) -> Failure {
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        failure = read(reader, allocation) => failure,
        failure = write(writer, allocation) => failure,
    }
}

async fn read(mut reader: impl AsyncRead + Unpin, allocation: &Allocation) -> Failure {
    // The buffer grows with the bytes of the first frame that have arrived.
    let mut buffer = Vec::new();
    loop {
        buffer.reserve(CHUNK);
        match reader.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return Failure::Closed,
            Ok(_) => {}
        }
        let now = Instant::now();
        let mut at = 0;
        loop {
            match frame::first(&buffer[at..]) {
                Ok(Some(frame)) => {
                    allocation.take(now, &buffer[at..at + frame.len]);
                    at += frame.end;
                }
                Ok(None) => break,
                Err(frame::NotTurn) => return Failure::NotTurn,
            }
        }
        buffer.drain(..at);
        buffer.shrink_to(4 * CHUNK);
    }
}

async fn write(mut writer: impl AsyncWrite + Unpin, allocation: &Allocation) -> Failure {
    let Some(queue) = allocation.queue() else {
        return Failure::Closed;
    };
    loop {
        let bytes = queue.take().await;
        let sent = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        if sent.await.is_err() {
            return Failure::Closed;
        }
    }
}
