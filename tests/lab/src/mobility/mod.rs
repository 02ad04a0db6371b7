//! Measures what a change of the network costs a connection that is in use.

mod changes;
mod report;
mod scene;

use std::{
    iter::Peekable,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use self::changes::Link;
pub use self::changes::{CHANGES, Change};
use self::{
    changes::{Act, Setting},
    scene::{DIRECT_WITHIN, Load, Scene},
};
use crate::{
    error::{LabError, Result},
    scenario::Pairing,
    stage::Parts,
    theory::Peer,
};

/// How much is under way in the long form.
const FILE: u64 = 200 << 20;
/// How long the file takes at least, beyond the time until the last step.
const FILE_TIME: Duration = Duration::from_secs(40);
/// How often the size of a file is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long a file may take after the last step. A path that is worse than the link takes longer.
const FILE_WITHIN: Duration = Duration::from_secs(300);
/// An echo that takes longer than this is missing.
const SILENT: Duration = Duration::from_secs(1);
/// How much longer a file may stand still than an echo, in milliseconds. Bytes in the queue of the
/// link and lost bytes go before new ones.
const FILE_STALL: u64 = 500;
/// How much more time a page may take until the path is direct again, in milliseconds.
const PAGE_DIRECT: u64 = 2_000;
/// The seeds of one change in the long form.
const SEEDS: u64 = 5;

/// Which changes to make.
#[derive(Clone, Debug, Default)]
pub struct Tour {
    /// Whether to make the slow changes too, and to send files of 200 MiB between programs.
    pub long: bool,
    /// Only changes whose names contain this text.
    pub only: Option<String>,
    /// Between which peers.
    pub pairings: Vec<Pairing>,
    /// Decides what is random.
    pub seed: u64,
    /// Whether the peers are iroh's, with iroh's relay. Only changes of networks in which programs have
    /// a direct path are made then.
    pub iroh: bool,
}

/// The costs of all changes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Mobility {
    /// One row for each change and pairing, and for each seed if the change is random.
    pub rows: Vec<Cost>,
}

/// The cost of one change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The change.
    pub name: String,
    /// The peer that dialled.
    pub dialler: Peer,
    /// The peer that listened.
    pub listener: Peer,
    /// Whether the peers were iroh's. What a change may cost does not count for them.
    pub iroh: bool,
    /// The seed, if the change is random.
    pub seed: Option<u64>,
    /// The longest time without a byte that could have come, in milliseconds. For a ticket, the time
    /// to the first byte.
    pub stall_ms: f64,
    /// How long after the last step the path was direct again, in milliseconds. It is `None` if the
    /// path was never another one, or is not direct in the end.
    pub direct_ms: Option<f64>,
    /// The path in the end.
    pub path: Option<String>,
    /// How often the path changed.
    pub moves: usize,
    /// The hash of the file at both ends, if one was sent.
    pub sha256: Option<String>,
    /// The figures that were worse than the change allows.
    pub faults: Vec<String>,
    /// The events of the dialler, without the echoes. `after_ms` counts from the first step.
    pub events: Vec<Value>,
}

impl Tour {
    /// The changes to make.
    fn changes(&self) -> impl Iterator<Item = &'static Change> {
        let named = |change: &Change| match &self.only {
            Some(text) => change.name.contains(text.as_str()),
            None => self.long || !change.long,
        };
        let possible = |change: &Change| {
            !self.iroh || matches!(change.setting, Setting::Direct | Setting::TwoNetworks)
        };
        CHANGES
            .iter()
            .filter(move |change| named(change) && possible(change))
    }
}

