//! NATS, as far as a fleet needs it: a connection, and the buckets of JetStream.
//!
//! What a bucket accepts is also published below [`PUSHED`], so a server hears of a change by a plain
//! subscription, which costs the cluster no state. NATS publishes a change once at most: whoever is not
//! reached at that moment misses it. What is said again and again is heard the next time. Whether anything
//! else was missed, the numbers of the changes tell.

use std::{
    collections::HashSet,
    error::Error as StdError,
    fmt,
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, Event, HeaderMap, Message, Subscriber,
    jetstream::{
        consumer::{DeliverPolicy, push::OrderedConfig},
        context::{Context, ContextBuilder, KeyValueErrorKind},
        kv::{DeleteErrorKind, Operation, Store, UpdateErrorKind},
        message::StreamMessage,
        stream::{Config, DiscardPolicy, LastRawMessageErrorKind, Republish, StorageType},
    },
};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures::StreamExt as _;
use libp2p::PeerId;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::keys::{Bucket, Found, Key, PUSHED, name};
use crate::{
    core::fleet,
    envelope,
    error::{Error, ErrorKind, innermost},
    native::roots::Roots,
    server::config::FleetConfig,
};

/// How long anything may take that NATS is asked.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);
/// How often it is asked whether it is still there. It is given up after three times without an answer.
const PING: Duration = Duration::from_secs(2);
/// How many messages may wait in one subscription. If there are more, everything is read again. NATS sends
/// whoever reads a bucket up to 32 MiB ahead, in messages of 128 bytes and more. Memory is only taken for
/// what waits.
const WAITING: usize = 262_144;

