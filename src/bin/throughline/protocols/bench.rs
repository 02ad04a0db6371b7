//! `bench/1`: measures how many bytes a path carries.
//!
//! The opener first sends one byte:
//! - `0` is an upload. The opener then sends bytes until it half-closes. The other side counts them
//!   and answers with the number, eight bytes in network order.
//! - `1` is a download. The opener then sends a time in milliseconds, four bytes in network order,
//!   at most 60000, and half-closes. The other side sends bytes for that time.
//!
//! Both sides half-close at the end.

use std::time::{Duration, Instant};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use throughline::Error;

use super::{CHUNK, unless_stalled, violation};

pub(crate) const PROTOCOL: &str = "bench/1";

/// The longest measurement in which the other side takes part.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(60);

const UPLOAD: u8 = 0;
const DOWNLOAD: u8 = 1;

/// The result of a measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
}

impl Measured {
    /// Returns megabits (10^6) per second.
    pub(crate) fn mbit_per_second(self) -> f64 {
        self.bytes as f64 * 8.0 / 1e6 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Sends for `time`, and then waits until the other side has counted everything.
pub(crate) async fn upload(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    time: Duration,
) -> Result<Measured, Error> {
    let chunk = vec![0x5a; CHUNK];
    let start = Instant::now();
    writer.write_all(&[UPLOAD]).await?;
    let mut sent = 0;
    while start.elapsed() < time {
        unless_stalled(writer.write_all(&chunk)).await?;
        sent += chunk.len() as u64;
    }
    unless_stalled(writer.close()).await?;
    let mut count = [0; 8];
    unless_stalled(reader.read_exact(&mut count)).await?;
    let elapsed = start.elapsed();
    let bytes = u64::from_be_bytes(count);
    if bytes != sent {
        return Err(violation(format!(
            "bench: the peer counted {bytes} of {sent} bytes"
        )));
    }
    Ok(Measured { bytes, elapsed })
}

/// Receives for `time`, and then until the other side ends.
pub(crate) async fn download(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    time: Duration,
) -> Result<Measured, Error> {
    let millis = u32::try_from(time.min(MAX_TIME).as_millis()).unwrap_or(u32::MAX);
    let mut request = vec![DOWNLOAD];
    request.extend_from_slice(&millis.to_be_bytes());
    let start = Instant::now();
    writer.write_all(&request).await?;
    writer.close().await?;
    let bytes = count(&mut reader).await?;
    Ok(Measured {
        bytes,
        elapsed: start.elapsed(),
    })
}

/// Serves the other side of both measurements.
pub(crate) async fn serve(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> Result<(), Error> {
    let mut direction = [0; 1];
    reader.read_exact(&mut direction).await?;
    match direction[0] {
        UPLOAD => {
            let bytes = count(&mut reader).await?;
            writer.write_all(&bytes.to_be_bytes()).await?;
        }
        DOWNLOAD => {
            let mut millis = [0; 4];
            reader.read_exact(&mut millis).await?;
            let time = Duration::from_millis(u32::from_be_bytes(millis).into());
            if time > MAX_TIME {
                return Err(violation("bench: the time is longer than 60000 ms"));
            }
            let chunk = vec![0x5a; CHUNK];
            let start = Instant::now();
            while start.elapsed() < time {
                unless_stalled(writer.write_all(&chunk)).await?;
            }
        }
        other => return Err(violation(format!("bench: there is no direction {other}"))),
    }
    unless_stalled(writer.close()).await?;
    Ok(())
}

async fn count(reader: &mut (impl AsyncRead + Unpin)) -> Result<u64, Error> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match unless_stalled(reader.read(&mut buffer)).await? {
            0 => return Ok(total),
            length => total += length as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use throughline::ErrorKind;

    use super::{super::tests::tokio_pipe::pair, *};

    #[tokio::test]
    async fn both_directions_count_every_byte() {
        let time = Duration::from_millis(20);
        let ((reader, writer), (r, w)) = pair();
        let (up, served) = tokio::join!(upload(reader, writer, time), serve(r, w));
        served.unwrap();
        let up = up.unwrap();
        assert!(up.bytes > 0 && up.elapsed >= time && up.mbit_per_second() > 0.0);
        let ((reader, writer), (r, w)) = pair();
        let (down, served) = tokio::join!(download(reader, writer, time), serve(r, w));
        served.unwrap();
        assert!(down.unwrap().bytes > 0);
    }

    #[tokio::test]
    async fn what_breaks_the_protocol_is_refused() {
        for request in [&[2][..], &[1, 0, 0, 0xea, 0x61], &[1, 0]] {
            let ((_reader, mut writer), (r, w)) = pair();
            writer.write_all(request).await.unwrap();
            writer.close().await.unwrap();
            let error = serve(r, w).await.unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::ProtocolViolation | ErrorKind::Io),
                "{error}"
            );
        }
    }
}
