//! Two peers that are connected, and what can happen to their networks.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    error::{Context, LabError, Result},
    lab::Lab,
    link,
    mobility::changes::{Change, FIRST, Setting},
    nat::NatKind,
    program::Program,
    scenario::Pairing,
    spec::{Site, Spec},
    stage::{Listener, Parts, Stage},
    theory::Peer,
};

/// How long a connection may take to be direct at first.
pub(crate) const DIRECT_WITHIN: Duration = Duration::from_secs(75);
/// More round trips than a scenario has time for.
const ECHOES: &str = "100000";
/// The device of the second network.
const SECOND: &str = "eth1";

/// One of the two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Dialler,
    Listener,
}

impl End {
    /// Returns the name of the peer's host, which is also that of its site.
    pub(crate) fn host(self) -> &'static str {
        match self {
            Self::Dialler => "a",
            Self::Listener => "b",
        }
    }

    /// Returns the number of the peer's site.
    fn index(self) -> u8 {
        match self {
            Self::Dialler => 1,
            Self::Listener => 2,
        }
    }
}

/// The traffic while the network changes.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    /// Eight bytes every 200 ms, whose echo is waited for.
    Echoes,
    /// A file of so many bytes.
    File { bytes: u64, rate_kbit: u64 },
}

/// The dialling peer.
enum Dialler {
    Program(Program),
    /// A page on the dialler's host.
    Page,
}

/// Two peers that are connected, and the lab that they are in.
pub(crate) struct Scene {
    // Programs end before the lab that they run in.
    dialler: Option<Dialler>,
    listener: Listener,
    stage: Stage,
    pairing: Pairing,
    load: Load,
    /// The folder that files arrive in, and the file that is sent.
    inbox: PathBuf,
    file: PathBuf,
    /// How many addresses have been given away.
    moves: u8,
}

impl Scene {
    /// Builds what `change` needs, and connects the peers.
    pub(crate) fn up(
        change: &Change,
        pairing: Pairing,
        load: &Load,
        parts: &Parts,
        iroh: bool,
    ) -> Result<Self> {
        let setting = change.setting;
        let mut stage = Stage::up(spec(setting, load), parts)?;
        if iroh {
            stage.use_iroh(&parts.peers())?;
        }
        if setting == Setting::Relayed {
            stage.add_arguments(["--relay-only".to_owned()]);
        }
        stage.launch(&Stage::browser_hosts(pairing, "a", "b"))?;
        let (inbox, file) = (
            stage.lab.directory().join("inbox"),
            stage.lab.directory().join("sent.bin"),
        );
        stage.link_over = setting.link();
        let listener = match load {
            Load::Echoes => stage.listen(pairing.listener, "b")?,
            Load::File { bytes, .. } => {
                write_noise(&file, *bytes)?;
                stage.receive("b", &inbox)?
            }
        };
        stage.link_over = None;
        let mut scene = Self {
            dialler: None,
            listener,
            stage,
            pairing,
            load: load.clone(),
            inbox,
            file,
            moves: 0,
        };
        if setting == Setting::TwoNetworks {
            scene.lab().attach("a", "c", SECOND)?;
        }
        if !matches!(setting, Setting::Ticket(_)) {
            scene.dial()?;
            let wanted = match setting {
                Setting::Relayed => "relayed",
                _ => "direct",
            };
            scene.wait_for(|event| event["path"] == wanted, wanted)?;
        }
        Ok(scene)
    }

    /// Lets the dialler connect, and send what there is to send.
    pub(crate) fn dial(&mut self) -> Result<()> {
        let ticket = &self.listener.ticket;
        let file = self.file.to_string_lossy();
        let wait = DIRECT_WITHIN.as_secs().to_string();
        let action = match self.load {
            Load::Echoes => vec!["--ping", ECHOES],
            Load::File { .. } => vec!["--wait-direct", &wait, "--send", &file],
        };
        self.dialler = Some(match self.pairing.dialler {
            Peer::Native => Dialler::Program(self.stage.dial("a", ticket, &action)?),
            Peer::Browser => {
                self.stage.converse("a", ticket)?;
                Dialler::Page
            }
        });
        Ok(())
    }

