//! Peers on the local network, found by their ids over multicast DNS (`core/lan.rs`).
//!
//! This is not libp2p's behaviour for it (`libp2p-mdns`), which keeps everything that anybody in the network
//! announces, for as long as it is told, and which asks at times of its own: a peer that starts later is
//! found within five minutes. Here the network is asked for the peer that somebody connects to, and what
//! nobody seeks is dropped. So strangers can make us keep nothing.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    slice::Iter,
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
use crate::core::{lan, pace::Pace};

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
/// How long other answers are awaited after the first one. Peers may wait so long before they answer (RFC
/// 6762 section 6), and whoever answers first may not be the peer.
const GATHER: Duration = Duration::from_millis(120);
/// How many sources are heard for one peer. Each may give eight addresses.
const MAX_SOURCES: usize = 8;
/// When sockets are opened again that could not be opened: after this, twice and four times as long. A new
/// IPv6 address cannot be used before the network was asked for it (RFC 4862 section 5.4).
const AGAIN: [Duration; 3] = [
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// How many packets that may be answers are read: at once, and per second.
const READ: (u32, u32) = (256, 64);

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

    /// Asks where a peer is. Resolves with the addresses of the first answers, or with none after two and a
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
    /// The addresses so far, each with the source of its answer.
    found: Vec<(IpAddr, Multiaddr)>,
}

impl Seek {
    fn new(peer: PeerId, reply: oneshot::Sender<Vec<Multiaddr>>) -> Self {
        let due = Instant::now();
        Self {
            peer,
            reply,
            until: due + PATIENCE,
            due,
            found: Vec::new(),
        }
    }

    /// Takes an address from an answer of `source`.
    fn take(&mut self, source: IpAddr, address: Multiaddr) {
        if self.found.is_empty() {
            self.until = self.until.min(Instant::now() + GATHER);
        }
        let others = self.found.iter().map(|(other, _)| *other);
        let others: BTreeSet<_> = others.filter(|other| *other != source).collect();
        let is_new = !self.found.iter().any(|(_, known)| *known == address);
        let own = self.found.iter().filter(|(other, _)| *other == source);
        if is_new && others.len() < MAX_SOURCES && own.count() < lan::MAX_ADDRESSES {
            self.found.push((source, address));
        }
    }
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
    read: Pace,
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
            read: Pace::new(READ.1, READ.0),
        }
    }

    /// Serves until nobody can ask any more.
    async fn run(mut self, mut requests: mpsc::Receiver<Sought>) {
        let (mut buffer, mut hosts) = (vec![0; MAX_PACKET], Vec::new());
        let mut pauses = [].iter();
        let mut again = None;
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
                    let now = Vec::from_iter(now);
                    if now != hosts {
                        hosts = now;
                        pauses = AGAIN.iter();
                        again = self.open(&hosts, &mut pauses);
                    }
                }
                () = time::sleep_until(again.unwrap_or(self.began)), if again.is_some() => {
                    again = self.open(&hosts, &mut pauses);
                }
                request = requests.recv(), if self.seeks.len() < MAX_SOUGHT => {
                    let Some((peer, reply)) = request else {
                        return;
                    };
                    self.seeks.push(Seek::new(peer, reply));
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

    /// Listens in the networks of these addresses. Returns when to try again, if it does not work in all.
    fn open(&mut self, hosts: &[IpAddr], pauses: &mut Iter<'_, Duration>) -> Option<Instant> {
        self.ears = multicast::open(hosts);
        // The other networks are asked as well, at once.
        let now = Instant::now();
        self.seeks.iter_mut().for_each(|seek| seek.due = now);
        let speak = self.ears.iter().filter(|ear| ear.group.is_some());
        let is_whole = speak.count() == hosts.len();
        (!is_whole)
            .then(|| pauses.next())?
            .map(|pause| now + *pause)
    }

    /// Asks for the peers whose turn it is, with one question, and tells where the others are, whose time is
    /// over.
    async fn ask(&mut self) {
        let now = Instant::now();
        let is_over = |seek: &mut Seek| now >= seek.until || seek.reply.is_closed();
        for seek in self.seeks.extract_if(.., is_over) {
            // Who has asked may be gone.
            let _ = seek.reply.send(lan::shares(seek.found));
        }
        let mut asks = false;
        // A peer that does not listen yet asks as soon as it does.
        let is_open = !self.ears.is_empty();
        let due = |seek: &&mut Seek| is_open && seek.due <= now && seek.found.is_empty();
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
            None => self.take_answer(packet, from.ip()),
        }
    }

    fn take_answer(&mut self, packet: &[u8], source: IpAddr) {
        let now = self.began.elapsed();
        if self.seeks.is_empty() || self.read.take(now, 1, Duration::ZERO).is_none() {
            return;
        }
        let sought: Vec<_> = self.seeks.iter().map(|seek| seek.peer).collect();
        for (peer, address) in lan::answers(packet, source, |peer| sought.contains(peer)) {
            for seek in self.seeks.iter_mut().filter(|seek| seek.peer == peer) {
                seek.take(source, address.clone());
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
        let alone = alone && multicast::is_near(from.ip());
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
            only_for_all: false,
        }];
        (task, other, shown)
    }

    #[tokio::test]
    async fn peers_on_one_machine_find_each_other() {
        let [a, b] = [(); 2].map(|()| PeerId::random());
        let (here, there) = (shows(a), shows(b));
        assert_eq!(found(&here, b).await, [AT.parse().unwrap()]);
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
        task.seeks.push(Seek::new(sought, reply));
        for _ in 0..100 {
            let stranger = lan::answer("x", PeerId::random(), &[AT.parse().unwrap()]);
            task.hear(&stranger, from).await;
        }
        assert!(task.seeks[0].found.is_empty());
        task.hear(&lan::answer("x", sought, &[AT.parse().unwrap()]), from)
            .await;
        time::sleep_until(task.seeks[0].until).await;
        task.ask().await;
        assert_eq!(found.try_recv().unwrap(), [AT.parse().unwrap()]);
        assert!(task.seeks.is_empty());
    }

    #[tokio::test]
    async fn a_flood_of_answers_is_not_read() {
        let [local, sought] = [(); 2].map(|()| PeerId::random());
        let (mut task, other, _shown) = scene(local).await;
        let from = other.local_addr().unwrap();
        let (reply, _found) = oneshot::channel();
        task.seeks.push(Seek::new(sought, reply));
        let stranger = lan::answer("x", PeerId::random(), &[AT.parse().unwrap()]);
        for _ in 0..10_000 {
            task.hear(&stranger, from).await;
        }
        task.hear(&lan::answer("x", sought, &[AT.parse().unwrap()]), from)
            .await;
        assert!(task.seeks[0].found.is_empty());
    }

    #[test]
    fn the_addresses_of_one_peer_are_bounded() {
        let (reply, _found) = oneshot::channel();
        let mut seek = Seek::new(PeerId::random(), reply);
        for source in 0..100u8 {
            for port in 1..100u16 {
                let address = format!("/ip4/10.0.{source}.1/tcp/{port}").parse();
                seek.take([10, 0, 1, source].into(), address.unwrap());
            }
        }
        assert_eq!(seek.found.len(), MAX_SOURCES * lan::MAX_ADDRESSES);
        assert!(seek.until <= Instant::now() + GATHER);
    }
}