/// Makes the changes of `tour`, and passes each cost to `progress` when it is known.
///
/// # Errors
/// Fails only if the lab itself fails, or if no change has such a name. Peers that are not
/// connected any more are a result.
pub fn mobility(tour: &Tour, parts: &Parts, progress: impl Fn(&Cost)) -> Result<Mobility> {
    let mut rows = Vec::new();
    for change in tour.changes() {
        let pairings = change.pairings.iter();
        for pairing in pairings.filter(|pairing| tour.pairings.contains(pairing)) {
            for seed in tour.seeds(change) {
                let load = tour.load(change, *pairing);
                let wanted = Cost {
                    iroh: tour.iroh,
                    ..Cost::of(change, *pairing, seed)
                };
                let cost = cost(change, (*pairing, seed), &load, parts, wanted.clone());
                let cost = cost.unwrap_or_else(|error| Cost {
                    faults: vec![error.to_string()],
                    ..wanted
                });
                progress(&cost);
                rows.push(cost);
            }
        }
    }
    match rows.is_empty() {
        true => Err(LabError::Spec("no change has such a name".into())),
        false => Ok(Mobility { rows }),
    }
}

impl Tour {
    fn seeds(&self, change: &Change) -> std::ops::Range<u64> {
        let count = match change.is_random() && self.long {
            true => SEEDS,
            false => 1,
        };
        self.seed..self.seed + count
    }

    /// Returns what is sent. Files go between programs, which print their hashes.
    fn load(&self, change: &Change, pairing: Pairing) -> Load {
        let ticket = matches!(change.setting, Setting::Ticket(_) | Setting::Relayed);
        if !self.long || !pairing.is_native() || ticket || self.iroh {
            return Load::Echoes;
        }
        let steps = change.steps.schedule(self.seed);
        let until = steps.last().map_or(Duration::ZERO, |(at, _)| *at);
        let seconds = (until + FILE_TIME + change.watch).as_secs();
        Load::File {
            bytes: FILE,
            rate_kbit: FILE * 8 / 1_000 / seconds,
        }
    }
}

impl Change {
    fn is_random(&self) -> bool {
        matches!(self.steps, changes::Steps::Random(_))
    }
}