    /// Waits until traffic flows.
    pub(crate) fn wait_for_traffic(&self) -> Result<()> {
        if let Load::Echoes = self.load {
            for _ in 0..3 {
                self.wait_for(|event| event["event"] == "pong", "pong")?;
            }
            return Ok(());
        }
        let start = Instant::now();
        while self.received() < 1 << 20 {
            if start.elapsed() > DIRECT_WITHIN {
                return Err(self.failed("no byte arrives"));
            }
            // No event says that a file grows.
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn wait_for(&self, wanted: impl Fn(&Value) -> bool, what: &str) -> Result<()> {
        let deadline = Instant::now() + DIRECT_WITHIN;
        while let Some(event) = self.next(deadline) {
            if wanted(&event) {
                return Ok(());
            }
        }
        Err(self.failed(&format!("no {what} from the dialler")))
    }

    /// Returns the next event of the dialler.
    pub(crate) fn next(&self, deadline: Instant) -> Option<Value> {
        match self.dialler.as_ref()? {
            Dialler::Program(program) => program.next(deadline),
            Dialler::Page => self.stage.page_event(deadline),
        }
    }

    /// Returns how many bytes of the file have arrived.
    pub(crate) fn received(&self) -> u64 {
        let files = std::fs::read_dir(&self.inbox).into_iter().flatten();
        let sizes = files.flatten().filter_map(|file| file.metadata().ok());
        sizes.map(|metadata| metadata.len()).sum()
    }

    /// Waits for the hash of the file that arrived.
    pub(crate) fn received_hash(&self) -> Result<String> {
        let program = self.listener.program.as_ref();
        let program = program.ok_or_else(|| self.failed("a page receives no file"))?;
        let received = program.wait("file", DIRECT_WITHIN)?;
        Ok(received["sha256"].as_str().unwrap_or_default().to_owned())
    }

    /// Makes an error that shows what the peers have said.
    pub(crate) fn failed(&self, what: &str) -> LabError {
        let log = match &self.dialler {
            Some(Dialler::Program(program)) => program.log(),
            _ => String::new(),
        };
        let theirs = self.listener.program.as_ref().map(Program::log);
        LabError::Program(format!(
            "{what}\nthe dialler:\n{log}the listener:\n{}",
            theirs.unwrap_or_default()
        ))
    }

    fn lab(&mut self) -> &mut Lab {
        &mut self.stage.lab
    }

    fn run(&mut self, host: &str, script: &str) -> Result<()> {
        let mut command = self.lab().host(host)?.command("sh");
        let output = command.args(["-ec", script]).output();
        let output = output.context(format!("run a script on {host}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(LabError::Command {
            what: script.to_owned(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Replaces the NAT by one that gives other ports, as a router that has forgotten everything.
    pub(crate) fn new_port(&mut self, end: End) -> Result<()> {
        self.lab().set_nat(end.host(), NatKind::NonPreserving)
    }

    /// Takes the addresses of a host away.
    pub(crate) fn unplug(&mut self, end: End) -> Result<()> {
        self.run(end.host(), "ip addr flush dev eth0 scope global")
    }

    /// Replaces the address of a host by another one of its network.
    pub(crate) fn renumber(&mut self, end: End) -> Result<()> {
        self.moves += 1;
        let (index, byte) = (end.index(), 100 + self.moves);
        let script = format!(
            "ip addr flush dev eth0 scope global\nip addr add 192.168.{index}.{byte}/24 dev eth0\n\
             ip route add default via 192.168.{index}.1"
        );
        self.run(end.host(), &script)
    }

    /// Sends what the dialler's host sends through its second interface.
    pub(crate) fn move_route(&mut self) -> Result<()> {
        let script = format!("ip route replace default via 192.168.3.1 dev {SECOND}");
        self.run("a", &script)
    }

    /// Lets the dialler's router drop packets to the listener's router (`daddr`), from it (`saddr`),
    /// or both.
    pub(crate) fn block(&mut self, matches: &[&str]) -> Result<()> {
        self.filter(matches, "")
    }

    /// Lets the dialler's router drop so many of a hundred packets between the two routers.
    pub(crate) fn lose(&mut self, percent: u8) -> Result<()> {
        let some = format!("numgen random mod 100 < {percent} ");
        self.filter(&["daddr", "saddr"], &some)
    }

    fn filter(&mut self, matches: &[&str], which: &str) -> Result<()> {
        let other = self.lab().host("b-router")?.ip();
        let other = other.map(|ip| ip.to_string()).unwrap_or_default();
        let mut script = "nft add table ip block\nnft flush table ip block\n\
            nft add chain ip block forward '{ type filter hook forward priority -10; }'\n"
            .to_owned();
        for side in matches {
            script += &format!("nft add rule 'ip block forward ip {side} {other} {which}drop'\n");
        }
        self.run("a-router", &script)
    }

    /// Lets everything pass again.
    pub(crate) fn allow(&mut self) -> Result<()> {
        let script = "nft add table ip block\nnft delete table ip block";
        self.run("a-router", script)
    }

    /// Lets the dialler's router drop every IPv6 packet.
    pub(crate) fn lose_ipv6(&mut self) -> Result<()> {
        let script = "nft add table ip6 gone\n\
            nft add chain ip6 gone forward '{ type filter hook forward priority -10; policy drop; }'";
        self.run("a-router", script)
    }

    /// Cuts the uplink of a site.
    pub(crate) fn cut(&mut self, end: End) -> Result<()> {
        self.lab().cut(end.host())
    }

    /// Mends the uplink of a site.
    pub(crate) fn mend(&mut self, end: End) -> Result<()> {
        self.lab().mend(end.host())
    }

    pub(crate) fn kill_relay(&mut self) -> Result<()> {
        self.stage.kill_relay();
        Ok(())
    }

    pub(crate) fn start_relay(&mut self) -> Result<()> {
        self.stage.start_relay()
    }

    /// Sends a signal to a program. Stopping it stands for the sleep of its machine.
    pub(crate) fn signal(&mut self, end: End, name: &str) -> Result<()> {
        let program = match (end, &self.dialler, &self.listener.program) {
            (End::Dialler, Some(Dialler::Program(program)), _) => program,
            (End::Listener, _, Some(program)) => program,
            _ => return Err(self.failed("a page cannot be stopped")),
        };
        let id = program.id().to_string();
        let status = Command::new("kill").args([name, &id]).status();
        match status.context("run kill")?.success() {
            true => Ok(()),
            false => Err(self.failed("the program has ended")),
        }
    }
}

/// Writes a file in which a block that was shifted or repeated changes the hash.
fn write_noise(file: &std::path::Path, bytes: u64) -> Result<()> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = (0..bytes.div_ceil(8))
        .flat_map(|_| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word.to_le_bytes()
        })
        .collect();
    std::fs::write(file, &noise[..bytes as usize]).context("write the file to send")
}

fn spec(setting: Setting, load: &Load) -> Spec {
    let mut spec = Spec::pair(FIRST, FIRST);
    match setting {
        Setting::DualStack => spec.sites = spec.sites.into_iter().map(Site::dual_stack).collect(),
        Setting::TwoNetworks => spec.sites.push(Site::new("c", FIRST)),
        _ => {}
    }
    for site in &mut spec.sites {
        site.link = Some(link::Link::default());
    }
    if let Load::File { rate_kbit, .. } = load {
        spec.sites[0].link = Some(link::Link {
            rate_kbit: *rate_kbit,
            ..link::Link::default()
        });
    }
    spec.figure_delays()
}
