//! Peers on the local network, found by their ids over multicast DNS (`core/lan.rs`).
//!
//! This is not libp2p's behaviour for it (`libp2p-mdns`), which keeps everything that anybody in the network
//! announces, for as long as it is told, and which asks at times of its own: a peer that starts later is
//! found within five minutes. Here the network is asked for the peer that somebody connects to, and what
//! nobody seeks is dropped. So strangers can make us keep nothing.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{self, Instant},
};

use super::{
    multicast::{self, Ear, MAX_PACKET},
    runtime,
};
use crate::core::{
    lan,
    pace::Pace,
    scope::{Scope, scope},
};

/// How long a peer is sought: three questions, and the time for the last answer.
const PATIENCE: Duration = Duration::from_millis(2500);
/// The pause between two questions for one peer (RFC 6762 section 5.2).
const PAUSE: Duration = Duration::from_secs(1);
/// The shortest pause between two questions.
const TICK: Duration = Duration::from_millis(100);
/// The most peers that are sought at a time. More wait for their turn in a queue as long.
const MAX_SOUGHT: usize = 64;
/// How many answers go to one asker alone: at once, and per second.
const REPLIES: (u32, u32) = (32, 8);
/// How many answers go to everybody (RFC 6762 section 6).
const TOLD: (u32, u32) = (2, 1);

/// The local network. Without a task, nobody is asked and nobody is answered.
pub(crate) struct Lan(Option<Handle>);

struct Handle {
    shown: watch::Sender<Vec<Multiaddr>>,
    sought: mpsc::Sender<Sought>,
}

/// A peer, and where its addresses go.
type Sought = (PeerId, oneshot::Sender<Vec<Multiaddr>>);

impl Lan {
    pub(crate) fn off() -> Self {
        Self(None)
    }

    /// Answers for the peer `local`, and asks for others. Needs a Tokio runtime.
    pub(crate) fn new(local: PeerId) -> Self {
        let (shown, addresses) = watch::channel(Vec::new());
        let (sought, requests) = mpsc::channel(MAX_SOUGHT);
        runtime::spawn(Task::new(local, addresses).run(requests));
        Self(Some(Handle { shown, sought }))
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Answers with these addresses from now on. The networks that are asked, and in which this peer is
    /// found, are those of the addresses.
    pub(crate) fn show(&self, addresses: &[Multiaddr]) {
        if let Some(handle) = &self.0 {
            handle.shown.send_if_modified(|shown| {
                let is_new = *shown != addresses;
                shown.clear();
                shown.extend_from_slice(addresses);
                is_new
            });
        }
    }

    /// Asks where a peer is. Resolves with the addresses of the first answer, or with none after two and a
    /// half seconds. Returns `None` if nobody is asked.
    pub(crate) fn find(
        &self,
        peer: PeerId,
    ) -> Option<impl Future<Output = Vec<Multiaddr>> + Send + 'static> {
        let (reply, found) = oneshot::channel();
        let handle = self.0.as_ref()?;
        handle.sought.try_send((peer, reply)).ok()?;
        Some(async { found.await.unwrap_or_default() })
    }
}

/// A peer that is sought.
struct Seek {
    peer: PeerId,
    reply: oneshot::Sender<Vec<Multiaddr>>,
    until: Instant,
    /// When it is asked for next.
    due: Instant,
}

struct Task {
    peer: PeerId,
    /// The name of the record, which says nothing of the peer.
    label: String,
    shown: watch::Receiver<Vec<Multiaddr>>,
    ears: Vec<Ear>,
    seeks: Vec<Seek>,
    /// When a question may be asked again.
    rested: Instant,
    began: Instant,
    replies: Pace,
    told: Pace,
}

impl Task {
    fn new(peer: PeerId, shown: watch::Receiver<Vec<Multiaddr>>) -> Self {
        let mut label = [0; 16];
        // Without randomness, the connector has no identity to begin with.
        let _ = getrandom::fill(&mut label);
        Self {
            peer,
            label: data_encoding::HEXLOWER.encode(&label),
            shown,
            ears: Vec::new(),
            seeks: Vec::new(),
            rested: Instant::now(),
            began: Instant::now(),
            replies: Pace::new(REPLIES.1, REPLIES.0),
            told: Pace::new(TOLD.1, TOLD.0),
        }
    }