impl Cost {
    fn of(change: &Change, pairing: Pairing, seed: u64) -> Self {
        Self {
            name: change.name.to_owned(),
            dialler: pairing.dialler,
            listener: pairing.listener,
            iroh: false,
            seed: change.is_random().then_some(seed),
            stall_ms: 0.0,
            direct_ms: None,
            path: None,
            moves: 0,
            sha256: None,
            faults: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Compares the cost with what the change may cost.
    fn judge(&mut self, change: &Change) {
        if self.iroh {
            return;
        }
        let page = [self.dialler, self.listener].contains(&Peer::Browser);
        let most = if page {
            change.page_stall
        } else {
            change.stall
        };
        let most = most + self.sha256.as_ref().map_or(0, |_| FILE_STALL);
        if self.stall_ms > most as f64 {
            self.faults.push(format!("stall above {most} ms"));
        }
        if let Some(most) = change.direct {
            let most = most + if page { PAGE_DIRECT } else { 0 };
            if self.path.as_deref() != Some("direct") {
                self.faults.push("not direct".to_owned());
            } else if self.direct_ms.is_some_and(|ms| ms > most as f64) {
                self.faults
                    .push(format!("direct after more than {most} ms"));
            }
        }
        if self.moves > change.moves {
            let most = change.moves;
            self.faults
                .push(format!("more than {most} changes of the path"));
        }
    }
}

/// Makes a change, and measures what it costs.
fn cost(
    change: &'static Change,
    (pairing, seed): (Pairing, u64),
    load: &Load,
    parts: &Parts,
    wanted: Cost,
) -> Result<Cost> {
    let mut scene = Scene::up(change, pairing, load, parts, wanted.iroh)?;
    let mut steps = change.steps.schedule(seed).into_iter().peekable();
    let by_ticket = matches!(change.setting, Setting::Ticket(_));
    if !by_ticket {
        scene.wait_for_traffic()?;
    }
    let mut watch = Watch::new(change, scene.received(), wanted);
    watch.take_steps(&mut steps, &mut scene)?;
    if by_ticket {
        scene.dial()?;
    }
    while !watch.is_over(load) {
        let due = steps.peek().map(|(at, _)| watch.start + *at);
        let look = Instant::now() + LOOK;
        if let Some(event) = scene.next(due.map_or(look, |due| due.min(look))) {
            watch.take(event);
        }
        if let Load::File { .. } = load {
            watch.look(scene.received());
        }
        watch.take_steps(&mut steps, &mut scene)?;
    }
    let mut cost = watch.done();
    if let (Load::File { .. }, true) = (load, cost.faults.is_empty()) {
        let theirs = scene.received_hash()?;
        if cost.sha256.as_ref() != Some(&theirs) {
            cost.faults.push(format!("another hash: {theirs}"));
        }
    }
    cost.judge(change);
    Ok(cost)
}

/// Follows the dialler while the network changes.
struct Watch {
    change: &'static Change,
    cost: Cost,
    start: Instant,
    /// When the last step was done, if all are done.
    settled: Option<Instant>,
    /// When a byte came last, and how many bytes of the file have come.
    heard: Instant,
    bytes: u64,
    /// When the path was direct again, if it is.
    direct: Option<Instant>,
    /// Whether the dialler has said everything that it has to say.
    ended: bool,
}

impl Watch {
    fn new(change: &'static Change, bytes: u64, mut cost: Cost) -> Self {
        cost.path = match change.setting {
            Setting::Ticket(_) => None,
            Setting::Relayed => Some("relayed".to_owned()),
            _ => Some("direct".to_owned()),
        };
        let now = Instant::now();
        Self {
            change,
            cost,
            start: now,
            settled: None,
            heard: now,
            bytes,
            direct: None,
            ended: false,
        }
    }

    /// Takes the steps that are due.
    fn take_steps(
        &mut self,
        steps: &mut Peekable<impl Iterator<Item = (Duration, Act)>>,
        scene: &mut Scene,
    ) -> Result<()> {
        while let Some((_, act)) = steps.next_if(|(at, _)| self.start.elapsed() >= *at) {
            act(scene)?;
        }
        if steps.peek().is_none() {
            self.settled.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn is_over(&self, load: &Load) -> bool {
        let Some(settled) = self.settled else {
            return self.ended;
        };
        let is_direct = self.cost.path.as_deref() == Some("direct");
        let (least, most) = match load {
            Load::Echoes => (self.change.watch, DIRECT_WITHIN),
            Load::File { .. } => (Duration::MAX, FILE_WITHIN),
        };
        let wanted = self.change.direct.is_none() || is_direct;
        self.ended || settled.elapsed() > most || (wanted && settled.elapsed() > least)
    }

    /// Notes that nothing came from `since` until now.
    fn stalled(&mut self, since: Instant) {
        let counted = match (self.change.outage, self.settled) {
            (true, None) => return,
            (true, Some(settled)) => since.max(settled),
            (false, _) => since,
        };
        let ms = counted.elapsed().as_secs_f64() * 1e3;
        self.cost.stall_ms = self.cost.stall_ms.max(ms);
    }

    /// Takes an event of the dialler.
    fn take(&mut self, mut event: Value) {
        let now = Instant::now();
        let path = event["path"].as_str().map(str::to_owned);
        match event["event"].as_str() {
            Some("pong") => {
                let rtt = event["rtt_ms"].as_f64().unwrap_or_default();
                let sent = now.checked_sub(Duration::from_secs_f64(rtt / 1e3));
                self.stalled(sent.unwrap_or(self.start));
                self.heard = now;
                return;
            }
            Some("first_byte") => {
                // The dialler counts from its call to connect.
                let ms = event["ms"].as_f64().unwrap_or_default();
                self.cost.stall_ms = self.cost.stall_ms.max(ms);
                self.heard = now;
            }
            Some("path" | "lost") if self.cost.path != path => {
                if self.cost.path.is_some() || self.cost.moves > 0 {
                    self.cost.moves += 1;
                }
                self.direct = (path.as_deref() == Some("direct")).then_some(now);
                self.cost.path = path;
            }
            Some("sent") => {
                self.cost.sha256 = event["sha256"].as_str().map(str::to_owned);
                self.ended = true;
                if self.settled.is_none() {
                    let early = "the file was there before the last step";
                    self.cost.faults.push(early.to_owned());
                }
            }
            Some("error") => {
                self.cost.faults.push(event["message"].to_string());
                self.ended = true;
            }
            _ => {}
        }
        event["after_ms"] = (self.start.elapsed().as_millis() as u64).into();
        self.cost.events.push(event);
    }

    /// Takes note of how many bytes of the file have arrived.
    fn look(&mut self, bytes: u64) {
        if bytes != self.bytes {
            self.bytes = bytes;
            self.stalled(self.heard);
            self.heard = Instant::now();
        }
    }

    fn done(mut self) -> Cost {
        if self.heard.elapsed() > SILENT {
            self.stalled(self.heard);
        }
        if let (Some(direct), Some(settled)) = (self.direct, self.settled) {
            let after = direct.saturating_duration_since(settled);
            self.cost.direct_ms = Some(after.as_secs_f64() * 1e3);
        }
        if self.cost.faults.is_empty() && !self.ended && self.bytes > 0 {
            self.cost.faults.push("the file did not arrive".to_owned());
        }
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn change(name: &str) -> &'static Change {
        let mut changes = CHANGES.iter();
        changes.find(|change| change.name == name).unwrap()
    }

    fn watch(name: &str) -> Watch {
        let change = change(name);
        let cost = Cost::of(change, Pairing::ALL[0], 1);
        Watch::new(change, 0, cost)
    }

    #[test]
    fn only_the_time_after_an_outage_counts() {
        let second = Duration::from_secs(1);
        let earlier = Instant::now().checked_sub(10 * second).unwrap();
        let mut blocked = watch("the direct path is blocked");
        blocked.stalled(earlier);
        assert!(blocked.cost.stall_ms >= 10_000.0);
        let mut away = watch("the dialler has no network for 29 s");
        away.stalled(earlier);
        assert_eq!(away.cost.stall_ms, 0.0);
        away.settled = Some(Instant::now());
        away.stalled(earlier);
        assert!(away.cost.stall_ms < 1_000.0);
    }

    #[test]
    fn a_path_that_comes_back_is_one_more_change_and_its_time_counts() {
        let mut watch = watch("the listener's NAT gives a new port");
        watch.settled = Some(Instant::now());
        watch.take(json!({ "event": "path", "path": "relayed" }));
        watch.take(json!({ "event": "path", "path": "relayed" }));
        watch.take(json!({ "event": "path", "path": "direct" }));
        watch.take(json!({ "event": "pong", "path": "direct", "rtt_ms": 80.0 }));
        let cost = watch.done();
        assert_eq!((cost.moves, cost.events.len()), (2, 3));
        assert!(cost.direct_ms.is_some() && cost.stall_ms >= 80.0);
    }

    #[test]
    fn what_is_worse_than_the_row_says_is_a_fault() {
        let change = change("the dialler's address is replaced");
        let judged = |stall_ms: f64, direct_ms: f64, path: &str, moves: usize| {
            let mut cost = Cost {
                stall_ms,
                direct_ms: Some(direct_ms),
                path: Some(path.to_owned()),
                moves,
                ..Cost::of(change, Pairing::ALL[0], 1)
            };
            cost.judge(change);
            cost.faults.len()
        };
        assert_eq!(judged(1_000.0, 2_000.0, "direct", change.moves), 0);
        assert_eq!(judged(1_001.0, 2_001.0, "direct", change.moves + 1), 3);
        assert_eq!(judged(0.0, 0.0, "relayed", 0), 1);
    }
}
