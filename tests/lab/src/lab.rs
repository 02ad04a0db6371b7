//! A running lab.

use std::{
    collections::HashMap,
    fs,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    available, conntrack, directory,
    error::{Context, LabError, Result},
    host::Host,
    lifetime::{Lifetime, forget},
    link::Link,
    namespace::{Namespace, feed, sysctl},
    nat::Nat,
    nat64::{self, Nat64},
    port_mapping::Daemon,
    rules,
    spec::{Site, Spec},
    tap,
    topology::{self, Cable, Node, Plan},
};

/// The namespaces, links and routers of one lab. Dropping it ends every program inside and removes
/// the lab.
///
/// Labs do not see each other and may run side by side with the same names and addresses.
pub struct Lab {
    spec: Spec,
    plan: Plan,
    namespaces: Vec<Arc<Namespace>>,
    /// The shaped links, by name.
    links: HashMap<String, usize>,
    carrier: tap::Carrier,
    lifetimes: HashMap<String, Lifetime>,
    daemons: Vec<Daemon>,
    nat64: Vec<Nat64>,
    directory: PathBuf,
    setup: Duration,
}

impl Lab {
    /// Checks whether this machine can run a lab.
    ///
    /// # Errors
    /// A text that names each missing thing and the exact command that installs it. It can follow
    /// "skipped: ".
    pub fn available() -> Result<(), String> {
        available::check(available::BASE)
    }

    /// Builds what `spec` describes. A pair takes 0.1 s.
    ///
    /// # Errors
    /// [`LabError::Missing`] and [`LabError::Spec`] come before anything is made.
    /// [`LabError::Command`] and [`LabError::Io`] mean that the kernel refused. Everything that was
    /// made is removed then.
    pub fn up(spec: Spec) -> Result<Self> {
        let start = Instant::now();
        Self::available().map_err(LabError::Missing)?;
        spec.check()?;
        if spec.sites.iter().any(|site| site.port_mapping.is_some()) {
            available::check(&[available::MINIUPNPD]).map_err(LabError::Missing)?;
        }
        if spec.sites.iter().any(|site| site.nat64) {
            available::check(available::NAT64).map_err(LabError::Missing)?;
        }
        let plan = Plan::new(&spec);
        let namespaces: Vec<_> = Namespace::create(plan.nodes.len(), || sysctl(BEFORE_INTERFACES))?
            .into_iter()
            .map(Arc::new)
            .collect();

        let mut links = HashMap::new();
        let mut taps = Vec::new();
        for cable in &plan.cables {
            let Some(link) = cable.link else { continue };
            if let Some(name) = &cable.name {
                links.insert(name.clone(), taps.len());
            }
            taps.push((tap_pair(cable, &namespaces)?, link));
        }
        let carrier = tap::Carrier::start(taps)?;
        let cables = veth_commands(&plan.cables, &namespaces, FIRST_INDEX);
        namespaces[0].within(|| feed("ip", &["-batch", "-"], &cables))?;

        let results = thread::scope(|scope| {
            let setups: Vec<_> = plan
                .nodes
                .iter()
                .zip(&namespaces)
                .map(|(node, namespace)| scope.spawn(move || namespace.within(|| configure(node))))
                .collect();
            setups
                .into_iter()
                .map(|setup| {
                    setup.join().unwrap_or_else(|_| {
                        Err(LabError::Program("a set-up thread panicked".into()))
                    })
                })
                .collect::<Vec<_>>()
        });
        results.into_iter().collect::<Result<Vec<()>>>()?;

        let mut lab = Self {
            spec,
            plan,
            namespaces,
            links,
            carrier,
            lifetimes: HashMap::new(),
            daemons: Vec::new(),
            nat64: Vec::new(),
            directory: directory::make()?,
            setup: Duration::ZERO,
        };
        for node in &lab.plan.nodes {
            if let Some(Nat {
                lifetime: Some(lifetime),
                ..
            }) = node.nat
            {
                lab.lifetimes.insert(
                    node.name.clone(),
                    Lifetime::start(lab.host(&node.name)?, lifetime, has_maps(node))?,
                );
            }
        }
        for (index, site) in (1..).zip(&lab.spec.sites) {
            if let Some(port_mapping) = site.port_mapping {
                let router = lab.host(&site.router_name())?;
                let inner = topology::at(topology::lan(index, site.nat.kind), 1);
                lab.daemons
                    .push(Daemon::start(&router, inner, port_mapping, &lab.directory)?);
            }
            if site.nat64 {
                let router = lab.host(&site.router_name())?;
                let inner = topology::lan6(index.into());
                lab.nat64
                    .push(Nat64::start(&router, inner, &lab.directory)?);
            }
        }
        lab.setup = start.elapsed();
        Ok(lab)
    }

