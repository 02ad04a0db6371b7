//! Dials addresses with names. Names are looked up in the hosts file and at the name servers that
//! the system names now.
//!
//! libp2p's own resolver reads both once. A program that was started without a network, or that has
//! moved to another one, would never resolve a name again.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
    pin::Pin,
    str,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, Record},
    system_conf,
};
use libp2p::{
    Multiaddr,
    core::transport::{self, DialOpts, ListenerId, TransportError, TransportEvent},
    multiaddr::Protocol,
};

use crate::native::environment::FromFile;

/// The most lookups of one dial. Records of `/dnsaddr` may refer to each other in a circle.
const MAX_LOOKUPS: usize = 32;
/// The most addresses that one dial tries.
const MAX_DIALS: usize = 16;
/// The most addresses that are taken from the records of one `/dnsaddr`.
const MAX_RECORDS: usize = 16;

/// How long it is believed that a name does not exist. A network that has no way out yet says so of
/// all names.
const DENIED: Duration = Duration::from_secs(1);
/// Whether the name servers are configured in a file, as on most systems. Some have them elsewhere.
const IN_FILE: bool = cfg!(all(
    unix,
    not(any(target_os = "android", target_vendor = "apple"))
));

/// Where the configuration of the resolver is.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) servers: PathBuf,
    pub(super) hosts: PathBuf,
    /// The port of name servers.
    pub(super) port: u16,
}

impl Default for Files {
    fn default() -> Self {
        let hosts = match std::env::var_os("SystemRoot").filter(|_| cfg!(windows)) {
            Some(root) => Path::new(&root).join("System32\\drivers\\etc\\hosts"),
            None => "/etc/hosts".into(),
        };
        Self {
            servers: "/etc/resolv.conf".into(),
            hosts,
            port: 53,
        }
    }
}

type Servers = (ResolverConfig, ResolverOpts);

/// The resolver of one connector.
#[derive(Clone)]
pub(crate) struct Names(Arc<Inner>);

struct Inner {
    servers: Arc<FromFile<Arc<Servers>>>,
    hosts: Arc<FromFile<Arc<Hosts>>>,
    made: Mutex<Option<Made>>,
}

/// A resolver, and what it was made from.
struct Made {
    servers: Arc<Servers>,
    hosts: Arc<Hosts>,
    resolver: TokioResolver,
}

impl Names {
    /// The resolver with the configuration of the system. Where no servers are configured, as in a
    /// container without DNS, it resolves with the hosts file alone.
    pub(crate) fn of_system() -> Self {
        Self::of(&Files::default())
    }

    pub(super) fn of(files: &Files) -> Self {
        let port = files.port;
        let servers = move |file: &Path| read_servers(file, port).map(Arc::new);
        Self(Arc::new(Inner {
            servers: FromFile::or(&files.servers, servers, Arc::default()),
            hosts: FromFile::or(&files.hosts, read_hosts, Arc::default()),
            made: Mutex::default(),
        }))
    }

    /// The network has changed. The configuration is read again, and answers from before are
    /// forgotten.
    pub(crate) fn renew(&self) {
        self.0.servers.renew();
        self.0.hosts.renew();
    }

    /// Resolves the names in addresses that are dialled over `inner`.
    pub(super) fn over<T>(&self, inner: T) -> Named<T> {
        Named {
            inner: Arc::new(Mutex::new(inner)),
            names: self.clone(),
        }
    }

    async fn resolver(&self) -> Result<TokioResolver, NetError> {
        let servers = self.0.servers.current().await;
        let hosts = self.0.hosts.current().await;
        let mut made = lock(&self.0.made);
        if let Some(made) = &*made
            && Arc::ptr_eq(&made.servers, &servers)
            && Arc::ptr_eq(&made.hosts, &hosts)
        {
            return Ok(made.resolver.clone());
        }
        let resolver = make(&servers, &hosts)?;
        *made = Some(Made {
            servers,
            hosts,
            resolver: resolver.clone(),
        });
        Ok(resolver)
    }

    /// Returns the IP addresses of a host.
    ///
    /// # Errors
    /// Fails if the name cannot be resolved now.
    pub(crate) async fn look_up_ips(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let looked_up = async { self.resolver().await?.lookup_ip(host).await };
        let found = looked_up.await;
        if found.is_err() && !IN_FILE {
            self.0.servers.renew();
        }
        Ok(found.map_err(io::Error::other)?.iter().collect())
    }

