//! Drops files into a folder of another machine, with progress at both ends.
//!
//! ```text
//! throughline serve                                                    # prints a relay's addresses
//! cargo run --features tokio --example file_drop -- take RELAY FOLDER  # prints a ticket
//! cargo run --features tokio --example file_drop -- drop TICKET FILE
//! ```

use std::{error::Error, ffi::OsStr, path::Path};

use throughline::{Connection, Connector, Ticket};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

type Result = std::result::Result<(), Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result {
    let args: Vec<_> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[1..] {
        ["take", relay, folder] => {
            let me = Connector::builder().relay(relay).bind().await?;
            println!("{}", me.ticket());
            while let Some(connection) = me.accept().await {
                let taken = take(&connection, Path::new(folder)).await;
                taken.unwrap_or_else(|error| eprintln!("no file was taken: {error}"));
            }
            Ok(())
        }
        ["drop", ticket, file] => {
            let me = Connector::builder().reserve(false).bind().await?;
            drop_file(&me, &ticket.parse()?, Path::new(file)).await
        }
        _ => Err("usage: file_drop take RELAY FOLDER | file_drop drop TICKET FILE".into()),
    }
}

/// Takes one file into the folder.
pub async fn take(connection: &Connection, folder: &Path) -> Result {
    let (_, mut stream) = connection.accept_stream().await.ok_or("nothing came")?;
    let size = stream.read_u64().await?;
    let mut name = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut name).await?;
    let name = String::from_utf8(name)?;
    // A path would lead out of the folder.
    if Path::new(&name).file_name() != Some(OsStr::new(&name)) {
        return Err(format!("{name:?} is not the name of a file").into());
    }
    let file = tokio::fs::File::create_new(folder.join(&name)).await?;
    copy(&mut stream, file, size).await?;
    // The sender waits for this byte, which says that the file is there.
    Ok(stream.write_u8(1).await?)
}

/// Sends the file and waits until the other side has written it.
pub async fn drop_file(me: &Connector, ticket: &Ticket, path: &Path) -> Result {
    let name = path.file_name().and_then(OsStr::to_str).ok_or("no name")?;
    let file = tokio::fs::File::open(path).await?;
    let size = file.metadata().await?.len();
    let (_connection, mut stream) = me.open(ticket, "file-drop/1").await?;
    stream.write_u64(size).await?;
    stream.write_u16(name.len().try_into()?).await?;
    stream.write_all(name.as_bytes()).await?;
    copy(file, &mut stream, size).await?;
    Ok(stream.read_u8().await.map(drop)?)
}

async fn copy(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, size: u64) -> Result {
    let (mut from, mut done) = (from.take(size), 0);
    while done < size {
        match tokio::io::copy(&mut (&mut from).take(1 << 20), &mut to).await? {
            0 => return Err("the file was cut short".into()),
            bytes => done += bytes,
        }
        eprint!("\r{done} of {size} bytes");
    }
    Ok(to.flush().await?)
}