    /// How long [`up`](Self::up) took.
    pub fn setup_time(&self) -> Duration {
        self.setup
    }

    /// The description of the lab, with the changes made since it was built.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The directory of this lab, which is removed with it.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns a host by its name: a site's host (`a`, `a2`), a site's router (`a-router`), a
    /// carrier, `relay`, `other` or `internet`.
    ///
    /// # Errors
    /// [`LabError::Spec`] if there is no such host.
    pub fn host(&self, name: &str) -> Result<Host> {
        let index = self.index(name)?;
        let node = &self.plan.nodes[index];
        Ok(Host {
            name: node.name.clone(),
            namespace: Arc::clone(&self.namespaces[index]),
            ipv4: node.ipv4,
            ipv6: node.ipv6,
            resolver: self.resolver(name),
        })
    }

    /// The list of name servers of a host, if it has one of its own.
    fn resolver(&self, host: &str) -> Option<PathBuf> {
        let is_of = |site: &&Site| (0..site.hosts).any(|i| site.host_name(i) == host);
        let site = self.spec.sites.iter().find(is_of);
        let site = site.filter(|site| site.nat64)?;
        Some(nat64::resolver(&self.directory, &site.router_name()))
    }

    /// The names of all hosts, routers and servers.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.plan.nodes.iter().map(|node| node.name.as_str())
    }

    /// Replaces the NAT of a site's router or of a carrier, as a new router would. Every mapping is
    /// lost, also those made by port-mapping protocols. Hosts change their address if the new kind
    /// needs it.
    ///
    /// # Errors
    /// [`LabError::Spec`] for an unknown name or a contradictory NAT.
    pub fn set_nat(&mut self, name: &str, nat: impl Into<Nat>) -> Result<()> {
        let nat = nat.into();
        let mut spec = self.spec.clone();
        if let Some(carrier) = spec
            .carriers
            .iter_mut()
            .find(|carrier| carrier.name == name)
        {
            carrier.nat = nat;
            spec.check()?;
            self.load(name, nat)?;
        } else if let Some((index, site)) = (1..)
            .zip(&mut spec.sites)
            .find(|(_, site)| site.name == name)
        {
            let old = std::mem::replace(&mut site.nat, nat).kind;
            let site = site.clone();
            spec.check()?;
            self.load(&site.router_name(), nat)?;
            let (from, to) = (topology::lan(index, old), topology::lan(index, nat.kind));
            if site.ipv4 && from != to {
                self.renumber(&site, from, to)?;
            }
        } else {
            return Err(LabError::Spec(format!(
                "there is no site or carrier {name:?}"
            )));
        }
        self.spec = spec;
        Ok(())
    }

    /// Makes a site's router or a carrier forget every mapping, as a reboot does.
    ///
    /// # Errors
    /// [`LabError::Spec`] for an unknown name.
    pub fn forget_mappings(&self, name: &str) -> Result<()> {
        let index = self.router_index(name)?;
        let maps = has_maps(&self.plan.nodes[index]);
        self.namespaces[index].within(|| forget(maps))
    }

    /// The present conditions of a link. A site's link has the name of the site, and a server's is
    /// `relay` or `other`.
    ///
    /// # Errors
    /// [`LabError::Spec`] if the link was not described, and so is a bare virtual cable.
    pub fn link(&self, name: &str) -> Result<Link> {
        self.carrier
            .get(self.link_index(name)?)
            .ok_or_else(|| LabError::Spec(format!("there is no link {name:?}")))
    }

    /// Changes a link from the next frame on.
    ///
    /// # Errors
    /// The errors of [`link`](Self::link).
    pub fn set_link(&self, name: &str, link: Link) -> Result<()> {
        self.carrier.set(self.link_index(name)?, link);
        Ok(())
    }

    /// Cuts a link. Frames that are under way are still delivered.
    ///
    /// # Errors
    /// The errors of [`link`](Self::link).
    pub fn cut(&self, name: &str) -> Result<()> {
        self.set_link(
            name,
            Link {
                cut: true,
                ..self.link(name)?
            },
        )
    }

    /// Mends a cut link.
    ///
    /// # Errors
    /// The errors of [`link`](Self::link).
    pub fn mend(&self, name: &str) -> Result<()> {
        self.set_link(
            name,
            Link {
                cut: false,
                ..self.link(name)?
            },
        )
    }

    /// Connects a host with the LAN of a further site, by a new interface `device` that is not on its
    /// default route.
    ///
    /// # Errors
    /// [`LabError::Spec`] for an unknown name.
    pub fn attach(&mut self, host: &str, site: &str, device: &str) -> Result<()> {
        let sites = (1..).zip(&self.spec.sites);
        let (index, kind) = sites
            .into_iter()
            .find(|(_, known)| known.name == site)
            .map(|(index, known)| (index, known.nat.kind))
            .ok_or_else(|| LabError::Spec(format!("there is no site {site:?}")))?;
        let (host, router) = (self.index(host)?, self.router_index(site)?);
        let port = format!("x{host}");
        let cable = Cable {
            name: None,
            ends: [(host, device.to_owned()), (router, port.clone())],
            link: None,
        };
        let commands = veth_commands(&[cable], &self.namespaces, GUEST_INDEX);
        self.namespaces[0].within(|| feed("ip", &["-batch", "-"], &commands))?;
        let join = format!("link set {port} master lan\nlink set {port} up\n");
        self.namespaces[router].within(|| feed("ip", &["-batch", "-"], &join))?;
        let address = topology::at(topology::lan(index, kind), GUEST);
        let address = format!("link set {device} up\naddr add {address}/24 dev {device}\n");
        self.namespaces[host].within(|| feed("ip", &["-batch", "-"], &address))
    }

    fn index(&self, name: &str) -> Result<usize> {
        self.plan
            .find(name)
            .ok_or_else(|| LabError::Spec(format!("there is no host {name:?}")))
    }

    fn router_index(&self, name: &str) -> Result<usize> {
        let site = self.spec.sites.iter().find(|site| site.name == name);
        self.index(&site.map_or_else(|| name.to_owned(), |site| site.router_name()))
    }

    fn link_index(&self, name: &str) -> Result<usize> {
        self.links.get(name).copied().ok_or_else(|| {
            LabError::Spec(format!("{name:?} has no shaped link; describe one (Link::default() will do) to change it later"))
        })
    }

    fn load(&mut self, router: &str, nat: Nat) -> Result<()> {
        let index = self.index(router)?;
        let node = &mut self.plan.nodes[index];
        node.rules = rules::text(&nat, node.ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED));
        node.nat = Some(nat);
        self.lifetimes.remove(router);
        let node = &self.plan.nodes[index];
        self.namespaces[index].within(|| {
            load_rules(node)?;
            conntrack::flush().context("forget tracked flows")
        })?;
        if let Some(lifetime) = nat.lifetime {
            let started = Lifetime::start(self.host(router)?, lifetime, nat.kind.has_maps())?;
            self.lifetimes.insert(router.to_owned(), started);
        }
        Ok(())
    }

    fn renumber(&mut self, site: &Site, from: [u8; 3], to: [u8; 3]) -> Result<()> {
        let router = self.index(&site.router_name())?;
        let swap = |device: &str, host: u8| {
            format!(
                "addr del {}/24 dev {device}\naddr add {}/24 dev {device}\n",
                topology::at(from, host),
                topology::at(to, host)
            )
        };
        self.namespaces[router].within(|| feed("ip", &["-batch", "-"], &swap("lan", 1)))?;
        for number in 0..site.hosts {
            let host = self.index(&site.host_name(number))?;
            let byte = topology::host_byte(number);
            // The default route was removed with the old address.
            let commands = format!(
                "{}route replace default via {}\n",
                swap("eth0", byte),
                topology::at(to, 1)
            );
            self.namespaces[host].within(|| feed("ip", &["-batch", "-"], &commands))?;
            self.plan.nodes[host].ipv4 = Some(topology::at(to, byte));
        }
        Ok(())
    }
}