    /// Returns the IPv6 addresses of a host, which may be none.
    ///
    /// # Errors
    /// Fails if the name cannot be resolved now.
    pub(crate) async fn look_up_v6(&self, host: &str) -> io::Result<Vec<Ipv6Addr>> {
        let looked_up = async { self.resolver().await?.ipv6_lookup(host).await };
        let found = looked_up.await;
        if found.is_err() && !IN_FILE {
            self.0.servers.renew();
        }
        let records = match found {
            Ok(found) => found,
            Err(error) if error.is_no_records_found() => return Ok(Vec::new()),
            Err(error) => return Err(io::Error::other(error)),
        };
        let address = |record: &Record| match record.data.ip_addr()? {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        };
        Ok(records.answers().iter().filter_map(address).collect())
    }

    /// Resolves the first name in `address`.
    async fn resolve(&self, address: &Multiaddr, name: Name) -> io::Result<Vec<Multiaddr>> {
        let found = match self.look_up(address, name).await {
            Ok(found) if found.is_empty() => Err(io::Error::other("the name has no such address")),
            found => found.map_err(io::Error::other),
        };
        if found.is_err() && !IN_FILE {
            // The system may use other name servers now. Where they are configured in a file, a
            // change is seen without this, and the answers for other names are kept.
            self.0.servers.renew();
        }
        found
    }