    /// Serves until nobody can ask any more.
    async fn run(mut self, mut requests: mpsc::Receiver<Sought>) {
        let (mut buffer, mut hosts) = (vec![0; MAX_PACKET], BTreeSet::new());
        loop {
            let next = self.seeks.iter().map(|seek| seek.due.min(seek.until)).min();
            let next = next.map(|next| next.max(self.rested));
            tokio::select! {
                // A flood of packets delays no question.
                biased;
                changed = self.shown.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now: BTreeSet<_> = self.shown.borrow().iter().filter_map(lan::host).collect();
                    if now != hosts {
                        self.ears = multicast::open(&Vec::from_iter(now.iter().copied()));
                        hosts = now;
                        // The other networks are asked as well, at once.
                        let due = Instant::now();
                        self.seeks.iter_mut().for_each(|seek| seek.due = due);
                    }
                }
                request = requests.recv(), if self.seeks.len() < MAX_SOUGHT => {
                    let Some((peer, reply)) = request else {
                        return;
                    };
                    let due = Instant::now();
                    self.seeks.push(Seek { peer, reply, until: due + PATIENCE, due });
                }
                () = time::sleep_until(next.unwrap_or(self.began)), if next.is_some() => {
                    self.ask().await;
                }
                (length, from) = multicast::heard(&self.ears, &mut buffer) => {
                    self.hear(&buffer[..length], from).await;
                }
            }
        }
    }

    /// Asks for the peers whose turn it is, with one question, and gives up those that were not found.
    async fn ask(&mut self) {
        let now = Instant::now();
        self.seeks
            .retain(|seek| now < seek.until && !seek.reply.is_closed());
        let mut asks = false;
        // A peer that does not listen yet asks as soon as it does.
        let is_open = !self.ears.is_empty();
        let due = |seek: &&mut Seek| is_open && seek.due <= now;
        for seek in self.seeks.iter_mut().filter(due) {
            seek.due = now + PAUSE;
            asks = true;
        }
        self.rested = now + TICK;
        if asks {
            multicast::tell(&self.ears, &lan::question()).await;
        }
    }

    async fn hear(&mut self, packet: &[u8], from: SocketAddr) {
        match lan::asks(packet) {
            Some(alone) => self.answer(alone, from).await,
            None => {
                for at in (0..self.seeks.len()).rev() {
                    let found = lan::answers(packet, &self.seeks[at].peer, from.ip());
                    if !found.is_empty() {
                        // Who has asked may be gone.
                        let _ = self.seeks.swap_remove(at).reply.send(found);
                    }
                }
            }
        }
    }

    /// Answers a question, to whoever has asked if that is what it wants, and if it is near: the source of a
    /// packet may be forged. When too many want that, everybody gets the answer together.
    async fn answer(&mut self, alone: bool, from: SocketAddr) {
        let addresses = self.shown.borrow().clone();
        if addresses.is_empty() {
            return;
        }
        let packet = lan::answer(&self.label, self.peer, &addresses);
        let now = self.began.elapsed();
        let alone = alone && is_near(from.ip());
        if alone && self.replies.take(now, 1, Duration::ZERO).is_some() {
            match multicast::reply(&packet, from) {
                Ok(()) => return,
                Err(error) => tracing::trace!(%error, "an answer of mDNS cannot be sent"),
            }
        }
        if self.told.take(now, 1, Duration::ZERO).is_some() {
            multicast::tell(&self.ears, &packet).await;
        }
    }
}

/// Whether an address can be in the local network: it is no global one.
fn is_near(ip: IpAddr) -> bool {
    let is_link_local = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    is_link_local || [Scope::Private, Scope::Loopback].contains(&scope(ip))
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;
    use crate::testing::PATIENCE as SOON;

    const AT: &str = "/ip4/127.0.0.1/tcp/9";

    fn shows(peer: PeerId) -> Lan {
        let lan = Lan::new(peer);
        lan.show(&[AT.parse().unwrap()]);
        lan
    }

    async fn found(lan: &Lan, peer: PeerId) -> Vec<Multiaddr> {
        time::timeout(SOON, lan.find(peer).unwrap()).await.unwrap()
    }

    /// A task that hears one socket and speaks to another, with a seek.
    async fn scene(peer: PeerId) -> (Task, UdpSocket, watch::Sender<Vec<Multiaddr>>) {
        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (shown, addresses) = watch::channel(vec![AT.parse().unwrap()]);
        let mut task = Task::new(peer, addresses);
        task.ears = vec![Ear {
            socket: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            group: Some(other.local_addr().unwrap()),
        }];
        (task, other, shown)
    }

    #[tokio::test]
    async fn peers_on_one_machine_find_each_other_within_a_second() {
        let [a, b] = [(); 2].map(|()| PeerId::random());
        let (here, there) = (shows(a), shows(b));
        let began = Instant::now();
        assert_eq!(found(&here, b).await, [AT.parse().unwrap()]);
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(found(&there, a).await, [AT.parse().unwrap()]);
        assert!(found(&here, PeerId::random()).await.is_empty(), "nobody");
        assert!(Lan::off().find(a).is_none() && !Lan::off().is_on());
    }

    #[tokio::test]
    async fn a_flood_of_questions_gets_few_answers() {
        let (mut task, other, _shown) = scene(PeerId::random()).await;
        let from = other.local_addr().unwrap();
        for _ in 0..1000 {
            task.hear(&lan::question(), from).await;
        }
        task.hear(b"end", from).await;
        task.ears[0].socket.send_to(b"end", from).await.unwrap();
        let (mut buffer, mut answers) = (vec![0; MAX_PACKET], 0);
        loop {
            let (length, _) = other.recv_from(&mut buffer).await.unwrap();
            if &buffer[..length] == b"end" {
                break;
            }
            answers += 1;
        }
        // The flood may take a moment, in which a few more are allowed.
        assert!((1..100).contains(&answers), "{answers}");
    }

    #[tokio::test]
    async fn what_nobody_seeks_leaves_nothing_behind() {
        let [local, sought] = [(); 2].map(|()| PeerId::random());
        let (mut task, other, _shown) = scene(local).await;
        let from = other.local_addr().unwrap();
        let (reply, mut found) = oneshot::channel();
        let due = Instant::now();
        task.seeks.push(Seek {
            peer: sought,
            reply,
            until: due + PATIENCE,
            due,
        });
        for _ in 0..100 {
            let stranger = lan::answer("x", PeerId::random(), &[AT.parse().unwrap()]);
            task.hear(&stranger, from).await;
        }
        assert!(found.try_recv().is_err());
        task.hear(&lan::answer("x", sought, &[AT.parse().unwrap()]), from)
            .await;
        assert_eq!(found.try_recv().unwrap(), [AT.parse().unwrap()]);
        assert!(task.seeks.is_empty());
    }

    #[test]
    fn only_who_is_near_gets_an_answer_alone() {
        for (ip, near) in [
            ("192.168.1.9", true),
            ("fe80::1", true),
            ("127.0.0.1", true),
            ("203.0.113.9", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_near(ip.parse().unwrap()), near, "{ip}");
        }
    }
}
