//! A chat of everybody who knows a room's name and secret.
//!
//! ```text
//! SECRET=5f0c8a63 cargo run --features tokio --example room -- RELAY ROOM NAME
//! ```
//!
//! Ctrl-D leaves the room.

use std::error::Error;

use throughline::{Connector, Mesh, MeshEvent, RoomOptions};
use tokio::io::{AsyncBufReadExt as _, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [_, relay, room, name] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: room RELAY ROOM NAME".into());
    };
    let me = Connector::builder().relay(relay).bind().await?;
    let mut options = RoomOptions::default();
    options.secret = std::env::var("SECRET")?;
    options.data = name.as_bytes().to_vec();
    let mesh = Mesh::join(&me, room, options).await?;
    println!("in the room as {}", me.peer_id());
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            event = mesh.next() => show(event.ok_or("the connector is closed")?),
            line = lines.next_line() => match line? {
                Some(line) => mesh.broadcast(line.as_bytes()).await?,
                None => break,
            },
        }
    }
    me.close().await;
    Ok(())
}

fn show(event: MeshEvent) {
    let (what, peer, text) = match event {
        MeshEvent::Joined(member) => ("joined", member.id, member.data),
        MeshEvent::Changed(member) => ("changed", member.id, member.data),
        MeshEvent::Message(peer, text) => ("message", peer, text),
        MeshEvent::Left(peer) => ("left", peer, Vec::new()),
        MeshEvent::Datagram(..) | MeshEvent::Stranger(..) => return,
    };
    // Control characters of a peer could take the terminal over.
    let text = String::from_utf8_lossy(&text).replace(char::is_control, "");
    println!("{what} {peer} {text}");
}