/// Why NATS has not done what it was asked.
#[derive(Debug)]
pub(super) enum Fault {
    /// The key has another revision.
    Differs,
    /// Anything else. The text holds no secret.
    Other(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs => f.write_str("the key has another revision"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

fn fault(error: impl StdError + 'static) -> Fault {
    Fault::Other(innermost(&error))
}

fn late() -> Fault {
    Fault::Other("no answer in time".to_owned())
}

/// Waits for NATS until the deadline.
async fn in_time<T, E: StdError + 'static>(
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, Fault> {
    match timeout(DEADLINE, asked).await {
        Ok(result) => result.map_err(fault),
        Err(_) => Err(late()),
    }
}

/// Where NATS is, and who this server is there.
pub(super) struct Cluster {
    urls: Vec<String>,
    user: Option<(String, String)>,
    credentials: Option<String>,
    roots: Roots,
    replicas: usize,
}

impl Cluster {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if a URL or a file cannot be used.
    pub(super) fn new(config: &FleetConfig) -> Result<Self, Error> {
        let invalid = |field: &str, why: &dyn fmt::Display| {
            Error::new(ErrorKind::InvalidConfig, format!("fleet.{field}: {why}"))
        };
        let (urls, user) = config.parsed()?;
        let credentials = match &config.credentials {
            Some(file) => {
                let text = std::fs::read_to_string(file);
                let text = text.map_err(|error| invalid("credentials", &error))?;
                // The error would show a part of the file.
                ConnectOptions::with_credentials(&text)
                    .map_err(|_| invalid("credentials", &"the file holds no JWT and key"))?;
                Some(text)
            }
            None => None,
        };
        Ok(Self {
            urls,
            user,
            credentials,
            roots: Roots::load(config.ca.as_deref()).map_err(|error| invalid("ca", &error))?,
            replicas: config.replicas.into(),
        })
    }

    /// Connects. The second value turns when the connection is lost. Then it is for the caller to
    /// connect again: what waited on the old connection is not sent on a new one.
    pub(super) async fn connect(&self) -> Result<(Client, watch::Receiver<bool>), Fault> {
        let (lost, is_lost) = watch::channel(false);
        let mut options = ConnectOptions::new();
        if let Some(credentials) = &self.credentials {
            options = ConnectOptions::with_credentials(credentials)
                .map_err(|_| Fault::Other("the credentials are malformed".to_owned()))?;
        }
        if let Some((name, password)) = &self.user {
            options = options.user_and_password(name.clone(), password.clone());
        }
        let options = options
            .name("throughline")
            // A server that another one names is asked for TLS as well.
            .require_tls(self.urls.iter().all(|url| url.starts_with("tls://")))
            .tls_client_config((*self.roots.config().await).clone())
            .connection_timeout(DEADLINE)
            .request_timeout(Some(DEADLINE))
            .ping_interval(PING)
            .subscription_capacity(WAITING)
            // Each server is tried once, also when the connection is lost and nobody waits for another one.
            .max_reconnects(self.urls.len())
            .event_callback(move |event| {
                match event {
                    // Whoever is too slow for what is pushed has lost a part of it.
                    Event::Disconnected | Event::Closed | Event::SlowConsumer(_) => {
                        lost.send_replace(true);
                    }
                    event => tracing::debug!(%event, "the fleet's NATS"),
                }
                std::future::ready(())
            });
        let all = DEADLINE * u32::try_from(self.urls.len()).unwrap_or(u32::MAX);
        let client = timeout(all, options.connect(&self.urls[..])).await;
        let client = client.map_err(|_| late())?;
        Ok((client.map_err(fault)?, is_lost))
    }

    /// Opens the buckets, and makes those that are not there.
    pub(super) async fn open(&self, client: Client) -> Result<Buckets, Fault> {
        let context = ContextBuilder::new()
            .timeout(DEADLINE)
            .build(client.clone());
        let open = |which| bucket(&context, which, self.replicas);
        Ok(Buckets {
            peers: open(Bucket::Peers).await?,
            rooms: open(Bucket::Rooms).await?,
            relays: open(Bucket::Relays).await?,
            revoked: open(Bucket::Revoked).await?,
            usage: open(Bucket::Usage).await?,
            quotas: open(Bucket::Quotas).await?,
            client,
        })
    }

    /// Tells `hear` every key of the bucket of usage and its value.
    pub(super) async fn read_usage(
        &self,
        client: Client,
        hear: &impl Fn(&str, &[u8]),
    ) -> Result<(), Fault> {
        let context = ContextBuilder::new()
            .timeout(DEADLINE)
            .build(client.clone());
        let store = context.get_key_value(Bucket::Usage.full()).await;
        let store = store.map_err(fault)?;
        let hear = |key: &str, found: Found| {
            if let Some(value) = &found.value {
                hear(key, value);
            }
        };
        read(&client, &store, (Bucket::Usage, "*.*.*.*"), &hear)
            .await
            .map(drop)
    }
}

/// What is said again and again need not outlive the cluster.
fn storage(which: Bucket) -> StorageType {
    match which {
        Bucket::Revoked | Bucket::Usage | Bucket::Quotas => StorageType::File,
        _ => StorageType::Memory,
    }
}

/// Where the changes of a bucket are published.
fn republish(which: Bucket) -> Republish {
    Republish {
        source: format!("$KV.{}.>", which.full()),
        destination: format!("{PUSHED}.{}.>", which.name()),
        headers_only: false,
    }
}

/// Returns a bucket that is there, if it does what this server needs.
fn fit(which: Bucket, store: Store) -> Result<Store, Fault> {
    let config = &store.stream.cached_info().config;
    let wrong = if config.republish != Some(republish(which)) {
        "does not publish its changes where the relays hear of them"
    } else if config.max_age != which.age() {
        "keeps its values for another time"
    } else {
        return Ok(store);
    };
    let full = which.full();
    Err(Fault::Other(format!(
        "the bucket {full} {wrong}; edit its stream KV_{full}, or delete the bucket, which the relays then \
         make anew"
    )))
}

async fn bucket(context: &Context, which: Bucket, num_replicas: usize) -> Result<Store, Fault> {
    let (name, full) = (which.name(), which.full());
    let there = timeout(DEADLINE, context.get_key_value(&full)).await;
    match there {
        Ok(Ok(store)) => return fit(which, store),
        Ok(Err(error)) if error.kind() != KeyValueErrorKind::GetBucket => return Err(fault(error)),
        // It is not there, or it cannot be had now. Making it tells which.
        _ => {}
    }
    // This is what the client's own function makes, which first asks for the limits of the account, and does
    // not understand the answer of NATS 2.9.
    let config = Config {
        name: format!("KV_{full}"),
        description: Some(format!("what the servers of a fleet share: {name}")),
        subjects: vec![format!("$KV.{full}.>")],
        max_messages_per_subject: 1,
        max_age: which.age(),
        max_message_size: which.max_value() as i32,
        storage: storage(which),
        num_replicas,
        discard: DiscardPolicy::New,
        // Nobody needs it, and it would delete many keys by one message.
        allow_rollup: false,
        deny_delete: true,
        allow_direct: true,
        republish: Some(republish(which)),
        ..Config::default()
    };
    in_time(context.create_stream(config)).await?;
    in_time(context.get_key_value(full)).await
}

/// What a fleet shares, over one connection. Clones share it.
#[derive(Clone)]
pub(super) struct Buckets {
    client: Client,
    peers: Store,
    rooms: Store,
    relays: Store,
    revoked: Store,
    usage: Store,
    quotas: Store,
}

impl Buckets {
    fn of(&self, key: &Key) -> (&Store, String) {
        (self.store(key.into()), name(key))
    }

    fn store(&self, which: Bucket) -> &Store {
        match which {
            Bucket::Peers => &self.peers,
            Bucket::Rooms => &self.rooms,
            Bucket::Relays => &self.relays,
            Bucket::Revoked => &self.revoked,
            Bucket::Usage => &self.usage,
            Bucket::Quotas => &self.quotas,
        }
    }

    /// Whether every bucket can be written. While its servers have not agreed on a leader, or too few of them
    /// reach each other, it takes nothing.
    pub(super) async fn are_led(&self) -> Result<(), Fault> {
        for which in Bucket::ALL {
            let store = self.store(which);
            let info = in_time(store.stream.get_info()).await?;
            if info.cluster.is_some_and(|cluster| cluster.leader.is_none()) {
                return Err(Fault::Other(format!("{} has no leader", store.name)));
            }
        }
        Ok(())
    }

    /// Writes `key` if it has the revision that is named, and returns the new one.
    pub(super) async fn put(&self, key: &Key, value: Vec<u8>, revision: u64) -> Result<u64, Fault> {
        let (store, key) = self.of(key);
        update(store, key, value, revision).await
    }

    /// Deletes `key` if it has the revision that is named.
    pub(super) async fn delete(&self, key: &Key, revision: u64) -> Result<(), Fault> {
        let (store, key) = self.of(key);
        let delete = store.delete_expect_revision(key, Some(revision));
        match timeout(DEADLINE, delete).await {
            Ok(Err(error)) if error.kind() == DeleteErrorKind::WrongLastRevision => {
                Err(Fault::Differs)
            }
            Ok(result) => result.map_err(fault),
            Err(_) => Err(late()),
        }
    }

    /// Returns what `key` has, if it is there. Any server with the bucket answers, so a change that is
    /// younger than a moment may be missing.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<Found>, Fault> {
        let (store, name) = self.of(key);
        let entry = in_time(store.entry(name)).await?;
        Ok(entry.map(|entry| Found {
            revision: entry.revision,
            value: (entry.operation == Operation::Put).then(|| entry.value.to_vec()),
            age: since(entry.created.unix_timestamp_nanos(), key.into()),
        }))
    }

    /// Returns what `key` has, with all changes that were confirmed.
    pub(super) async fn newest(&self, key: &Key) -> Result<Option<Found>, Fault> {
        let message = self.last(key.into(), &name(key)).await?;
        Ok(message.map(|message| Found {
            revision: message.sequence,
            value: is_put(&message.headers).then(|| message.payload.to_vec()),
            age: since(message.time.unix_timestamp_nanos(), key.into()),
        }))
    }

    /// Whether `key` still has this revision, which the bucket has confirmed, or a later one. Otherwise the
    /// bucket has lost it.
    pub(super) async fn has(&self, which: Bucket, key: &str, revision: u64) -> Result<bool, Fault> {
        let message = self.last(which, key).await?;
        Ok(message.is_some_and(|message| message.sequence >= revision))
    }

    /// Returns the number of the last change of a bucket.
    pub(super) async fn last_of(&self, which: Bucket) -> Result<u64, Fault> {
        let info = in_time(self.store(which).stream.get_info()).await?;
        Ok(info.state.last_sequence)
    }

    /// Asks the leader of a bucket for the last change of `key`.
    async fn last(&self, which: Bucket, key: &str) -> Result<Option<StreamMessage>, Fault> {
        let store = self.store(which);
        let subject = format!("{}{key}", store.prefix);
        let asked = store.stream.get_last_raw_message_by_subject(&subject);
        match timeout(DEADLINE, asked).await {
            Ok(Err(error)) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Ok(result) => result.map(Some).map_err(fault),
            Err(_) => Err(late()),
        }
    }

    /// Tells the others how this server is.
    pub(super) async fn say(&self, relay: &PeerId, status: Vec<u8>) -> Result<(), Fault> {
        let put = self.relays.put(relay.to_string(), status.into());
        in_time(put).await.map(drop)
    }

    /// Tells the others that a token does not count any more.
    pub(super) async fn revoke(&self, id: &str) -> Result<(), Fault> {
        let put = self
            .revoked
            .put(HEXLOWER.encode(id.as_bytes()), Bytes::new());
        in_time(put).await.map(drop)
    }

    /// Writes a row of usage, and returns its revision.
    pub(super) async fn count(&self, key: &str, row: Vec<u8>) -> Result<u64, Fault> {
        in_time(self.usage.put(key, row.into())).await
    }

    /// Returns the leases of a quota with all changes that were confirmed, and their revision.
    pub(super) async fn leases(&self, key: &str) -> Result<(Option<Bytes>, u64), Fault> {
        let message = self.last(Bucket::Quotas, key).await?;
        Ok(message.map_or((None, 0), |message| {
            let is_there = is_put(&message.headers);
            (is_there.then_some(message.payload), message.sequence)
        }))
    }

    /// Writes the leases of a quota if they have the revision that is named, and returns the new one.
    pub(super) async fn lease(
        &self,
        key: String,
        value: Vec<u8>,
        revision: u64,
    ) -> Result<u64, Fault> {
        update(&self.quotas, key, value, revision).await
    }

    /// Returns a row of usage.
    pub(super) async fn usage_of(&self, key: &str) -> Result<Option<Bytes>, Fault> {
        in_time(self.usage.get(key)).await
    }

    /// Tells `hear` what a bucket has, and returns what changes there from then on. `keys` says of which
    /// keys, and `reads` how many are read at once.
    pub(super) async fn begin(
        &self,
        which: Bucket,
        keys: &str,
        reads: &Semaphore,
        hear: &impl Fn(&str, Found),
    ) -> Result<Changes, Fault> {
        let pushed = format!("{PUSHED}.{}.{keys}", which.name());
        let pushed = in_time(self.client.subscribe(pushed)).await?;
        let _permit = reads.acquire().await;
        let read = read(&self.client, self.store(which), (which, keys), hear).await?;
        Ok(Changes {
            pushed,
            read,
            last: read,
            has_missed: false,
        })
    }

    /// Tells `hear` what a bucket has and what changes there, until that is not possible any more.
    pub(super) async fn follow(
        &self,
        which: Bucket,
        keys: &str,
        reads: &Semaphore,
        hear: &impl Fn(&str, Found),
    ) -> Fault {
        match self.begin(which, keys, reads, hear).await {
            Ok(mut changes) => {
                while changes.next(hear).await {}
                lost()
            }
            Err(fault) => fault,
        }
    }
}

/// Writes a key if it has the revision that is named, and returns the new one.
async fn update(store: &Store, key: String, value: Vec<u8>, revision: u64) -> Result<u64, Fault> {
    match timeout(DEADLINE, store.update(key, value.into(), revision)).await {
        Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => Err(Fault::Differs),
        Ok(result) => result.map_err(fault),
        Err(_) => Err(late()),
    }
}

pub(super) fn lost() -> Fault {
    Fault::Other("the connection is lost".to_owned())
}

/// What changes in a bucket.
pub(super) struct Changes {
    pushed: Subscriber,
    /// The last change that was read, and does not count again. An older one may have been undone since.
    read: u64,
    /// The last change that was heard of.
    last: u64,
    has_missed: bool,
}

impl Changes {
    /// The number of the last change that was heard of.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Nothing is there to hear of up to this change, although the last one that is there may be older.
    pub(super) fn catch_up(&mut self, last: u64) {
        self.last = self.last.max(last);
    }

    /// Whether a change was not heard of, if these are the changes of all keys.
    pub(super) fn has_missed(&self) -> bool {
        self.has_missed
    }

    /// Waits for a change and tells `hear` of it. Returns whether there may be another one.
    ///
    /// Dropping the future loses no change.
    pub(super) async fn next(&mut self, hear: &impl Fn(&str, Found)) -> bool {
        let Some(message) = self.pushed.next().await else {
            return false;
        };
        if let Some(revision) = sequence(&message).filter(|revision| *revision > self.read) {
            self.has_missed |= revision > self.last.saturating_add(1);
            self.last = self.last.max(revision);
            change(&message, revision, Duration::ZERO, hear);
        }
        true
    }
}

/// Tells `hear` what a bucket has. Returns the revision of the last change that it was told.
async fn read(
    client: &Client,
    store: &Store,
    (which, keys): (Bucket, &str),
    hear: &impl Fn(&str, Found),
) -> Result<u64, Fault> {
    let config = OrderedConfig {
        deliver_subject: client.new_inbox(),
        filter_subject: format!("{}{keys}", store.prefix),
        deliver_policy: DeliverPolicy::LastPerSubject,
        ..OrderedConfig::default()
    };
    let consumer = in_time(store.stream.create_consumer(config)).await?;
    let (name, mut last) = (consumer.cached_info().name.clone(), 0);
    let there = consumer.cached_info().num_pending.min(which.most());
    let mut messages = in_time(consumer.messages()).await?;
    // A value that is written anew while the others are read comes once more, and counts as one of them.
    let (mut known, hashes) = (HashSet::new(), RandomState::new());
    while (known.len() as u64) < there {
        let Ok(next) = timeout(DEADLINE, messages.next()).await else {
            // What is over meanwhile does not come.
            match in_time(store.stream.consumer_info(&name))
                .await?
                .num_pending
            {
                0 => break,
                _ => return Err(late()),
            }
        };
        let message = next.ok_or_else(lost)?.map_err(fault)?;
        let Ok(info) = message.info() else {
            continue;
        };
        known.insert(hashes.hash_one(message.subject.as_str()));
        last = info.stream_sequence;
        let age = since(info.published.unix_timestamp_nanos(), which);
        change(&message.message, last, age, hear);
        // What is over already is not waited for.
        if info.pending == 0 {
            break;
        }
    }
    drop(messages);
    // If this fails, NATS forgets the reader by itself, half a minute later.
    let _ = in_time(store.stream.delete_consumer(&name)).await;
    Ok(last)
}

/// How long ago something was created at this time since the Unix epoch.
fn since(created: i128, which: Bucket) -> Duration {
    let created = u64::try_from(created.max(0)).unwrap_or(u64::MAX);
    fleet::age(Duration::from_nanos(created), envelope::now(), which.age())
}

/// The revision of a change that is pushed. The last header is that of NATS. Whoever wrote the change may
/// have put others before it.
fn sequence(message: &Message) -> Option<u64> {
    let sequence = message.headers.as_ref()?.get_last("Nats-Sequence")?;
    sequence.as_str().parse().ok()
}

/// Tells `hear` of a change.
fn change(message: &Message, revision: u64, age: Duration, hear: &impl Fn(&str, Found)) {
    // What stands before the key has two parts, in the bucket and where changes are published.
    let Some(key) = message.subject.splitn(3, '.').nth(2) else {
        return;
    };
    let is_put = message.headers.as_ref().is_none_or(is_put);
    let found = Found {
        revision,
        value: is_put.then(|| message.payload.to_vec()),
        age,
    };
    hear(key, found);
}

/// Whether something was written, and not deleted.
fn is_put(headers: &HeaderMap) -> bool {
    let operation = headers.get("KV-Operation");
    operation.is_none_or(|operation| operation.as_str() == "PUT")
}