/// The last byte of the address of a host of another site. No site has so many hosts of its own.
const GUEST: u8 = 200;

impl Drop for Lab {
    fn drop(&mut self) {
        self.lifetimes.clear();
        self.daemons.clear();
        self.nat64.clear();
        for namespace in &self.namespaces {
            for pid in namespace.processes() {
                // SAFETY: this sends a signal to a process that was in our namespace a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Settings before any interface exists. Duplicate address detection would delay IPv6 by a second.
/// Forwarding is switched on later, in routers only.
const BEFORE_INTERFACES: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

const FORWARDING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    // The router's rules must not see frames between two hosts of a LAN.
    ("net/bridge/bridge-nf-call-iptables", "0"),
    ("net/bridge/bridge-nf-call-ip6tables", "0"),
];

fn configure(node: &Node) -> Result<()> {
    if node.nat.is_some() || node.name == "internet" {
        sysctl(FORWARDING)?;
    }
    feed("ip", &["-batch", "-"], &node.commands.join("\n"))?;
    if node.nat.is_some() {
        load_rules(node)
    } else {
        Ok(())
    }
}

fn load_rules(node: &Node) -> Result<()> {
    feed("nft", &["-f", "-"], &node.rules)?;
    let Some(nat) = node.nat else { return Ok(()) };
    let seconds = nat.idle_timeout.as_secs().max(1).to_string();
    // These settings exist only after the rules have started the connection tracker.
    sysctl(&[
        ("net/netfilter/nf_conntrack_udp_timeout", &seconds),
        ("net/netfilter/nf_conntrack_udp_timeout_stream", &seconds),
    ])
}

fn has_maps(node: &Node) -> bool {
    node.nat.is_some_and(|nat| nat.kind.has_maps())
}

fn tap_pair(cable: &Cable, namespaces: &[Arc<Namespace>]) -> Result<[OwnedFd; 2]> {
    let [(a, a_device), (b, b_device)] = &cable.ends;
    Ok([
        namespaces[*a].within(|| tap::open(a_device))?,
        namespaces[*b].within(|| tap::open(b_device))?,
    ])
}

/// The index of the first virtual cable, and of one that is added later.
const FIRST_INDEX: usize = 1_000;
const GUEST_INDEX: usize = 100_000;

fn veth_commands(cables: &[Cable], namespaces: &[Arc<Namespace>], first: usize) -> String {
    let plain = cables.iter().filter(|cable| cable.link.is_none());
    // One end gets its own index. If both ends have the same index, the kernel ignores that the
    // link came up, and IPv6 does not work on the link for up to a second.
    (first..)
        .zip(plain)
        .map(|(index, cable)| {
            let [(a, a_device), (b, b_device)] = &cable.ends;
            let (a, b) = (namespaces[*a].path(), namespaces[*b].path());
            format!("link add {a_device} index {index} netns {a} type veth peer name {b_device} netns {b}\n")
        })
        .collect()
}

impl std::fmt::Debug for Lab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lab")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}