    async fn look_up(&self, address: &Multiaddr, name: Name) -> Result<Vec<Multiaddr>, NetError> {
        let resolver = self.resolver().await?;
        let Name { at, kind, name } = name;
        let of_records = |records: &[Record]| -> Vec<IpAddr> {
            records.iter().filter_map(|r| r.data.ip_addr()).collect()
        };
        let mut ips: Vec<IpAddr> = match kind {
            Kind::Both => resolver.lookup_ip(name).await?.iter().collect(),
            Kind::V4 => of_records(resolver.ipv4_lookup(name).await?.answers()),
            Kind::V6 => of_records(resolver.ipv6_lookup(name).await?.answers()),
            Kind::Addresses => {
                let texts = resolver.txt_lookup(format!("_dnsaddr.{name}")).await?;
                let before: Multiaddr = address.iter().take(at).collect();
                let after: Multiaddr = address.iter().skip(at + 1).collect();
                let found = texts
                    .answers()
                    .iter()
                    .filter_map(|record| match &record.data {
                        RData::TXT(text) => referred(text.txt_data.first()?),
                        _ => None,
                    });
                let found = found.filter(|found| found.ends_with(&after));
                let whole = |found: Multiaddr| before.iter().chain(found.iter()).collect();
                return Ok(found.take(MAX_RECORDS).map(whole).collect());
            }
        };
        ips.retain(|ip| match kind {
            Kind::V4 => ip.is_ipv4(),
            Kind::V6 => ip.is_ipv6(),
            _ => true,
        });
        let with = |ip: IpAddr| address.replace(at, |_| Some(ip.into()));
        Ok(ips.into_iter().filter_map(with).collect())
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn make(servers: &Servers, hosts: &Arc<Hosts>) -> Result<TokioResolver, NetError> {
    let (config, mut options) = servers.clone();
    // The resolver would read the hosts file itself.
    options.use_hosts_file = ResolveHosts::Never;
    options.negative_max_ttl = Some(DENIED);
    let provider = TokioRuntimeProvider::default();
    let mut resolver = TokioResolver::builder_with_config(config, provider)
        .with_options(options)
        .build()?;
    resolver.set_hosts(hosts.clone());
    Ok(resolver)
}

/// Reads the name servers that the system is configured to use.
fn read_servers(file: &Path, port: u16) -> io::Result<Servers> {
    let (mut config, options) = configured(file)?;
    let servers = config.name_servers.iter_mut();
    for connection in servers.flat_map(|server| &mut server.connections) {
        connection.port = port;
    }
    Ok((config, options))
}

#[cfg(all(unix, not(any(target_os = "android", target_vendor = "apple"))))]
fn configured(file: &Path) -> io::Result<Servers> {
    system_conf::parse_resolv_conf(std::fs::read(file)?).map_err(io::Error::other)
}

/// These systems have the configuration elsewhere. It is read again when the network has changed.
#[cfg(not(all(unix, not(any(target_os = "android", target_vendor = "apple")))))]
fn configured(_: &Path) -> io::Result<Servers> {
    system_conf::read_system_conf().map_err(io::Error::other)
}

fn read_hosts(file: &Path) -> io::Result<Arc<Hosts>> {
    let mut hosts = Hosts::default();
    hosts.read_hosts_conf(File::open(file)?)?;
    Ok(Arc::new(hosts))
}

/// The address in a text record of `/dnsaddr`.
fn referred(text: &[u8]) -> Option<Multiaddr> {
    let text = str::from_utf8(text).ok()?;
    text.strip_prefix("dnsaddr=")?.parse().ok()
}

/// A name in an address.
struct Name {
    /// Which part of the address it is.
    at: usize,
    kind: Kind,
    name: String,
}

/// The kind of addresses that a name stands for.
#[derive(Clone, Copy)]
enum Kind {
    /// IP addresses.
    Both,
    V4,
    V6,
    /// Whole addresses.
    Addresses,
}

impl Name {
    /// The first name in `address`.
    fn first(address: &Multiaddr) -> Option<Self> {
        address.iter().enumerate().find_map(|(at, part)| {
            let (kind, name) = match part {
                Protocol::Dns(name) => (Kind::Both, name),
                Protocol::Dns4(name) => (Kind::V4, name),
                Protocol::Dns6(name) => (Kind::V6, name),
                Protocol::Dnsaddr(name) => (Kind::Addresses, name),
                _ => return None,
            };
            let name = name.into_owned();
            Some(Self { at, kind, name })
        })
    }
}

/// A transport that dials names as well.
pub(crate) struct Named<T> {
    inner: Arc<Mutex<T>>,
    names: Names,
}

impl<T> transport::Transport for Named<T>
where
    T: transport::Transport<Error = io::Error> + Send + Unpin + 'static,
    T::Dial: Send + 'static,
{
    type Output = T::Output;
    type Error = io::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<T::Output>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        lock(&self.inner).listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        lock(&self.inner).remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        Ok(dial(self.names.clone(), self.inner.clone(), address, options).boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut *lock(&self.inner)).poll(cx)
    }
}

/// Dials what `address` stands for, one address after the other, until one answers.
async fn dial<T>(
    names: Names,
    inner: Arc<Mutex<T>>,
    address: Multiaddr,
    options: DialOpts,
) -> io::Result<T::Output>
where
    T: transport::Transport<Error = io::Error> + Send,
    T::Dial: Send,
{
    let mut open = vec![address];
    let (mut lookups, mut dials) = (0, 0);
    let mut errors = Vec::new();
    while let Some(address) = open.pop() {
        if let Some(name) = Name::first(&address) {
            if lookups == MAX_LOOKUPS {
                errors.push(io::Error::other("the name leads to too many others"));
                continue;
            }
            lookups += 1;
            match names.resolve(&address, name).await {
                Ok(found) => open.extend(found),
                Err(error) => errors.push(error),
            }
        } else if dials < MAX_DIALS {
            let dialling = lock(&inner).dial(address, options);
            let dialled = match dialling {
                Ok(dialling) => {
                    dials += 1;
                    dialling.await
                }
                Err(TransportError::Other(error)) => Err(error),
                Err(TransportError::MultiaddrNotSupported(address)) => {
                    let why = format!("unsupported resolved address: {address}");
                    Err(io::Error::other(why))
                }
            };
            match dialled {
                Ok(output) => return Ok(output),
                Err(error) => errors.push(error),
            }
        }
    }
    Err(joined(errors))
}

/// Joins the errors of several addresses into one.
fn joined(mut errors: Vec<io::Error>) -> io::Error {
    let Some(last) = errors.pop() else {
        return io::Error::other("the name has no address");
    };
    let mut reasons: Vec<String> = Vec::new();
    for error in errors.iter().chain([&last]) {
        let reason = error.to_string();
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    match reasons.len() {
        1 => last,
        _ => io::Error::new(last.kind(), reasons.join(", ")),
    }
}

#[cfg(test)]
mod tests;
